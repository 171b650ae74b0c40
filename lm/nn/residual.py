"""The order of a block: how sublayers, norms and the residual stream are put together.

An order is a pure function `(x, sublayers, norm) -> x`, where `sublayers` are (name, function)
pairs and `norm(name)` returns the norm of that name (its parameters are made on first use).
"""

from collections.abc import Callable, Sequence

from lm.types import Array

Sublayers = Sequence[tuple[str, Callable[[Array], Array]]]
Norm = Callable[[str], Callable[[Array], Array]]


def pre(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + f(norm(x)), the order of GPT-2 and Llama (Xiong et al. 2020)."""
  for name, f in sublayers:
    x = x + f(norm(f'{name}_norm')(x))
  return x


def post(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """norm(x + f(x)), the order of the first Transformer and BERT (Vaswani et al. 2017)."""
  for name, f in sublayers:
    x = norm(f'{name}_norm')(x + f(x))
  return x


def sandwich(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + norm(f(norm(x))), the order of Gemma 2 and CogView (Ding et al. 2021)."""
  for name, f in sublayers:
    x = x + norm(f'{name}_post_norm')(f(norm(f'{name}_norm')(x)))
  return x


def parallel(x: Array, sublayers: Sublayers, norm: Norm) -> Array:
  """x + sum of f(norm(x)) with one norm for all, the order of GPT-J and PaLM."""
  normed = norm('norm')(x)
  return x + sum((f(normed) for _, f in sublayers[1:]), sublayers[0][1](normed))
