"""Prefix language models: bidirectional in the prefix, causal after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.attention import blockwise
from lm.types import apply_of

T = 10
# Two documents and padding, with prefixes of three and two tokens.
SEGMENTS = np.array([1] * 5 + [2] * 4 + [0])
PREFIX = np.array([1, 1, 1, 0, 0, 1, 1, 0, 0, 0])


def _with(batch, prefix):
  return batch | {'prefix': jnp.asarray(prefix, jnp.int32)}


def test_a_prefix_is_bidirectional_and_the_rest_is_causal(decoder, influence, batch_of):
  # An implementation that skips keys by index must not skip those of a prefix.
  model = decoder('t5', attention_fn=functools.partial(blockwise, block=2))
  batch = _with(batch_of(B=1, T=T, segments=SEGMENTS[None]), PREFIX[None])
  found = influence(model, batch, 'decoder/embeddings')
  seen = np.tri(T, dtype=bool) | (PREFIX > 0)[None]
  np.testing.assert_array_equal(found, seen & np.equal.outer(SEGMENTS, SEGMENTS))


def test_packed_prefixes_equal_separate_ones(decoder, params_of, batch_of, alone):
  model, packed = decoder('t5'), np.stack([SEGMENTS, SEGMENTS])
  batch = _with(batch_of(T=T, segments=packed), np.stack([PREFIX, PREFIX]))
  params, hidden = params_of(model), jax.jit(lambda *xs: apply_of(model)(*xs).hidden)
  together = np.asarray(hidden(params, batch))
  for document in (1, 2):
    own = document == packed
    separate = np.asarray(hidden(params, alone(batch, document)))
    np.testing.assert_allclose(
      together[own], separate[:, : own[0].sum()].reshape(-1, 16), atol=2e-5
    )
    poisoned = batch | {'inputs': np.where(own, batch['inputs'], 7)}
    np.testing.assert_array_equal(np.asarray(hidden(params, poisoned))[own], together[own])


def test_decoding_from_a_cache_equals_the_full_pass(decoder, params_of, batch_of):
  model = decoder()
  prefix = np.array([[1] * 4 + [0] * 6, [1] * 4 + [0] * 6])
  params = params_of(model)
  batch = {name: np.asarray(x) for name, x in _with(batch_of(T=T), prefix).items()}

  @jax.jit
  def logits(params, batch, cache=None):
    output = apply_of(model)(params, batch, cache=cache)
    return output.head(output.hidden), output.cache

  full, _ = logits(params, batch)
  # The first call has all of the prefix, with padding after it; later calls have no prefix.
  prompt = {name: np.pad(batch[name][:, :4], ((0, 0), (0, 2))) for name in batch}
  piece, cache = logits(params, prompt, model.init_cache(2, T + 2))
  found = [piece[:, :4]]
  for t in range(4, T):
    names = ('inputs', 'segments', 'positions')
    piece, cache = logits(params, {name: batch[name][:, t : t + 1] for name in names}, cache)
    found.append(piece)
  np.testing.assert_allclose(np.concatenate(found, axis=1), full, atol=1e-5, rtol=1e-5)
