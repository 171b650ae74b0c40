"""Decoding with a cache equals the full forward pass."""

import functools
import re

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
  full, none = run(batch)
  assert none is None
  cache, found = model.init_cache(2, SLOTS), []
  # A prompt in two pieces, then token by token.
  for start, stop in ((0, 4), (4, 8), (8, 9), (9, 10)):
    piece, cache = run(_part(batch, start, stop), cache)
    found.append(piece)
  np.testing.assert_allclose(np.concatenate(found, axis=1), full, atol=1e-5)
  assert cache['lengths'].tolist() == [T] * 2


@pytest.mark.parametrize('variant', ['llama', 'windows'])
def test_separate_layers_have_the_states_of_stacked_ones(variant, decoder, params_of, batch_of):
  model, batch = decoder(variant), _part(batch_of(T=T), 0, T)
  params, apply = params_of(model), apply_of(model)
  separate = model.separate_layers(params)
  assert len(separate['decoder']['layers']) == 2 and 'layer_0' in separate['decoder']['layers']['1']
  run = jax.jit(lambda params: apply(params, batch, cache=model.init_cache(2, SLOTS)).hidden)
  np.testing.assert_allclose(run(separate), run(params), atol=1e-6)


# Rows of one cache may be at different positions, after prompts of different lengths.
LENGTHS = (7, 3, 5)


@pytest.mark.parametrize('variant', ['gpt2', 'llama', 'windows', 'alibi'])
def test_rows_of_different_lengths_equal_separate_rows(variant, functions_of, batch_of):
  model, run = functions_of(variant)
  batch, steps = batch_of(B=3, T=T), T - max(LENGTHS)
  prompt = _part(batch, 0, max(LENGTHS))
  inside = np.arange(max(LENGTHS))[None] < np.array(LENGTHS)[:, None]
  prompt = {name: np.where(inside, x, 0) for name, x in prompt.items()}
  _, cache = run(prompt, model.init_cache(3, T))  # T entries have no space for padding
  assert cache['lengths'].tolist() == [*LENGTHS]
  found = []
  for n in range(steps):
    at = np.array(LENGTHS)[:, None] + n
    token = {name: np.take_along_axis(np.asarray(batch[name]), at, axis=1) for name in ALONG}
    logits, cache = run(token, cache)
    found.append(logits[:, 0])
  assert cache['lengths'].tolist() == [length + steps for length in LENGTHS]
  for row, length in enumerate(LENGTHS):
    full = run({name: np.asarray(batch[name])[row : row + 1] for name in ALONG})[0][0]
    np.testing.assert_allclose(
      np.stack(found)[:, row], full[length : length + steps], atol=1e-5, err_msg=f'{row}'
    )


def test_a_step_updates_the_cache_in_place(decoder, params_of, batch_of):
  model = decoder('llama')
  apply, batch = apply_of(model), _part(batch_of(B=3, T=T), 0, 1)
  run = jax.jit(lambda *args: apply(*args[:2], cache=args[2]).cache, donate_argnums=2)
  cache = model.init_cache(3, 256)
  compiled = run.lower(params_of(model), batch, cache).compile()
  total = sum(x.nbytes for x in jax.tree.leaves(cache))
  assert compiled.memory_analysis().alias_size_in_bytes == total
  shape = ','.join(map(str, cache['layers'][0]['layer_0']['attention'].k.shape))
  assert not re.findall(rf'f32\[{shape}\]\S* copy\(', compiled.as_text())


def test_padding_of_a_prompt_is_never_attended_to(functions_of, batch_of):
  model, run = functions_of('llama')
  batch = batch_of(T=T)

  # Three tokens of the prompt are real; the fourth is padding, with an arbitrary token.
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
