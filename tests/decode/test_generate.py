import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.constraints import Prefix, allowed_tokens, forbidden_tokens, no_repeat_ngram
from lm.decode.generate import generate
from lm.decode.sampling import greedy, sampler
from lm.errors import UserError

END, V, MOST = 1, 6, 12
TABLE = np.random.default_rng(0).normal(0, 1.0, (V, V)).astype(np.float32)
LOG_P = TABLE - np.log(np.exp(TABLE).sum(1, keepdims=True))
FIRST = np.arange(V)
NO_END = forbidden_tokens((END,))
draw = sampler(temperature=0.7)


def _step(tokens_R, steps):
  return jnp.asarray(TABLE)[tokens_R], steps + 1


@functools.partial(jax.jit, static_argnums=(1, 3))
def _run(first, choose, seeds, adjust, prefix):
  keys = jax.vmap(jax.random.key)(seeds)
  options = {'max_tokens': MOST, 'end': END, 'adjust': adjust, 'prefix': prefix}
  return generate(_step, jnp.asarray(TABLE)[first], jnp.int32(0), choose, keys, **options)[:3]


def _generate(first=FIRST, choose=greedy, seeds=None, adjust=(), prefix=None):
  seeds = np.asarray(first if seeds is None else seeds)
  return [np.asarray(x) for x in _run(np.asarray(first), choose, seeds, adjust, prefix)]


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
  said = pairs.sum(1)
  assert said[[0, 2, 3, 4, 5]].min() > 500  # standard errors below 0.023
  for token in (0, 2, 3, 4, 5):
    np.testing.assert_allclose(pairs[token] / said[token], np.exp(LOG_P[token]), atol=0.09)


def test_a_row_depends_on_its_key_alone():
  tokens, lengths, log_p = _generate(choose=draw)
  assert len(set(lengths)) > 1
  for row in FIRST:
    alone = _generate([row], draw, [row])
    np.testing.assert_array_equal(alone[0][0], tokens[row])
    assert (alone[1][0], alone[2][0]) == (lengths[row], log_p[row])
  assert (_generate(choose=draw, seeds=FIRST + 10)[0] != tokens).any()


def test_no_ngram_comes_twice():
  for choose in (greedy, draw):
    tokens, lengths, _ = _generate(choose=choose, adjust=(no_repeat_ngram(2), NO_END))
    assert (lengths == MOST).all()
    for row in tokens:
      assert len({*itertools.pairwise(row)}) == MOST - 1
  # The unconstrained rows do repeat themselves.
  row = _generate(adjust=(NO_END,))[0][0]
  assert len({*itertools.pairwise(row)}) < MOST - 1


def test_rows_begin_with_their_prefix_and_go_on_freely():
  prefix = Prefix(np.array([[4, 5, 2], [0, 0, 0], [3, END, 0]]), np.array([3, 0, 2]))
  first = [0, 2, 3]
  tokens, lengths, log_p = _generate(first, prefix=prefix)
  texts = _texts(tokens, lengths)
  free = _texts(*_generate()[:2])[2]
  assert texts == [([4, 5, 2] + free)[:MOST], free, [3, END]]
  for row, text in enumerate(texts):
    np.testing.assert_allclose(log_p[row], _log_p(first[row], text), rtol=1e-5)


def test_a_row_that_may_say_nothing_stops():
  adjust = (no_repeat_ngram(1), allowed_tokens((2, 3)))
  tokens, lengths, log_p = _generate(adjust=adjust)
  assert (lengths == 2).all() and (log_p == -np.inf).all()
  assert {tuple(row[:3]) for row in tokens} <= {(2, 3, 0), (3, 2, 0)}


def test_the_loop_stops_when_all_rows_have_ended():
  steps = []

  def step(tokens_R, state):
    jax.debug.callback(lambda: steps.append(1))
    return _step(tokens_R, state)

  @jax.jit
  def run(logits_BV):
    keys = jax.random.split(jax.random.key(0), 2)
    return generate(step, logits_BV, jnp.int32(0), greedy, keys, max_tokens=9, end=END)[:3]

  ends = np.where(FIRST == END, 9.0, 0.0).astype(np.float32)
  jax.block_until_ready(run(jnp.asarray([ends, ends])))
  jax.effects_barrier()
  assert steps == []
  jax.block_until_ready(run(jnp.asarray([ends, TABLE[0]])))
  jax.effects_barrier()
  text = _texts(*_generate()[:2])[0]
  assert len(steps) == min(len(text), 9) - 1


def test_no_room_for_a_token_is_told():
  with pytest.raises(UserError, match='--max_tokens=0 is not 1 or more'):
    generate(_step, jnp.zeros((1, V)), 0, greedy, jnp.zeros(1), max_tokens=0, end=END)


def test_rows_that_may_be_spared_are_not_waited_for():
  whole = _generate()
  keys = jax.random.split(jax.random.key(0), len(FIRST))
  options = {'max_tokens': MOST, 'end': END, 'spare': len(FIRST) - 1}
  found = jax.jit(lambda logits: generate(_step, logits, jnp.int32(0), greedy, keys, **options))(
    jnp.asarray(TABLE[FIRST])
  )
  complete = np.asarray(found[3])
  assert 1 <= complete.sum() < len(FIRST)
  np.testing.assert_array_equal(found[0][complete], whole[0][complete])


def test_each_row_may_have_a_limit_of_its_own():
  limits = np.array([1, 2, 3, 4, MOST, MOST])
  keys = jax.random.split(jax.random.key(0), len(FIRST))
  whole = _generate(adjust=(NO_END,))
  options = {'max_tokens': MOST, 'end': END, 'adjust': (NO_END,), 'limits_B': limits}
  found = jax.jit(lambda logits: generate(_step, logits, jnp.int32(0), greedy, keys, **options))(
    jnp.asarray(TABLE[FIRST])
  )
  assert np.asarray(found[3]).all()
  np.testing.assert_array_equal(found[1], limits)
  for row, limit in enumerate(limits):
    np.testing.assert_array_equal(found[0][row][:limit], whole[0][row][:limit])
    assert not np.asarray(found[0][row][limit:]).any()
