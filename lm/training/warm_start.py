"""Warm start: a run starts from parameters of another run, selected and renamed by rules."""

import collections
import functools
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tokenizers
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from lm.components import Components
from lm.errors import UserError, first_line
from lm.optim.wrappers import parse_rules
from lm.parallel import multihost
from lm.text.tokenizers import vocabulary_size, word_ids
from lm.training.train_step import (
  abstract_params,
  init_some,
  init_train_state,
  start_train_state,
)
from lm.types import Array, Params, TrainState
from lm.workdir import experiment, files
from lm.workdir.checkpoints import Checkpoints, attempt, tree_difference
from lm.workdir.run_data import best_step


class Alignment(NamedTuple):
  """The common words of two vocabularies.

  Attributes:
    new: (N,) row ids of the common words in the new table.
    old: (N,) row ids of the same words in the old table.
    missing: words of the new vocabulary that the old one lacks, in order.
  """

  new: np.ndarray
  old: np.ndarray
  missing: tuple[str, ...]


def align(old_tokenizer: tokenizers.Tokenizer, new_tokenizer: tokenizers.Tokenizer) -> Alignment:
  """Returns the common words of an old vocabulary and a new one."""
  old, words = old_tokenizer.get_vocab(), word_ids(new_tokenizer)
  pairs = [(i, old[word]) for word, i in words.items() if word in old]
  new_N, old_N = np.array(pairs, np.int32).reshape(-1, 2).T
  return Alignment(new_N, old_N, tuple(word for word in words if word not in old))


def remap_rows(restored_VD: Array, initial_VD: Array, rows: Alignment) -> np.ndarray:
  """Returns an initialized table with the restored rows at the ids of their words.

  One factor scales all restored rows to the root mean square of the rows that they replace. The
  other parameters are initialized for vectors of that length; what was learned is the directions.
  """
  taken_ND = np.asarray(restored_VD, np.float32)[rows.old]
  table_VD = np.array(initial_VD)
  length = np.sqrt(np.mean(np.square(taken_ND, dtype=np.float64))) or 1.0
  wanted = np.sqrt(np.mean(np.square(table_VD[rows.new], dtype=np.float64)))
  table_VD[rows.new] = taken_ND * np.float32(wanted / length)
  return table_VD


_ROWS, _WORDS = '[rows]', '[words]'
# Paths of the parameters with a row for each token of the vocabulary.
_TABLE = re.compile(r'(embedding|head_bias|unembedding_bias)$|^bias$')


class Taken(NamedTuple):
  """The parameters that a run has restored from another run."""

  source: str  # workdir of the other run
  step: int  # of its checkpoint
  taken: int  # count of restored parameters, including those restored in part
  fresh: tuple[str, ...]  # paths of the parameters that keep their initial values
  unread: tuple[str, ...]  # paths of the other run's parameters that are not used
  words: Alignment | None = None  # if rows are restored by their words
  why: str = ''  # the reason for the step, if `warm_start.step` names none
  differences: tuple[str, ...] = ()  # of the model sections, which shapes do not show

  def line(self) -> str:
    """Returns a summary of one line."""
    kept = f', {len(self.fresh)} freshly initialized ({_some(self.fresh)})' if self.fresh else ''
    left = f'; {len(self.unread)} others are not used ({_some(self.unread)})' if self.unread else ''
    words = ''
    if self.words is not None:
      there, lacking = len(self.words.new), self.words.missing
      words = f'; {there:,} of {there + len(lacking):,} words are restored, '
      words += 'scaled to the length of initial vectors'
      words += f', {len(lacking):,} freshly initialized ({_some(lacking)})' if lacking else ''
    why = f' ({self.why})' if self.why else ''
    which = f'step {self.step} of {self.source}{why}'
    return f'{self.taken} parameters from {which}{kept}{left}{words}'

  def fields(self) -> dict[str, Any]:
    """Returns the fields of the event `warm_start`."""
    # The name is not 'step', because in events 'step' is a step of this run.
    where = {'source': self.source, 'source_step': self.step}
    counts = {'taken': self.taken, 'fresh': len(self.fresh), 'unread': len(self.unread)}
    if self.words is not None:
      counts |= {'words': len(self.words.new), 'missing_words': len(self.words.missing)}
    return where | counts


class _Origin(NamedTuple):
  """The source of a parameter."""

  path: str  # in the other run
  rows: str = ''  # '[rows]' for the first rows only, '[words]' for the rows of common words


def initial_state(
  config: ConfigDict,
  functions: Components,
  tokenizer: tokenizers.Tokenizer,
  abstract: TrainState,
) -> tuple[TrainState, Taken | None]:
  """Returns the first state of a run, and the parameters restored from another run; writes nothing.

  Args:
    config: of the run; `warm_start.workdir` names the other run, if there is one.
    functions: of the config.
    tokenizer: of the run.
    abstract: shapes, dtypes and shardings of the state.

  Raises:
    UserError: the other run is missing, or its parameters or tokens do not fit this run.
  """
  key, trees = jax.random.key(config.seed), functions.trees
  read = {} if trees is None else trees.read(tokenizer)
  initial, taken = functions.objective.initial, None
  wanted = abstract.params if trees is None else abstract_params(functions)
  if config.warm_start.workdir:
    draw = functools.partial(init_some, functions, key, wanted)
    params, taken = take(config.warm_start, draw, wanted, tokenizer)
    taken = taken._replace(differences=_differences(config.model, taken))
  elif initial is None:
    return init_train_state(functions, key, read)[0], None
  else:
    place = functools.partial(jax.device_put, may_alias=False)  # they are donated
    params = jax.tree.map(lambda x, like: place(x, like.sharding), initial(wanted), wanted)
  return start_train_state(functions, key, params, abstract, read), taken


# Keys of a model section that do not change what equal parameters compute.
_FREE = {
  'context', 'dropout', 'dtype', 'head', 'init_std', 'num_classes', 'pooling', 'remat_policy',
  'scan_unroll', 'vocab_multiple', 'vocab_size',
}  # fmt: skip


def _differences(model: ConfigDict, taken: Taken) -> tuple[str, ...]:
  """Returns a line for each function or number in which the layers of the other run differ."""
  file = pathlib.Path(taken.source) / 'config.json'
  other = experiment.from_json(file.read_text('utf-8')).get('model') or ConfigDict()
  if other.get('fn') != model.get('fn'):
    return ()
  lines = []
  for key in sorted({*model, *other} - _FREE):
    here, there = (section.get(key) for section in (model, other))
    kernels = key == 'attention_fn' and not any('cap=' in str(each) for each in (here, there))
    if here != there and not kernels:
      lines.append(f'model.{key} is {here!r} and {there!r} in the run of warm_start.workdir')
  return tuple(lines)


def frozen_trees(
  config: ConfigDict,
  functions: Components,
  tokenizer: tokenizers.Tokenizer,
  abstract: TrainState,
) -> Params:
  """Returns the frozen trees of a resumed run; arguments and errors are those of `initial_state`.

  The warm start is repeated for a view alone, which may keep initial parameters of the model.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.warm_start.workdir = config.warm_start.workdir if config.view else ''
  return initial_state(config, functions, tokenizer, abstract)[0].frozen


def check(section: ConfigDict) -> None:
  """Raises UserError if `warm_start` has a step or rules and no workdir."""
  if not section.workdir:
    for key in ('step', 'rules'):
      if section[key]:
        raise UserError(
          f'warm_start.{key}={section[key]!r}: warm_start.workdir, the run to take from, is empty'
        )


def take(
  section: ConfigDict,
  draw: Callable[[Collection[str]], Mapping[str, Array]],
  abstract: Params,
  tokenizer: tokenizers.Tokenizer,
) -> tuple[Params, Taken]:
  """Returns parameters restored from another run, and initialized ones where it has none.

  Parameters that are restored entirely are not initialized first: memory never holds two copies of
  all parameters.

  Args:
    section: `warm_start` of a config, which names the other run.
    draw: initializes the parameters of some paths from the seed.
    abstract: shapes, dtypes and shardings of all parameters.
    tokenizer: of the new run.

  Raises:
    UserError: as `initial_state`.
  """
  root = files.workdir(
    section.workdir, 'warm_start.workdir', multihost.process_index_and_count()[0]
  )
  if not (root / 'config.json').is_file():
    raise UserError(
      f'warm_start.workdir={section.workdir!r}: no run there (config.json is missing)'
    )
  wanted = flatten_dict(abstract, sep='/')
  checkpoints = Checkpoints(root)
  try:
    step, why = multihost.broadcast_from_primary(_step(checkpoints, section, root))
    try:
      shapes = checkpoints.shapes(step, 'params')
    except Exception as e:  # Orbax and its storage raise many types for damaged files
      raise _damaged(section, step, first_line(e)) from e
    origins = _origins(wanted, shapes, section, step)
    _check_tokens(origins, root, tokenizer)
    by_words = any(origin.rows == _WORDS for origin in origins.values())
    words = align(experiment.read_tokenizer(root), tokenizer) if by_words else None
    if words is not None and not len(words.new):
      raise UserError(
        f'warm_start.workdir={section.workdir!r}: the vocabularies have no word in common'
      )
    targets = _targets(origins, wanted, shapes)
    restored, reason = attempt(checkpoints.restore_subset, step, targets)
    if restored is None:
      raise _damaged(section, step, reason)
  finally:
    checkpoints.close()
  in_part = [path for path, origin in origins.items() if origin.rows]
  params = dict(draw([*(wanted.keys() - origins.keys()), *in_part]))
  uses = collections.Counter(origin.path for origin in origins.values())
  for path, origin in origins.items():
    read = restored[origin.path]
    uses[origin.path] -= 1
    if not origin.rows and not uses[origin.path]:
      params[path] = jax.device_put(restored.pop(origin.path), wanted[path].sharding)
    elif not origin.rows:  # a copy, because each parameter is donated
      params[path] = jax.device_put(read, wanted[path].sharding, may_alias=False)
    else:
      params[path] = _placed(read, params[path], origin.rows, words)
  kept = tuple(sorted(wanted.keys() - origins.keys()))
  unread = tuple(sorted(shapes.keys() - {origin.path for origin in origins.values()}))
  taken = Taken(str(root.resolve()), step, len(origins), kept, unread, words, why)
  return unflatten_dict(params, sep='/'), taken


def _damaged(section: ConfigDict, step: int, reason: str) -> UserError:
  return UserError(
    f'warm_start.workdir={section.workdir!r}: checkpoint {step} is damaged ({reason}); choose '
    'another one by warm_start.step'
  )


def _step(checkpoints: Checkpoints, section: ConfigDict, root: pathlib.Path) -> tuple[int, str]:
  """Returns the step to restore, and the reason if `warm_start.step` names none."""
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'warm_start.workdir={section.workdir!r}: no checkpoint there')
  if section.step is None:
    best, why = best_step(root, steps, _monitored(root, section))
    return (steps[-1] if best is None else best), why
  if section.step not in steps:
    known = ', '.join(map(str, steps))
    raise UserError(f'warm_start.step={section.step}: {section.workdir} has checkpoints at {known}')
  return section.step, ''


def _monitored(root: pathlib.Path, section: ConfigDict) -> str:
  """Returns the metric that selects the best checkpoint of the other run."""
  try:
    config = experiment.from_json((root / 'config.json').read_text('utf-8'))
    return config.checkpoint.monitor
  except (OSError, ValueError, AttributeError) as e:
    raise UserError(
      f'warm_start.workdir={section.workdir!r}: its config.json has no checkpoint.monitor '
      f'({first_line(e)}); choose a checkpoint by warm_start.step'
    ) from e


def _origins(
  wanted: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  section: ConfigDict,
  step: int,
) -> dict[str, _Origin]:
  """Returns the source of each parameter that does not keep its initial value."""
  rename = _renaming(section.rules, wanted)
  renamed = {path: rename(path) for path in wanted}
  origins = {path: origin for path, origin in renamed.items() if origin is not None}
  needed: dict[str, tuple[int, ...]] = {}
  for path, origin in origins.items():
    shape = tuple(wanted[path].shape)
    there = shapes.get(origin.path)
    if origin.rows and there is not None:
      shape = there[:1] + shape[1:]
    # Two parameters may take one source with different shapes. A shape that does not fit is then
    # kept, and the error shows it.
    if needed.get(origin.path) in (None, there):
      needed[origin.path] = shape
  difference = tree_difference(shapes, needed, report_extra=not section.rules)
  if difference:
    raise UserError(
      f'warm_start.workdir={section.workdir!r}: step {step} does not fit the model: {difference}; '
      'rename or leave out parameters by warm_start.rules'
    )
  if not origins:
    raise UserError(f'warm_start.rules={tuple(section.rules)!r} leave no parameter to restore')
  return origins


def _renaming(rules: Iterable[str], paths: Iterable[str]) -> Callable[[str], _Origin | None]:
  """Returns path -> source of the parameter, None where it keeps its initial value."""
  parsed = parse_rules(rules, 'warm_start.rules', paths)

  def rename(path: str) -> _Origin | None:
    for pattern, replacement in parsed:
      if found := pattern.search(path):
        if not replacement:
          return None
        try:
          middle = found.expand(replacement)
        except (re.error, IndexError) as e:
          raise UserError(
            f'warm_start.rules: {replacement!r} is not a valid replacement: {e}'
          ) from e
        there = path[: found.start()] + middle + path[found.end() :]
        rows = next((mark for mark in (_ROWS, _WORDS) if there.endswith(mark)), '')
        return _Origin(there.removesuffix(rows), rows)
    return _Origin(path)

  return rename


def _targets(
  origins: Mapping[str, _Origin],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the parameters to restore, by their path in the other run."""
  targets = {}
  for path, (there, rows) in origins.items():
    leaf = wanted[path]
    sharding = leaf.sharding
    if rows and isinstance(sharding, NamedSharding):
      # The count of restored rows may not divide over the mesh.
      sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[1:]))
    targets[there] = jax.ShapeDtypeStruct(shapes[there], leaf.dtype, sharding=sharding)
  return targets


def _placed(read: Array, initial: Array, rows: str, words: Alignment | None) -> Array:
  """Returns an initialized table with some of its rows replaced by restored ones."""
  if rows == _WORDS and words is not None:
    return jax.device_put(remap_rows(read, initial, words), initial.sharding)
  count = min(len(read), len(initial))
  fill = jax.jit(lambda x, y: y.at[:count].set(x[:count]), out_shardings=initial.sharding)
  return fill(read, initial)


def _check_tokens(
  origins: Mapping[str, _Origin], root: pathlib.Path, tokenizer: tokenizers.Tokenizer
) -> None:
  """Raises UserError if a restored embedding row would belong to another token in this run."""
  tables = [path for path, o in origins.items() if _TABLE.search(path) and o.rows != _WORDS]
  if not tables:
    return
  there = experiment.read_tokenizer(root)
  for i in range(min(vocabulary_size(there), vocabulary_size(tokenizer))):
    old, new = there.id_to_token(i), tokenizer.id_to_token(i)
    if old != new:
      raise UserError(
        f'warm_start.workdir={str(root)!r}: its token {i} is {old!r}, here it is {new!r}; set '
        f"data.tokenizer.fn='lm.text.tokenizers:existing' with its tokenizer.json, or do not "
        f"restore {tables[0]}: add the rule '^{tables[0]}$ ->'"
      )


def _some(names: tuple[str, ...], most: int = 3) -> str:
  return ', '.join(names[:most]) + (', ...' if len(names) > most else '')
