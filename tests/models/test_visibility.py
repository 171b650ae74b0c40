"""Outputs of a full model depend on no later token and on no other document."""

import functools

import numpy as np
import pytest

from lm.nn.attention import blockwise, dot_product, fused
from lm.nn.layers import Attention

T = 10
ATTENDS = {'plain': dot_product, 'blocked': functools.partial(blockwise, block=6), 'fused': fused}


SITE = 'decoder/embeddings'


@pytest.mark.parametrize('variant', ['gpt2', 'llama', 'windows', 'alibi'])
def test_outputs_depend_on_all_earlier_tokens_and_no_later_one(
  variant, decoder, influence, batch_of
):
  model = decoder(variant, attention_fn=ATTENDS['blocked'])
  found = influence(model, batch_of(B=1, T=T), SITE)
  np.testing.assert_array_equal(found, np.tri(T, dtype=bool))


def test_windows_reach_further_with_each_layer(decoder, influence, batch_of):
  # Each of the two layers attends to the two previous tokens.
  model = decoder(
    attention_layer=functools.partial(Attention, window=3), attention_fn=ATTENDS['blocked']
  )
  reach = np.subtract.outer(np.arange(T), np.arange(T))
  found = influence(model, batch_of(B=1, T=T), SITE)
  np.testing.assert_array_equal(found, (reach >= 0) & (reach <= 4))


def test_outputs_depend_on_tokens_of_their_own_document_only(decoder, influence, batch_of):
  segments = np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 0])
  found = influence(decoder('llama'), batch_of(B=1, T=T, segments=segments[None]), SITE)
  np.testing.assert_array_equal(found, np.tri(T, dtype=bool) & np.equal.outer(segments, segments))


# Two documents in each row.
PACKED = np.array([[1] * 4 + [2] * 6, [1] * 7 + [2] * 3])


@pytest.mark.parametrize(
  ('variant', 'attend'),
  [('gpt2', name) for name in ATTENDS] + [(v, 'blocked') for v in ('llama', 'windows', 'alibi')],
)
def test_packed_documents_equal_separate_ones(variant, attend, decoder, movable, batch_of, alone):
  model = decoder(variant, attention_fn=ATTENDS[attend])
  batch = {k: np.asarray(x) for k, x in batch_of(B=2, T=T, segments=PACKED).items()}
  run = movable(model, SITE)

  def hidden(rows):
    # The number of rows of `influence`, so that its compiled program serves here too.
    rows = {name: np.resize(x, (T, T)) for name, x in rows.items()}
    return run(rows, np.zeros((T, T, model.d_model), np.float32))[:2]

  packed = hidden(batch)
  for document in (1, 2):
    own = document == PACKED
    separate = hidden(alone(batch, document))
    for row in range(2):
      length = own[row].sum()
      np.testing.assert_allclose(packed[row, own[row]], separate[row, :length], atol=2e-5)

    # A poison token in the other document changes no bit of this one.
    poisoned = batch | {'inputs': np.where(own, batch['inputs'], 7)}
    assert (poisoned['inputs'] != batch['inputs']).any()
    found = hidden(poisoned)
    np.testing.assert_array_equal(found[own], packed[own])
    assert (found[~own] != packed[~own]).any()
