import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.decode.sampling import (
  allowed_tokens,
  ban_unknown_token,
  forbidden_tokens,
  minimum_length,
  no_repeat_ngram,
  process_logits,
  repetition_penalty,
)
from lm.errors import UserError
from lm.text import tokenizers

LOGITS = np.array([1.0, -2.0, 3.0, 0.5, -0.5, 2.0], np.float32)
L, V = 8, len(LOGITS)


def _processed(processor, tokens, logits=LOGITS):
  tokens_L = np.zeros(L, np.int32)
  tokens_L[: len(tokens)] = tokens
  return np.asarray(processor(jnp.asarray(logits), jnp.asarray(tokens_L), jnp.int32(len(tokens))))


def _forbidden(processor, tokens):
  found = _processed(processor, tokens)
  left = np.isfinite(found)
  np.testing.assert_array_equal(found[left], LOGITS[left])
  return set(np.flatnonzero(~left))


@pytest.mark.parametrize(
  ('n', 'tokens', 'forbidden'),
  [
    (1, [], set()),
    (1, [3, 5, 3], {3, 5}),
    (2, [3], set()),
    (2, [3, 5, 3], {5}),
    (2, [3, 5, 3, 3], {5, 3}),
    (2, [0, 4, 0], {4}),  # 0 is a token, and padding only behind the length
    (3, [1, 2, 3, 1, 2], {3}),
    (3, [2, 1, 3, 1, 2], set()),
    (3, [4, 4, 4], {4}),
    (3, [0, 0], set()),
    (2, [1, 2, 1, 3, 1, 4, 1], {2, 3, 4}),
  ],
)
def test_ngrams_by_hand(n, tokens, forbidden):
  assert _forbidden(no_repeat_ngram(n), tokens) == forbidden


@pytest.mark.parametrize('n', [1, 2, 3, 4])
def test_ngrams_by_brute_force(n):
  rng = np.random.default_rng(n)
  processor = jax.jit(no_repeat_ngram(n))
  for length in [*range(L)] * 6:
    tokens = rng.integers(0, 3, length).tolist()
    before = {tuple(tokens[i : i + n]) for i in range(length - n + 1)}
    tail = tokens[length - n + 1 :] if n > 1 else []
    repeats = {t for t in range(V) if (*tail, t) in before}
    assert _forbidden(processor, tokens) == repeats


def test_repetition_penalty_lowers_earlier_tokens():
  found = _processed(repetition_penalty(2.0), [2, 1, 2, 4])
  np.testing.assert_array_equal(found, [1.0, -4.0, 1.5, 0.5, -1.0, 2.0])
  np.testing.assert_array_equal(_processed(repetition_penalty(2.0), []), LOGITS)
  forbidden = np.where(np.arange(V) == 2, -np.inf, LOGITS)
  assert _processed(repetition_penalty(2.0), [2], forbidden)[2] == -np.inf


def test_the_end_is_forbidden_below_the_minimum_length():
  processor = minimum_length(2, end=5)
  for tokens, forbidden in (([], {5}), ([1], {5}), ([1, 2], set()), ([1, 2, 3], set())):
    assert _forbidden(processor, tokens) == forbidden


def test_tokens_allowed_and_forbidden():
  assert _forbidden(allowed_tokens((4, 0)), [1]) == {1, 2, 3, 5}
  assert _forbidden(forbidden_tokens((4, 0)), [1]) == {4, 0}


def test_the_unknown_token_is_forbidden_if_it_exists():
  (processor,) = ban_unknown_token(tokenizers.words(['b b a'], min_count=1))  # <|end|> <unk> b a
  assert _forbidden(processor, []) == {1}
  (processor,) = ban_unknown_token(tokenizers.characters(['ab']))  # <|end|> a b <unk>
  assert _forbidden(processor, []) == {tokenizers.characters(['ab']).token_to_id('<unk>')}
  assert ban_unknown_token(tokenizers.bytes([])) == ()


def test_constraints_apply_in_order_to_each_row_by_itself():
  logits = np.stack([LOGITS, -LOGITS])
  tokens = np.array([[2, 3, 2, 0], [1, 3, 5, 0]], np.int32)
  processors = (no_repeat_ngram(2), repetition_penalty(2.0))
  found = jax.jit(lambda *args: process_logits(*args, processors))(logits, tokens, np.full(2, 3))
  np.testing.assert_array_equal(found[0], [1.0, -2.0, 1.5, -np.inf, -0.5, 2.0])
  np.testing.assert_array_equal(found[1], [-1.0, 1.0, -3.0, -1.0, 0.5, -4.0])


@pytest.mark.parametrize(
  ('length', 'left'),
  # Row 0 must begin with 4, 5; row 1 is free; row 2 must begin with 0.
  [(0, [{4}, {1, 2}, {0}]), (1, [{5}, {1, 2}, {1, 2}]), (2, [{1, 2}] * 3), (3, [{1, 2}] * 3)],
)
def test_a_prefix_overrides_constraints(length, left):
  prefix = jnp.asarray([[4, 5, -1], [-1, -1, -1], [0, -1, -1]])
  logits = jnp.asarray(np.stack([LOGITS] * 3))
  tokens = jnp.zeros((3, L), jnp.int32)
  lengths = jnp.full(3, length)
  found = np.asarray(process_logits(logits, tokens, lengths, (allowed_tokens((1, 2)),), prefix))
  assert [set(np.flatnonzero(np.isfinite(row))) for row in found] == left
  np.testing.assert_array_equal(found[np.isfinite(found)], np.asarray(logits)[np.isfinite(found)])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: no_repeat_ngram(0), 'no_repeat_ngram: n=0 is not 1 or more'),
    (lambda: repetition_penalty(0.9), 'repetition_penalty: x=0.9 is not 1 or more'),
    (lambda: allowed_tokens(()), r'allowed_tokens: ids=\(\) are not one or more token ids'),
    (lambda: forbidden_tokens((3, -1)), r'forbidden_tokens: ids=\(3, -1\) are not one or more'),
    (lambda: minimum_length(2, end=-1), r'minimum_length: ids=\(-1,\) are not'),
    (lambda: _processed(allowed_tokens((1, 6)), []), 'allowed_tokens: id 6 is not below 6, the si'),
    (lambda: _processed(forbidden_tokens((9,)), []), 'forbidden_tokens: id 9 is not below 6'),
  ],
)
def test_mistakes_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_equal_arguments_give_one_function():
  """Otherwise each call of a program would compile again."""
  tokenizer = tokenizers.words(['b b a'], min_count=1)
  assert ban_unknown_token(tokenizer) == ban_unknown_token(tokenizer)
  assert no_repeat_ngram(2) is no_repeat_ngram(2) is not no_repeat_ngram(3)
