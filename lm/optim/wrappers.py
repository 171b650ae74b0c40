"""Wrappers of Optax transformations, and masks by regular expression on parameter paths."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm.errors import UserError
from lm.types import Array, Params


def standard_chain(
  direction: optax.GradientTransformation,
  rate: Callable[[Array], Array],
  weight_decay: float,
  weight_decay_mask: str,
  clip_norm: float,
) -> optax.GradientTransformationExtraArgs:
  """Returns the chain of every optimizer: clipping, direction, weight decay, learning rate.

  Args:
    direction: the update before the learning rate, such as `optax.scale_by_adam()`.
    rate: step -> learning rate.
    weight_decay: coefficient of the decoupled decay, scaled by the rate.
    weight_decay_mask: regular expression on parameter paths; the parameters it finds are decayed.
    clip_norm: largest global norm of the gradient; inf clips nothing.
  """
  chain = optax.chain(
    clip_by_norm(clip_norm),
    direction,
    optax.add_decayed_weights(
      weight_decay, mask=lambda params: path_mask(params, weight_decay_mask, 'weight_decay_mask')
    ),
    optax.scale_by_learning_rate(rate),
  )
  return optax.with_extra_args_support(chain)


def require_found(
  chain: optax.GradientTransformationExtraArgs, **patterns: str
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer whose `init` raises UserError where a pattern is in no parameter path.

  It goes around `freeze`, whose inner chain never sees frozen parameters.
  """

  def init(params: Params):
    for key, pattern in patterns.items():
      check_found(path_mask(params, pattern, key), pattern, key)
    return chain.init(params)

  return optax.GradientTransformationExtraArgs(init, chain.update)


def freeze(
  chain: optax.GradientTransformationExtraArgs, pattern: str | None, until: int | None = None
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that leaves some parameters as they are, for some steps or for good.

  Args:
    chain: the optimizer of all parameters.
    pattern: regular expression on parameter paths; None freezes nothing.
    until: the number of frozen steps; None for good. A frozen parameter has moments until then, but
      neither moves nor counts in the norm that is clipped.

  Raises:
    UserError: `until` is wrong; or, at `init`, the pattern is found in no parameter path.
  """
  if pattern is None:
    if until is not None:
      raise UserError(f'optim.freeze_until={until}: optim.freeze says what, and it is empty')
    return chain
  return _frozen(chain, pattern) if until is None else _frozen_until(chain, pattern, until)


def _frozen(
  chain: optax.GradientTransformation, pattern: str
) -> optax.GradientTransformationExtraArgs:
  def labels(params: Params) -> Params:
    frozen = path_mask(params, pattern, 'freeze')
    check_found(frozen, pattern, 'freeze')
    return jax.tree.map(lambda f: 'frozen' if f else 'trained', frozen)

  parts = optax.partition({'trained': chain, 'frozen': optax.set_to_zero()}, labels)

  def update(grads, state, params=None, **_):
    # Without the norm of all gradients: what is frozen must not clip what is trained.
    return parts.update(grads, state, params)

  return optax.GradientTransformationExtraArgs(parts.init, update)


class UnfreezeState(NamedTuple):
  """The state of an optimizer that does not train everything from the start."""

  updates: Array  # () int32, how many were made
  chain: Any  # the state of the optimizer itself


def _frozen_until(
  chain: optax.GradientTransformationExtraArgs, pattern: str, until: int
) -> optax.GradientTransformationExtraArgs:
  if until < 1:
    raise UserError(f'optim.freeze_until={until} is not a positive number of steps')

  def init(params: Params) -> UnfreezeState:
    check_found(path_mask(params, pattern, 'freeze'), pattern, 'freeze')
    return UnfreezeState(jnp.zeros((), jnp.int32), chain.init(params))

  def update(grads, state, params=None, **_):
    def without_frozen(tree: Params) -> Params:
      thawed = state.updates >= until
      return jax.tree.map(
        lambda f, x: jnp.where(thawed, x, jnp.zeros_like(x)) if f else x,
        path_mask(tree, pattern, 'freeze'),
        tree,
      )

    # The moments see every gradient: Adam's, begun at the thaw without the correction for a first
    # step, would make steps several times too long.
    norm = optax.tree.norm(without_frozen(grads))
    updates, inner = chain.update(grads, state.chain, params, gradient_norm=norm)
    return without_frozen(updates), UnfreezeState(state.updates + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def scale_lr(
  chain: optax.GradientTransformationExtraArgs,
  layer_decay: float,
  rates: Iterable[str],
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer whose learning rate is multiplied by `multipliers`, leaf by leaf.

  Raises:
    UserError: `layer_decay` is no decay; or, at `init`, a rule is malformed or finds nothing.
  """
  if not 0 < layer_decay <= 1:
    raise UserError(f'optim.layer_decay={layer_decay} is not above 0 and at most 1')
  rates = tuple(rates)

  def init(params: Params):
    multipliers(params, layer_decay, rates)  # raises what is wrong with them
    return chain.init(params)

  def update(grads, state, params=None, **extra):
    updates, state = chain.update(grads, state, params, **extra)
    if layer_decay != 1 or rates:
      by = multipliers(updates, layer_decay, rates)
      updates = jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, by)
    return updates, state

  return optax.GradientTransformationExtraArgs(init, update)


def clip_by_norm(largest: float) -> optax.GradientTransformationExtraArgs:
  """Returns optax.clip_by_global_norm as a multiplication by one scalar.

  Optax chooses leaf by leaf, which keeps XLA from fusing it with what follows: at 124M parameters
  on a CPU that costs as much as the rest of AdamW. `update` takes the global norm of the
  gradients as `gradient_norm` where the caller has it.
  """

  def update(grads, state, params=None, *, gradient_norm=None, **_):
    del params
    norm = optax.tree.norm(grads) if gradient_norm is None else gradient_norm
    scale = jnp.where(norm < largest, 1.0, largest / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def path_mask(params: Params, pattern: str, key: str) -> Params:
  """Returns a tree of booleans: whether `pattern` is found in each parameter's path.

  Raises:
    UserError: the pattern is no regular expression; `key` is the leaf of `optim` that holds it.
  """
  regex = _compiled(pattern, f'optim.{key}')
  return jax.tree_util.tree_map_with_path(
    lambda path, _: regex.search(path_name(path)) is not None, params
  )


def parse_rules(
  rules: Iterable[str], key: str, names: Iterable[str]
) -> list[tuple[re.Pattern[str], str]]:
  """Returns the (PATTERN, VALUE) pairs of rules on parameter paths of the form 'PATTERN -> VALUE'.

  Args:
    rules: the texts; a value may be empty.
    key: the config key that holds them.
    names: the paths of all parameters; each pattern is to be found in one of them.

  Raises:
    UserError: a rule is malformed, its pattern is no regular expression or is found nowhere.
  """
  names, parsed = list(names), []
  for i, rule in enumerate(rules):
    pattern, arrow, value = (part.strip() for part in rule.partition('->'))
    if not arrow or not pattern:
      raise UserError(f"{key}[{i}]={rule!r} is not written 'PATTERN -> VALUE'")
    regex = _compiled(pattern, f'{key}[{i}]')
    if not any(map(regex.search, names)):
      raise UserError(f'{key}[{i}]={rule!r} is found in no parameter path')
    parsed.append((regex, value))
  return parsed


def _compiled(pattern: str, key: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UserError(f'{key}={pattern!r} is no regular expression: {e}') from e


def check_found(found: Params, pattern: str, key: str) -> None:
  """Raises UserError when `find` has found nothing."""
  if not any(jax.tree.leaves(found)):
    raise UserError(f'optim.{key}={pattern!r} is found in no parameter path')


def path_name(path) -> str:
  """Returns a tree path as 'decoder/layers/layer_0/mlp/up/kernel'."""
  # Boxes of partitioning metadata add an attribute to the path that is no part of the name.
  return '/'.join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


_LAYER = re.compile(r'^(.*)layers/layer_(\d+)/')
_TABLE = re.compile(r'(^|/)((source_)?embedding|position)$')


def stacks(params: Params) -> dict[str, dict[int, int]]:
  """Returns, by stack, how often each of its layers repeats along axis 0 of its parameters.

  A stack is known by the path before 'layers/layer_0/'. It repeats 0 times where its parameters
  have no axis of layers: those of a recurrent network differ in their first axis.
  """
  found: dict[str, dict[int, set[int]]] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if match := _LAYER.match(path_name(path)):
      found.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(x.shape[0])
  return {
    stack: {
      layer: next(iter(sizes)) if len(set.union(*layers.values())) == 1 else 0
      for layer, sizes in layers.items()
    }
    for stack, layers in found.items()
  }


def is_stacked(name: str, found: dict[str, dict[int, int]]) -> bool:
  """Returns whether axis 0 of the parameter of this path is that of layers."""
  match = _LAYER.match(name)
  return match is not None and found[match[1]][int(match[2])] > 0


def multipliers(params: Params, layer_decay: float, rates: Iterable[str] = ()) -> Params:
  """Returns what the learning rate of each parameter is multiplied by, decay included.

  Layer l = 0 ... N - 1 of a stack has layer_decay^(N - l), tables of embeddings and of learned
  positions have layer_decay^(N + 1) of the deepest stack, and all else (final norms, heads) has 1
  (Clark et al. 2020, ELECTRA, appendix B). A tied embedding counts as an embedding.

  Args:
    params: arrays or their shapes.
    layer_decay: 1 for the same rate everywhere.
    rates: 'PATTERN -> MULTIPLIER' rules; the first one whose regular expression is found in a
      parameter's path counts, on top of the layer's.

  Returns:
    A tree of float32: scalars, and for stacked parameters (N, 1, ...), one for each layer. Layers
    of a recurrent network, which are not stacked, have a scalar each.

  Raises:
    UserError: a rule is malformed or found in no path, or no layers are there to decay.
  """
  named = [(path_name(path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]
  rules = parse_rules(rates, 'optim.lr_multipliers', [name for name, _ in named])
  factors = [(pattern, _multiplier(text)) for pattern, text in rules]
  known = stacks(params)
  depths = {
    stack: sum(max(1, times) for times in repeats.values()) for stack, repeats in known.items()
  }
  if layer_decay != 1 and not known:
    raise UserError(f'optim.layer_decay={layer_decay}: the model has no stacked layers')

  def multiplier(path, x) -> np.ndarray:
    name = path_name(path)
    factor = next((value for pattern, value in factors if pattern.search(name)), 1.0)
    below = np.array(0)  # how many layers lower than the top of the model
    if found := _LAYER.match(name):
      below = np.array(depths[found[1]] - int(found[2]))
      if is_stacked(name, known):
        layer_N = len(known[found[1]]) * np.arange(x.shape[0])
        below = (below - layer_N).reshape(-1, *[1] * (x.ndim - 1))
    elif _TABLE.search(name):
      below = np.array(max(depths.values(), default=0) + 1)
    return np.asarray(factor * layer_decay**below, np.float32)

  return jax.tree_util.tree_map_with_path(multiplier, params)


def _multiplier(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise UserError(
      f"optim.lr_multipliers: {text!r} is no multiplier; a rule is such as 'head/ -> 10'"
    )
  return value
