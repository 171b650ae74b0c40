import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.loop import DecodeConfig
from lm.decode.sampling import greedy, sampler
from lm.decode.stream import TOKENS_PER_DISPATCH, stream_tokens
from lm.types import apply_of

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9]]
LONG = [int(t) for t in np.random.default_rng(0).integers(0, 37, 20)]
COUNT = TOKENS_PER_DISPATCH + 3  # ends inside a chunk
SAMPLE = sampler(temperature=1.0, top_k=20)


@pytest.fixture(scope='module')
def model(decoder, params_of):
  model = decoder('llama')
  return model, apply_of(model), params_of(model)


@pytest.fixture(scope='module')
def continued(model):
  def run(prompts, sample_fn, key_indices, max_tokens=COUNT, end=-1):
    config = DecodeConfig(end, max_tokens, sample_fn=sample_fn)
    return np.stack(list(stream_tokens(*model, prompts, config, key_indices)), axis=1)

  return run


def test_greedy_tokens_are_the_argmax_of_full_passes(model, continued):
  _, apply, params = model

  @jax.jit
  def predicted(params, tokens_BT):
    shape = tokens_BT.shape
    positions = jnp.broadcast_to(jnp.arange(shape[1]), shape)
    batch = {'inputs': tokens_BT, 'segments': jnp.ones(shape, jnp.int32), 'positions': positions}
    output = apply(params, batch)
    return output.head(output.hidden).argmax(-1)

  found = continued(PROMPTS, greedy, [0, 0, 0])
  assert found.shape == (3, COUNT) and found.dtype == np.int32
  longest = max(map(len, PROMPTS)) + COUNT
  rows = [[*prompt, *tokens] for prompt, tokens in zip(PROMPTS, found, strict=True)]
  padded = np.array([row + [0] * (longest - len(row)) for row in rows])
  following = np.asarray(predicted(params, padded))
  for prompt, tokens, row in zip(PROMPTS, found, following, strict=True):
    np.testing.assert_array_equal(tokens, row[len(prompt) - 1 :][:COUNT])
  assert len(np.unique(found)) > 3  # and not one token for ever


def test_a_row_is_independent_of_other_rows(continued):
  batched = continued(PROMPTS, SAMPLE, [1, 2, 3])
  for prompt, seed, row in zip(PROMPTS, [1, 2, 3], batched, strict=True):
    np.testing.assert_array_equal(continued([prompt], SAMPLE, [seed])[0], row)
  # Nor on how long the other's prompt is, which changes the padding of all.
  other_batch = continued([LONG, PROMPTS[1]], SAMPLE, [9, 2])
  np.testing.assert_array_equal(other_batch[1], batched[1])


def test_samples_depend_on_the_seed_alone(continued):
  first, again, other = (continued([PROMPTS[0]], SAMPLE, [seed])[0] for seed in (5, 5, 6))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  # Each step has its own key: tokens differ.
  assert len(np.unique(first)) > 2


@pytest.mark.parametrize('max_tokens', [1, TOKENS_PER_DISPATCH - 1, TOKENS_PER_DISPATCH])
def test_max_tokens_truncates_a_row(max_tokens, continued):
  found = continued([PROMPTS[0]], SAMPLE, [5], max_tokens)
  assert found.shape == (1, max_tokens)
  np.testing.assert_array_equal(found[0], continued([PROMPTS[0]], SAMPLE, [5])[0, :max_tokens])


def test_a_row_ends_at_the_end_token_and_the_stream_with_the_last_row(continued):
  endless = continued(PROMPTS, SAMPLE, [1, 2, 3])
  end = int(endless[0, 2])
  lengths = [(row == end).argmax() + 1 if end in row else COUNT for row in endless]
  found = continued(PROMPTS, SAMPLE, [1, 2, 3], end=end)
  assert lengths[0] <= 3 and found.shape == (3, max(lengths))
  for row, expected, length in zip(found, endless, lengths, strict=True):
    np.testing.assert_array_equal(row[:length], expected[:length])
    assert (row[length:] == -1).all()
