"""Decoding from a cache gives what the full forward pass gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.run.build import apply_of

T = 10


def _part(batch, start, stop):
  return {name: batch[name][:, start:stop] for name in ('inputs', 'segments', 'positions')}


@pytest.mark.parametrize('variant', ['gpt2', 'llama', 'windows', 'alibi'])
def test_pieces_and_single_steps_equal_the_full_pass(variant, decoder, params_of, batch_of):
  model = decoder(variant)
  params, batch, apply = params_of(model), batch_of(T=T), apply_of(model)

  @jax.jit
  def logits(params, batch, cache=None):
    output = apply(params, batch, cache=cache)
    return output.unembed(output.hidden), output.cache

  whole, none = logits(params, batch)
  assert none is None
  cache, found = model.init_cache(2, T + 3), []
  # A prompt in two pieces, then token by token.
  for start, stop in ((0, 4), (4, 7), (7, 8), (8, 9), (9, 10)):
    piece, cache = logits(params, _part(batch, start, stop), cache)
    found.append(piece)
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=1e-5)
  assert int(cache['cursor']) == T


def test_padding_of_a_prompt_is_never_seen(decoder, params_of, batch_of):
  model = decoder('llama')
  params, batch, apply = params_of(model), batch_of(B=1, T=6), apply_of(model)

  @jax.jit
  def hidden(params, batch, cache):
    output = apply(params, batch, cache=cache)
    return output.hidden, output.cache

  # Five tokens of the prompt are real; the sixth slot is padding, with any token.
  def sixth(padding):
    segments = jnp.asarray([[1, 1, 1, 1, 1, 0]])
    prompt = batch | {'segments': segments, 'positions': batch['positions'] * segments}
    prompt['inputs'] = prompt['inputs'].at[:, 5].set(padding)
    _, cache = hidden(params, prompt, model.init_cache(1, 8))
    return hidden(params, _part(batch, 5, 6), cache)[0][:, 0]

  expected = hidden(params, batch, model.init_cache(1, 8))[0][:, 5]
  np.testing.assert_allclose(sixth(padding=3), expected, atol=1e-5)
  np.testing.assert_array_equal(sixth(padding=3), sixth(padding=30))


def test_an_empty_cache_has_the_shape_of_a_filled_one(decoder, params_of, batch_of):
  model = decoder('windows', dtype='bfloat16')
  cache = model.init_cache(2, T)
  output = jax.eval_shape(apply_of(model), params_of(model), batch_of(T=4), None, cache)

  def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  assert described(output.cache) == described(cache)
