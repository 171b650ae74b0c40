"""Beam search against enumeration of all hypotheses, and against a plain one in Python."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.beam import (
  _log_sum_exp,
  _top_k,
  beam_step,
  best_hypotheses,
  check_beam_size,
  init_beam,
)
from lm.decode.loop import DecodeConfig, decode_loop, decode_step, init_state
from lm.decode.sampling import minimum_length, no_repeat_ngram
from lm.errors import UserError

END = 1


def _model(seed=0, B=3, V=4, scale=2.0):
  """A table (B, V, V, V) of each row's logits after its last two tokens, and the first two."""
  rng = np.random.default_rng(seed)
  table = rng.normal(0, scale, (B, V, V, V)).astype(np.float32)
  return table, rng.integers(0, V, (B, 2))


def _sharpness(position):
  # Differs by position: texts of the same transitions in another order would be equally probable.
  return 1 + position / 16


def _step(tokens_R, positions_R, cache):
  table_RVVV, last_R2 = cache
  look_up = jax.vmap(lambda table, last, token: table[last, token])
  logits_RV = look_up(table_RVVV, last_R2[:, 1], tokens_R) * _sharpness(positions_R + 1)[:, None]
  return logits_RV, (table_RVVV, jnp.stack([last_R2[:, 1], tokens_R], axis=1))


def _reorder(cache, parents_BM):
  def moved(x):
    x = x.reshape(len(parents_BM), -1, *x.shape[1:])
    x = jax.vmap(lambda hypotheses, parents: hypotheses[parents])(x, parents_BM)
    return x.reshape(-1, *x.shape[2:])

  return jax.tree.map(moved, cache)


def _first(model):
  """Returns the values of `prefill` after the first two tokens."""
  table, last = model
  logits = table[np.arange(len(last)), last[:, 0], last[:, 1]]
  return logits, np.zeros(len(last), np.int32), (table, last)


@functools.cache
def _compiled(config, buffer_len, max_unfinished=0, step=_step):
  def search(read, length_penalty, prefix, limits):
    how = config._replace(length_penalty=length_penalty)
    limits = jnp.full(len(read[0]), how.max_tokens) if limits is None else limits
    state = init_beam(how, _reorder, *read, limits, buffer_len, prefix)
    advance = functools.partial(beam_step, step, _reorder, how)
    state = decode_loop(advance, state, buffer_len, max_unfinished)
    return best_hypotheses(how, state), state.done

  return jax.jit(search)


def _search_and_done(
  model,
  length_penalty=0.6,
  prefix=None,
  limits=None,
  buffer_len=None,
  max_unfinished=0,
  step=_step,
  **config,
):
  config = DecodeConfig(end=END, **config)
  search = _compiled(config, buffer_len or config.max_tokens, max_unfinished, step)
  return jax.device_get(search(_first(model), length_penalty, prefix, limits))


def _search(model, *args, **options):
  return _search_and_done(model, *args, **options)[0]


def _log_p(model, row, tokens, token):
  last = [*model[1][row], *tokens][-2:]
  logits = model[0][row][tuple(last)].astype(np.float64) * _sharpness(len(tokens))
  return logits[token] - np.log(np.exp(logits).sum())


def _penalty(n, alpha):
  return ((5 + n) / 6) ** alpha


def _everything(model, row, max_tokens, alpha):
  """Returns all finished hypotheses by falling score, then all cut off ones, as (score, tokens)."""
  V = model[0].shape[1]
  others = [t for t in range(V) if t != END]
  bodies = [list(itertools.product(others, repeat=n)) for n in range(max_tokens + 1)]
  finished = [(*body, END) for n in range(max_tokens) for body in bodies[n]]

  def scored(texts):
    found = []
    for text in texts:
      log_p = sum(_log_p(model, row, text[:i], text[i]) for i in range(len(text)))
      found.append((log_p / _penalty(len(text), alpha), text))
    return sorted(found, reverse=True)

  return scored(finished) + scored(bodies[max_tokens])


def _reference(model, row, beam, max_tokens, alpha, n_best):
  """Beam search in plain Python, which never stops early."""
  V = model[0].shape[1]
  running, pool = [(0.0, ())], []
  for n in range(1, max_tokens + 1):
    candidates = [
      (log_p + _log_p(model, row, tokens, token), (*tokens, token))
      for log_p, tokens in running
      for token in range(V)
    ]
    candidates.sort(reverse=True)
    pool += [(p / _penalty(n, alpha), text) for p, text in candidates[:beam] if text[-1] == END]
    running = [(p, text) for p, text in candidates if text[-1] != END][:beam]
  cut_off = [(p / _penalty(max_tokens, alpha), text) for p, text in running]
  return (sorted(pool, reverse=True)[:beam] + cut_off)[:n_best]


def _assert_found(found, row, expected):
  for n, (score, text) in enumerate(expected):
    assert tuple(found.tokens[row, n, : found.lengths[row, n]]) == text
    assert not found.tokens[row, n, len(text) :].any()
    np.testing.assert_allclose(found.scores[row, n], score, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0, -1.0])
def test_a_wide_beam_finds_the_best_of_all_hypotheses(alpha):
  model = _model(seed=1)
  # 27 unfinished texts of three tokens have 108 continuations: none is ever dropped.
  found = _search(model, beam_size=108, max_tokens=4, length_penalty=alpha, n_best=12)
  for row in range(3):
    _assert_found(found, row, _everything(model, row, 4, alpha)[:12])


def test_missing_hypotheses_have_length_0_and_score_minus_infinity():
  model = _model(seed=2, V=3)
  found = _search(model, beam_size=12, max_tokens=2, n_best=12)
  everything = _everything(model, 0, 2, 0.6)
  assert len(everything) == 1 + 2 + 4
  _assert_found(found, 0, everything)
  assert (found.scores[:, 7:] == -np.inf).all()
  assert not found.lengths[:, 7:].any() and not found.tokens[:, 7:].any()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize(
  ('beam', 'alpha', 'n_best'), [(1, 0.0, 1), (2, 0.0, 1), (2, 1.0, 1), (3, 0.6, 3), (3, -0.5, 3)]
)
def test_narrow_beams_equal_a_plain_search_without_early_stop(seed, beam, alpha, n_best):
  model = _model(seed=seed, V=5, scale=1.0)
  found = _search(model, alpha, beam_size=beam, max_tokens=6, n_best=n_best)
  for row in range(3):
    _assert_found(found, row, _reference(model, row, beam, 6, alpha, n_best))


def test_narrow_beams_do_miss_hypotheses():
  """Otherwise the test above could not distinguish a beam from a complete search."""
  model = _model(seed=1, V=5, scale=1.0)
  found = _search(model, 1.0, beam_size=2, max_tokens=6, n_best=1)
  assert found.scores[2, 0] < _everything(model, 2, 6, 1.0)[0][0] - 1


STEPS = []


def _counted_step(*args):
  jax.debug.callback(lambda: STEPS.append(1))
  return _step(*args)


def _steps_taken(model, **options):
  STEPS.clear()
  _search(model, **options, step=_counted_step)
  jax.effects_barrier()
  return len(STEPS)


def test_the_search_stops_when_nothing_can_improve():
  table, last = _model(seed=3)
  table[..., END] += 8  # ends at once, almost surely
  options = {'beam_size': 3, 'max_tokens': 50, 'length_penalty': 0.0}
  assert _steps_taken((table, last), **options) == 0
  assert 0 < _steps_taken((table, last), **options, n_best=2) < 10
  table[1, :, :, END] -= 50  # one row continues, and so do all
  assert _steps_taken((table, last), **options) == 49


def test_the_search_continues_while_a_long_hypothesis_may_win():
  # Says END with 0.6, or else 2, and then 3, 2 and END surely.
  table = np.full((1, 4, 4, 4), -30.0, np.float32)
  table[0, 0, 0, [END, 2]] = np.log([0.6, 0.4])
  table[0, 0, 2, 3] = table[0, 2, 3, 2] = table[0, 3, 2, END] = 0
  model = (table, np.zeros((1, 2), int))
  short, long = np.log(0.6), np.log(0.4)
  for alpha, text, score in (
    (0.0, [END, 0, 0, 0], short),
    (1.0, [END, 0, 0, 0], short),
    (2.0, [2, 3, 2, END], long / (9 / 6) ** 2),
  ):
    found = _search(model, beam_size=2, max_tokens=4, length_penalty=alpha)
    assert found.tokens[0, 0].tolist() == text
    np.testing.assert_allclose(found.scores[0, 0], score, rtol=1e-5)


def test_a_longer_hypothesis_may_win_where_short_ones_are_preferred():
  # Says END with 0.32, 2 with 0.4, and END after that: as soon as it can, or it would not win.
  table = np.full((1, 4, 4, 4), -30.0, np.float32)
  table[0, 0, 0, [END, 2, 3]] = np.log([0.32, 0.4, 0.28])
  table[0, 0, 2, END] = 0
  found = _search((table, np.zeros((1, 2), int)), -1.0, beam_size=2, max_tokens=4)
  assert np.log(0.4) * 9 / 6 < np.log(0.32) < np.log(0.4) * 7 / 6
  assert found.tokens[0, 0].tolist() == [2, END, 0, 0]
  np.testing.assert_allclose(found.scores[0, 0], np.log(0.4) * 7 / 6, rtol=1e-5)


# Rows that end at different steps.
OF_SIX = {'beam_size': 3, 'max_tokens': 12, 'n_best': 2}


def _six():
  model = _model(seed=5, B=6, V=6, scale=1.5)
  model[0][..., END] -= 1
  return model


def test_a_row_is_independent_of_other_rows():
  model = _six()
  batched = _search(model, **OF_SIX)
  assert len(set(batched.lengths[:, 0])) > 1  # they end at different steps
  for row in range(6):
    alone = _search(tuple(x[row : row + 1] for x in model), **OF_SIX)
    jax.tree.map(lambda x, y, row=row: np.testing.assert_array_equal(x[0], y[row]), alone, batched)


def test_equal_scores_go_to_the_lower_token():
  model = (np.zeros((1, 5, 5, 5), np.float32), np.zeros((1, 2), int))
  found = _search(model, beam_size=3, max_tokens=2, n_best=3, length_penalty=0.0)
  # END is token 1; only those that begin with 0 fill the second beam.
  assert found.tokens[0].tolist() == [[1, 0], [0, 1], [0, 0]]
  assert found.lengths[0].tolist() == [1, 2, 2]


def test_padding_of_the_vocabulary_is_never_generated():
  table, last = _model(seed=6, V=6)
  table[..., 3:] = -1e9
  last %= 3
  found = _search((table, last), beam_size=12, max_tokens=2, n_best=12)
  for row in range(3):
    _assert_found(found, row, _everything((table[:, :3, :3, :3], last), row, 2, 0.6))
  assert not found.lengths[:, 7:].any()


def test_one_beam_is_greedy():
  model = _model(seed=7, B=8, V=6, scale=1.0)
  processors = (no_repeat_ngram(2), minimum_length(2, END))

  config = DecodeConfig(END, 9, logits_processors=processors)

  @jax.jit
  def greedily(read):
    keys = jax.random.split(jax.random.key(0), 8)
    state = init_state(config, *read, keys, jnp.full(8, 9), 9)
    state = decode_loop(functools.partial(decode_step, _step, config), state, 9)
    return state.tokens, state.lengths, state.log_p

  tokens, lengths, log_p = greedily(_first(model))
  found = _search(
    model, beam_size=1, max_tokens=9, length_penalty=0.0, logits_processors=processors
  )
  np.testing.assert_array_equal(found.tokens[:, 0], tokens)
  np.testing.assert_array_equal(found.lengths[:, 0], lengths)
  np.testing.assert_allclose(found.scores[:, 0], log_p, rtol=1e-5)


def test_constraints_pick_the_best_hypothesis_that_meets_them():
  model = _model(seed=8)
  processors = (no_repeat_ngram(1), minimum_length(2, END))
  found = _search(model, beam_size=108, max_tokens=4, n_best=3, logits_processors=processors)
  for row in range(3):
    everything = _everything(model, row, 4, 0.6)
    meets = [h for h in everything if len(h[1]) > 2 and len(set(h[1])) == len(h[1])]
    _assert_found(found, row, meets[:3])


def test_all_hypotheses_of_a_row_begin_with_its_prefix():
  model = _model(seed=9)
  forced = ((2, 2), (), (3,))
  prefix = np.array([[2, 2, -1], [-1, -1, -1], [3, -1, -1]])
  found = _search(model, prefix=prefix, beam_size=108, max_tokens=4, n_best=4)
  for row, text in enumerate(forced):
    everything = _everything(model, row, 4, 0.6)
    _assert_found(found, row, [h for h in everything if h[1][: len(text)] == text][:4])


@pytest.mark.parametrize('V', [7, 64, 1000, 1025])
def test_top_k_of_wide_rows_equals_that_of_jax(V):
  rng = np.random.default_rng(V)
  full = rng.integers(0, V // 3, (30, V)).astype(np.float32)  # some are equal
  full[rng.random((30, V)) < 0.2] = -np.inf
  full[0] = -np.inf
  full[1, -1] = V
  k = min(6, V)
  both = jax.jit(lambda x: (_top_k(x, k), jax.lax.top_k(x, k), _log_sum_exp(x)))
  for x in (full, rng.normal(size=(30, V)).astype(np.float32)):
    found, expected, sums = both(x)
    for part, expected_part in zip(found, expected, strict=True):
      np.testing.assert_array_equal(part, expected_part)
  np.testing.assert_allclose(sums, np.log(np.exp(x).sum(1)), rtol=1e-5)


@pytest.mark.parametrize(('beam', 'vocab_size'), [(0, 5), (6, 5)])
def test_a_beam_size_that_cannot_be_filled_raises(beam, vocab_size):
  check_beam_size(5, 5)
  with pytest.raises(
    UserError, match=f'--beam_size={beam} is not between 1 and 5, the size of the voc'
  ):
    check_beam_size(beam, vocab_size)


def test_rows_that_fit_a_short_buffer_are_those_of_the_full_one():
  full, complete = _search_and_done(_six(), **OF_SIX)
  assert complete.all()
  counts = []
  for length in (6, 8):
    less, done = _search_and_done(_six(), **OF_SIX, buffer_len=length)
    counts.append(done.sum())
    np.testing.assert_array_equal(less.tokens[done], full.tokens[done][:, :, :length])
    np.testing.assert_array_equal(less.lengths[done], full.lengths[done])
    np.testing.assert_allclose(less.scores[done], full.scores[done], rtol=1e-6)
  assert 0 < counts[0] < counts[1] < 6


def test_the_search_stops_at_max_unfinished_rows():
  full = _search(_six(), **OF_SIX)
  less, done = _search_and_done(_six(), **OF_SIX, max_unfinished=2)
  assert 4 <= done.sum() < 6
  np.testing.assert_array_equal(less.tokens[done], full.tokens[done])
  np.testing.assert_allclose(less.scores[done], full.scores[done], rtol=1e-6)


@pytest.mark.parametrize('alpha', [0.0, 1.0, -0.5])
def test_each_row_may_have_a_limit_of_its_own(alpha):
  model, limits = _model(seed=5, B=4, scale=1.0), np.array([1, 3, 6, 9])
  options = {'beam_size': 3, 'n_best': 3, 'max_tokens': 9}
  found, complete = _search_and_done(model, alpha, limits=limits, **options)
  assert complete.all()
  for row, limit in enumerate(limits):
    _assert_found(found, row, _reference(model, row, 3, limit, alpha, 3))
