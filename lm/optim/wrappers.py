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


def wrap_direction(
  direction: optax.GradientTransformation,
  rate: Callable[[Array], Array],
  weight_decay: float,
  weight_decay_mask: str,
  clip_norm: float,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  lr_multipliers: Iterable[str] = (),
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer: clipping, a direction, weight decay, learning rates and freezing.

  Args:
    direction: the update before the learning rate, such as `optax.scale_by_adam()`.
    rate: step -> learning rate.
    weight_decay: coefficient of the decoupled decay, scaled by the rate.
    weight_decay_mask: regular expression on the paths of the parameters that are decayed.
    clip_norm: largest global norm of the gradient; inf clips nothing.
    freeze: regular expression on the paths of frozen parameters; None freezes nothing.
    freeze_until: the step at which they start to train; None for never.
    layer_decay: the rate of a layer divided by that of the layer above, see `multipliers`.
    lr_multipliers: 'PATTERN -> MULTIPLIER' rules of the rate, see `multipliers`.

  Raises:
    UserError: a value is out of its range; or, at `init`, a pattern matches no parameter path.
  """
  decay = _decay(weight_decay, weight_decay_mask)
  chain = optax.chain(clip_by_norm(clip_norm), direction, decay, optax.scale_by_learning_rate(rate))
  return _wrapped(chain, weight_decay_mask, freeze, freeze_until, layer_decay, lr_multipliers)


def wrap_optimizer(
  optimizer: optax.GradientTransformation,
  rate: Callable[[Array], Array],
  weight_decay: float,
  weight_decay_mask: str,
  clip_norm: float,
  freeze: str | None = None,
  freeze_until: int | None = None,
  layer_decay: float = 1.0,
  lr_multipliers: Iterable[str] = (),
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that scales by `rate` itself, with what `wrap_direction` adds to others.

  Arguments and errors are those of `wrap_direction`. Without weight decay, a learning-rate
  multiplier or a frozen parameter, the updates are those of `optimizer` for clipped gradients.
  """
  decayed = optax.chain(_decay(weight_decay, weight_decay_mask), optax.scale_by_learning_rate(rate))

  def update(updates, state, params=None):
    # Added to the updates, which the rate has scaled already.
    decay, state = decayed.update(jax.tree.map(jnp.zeros_like, updates), state, params)
    return jax.tree.map(jnp.add, updates, decay), state

  after = (optax.GradientTransformation(decayed.init, update),) if weight_decay else ()
  chain = optax.chain(clip_by_norm(clip_norm), optimizer, *after)
  return _wrapped(chain, weight_decay_mask, freeze, freeze_until, layer_decay, lr_multipliers)


def _decay(weight_decay: float, pattern: str) -> optax.GradientTransformation:
  return optax.add_decayed_weights(
    weight_decay, mask=lambda params: path_mask(params, pattern, 'weight_decay_mask')
  )


def _wrapped(
  chain: optax.GradientTransformation,
  weight_decay_mask: str,
  freeze: str | None,
  freeze_until: int | None,
  layer_decay: float,
  lr_multipliers: Iterable[str],
) -> optax.GradientTransformationExtraArgs:
  trained = freeze_params(optax.with_extra_args_support(chain), freeze, freeze_until)
  scaled = scale_lr(trained, layer_decay, lr_multipliers)

  def init(params: Params):
    # Checked here, because the inner chain never sees frozen parameters.
    path_mask(params, weight_decay_mask, 'weight_decay_mask', required=True)
    return scaled.init(params)

  return optax.GradientTransformationExtraArgs(init, scaled.update)


def freeze_params(
  chain: optax.GradientTransformationExtraArgs, pattern: str | None, until: int | None = None
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that leaves some parameters as they are, for some steps or for good.

  Args:
    chain: the optimizer of all parameters.
    pattern: regular expression on parameter paths; None freezes nothing.
    until: the count of frozen steps; None for good. Until then a frozen parameter has moments, but
      does not move, and its gradient does not count in the norm that is clipped.

  Raises:
    UserError: `until` is not positive, or has no pattern; or, at `init`, the pattern matches no
      parameter path.
  """
  if pattern is None and until is not None:
    raise UserError(f'optim.freeze_until={until} needs a pattern in optim.freeze, which is empty')
  if pattern is None:
    return chain
  return _frozen(chain, pattern) if until is None else _frozen_until(chain, pattern, until)


def _frozen(
  chain: optax.GradientTransformation, pattern: str
) -> optax.GradientTransformationExtraArgs:
  def labels(params: Params) -> Params:
    mask = path_mask(params, pattern, 'freeze', required=True)
    return jax.tree.map(lambda frozen: 'frozen' if frozen else 'trained', mask)

  parts = optax.partition({'trained': chain, 'frozen': optax.set_to_zero()}, labels)

  def update(grads, state, params=None, *, gradient_norm=None, **extra):
    # `gradient_norm` is not passed on, because gradients of frozen parameters must not count in the
    # norm that clips the others.
    return parts.update(grads, state, params, **extra)

  return optax.GradientTransformationExtraArgs(parts.init, update)


class UnfreezeState(NamedTuple):
  """The state of an optimizer that freezes some parameters for some steps."""

  updates: Array  # () int32, the count of past updates
  chain: Any  # the state of the optimizer itself


def _frozen_until(
  chain: optax.GradientTransformationExtraArgs, pattern: str, until: int
) -> optax.GradientTransformationExtraArgs:
  if until < 1:
    raise UserError(f'optim.freeze_until={until} is not a positive number of steps')

  def init(params: Params) -> UnfreezeState:
    path_mask(params, pattern, 'freeze', required=True)
    return UnfreezeState(jnp.zeros((), jnp.int32), chain.init(params))

  def update(grads, state, params=None, *, gradient_norm=None, **extra):
    def without_frozen(tree: Params) -> Params:
      unfrozen = state.updates >= until
      return jax.tree.map(
        lambda frozen, x: jnp.where(unfrozen, x, jnp.zeros_like(x)) if frozen else x,
        path_mask(tree, pattern, 'freeze'),
        tree,
      )

    # The moments see every gradient. Moments of Adam that started when the parameters unfreeze
    # would lack the bias correction, and the first updates would be several times too large.
    norm = optax.tree.norm(without_frozen(grads))
    updates, inner = chain.update(grads, state.chain, params, gradient_norm=norm, **extra)
    return without_frozen(updates), UnfreezeState(state.updates + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def scale_lr(
  chain: optax.GradientTransformationExtraArgs,
  layer_decay: float,
  rates: Iterable[str],
) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer whose learning rate is multiplied by `multipliers`, leaf by leaf.

  Raises:
    UserError: `layer_decay` is out of range; or, at `init`, a rule is malformed or matches nothing.
  """
  if not 0 < layer_decay <= 1:
    raise UserError(f'optim.layer_decay={layer_decay} is outside (0, 1]')
  rates = tuple(rates)

  def init(params: Params):
    multipliers(params, layer_decay, rates)  # raises UserError for wrong rules
    return chain.init(params)

  def update(grads, state, params=None, **extra):
    updates, state = chain.update(grads, state, params, **extra)
    if layer_decay != 1 or rates:
      factors = multipliers(updates, layer_decay, rates)
      updates = jax.tree.map(lambda u, m: u * jnp.asarray(m, u.dtype), updates, factors)
    return updates, state

  return optax.GradientTransformationExtraArgs(init, update)


def clip_by_norm(largest: float) -> optax.GradientTransformationExtraArgs:
  """Returns optax.clip_by_global_norm as a multiplication by one scalar.

  Optax selects clipped or unchanged gradients leaf by leaf, which keeps XLA from fusing the
  clipping with later operations. For 124M parameters on a CPU, the unfused clipping takes as much
  time as the rest of AdamW. `update` accepts the global norm of the gradients as `gradient_norm`,
  if the caller has it.
  """

  def update(grads, state, params=None, *, gradient_norm=None, **_):
    norm = optax.tree.norm(grads) if gradient_norm is None else gradient_norm
    scale = jnp.where(norm < largest, 1.0, largest / norm)
    return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def path_mask(params: Params, pattern: str, key: str, required: bool = False) -> Params:
  """Returns a tree of booleans: whether `pattern` matches a part of each parameter's path.

  Args:
    params: the tree of parameters.
    pattern: regular expression.
    key: the key of `optim` that holds it.
    required: whether a path must match.

  Raises:
    UserError: the pattern is no regular expression, or matches no path although required.
  """
  regex = compile_pattern(pattern, f'optim.{key}')
  mask = jax.tree_util.tree_map_with_path(
    lambda path, _: regex.search(path_name(path)) is not None, params
  )
  if required and not any(jax.tree.leaves(mask)):
    raise UserError(f'optim.{key}={pattern!r} is found in no parameter path')
  return mask


def parse_rules(
  rules: Iterable[str], key: str, names: Iterable[str]
) -> list[tuple[re.Pattern[str], str]]:
  """Returns the (PATTERN, VALUE) pairs of 'PATTERN -> VALUE' rules on parameter paths.

  Args:
    rules: the texts; a value may be empty.
    key: the config key that holds them.
    names: the paths of all parameters; each pattern must match a part of one.

  Raises:
    UserError: a rule is malformed, or its pattern is no regular expression or matches no path.
  """
  names, parsed = list(names), []
  for i, rule in enumerate(rules):
    pattern, arrow, value = (part.strip() for part in rule.partition('->'))
    if not arrow or not pattern:
      raise UserError(f"{key}[{i}]={rule!r} is not of the form 'PATTERN -> VALUE'")
    regex = compile_pattern(pattern, f'{key}[{i}]')
    if not any(map(regex.search, names)):
      raise UserError(f'{key}[{i}]={rule!r} is found in no parameter path')
    parsed.append((regex, value))
  return parsed


def compile_pattern(pattern: str, key: str) -> re.Pattern[str]:
  """Returns a compiled regular expression; raises UserError, which names `key`, for a wrong one."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise UserError(f'{key}={pattern!r} is no regular expression: {e}') from e


def path_name(path) -> str:
  """Returns the name of a tree path, such as 'decoder/layers/layer_0/mlp/up/kernel'."""
  # Boxes of partitioning metadata add an attribute to the path, which is not part of the name.
  return '/'.join(str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey))


_LAYER = re.compile(r'^(.*)layers/layer_(\d+)/')
_TABLE = re.compile(r'(^|/)((source_)?embedding|position)$')


def stacks(params: Params) -> dict[str, dict[int, int]]:
  """Returns, for each stack, the count of times that each layer repeats along axis 0.

  The key of a stack is the path before 'layers/layer_0/'. The number is 0 where axis 0 is not an
  axis of layers. This is so if parameters of a stack differ in the size of axis 0, as in a
  recurrent network.
  """
  sizes: dict[str, dict[int, set[int]]] = {}
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    if match := _LAYER.match(path_name(path)):
      sizes.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(x.shape[0])
  return {
    stack: {
      layer: next(iter(own)) if len(set.union(*layers.values())) == 1 else 0
      for layer, own in layers.items()
    }
    for stack, layers in sizes.items()
  }


def is_stacked(name: str, repeats: dict[str, dict[int, int]]) -> bool:
  """Returns whether axis 0 of a parameter is an axis of layers.

  Args:
    name: the path of the parameter.
    repeats: the result of `stacks`.
  """
  match = _LAYER.match(name)
  return match is not None and repeats[match[1]][int(match[2])] > 0


def multipliers(params: Params, layer_decay: float, rates: Iterable[str] = ()) -> Params:
  """Returns the factor of the learning rate, and of the weight decay, of each parameter.

  Layer l = 0 ... N - 1 of a stack has layer_decay^(N - l). Tables of embeddings and of learned
  positions have layer_decay^(N + 1), with the N of the deepest stack. All others (final norms,
  heads) have 1 (Clark et al. 2020, ELECTRA, appendix B). A tied embedding counts as an embedding.

  Args:
    params: arrays or their shapes.
    layer_decay: 1 for the same rate everywhere.
    rates: 'PATTERN -> MULTIPLIER' rules. A parameter takes the first rule whose regular expression
      matches a part of its path. MULTIPLIER multiplies the factor of the layer.

  Returns:
    A tree of float32: scalars, and for stacked parameters (N, 1, ...), one for each layer. Layers
    of a recurrent network, which are not stacked, have a scalar each.

  Raises:
    UserError: a rule is malformed or matches no path, or there is no layer to decay.
  """
  names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  rules = parse_rules(rates, 'optim.lr_multipliers', names)
  factors = [(pattern, _multiplier(text)) for pattern, text in rules]
  known = stacks(params)
  if layer_decay != 1 and not known:
    raise UserError(f'optim.layer_decay={layer_decay}: the model has no layers to decay')
  depths = {stack: sum(max(1, n) for n in repeats.values()) for stack, repeats in known.items()}

  def multiplier(path, x) -> np.ndarray:
    name = path_name(path)
    factor = next((value for pattern, value in factors if pattern.search(name)), 1.0)
    below = np.array(0)  # the number of layers below the top of the model
    if match := _LAYER.match(name):
      below = np.array(depths[match[1]] - int(match[2]))
      if is_stacked(name, known):
        layer_N = len(known[match[1]]) * np.arange(x.shape[0])
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
      f"optim.lr_multipliers: {text!r} is no multiplier; an example of a rule is 'head/ -> 10'"
    )
  return value
