"""What the tests of models share: who moves whom, and what packed documents are alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.tap import tapped


@pytest.fixture(scope='session')
def influence(params_of):
  """Returns which outputs of the one row of a batch move with which embeddings at a site."""

  def of(model, batch, site):
    """Returns (T, S) booleans: whether output t moves with the embedding of token s."""
    apply, params = tapped(model), params_of(model)
    name = 'source' if 'source' in batch and site.startswith('encoder') else 'inputs'
    zeros_SD = jnp.zeros((batch[name].shape[1], model.d_model))
    probe_D = jnp.asarray(np.random.default_rng(5).normal(0, 1, model.d_model), jnp.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(delta_SD, params):
      output, _ = apply(params, batch, edits={site: lambda x: x + delta_SD[None]})
      return jnp.sum(output.hidden[0] * probe_D[None], axis=-1)

    return np.abs(np.asarray(jacobian(zeros_SD, params))).max(-1) > 0

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
