"""Fixtures of the tests of models: the influence of inputs on outputs, and unpacked documents."""

import functools

import jax
import numpy as np
import pytest

from lm.nn.hooks import with_hooks


@pytest.fixture(scope='session')
def params_of(params_of):
  """Initializes parameters, once per model and seed."""
  return functools.cache(params_of)


@pytest.fixture(scope='session')
def movable(params_of):
  """Returns the jitted (batch, moves) -> hidden, with `moves` added at a hook point."""

  @functools.cache
  def of(model, site):
    apply, params = with_hooks(model), params_of(model)

    @jax.jit
    def hidden(params, batch, moves):
      return apply(params, batch, edits={site: lambda x: x + moves})[0].hidden

    return lambda batch, moves: np.asarray(hidden(params, batch, moves))

  return of


@pytest.fixture(scope='session')
def influence(movable):
  """Returns which outputs of a batch of one row depend on which inputs of a hook point."""

  def of(model, batch, site):
    """Returns (T, S) booleans: whether output t depends on the embedding of token s."""
    hidden = movable(model, site)
    S = batch['source' if 'source' in batch and site.startswith('encoder') else 'inputs'].shape[1]
    # S copies of the row; copy s has a change at token s.
    rows = {name: np.repeat(np.asarray(x), S, axis=0) for name, x in batch.items()}
    step_D = np.random.default_rng(5).normal(0, 1, model.d_model)
    moves_SSD = np.asarray(np.eye(S)[:, :, None] * step_D, np.float32)
    changes_STD = hidden(rows, moves_SSD) != hidden(rows, np.zeros_like(moves_SSD))
    return changes_STD.any(-1).T

  return of


@pytest.fixture(scope='session')
def alone():
  """Returns a function that unpacks one document of each row of a batch."""

  def of(batch, document):
    """Returns that document of each row as segment 1, from position 0, and padding."""
    segments = {'': np.asarray(batch['segments'])}
    if 'source' in batch:
      segments['source'] = np.asarray(batch['source_segments'])
    rows = {}
    for name, values in batch.items():
      packed = segments['source' if name.startswith('source') else '']
      rows[name] = np.zeros_like(values)
      for row, value in enumerate(np.asarray(values)):
        taken = value[packed[row] == document]
        rows[name][row, : len(taken)] = taken
    for name in ('segments', 'source_segments'):
      if name in rows:
        rows[name] = np.minimum(rows[name], 1)
    return rows

  return of
