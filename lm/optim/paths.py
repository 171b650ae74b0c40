"""What optimizers choose by regular expressions on parameter paths: masks, and rates."""

import math
import re
from collections.abc import Iterable

import jax
import numpy as np

from lm.errors import UserError
from lm.types import Params


def find(params: Params, pattern: str, key: str) -> Params:
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
  """Returns the (PATTERN, VALUE) pairs of rules on parameter paths written 'PATTERN -> VALUE'.

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
  rules = parse_rules(rates, 'optim.rates', [name for name, _ in named])
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
    raise UserError(f"optim.rates: {text!r} is no multiplier; a rule is such as 'head/ -> 10'")
  return value
