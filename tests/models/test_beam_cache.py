"""Beams that share a cache have the logits of separate rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.loop import make_decode_step, prefill
from lm.types import apply_of

PROMPT, STEPS, M = 3, 3, 3


@pytest.fixture(scope='module', params=['gpt2', 'llama', 'windows', 'alibi', 't5', 'source'])
def functions(request, decoder, encoder_decoder, params_of):
  """Returns an architecture, its jitted function and parameters."""
  model = encoder_decoder() if request.param == 'source' else decoder(request.param)
  return model, jax.jit(apply_of(model)), params_of(model)


def _prompts(batch_of, model):
  # The second prompt is a token shorter, and the entry after it is padding.
  segments = np.array([[1, 1, 1], [1, 1, 0]])
  source = {'source': np.ones((2, 5), int)} if hasattr(model, 'cross_attention') else {}
  return batch_of(T=PROMPT, **source) | {'segments': segments}


def test_beams_equal_rows_of_their_own(functions, batch_of):
  model, apply, params = functions
  batch = _prompts(batch_of, model)
  rng = np.random.default_rng(0)
  cache = model.init_cache(2, PROMPT + STEPS * M)
  _, positions, cache = prefill(apply, params, batch, cache)
  step = make_decode_step(apply, params)
  texts = [[np.asarray(row[:n]).tolist()] for row, n in zip(batch['inputs'], (3, 2), strict=True)]
  for n in range(STEPS):
    parents = rng.integers(0, len(texts[0]), (2, M))
    tokens = rng.integers(0, model.vocab_size, (2, M))
    cache = model.reorder_cache(cache, jnp.asarray(parents))
    logits, cache = step(jnp.asarray(tokens.reshape(-1)), jnp.repeat(positions + n, M), cache)
    texts = [[texts[b][parents[b, m]] + [int(tokens[b, m])] for m in range(M)] for b in range(2)]
  # Rows of one length, so that one compiled program suffices.
  written = [text for row in texts for text in row]
  lengths = np.array([len(text) for text in written])
  slots = np.arange(PROMPT + STEPS)[None]
  rows = {
    'inputs': np.array([text + [0] * (PROMPT + STEPS - len(text)) for text in written]),
    'segments': (slots < lengths[:, None]).astype(np.int32),
    'positions': np.where(slots < lengths[:, None], slots, 0),
  } | {name: np.repeat(x, M, axis=0) for name, x in batch.items() if name.startswith('source')}
  output = apply(params, rows)
  expected = np.asarray(output.head(output.hidden))[np.arange(2 * M), lengths - 1]
  np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_reordering_beams_copies_no_keys(functions, batch_of):
  model, apply, params = functions
  batch = _prompts(batch_of, model)
  _, _, cache = prefill(apply, params, batch, model.init_cache(2, PROMPT + STEPS * M))
  moved = model.reorder_cache(cache, jnp.zeros((2, M), int))
  assert moved['allowed'].shape == (2, M, PROMPT + STEPS * M)
  before, after = (jax.tree.leaves(each['layers']) for each in (cache, moved))
  assert all(x is y for x, y in zip(before, after, strict=True))
