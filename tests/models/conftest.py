"""What the tests of models share: who moves whom, and what packed documents are alone."""

import functools

import jax
import numpy as np
import pytest

from lm.nn.hooks import with_hooks


@pytest.fixture(scope='session')
def params_of(params_of):
  """Draws parameters as everywhere, once for a model and a seed."""
  return functools.cache(params_of)


@pytest.fixture(scope='session')
def movable(params_of):
  """Returns the jitted (batch, moves) -> hidden of a model, `moves` added at a site."""

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
  """Returns which outputs of the one row of a batch move with which embeddings at a site."""

  def of(model, batch, site):
    """Returns (T, S) booleans: whether output t moves with the embedding of token s."""
    hidden = movable(model, site)
    S = batch['source' if 'source' in batch and site.startswith('encoder') else 'inputs'].shape[1]
    # The row S times, and in the s-th of them token s moves.
    rows = {name: np.repeat(np.asarray(x), S, axis=0) for name, x in batch.items()}
    step_D = np.random.default_rng(5).normal(0, 1, model.d_model)
    moves_SSD = np.asarray(np.eye(S)[:, :, None] * step_D, np.float32)
    changes_STD = hidden(rows, moves_SSD) != hidden(rows, np.zeros_like(moves_SSD))
    return changes_STD.any(-1).T

  return of


@pytest.fixture(scope='session')
def alone():
  """Returns a batch whose rows hold one document each of those that a batch packs."""

  def of(batch, document):
    """Returns them moved to the front and padded; they are segment 1."""
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
