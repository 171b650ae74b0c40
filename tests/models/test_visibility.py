"""Who sees whom, through the whole model: not the future, and no other document."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn.attention import blocked, dot_product, fused
from lm.nn.layers import Attention
from lm.nn.tap import tapped
from lm.run.build import apply_of

T = 10
ATTENDS = {'plain': dot_product, 'blocked': functools.partial(blocked, block=6), 'fused': fused}


@pytest.fixture(scope='module')
def influence(params_of, batch_of):
  """Returns whether output t of a row moves with the embedding of token s, as (T, S) booleans."""

  def of(model, segments=None):
    apply, params = tapped(model), params_of(model)
    batch = batch_of(B=1, T=T, segments=segments)
    probe_TD = jnp.asarray(np.random.default_rng(5).normal(0, 1, (T, model.d_model)), jnp.float32)

    @jax.jit
    @jax.jacrev
    def jacobian(delta_TD, params):
      output, _ = apply(params, batch, edits={'decoder/embeddings': lambda x: x + delta_TD[None]})
      return jnp.sum(output.hidden[0] * probe_TD, axis=-1)

    return np.abs(np.asarray(jacobian(jnp.zeros((T, model.d_model)), params))).max(-1) > 0

  return of


@pytest.mark.parametrize('variant', ['gpt2', 'llama', 'windows', 'alibi'])
def test_outputs_depend_on_all_earlier_tokens_and_no_later_one(variant, decoder, influence):
  found = influence(decoder(variant, depth=2, attend=ATTENDS['blocked']))
  np.testing.assert_array_equal(found, np.tri(T, dtype=bool))


def test_windows_reach_as_far_as_their_layers_carry(decoder, influence):
  # Each of the two layers reads two tokens back.
  model = decoder(attention=functools.partial(Attention, window=3), attend=ATTENDS['blocked'])
  reach = np.subtract.outer(np.arange(T), np.arange(T))
  np.testing.assert_array_equal(influence(model), (reach >= 0) & (reach <= 4))


def test_outputs_depend_on_tokens_of_their_own_document_only(decoder, influence):
  segments = np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 0])
  found = influence(decoder('llama'), segments[None])
  np.testing.assert_array_equal(found, np.tri(T, dtype=bool) & np.equal.outer(segments, segments))


# Two documents in each row, and what each of them is alone.
PACKED = np.array([[1] * 4 + [2] * 6, [1] * 7 + [2] * 3])


def _alone(batch, document):
  """Returns the batch whose rows hold one document each, moved to the front and padded."""
  rows = {}
  for name, values in batch.items():
    rows[name] = np.zeros_like(values)
    for row, value in enumerate(np.asarray(values)):
      taken = value[PACKED[row] == document]
      rows[name][row, : len(taken)] = taken
  return rows | {'segments': np.minimum(rows['segments'], 1)}


@pytest.mark.parametrize(
  ('variant', 'attend'),
  [('gpt2', name) for name in ATTENDS] + [(v, 'blocked') for v in ('llama', 'windows', 'alibi')],
)
def test_packed_documents_equal_separate_ones(variant, attend, decoder, params_of, batch_of):
  model = decoder(variant, attend=ATTENDS[attend])
  params, batch = params_of(model), batch_of(B=2, T=T, segments=PACKED)
  apply = apply_of(model)

  @jax.jit
  def logits(params, batch):
    output = apply(params, batch)
    return output.unembed(output.hidden)

  packed = np.asarray(logits(params, batch))
  for document in (1, 2):
    own = document == PACKED
    alone = np.asarray(logits(params, _alone(batch, document)))
    for row in range(2):
      length = own[row].sum()
      np.testing.assert_allclose(packed[row, own[row]], alone[row, :length], atol=2e-5)

    # A poison token in the other document: not a bit of this one changes.
    poisoned = batch | {'inputs': jnp.where(own, batch['inputs'], 7)}
    assert (np.asarray(poisoned['inputs']) != np.asarray(batch['inputs'])).any()
    found = np.asarray(logits(params, poisoned))
    np.testing.assert_array_equal(found[own], packed[own])
    assert (found[~own] != packed[~own]).any()
