import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from lm.decode.loop import DecodeConfig, decode_loop, decode_step, init_state
from lm.decode.sampling import allowed_tokens, forbidden_tokens, greedy, no_repeat_ngram, sampler

END, V, MOST = 1, 6, 12
TABLE = np.random.default_rng(0).normal(0, 1.0, (V, V)).astype(np.float32)
LOG_P = TABLE - np.log(np.exp(TABLE).sum(1, keepdims=True))
FIRST = np.arange(V)
NO_END = forbidden_tokens((END,))
SAMPLE = sampler(temperature=0.7)


def _step(tokens_R, positions_R, steps):
  del positions_R
  return jnp.asarray(TABLE)[tokens_R], steps + 1


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _decode(logits, config, max_unfinished=0, step=_step, seeds=None, limits=None, prefix=None):
  B = len(logits)
  keys = jax.vmap(jax.random.key)(jnp.arange(B) if seeds is None else seeds)
  limits = jnp.full(B, MOST) if limits is None else limits
  positions, cache = jnp.zeros(B, jnp.int32), jnp.int32(0)
  state = init_state(config, logits, positions, cache, keys, limits, MOST, prefix)
  advance = functools.partial(decode_step, step, config)
  return decode_loop(advance, state, MOST, max_unfinished)._replace(keys=None)


def _generate(first=FIRST, sample_fn=greedy, seeds=None, processors=(), prefix=None):
  config = DecodeConfig(END, MOST, sample_fn=sample_fn, logits_processors=processors)
  seeds = np.asarray(first if seeds is None else seeds)
  state = _decode(TABLE[np.asarray(first)], config, seeds=seeds, prefix=prefix)
  return [np.asarray(x) for x in (state.tokens, state.lengths, state.log_p)]


def _texts(tokens, lengths):
  for row, length in zip(tokens, lengths, strict=True):
    assert not row[length:].any() and END not in row[: length - 1]
    assert length == MOST or row[length - 1] == END
  return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def _log_p(first, text):
  return sum(LOG_P[a, b] for a, b in zip([first, *text], text, strict=False))


def test_greedy_follows_the_highest_logit_until_the_end():
  tokens, lengths, log_p = _generate()
  for first, text, total in zip(FIRST, _texts(tokens, lengths), log_p, strict=True):
    expected = [int(TABLE[first].argmax())]
    while len(expected) < MOST and expected[-1] != END:
      expected.append(int(TABLE[expected[-1]].argmax()))
    assert text == expected
    np.testing.assert_allclose(total, _log_p(first, text), rtol=1e-5)


def test_samples_have_the_probabilities_of_the_model():
  many = np.full(4000, 3)
  tokens, lengths, log_p = _generate(many, sampler(), np.arange(4000))
  texts = _texts(tokens, lengths)
  for n, (text, total) in enumerate(zip(texts, log_p, strict=True)):
    if n < 50:
      np.testing.assert_allclose(total, _log_p(3, text), rtol=1e-4)
  pairs = np.zeros((V, V))
  for text in texts:
    np.add.at(pairs, ([3, *text[:-1]], text), 1)
  counts = pairs.sum(1)
  assert counts[[0, 2, 3, 4, 5]].min() > 500  # standard errors below 0.023
  for token in (0, 2, 3, 4, 5):
    np.testing.assert_allclose(pairs[token] / counts[token], np.exp(LOG_P[token]), atol=0.09)


def test_a_row_depends_on_its_key_alone():
  tokens, lengths, log_p = _generate(sample_fn=SAMPLE)
  assert len(set(lengths)) > 1
  for row in FIRST:
    alone = _generate([row], SAMPLE, [row])
    np.testing.assert_array_equal(alone[0][0], tokens[row])
    assert (alone[1][0], alone[2][0]) == (lengths[row], log_p[row])
  assert (_generate(sample_fn=SAMPLE, seeds=FIRST + 10)[0] != tokens).any()


def test_no_ngram_is_repeated():
  for sample_fn in (greedy, SAMPLE):
    tokens, lengths, _ = _generate(sample_fn=sample_fn, processors=(no_repeat_ngram(2), NO_END))
    assert (lengths == MOST).all()
    for row in tokens:
      assert len({*itertools.pairwise(row)}) == MOST - 1
  # The unconstrained rows do repeat themselves.
  row = _generate(processors=(NO_END,))[0][0]
  assert len({*itertools.pairwise(row)}) < MOST - 1


def test_rows_begin_with_their_prefix_and_continue_freely():
  prefix = np.array([[4, 5, 2, -1], [-1, -1, -1, -1], [3, END, -1, -1]])
  first = [0, 2, 3]
  tokens, lengths, log_p = _generate(first, prefix=prefix)
  texts = _texts(tokens, lengths)
  free = _texts(*_generate()[:2])[2]
  assert texts == [([4, 5, 2] + free)[:MOST], free, [3, END]]
  for row, text in enumerate(texts):
    np.testing.assert_allclose(log_p[row], _log_p(first[row], text), rtol=1e-5)


def test_a_row_without_allowed_tokens_stops():
  processors = (no_repeat_ngram(1), allowed_tokens((2, 3)))
  tokens, lengths, log_p = _generate(processors=processors)
  assert (lengths == 2).all() and (log_p == -np.inf).all()
  assert {tuple(row[:3]) for row in tokens} <= {(2, 3, 0), (3, 2, 0)}


def test_the_loop_stops_when_all_rows_have_ended():
  steps = []

  def step(*args):
    jax.debug.callback(lambda: steps.append(1))
    return _step(*args)

  run = functools.partial(_decode, config=DecodeConfig(END, MOST), max_unfinished=0, step=step)
  ends = np.where(FIRST == END, 9.0, 0.0).astype(np.float32)
  jax.block_until_ready(run(np.stack([ends, ends])))
  jax.effects_barrier()
  assert steps == []
  jax.block_until_ready(run(np.stack([ends, TABLE[0]])))
  jax.effects_barrier()
  text = _texts(*_generate()[:2])[0]
  assert len(steps) == len(text) - 1


def test_the_loop_stops_at_max_unfinished_rows():
  tokens = _generate()[0]
  state = _decode(TABLE, DecodeConfig(END, MOST), max_unfinished=len(FIRST) - 1)
  done = np.asarray(state.done)
  assert 1 <= done.sum() < len(FIRST)
  np.testing.assert_array_equal(state.tokens[done], tokens[done])


def test_each_row_may_have_a_limit_of_its_own():
  limits = np.array([1, 2, 3, 4, MOST, MOST])
  tokens = _generate(processors=(NO_END,))[0]
  state = _decode(TABLE, DecodeConfig(END, MOST, logits_processors=(NO_END,)), limits=limits)
  assert np.asarray(state.done).all()
  np.testing.assert_array_equal(state.lengths, limits)
  for row, limit in enumerate(limits):
    np.testing.assert_array_equal(state.tokens[row][:limit], tokens[row][:limit])
    assert not np.asarray(state.tokens[row][limit:]).any()


def test_a_chunk_continues_as_the_uninterrupted_loop():
  config = DecodeConfig(END, MOST, sample_fn=SAMPLE, logits_processors=(NO_END,))
  full = _decode(TABLE, config)
  positions, limits = jnp.zeros(V, jnp.int32), jnp.full(V, MOST)
  keys = jax.vmap(jax.random.key)(jnp.arange(V))
  state = init_state(config, jnp.asarray(TABLE), positions, jnp.int32(0), keys, limits, MOST)
  chunk = jax.jit(
    lambda state, stop: decode_loop(functools.partial(decode_step, _step, config), state, stop)
  )
  for stop in (4, 5, MOST):
    state = chunk(state, stop)
    assert state.lengths.tolist() == [stop] * V
  np.testing.assert_array_equal(state.tokens, full.tokens)
  np.testing.assert_array_equal(state.log_p, full.log_p)
