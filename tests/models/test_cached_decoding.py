"""Decoding from a cache gives what the full forward pass gives."""

import functools

import jax
import numpy as np
import pytest

from lm.types import apply_of

T, SLOTS = 10, 13
ALONG = ('inputs', 'segments', 'positions')


@pytest.fixture(scope='module')
def functions_of(decoder, params_of):
  """Returns a model of a variant, its jitted (batch, cache) -> (logits, cache), bound to params."""

  @functools.cache
  def of(variant):
    model = decoder(variant)
    params, apply = params_of(model), apply_of(model)

    @jax.jit
    def run(params, batch, cache=None):
      output = apply(params, batch, cache=cache)
      return output.head(output.hidden), output.cache

    return model, functools.partial(run, params)

  return of


def _part(batch, start, stop):
  return {name: np.asarray(batch[name])[:, start:stop] for name in ALONG}


@pytest.mark.parametrize('variant', ['gpt2', 'llama', 'windows', 'alibi'])
def test_pieces_and_single_steps_equal_the_full_pass(variant, functions_of, batch_of):
  model, run = functions_of(variant)
  batch = batch_of(T=T)
  whole, none = run(batch)
  assert none is None
  cache, found = model.init_cache(2, SLOTS), []
  # A prompt in two pieces, then token by token.
  for start, stop in ((0, 4), (4, 8), (8, 9), (9, 10)):
    piece, cache = run(_part(batch, start, stop), cache)
    found.append(piece)
  np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-5)
  assert int(cache['cursor']) == T


def test_padding_of_a_prompt_is_never_seen(functions_of, batch_of):
  model, run = functions_of('llama')
  batch = batch_of(T=T)

  # Three tokens of the prompt are real; the fourth slot is padding, with any token.
  def fourth(padding):
    prompt = _part(batch, 0, 4)
    prompt['segments'] = np.tile([1, 1, 1, 0], (2, 1))
    prompt['positions'] = prompt['positions'] * prompt['segments']
    prompt['inputs'] = np.concatenate([prompt['inputs'][:, :3], np.full((2, 1), padding)], axis=1)
    _, cache = run({k: x.astype(np.int32) for k, x in prompt.items()}, model.init_cache(2, SLOTS))
    return run(_part(batch, 3, 4), cache)[0][:, 0]

  expected = run(_part(batch, 0, 4), model.init_cache(2, SLOTS))[0][:, 3]
  np.testing.assert_allclose(fourth(padding=3), expected, atol=1e-5)
  np.testing.assert_array_equal(fourth(padding=3), fourth(padding=30))


def test_an_empty_cache_has_the_shape_of_a_filled_one(decoder, params_of, batch_of):
  model = decoder('windows', dtype='bfloat16')
  cache = model.init_cache(2, T)
  output = jax.eval_shape(apply_of(model), params_of(model), batch_of(T=4), None, cache)

  def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

  assert described(output.cache) == described(cache)
