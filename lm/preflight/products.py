"""How many FLOPs the products of a traced function take: its matrix products and convolutions."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

Flops = dict[int, float]  # by the bytes of the numbers that are multiplied


def products(function: Callable[..., Any], *arguments: Any) -> Flops:
  """Returns the FLOPs of the products of a function, of all devices together.

  Loops count as often as they turn, but a `while` once, for nobody knows; of the branches of a
  condition that counts which does the most.

  Args:
    function: that JAX can trace.
    arguments: abstract or real arrays, and trees of them.
  """
  return _products(jax.make_jaxpr(function)(*arguments).jaxpr)


def _products(jaxpr: Jaxpr) -> Flops:
  sums: Flops = defaultdict(float)
  for equation in jaxpr.eqns:
    found = [_products(inner) for inner in _inside(equation)]
    if equation.primitive.name == 'cond':
      found = [max(found, key=lambda flops: sum(flops.values()))]
    for flops in found:
      for size, value in flops.items():
        sums[size] += value * _times(equation)
    if own := _own(equation):
      sums[max(x.aval.dtype.itemsize for x in equation.invars)] += own
  return dict(sums)


def _times(equation: JaxprEqn) -> int:
  """Returns how often what is inside an equation is done, on all devices together."""
  if equation.primitive.name == 'scan':
    return equation.params['length']
  if equation.primitive.name == 'shard_map':  # what is inside is of one device
    shape = equation.params['mesh'].shape
    return math.prod(shape[name] for name in equation.params['newly_manual_axes'])
  return 1


def _own(equation: JaxprEqn) -> float:
  """Returns the FLOPs of an equation itself: an addition for each multiplication."""
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (along, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in along)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval
    outputs = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
    return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
  return 0.0


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
  for value in equation.params.values():
    for one in value if isinstance(value, tuple | list) else (value,):
      if isinstance(one, ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, Jaxpr):
        yield one
