"""Checkpoints: Orbax underneath, a strict comparison before any restore, and what is kept.

A checkpoint of a step has two items: `params`, all that evaluation and generation read, and
`training`, the rest of the state.
"""

import pathlib
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from lm.errors import UserError, nearest
from lm.run.logging import Events, read_lines
from lm.run.record import more_is_better
from lm.run.step import TrainState
from lm.types import Params


class Checkpoints:
  """The checkpoints of a workdir. Saving is asynchronous; errors of a save surface as SaveError."""

  def __init__(self, workdir: pathlib.Path):
    # Which steps stay is decided here and not by Orbax, because a step is saved before
    # it is evaluated: a failing evaluation must not cost the steps that led to it.
    options = ocp.CheckpointManagerOptions(
      save_interval_steps=1, max_to_keep=None, create=False, enable_async_checkpointing=True
    )
    self.folder = (workdir / 'checkpoints').absolute()
    self.folder.mkdir(parents=True, exist_ok=True)
    # Named here, so that the shapes of a checkpoint can be read before anything is restored.
    handlers = {name: ocp.StandardCheckpointHandler() for name in ('params', 'training')}
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """Returns the steps that are saved and whole, in order."""
    return sorted(self._manager.all_steps())

  def save(self, step: int, state: TrainState) -> None:
    """Starts saving; what went wrong with the save before surfaces here as an OSError or alike."""
    self._manager.save(step, args=_split(state, ocp.args.StandardSave), force=True)

  def wait(self) -> None:
    """Waits until what was started is on disk; raises what went wrong with it."""
    self._manager.wait_until_finished()

  def prune(self, keep: Iterable[int]) -> None:
    """Deletes the checkpoints of all steps but these."""
    for step in set(self.steps()) - set(keep):
      self._manager.delete(step)

  def set_aside(self, step: int) -> None:
    """Moves a damaged checkpoint to workdir/damaged/, so that its step can be saved again."""
    target = self.folder.parent / 'damaged' / f'{step}-{int(time.time())}'
    target.parent.mkdir(exist_ok=True)
    (self.folder / str(step)).rename(target)
    self._manager.reload()

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """Returns the state of a step on the mesh of `abstract`.

    Raises:
      UserError: its tree is not that of `abstract`.
      Exception: whatever Orbax makes of damaged files.
    """
    self._check(step, abstract)
    restored = self._manager.restore(step, args=_split(abstract, ocp.args.StandardRestore))
    return TrainState(params=restored['params'], **restored['training'])

  def restore_params(self, step: int, abstract: Params) -> Params:
    """Returns the parameters alone."""
    difference = tree_difference(self._shapes(step, 'params'), _shapes(abstract))
    if difference:
      raise UserError(f'--step={step}: the checkpoint does not fit the config: {difference}')
    args = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
    return self._manager.restore(step, args=args)['params']

  def _check(self, step: int, abstract: TrainState) -> None:
    wanted = {'params': abstract.params, 'training': _training(abstract)}
    for item, tree in wanted.items():
      difference = tree_difference(self._shapes(step, item), _shapes(tree))
      if difference:
        raise UserError(f'checkpoint {step} of {self.folder} does not fit: {item}: {difference}')

  def _shapes(self, step: int, item: str) -> dict[str, tuple[int, ...]]:
    metadata = self._manager.item_metadata(step)
    tree = metadata[item]
    if tree is None:
      raise FileNotFoundError(f'checkpoint {step} of {self.folder} has no {item}')
    return _shapes(tree)

  def close(self) -> None:
    self._manager.close()


def restore_newest(
  checkpoints: Checkpoints, abstract: TrainState, events: Events
) -> TrainState | None:
  """Returns the newest intact state, or None where nothing was saved yet.

  Damaged checkpoints are told, moved to `damaged/` beside, and the one before is tried.

  Raises:
    UserError: there are checkpoints and none is intact, or one is of another shape.
  """
  steps = checkpoints.steps()
  for step in reversed(steps):
    try:
      state = checkpoints.restore(step, abstract)
      events.write('restore', step=step)
      return state
    except UserError:
      raise
    except Exception as e:  # whatever Orbax and its storage make of damaged files
      reason = first_line(e)
      events.write('error', step=step, error=f'damaged checkpoint: {reason}')
      print(f'warning: checkpoint {step} is damaged ({reason})', file=sys.stderr)
      checkpoints.set_aside(step)
  if steps:
    raise UserError(f'{checkpoints.folder}: no intact checkpoint; all are in damaged/ now')
  return None


def first_line(error: Exception) -> str:
  """Returns an error as one short line."""
  return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _training(state: TrainState) -> dict[str, Any]:
  names = ('step', 'skipped', 'streak', 'opt_state')
  return {name: getattr(state, name) for name in names}


def _split(state: TrainState, args) -> ocp.args.Composite:
  return ocp.args.Composite(params=args(state.params), training=args(_training(state)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_key(path): tuple(x.shape) for path, x in leaves if hasattr(x, 'shape')}


def _key(path) -> str:
  parts = []
  for k in path:
    name = getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', None)))
    parts.append(str(name))
  return '/'.join(parts)


def tree_difference(
  saved: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], most: int = 4
) -> str:
  """Returns one line on how two trees of shapes differ, empty when they do not.

  Missing is what the config wants and the checkpoint lacks; extra is the reverse.
  """
  rows = []
  for name in sorted(wanted.keys() - saved.keys()):
    rows.append(f'missing {name}{nearest(name, saved.keys() - wanted.keys())}')
  rows += [f'extra {name}' for name in sorted(saved.keys() - wanted.keys())]
  for name in sorted(wanted.keys() & saved.keys()):
    if saved[name] != wanted[name]:
      rows.append(f'{name} is {saved[name]} and should be {wanted[name]}')
  more = f'; and {len(rows) - most} more' if len(rows) > most else ''
  return '; '.join(rows[:most]) + more


def badness(workdir: pathlib.Path, metric: str) -> dict[int, float]:
  """Returns a metric by step from metrics.jsonl, with its sign such that the lowest is the best."""
  sign = -1 if more_is_better(metric) else 1
  rows = read_lines(workdir / 'metrics.jsonl')
  return {row['step']: sign * float(row[metric]) for row in rows if metric in row}


def kept_steps(steps: Iterable[int], scores: Mapping[int, float], last: int, best: int) -> set[int]:
  """Returns the `last` newest steps and the `best` ones of lowest score (the older wins a tie)."""
  steps = sorted(steps)
  newest = set(steps[-last:]) if last else set()
  scored = sorted((scores[s], s) for s in steps if s in scores and scores[s] == scores[s])
  return newest | {s for _, s in scored[:best]}
