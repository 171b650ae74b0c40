"""Where a bad streak is seen, and what its evidence holds: metrics and batch of one step."""

import types

import jax.numpy as jnp
import pytest

from lm.config.base import base
from lm.training import trainer
from lm.training.callbacks import Finished
from lm.types import Objective


def _values(step, streak):
  loss = float('nan') if streak else 1.0
  return {'loss': loss, 'gradient_norm': float(step), 'streak': float(streak), 'skipped': 0.0}


def _course(config, seen, monkeypatch):
  def write(workdir, step, values, functions, seed, state, batch):
    seen.update(step=step, values=values, batch=batch)
    return 'FILE'

  monkeypatch.setattr(trainer.diagnostics, 'write_nonfinite', write)
  functions = types.SimpleNamespace(objective=Objective(None, lambda batch: {}))
  events = types.SimpleNamespace(write=lambda *args, **fields: None)
  return trainer.Trainer(config, None, functions, None, (), None, None, events, None, None)


@pytest.mark.parametrize(
  ('streaks', 'stops_at'),
  [
    ((1, 2, 3, 0), 13),  # it ends inside the dispatch
    ((3, 4, 5, 6), 11),  # it began in the dispatch before
    ((0, 1, 2, 3), 14),
    ((2, 0, 1, 2), None),
  ],
)
def test_a_streak_is_seen_wherever_in_a_dispatch_it_ends(streaks, stops_at, monkeypatch):
  config, seen = base(), {}
  config.max_consecutive_nonfinite = 3
  finished = Finished(range(10, 14), [_values(11 + i, s) for i, s in enumerate(streaks)])
  batches = {'x': jnp.arange(11, 15)[:, None]}
  check = _course(config, seen, monkeypatch)._check
  if stops_at is None:
    check(finished, None, batches)
    assert not seen
    return
  with pytest.raises(FloatingPointError, match=f'up to step {stops_at}; see FILE'):
    check(finished, None, batches)
  assert seen['step'] == seen['values']['gradient_norm'] == seen['batch']['x'][0] == stops_at
