"""Noise on what a model reads, drawn anew each time that a row is read.

These build transforms (lm.data.batches). `stream` names the tokens that change: 'source', what an
encoder reads for a decoder, or 'inputs', what any other model reads. They change by the unit: a
'word', from one space to the next, or a 'token', as suits languages that are written without
spaces. Special tokens and padding stay, and so do all lengths.
"""

import numpy as np
import tokenizers

from lm.data.batches import NumpyBatch, Transform
from lm.data.units import check_moves, check_share, reader
from lm.errors import UserError
from lm.text.tokenizers import special_ids

MASK = '<|mask|>'


def word_dropout(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 0.1,
  unit: str = 'word',
  token: str = MASK,
) -> Transform:
  """Hides units, each with a probability (Iyyer et al. 2015; Bowman et al. 2016 in a decoder).

  Args:
    tokenizer: that of the rows.
    stream: which tokens.
    rate: the probability.
    unit: what is hidden as a whole.
    token: stands in the place of each token that is hidden.
  """
  check_share('word_dropout', 'rate', rate)
  units, hidden_id = reader(tokenizer, stream, unit), _token_id(tokenizer, token)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    found = units(row)
    hidden_U = found.free & (rng.random(len(found.free)) < rate)
    return row | {stream: _hide(row[stream], hidden_U[found.of_token], hidden_id)}

  return transform


def span_masking(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 0.15,
  mean_length: float = 3.0,
  unit: str = 'word',
  token: str = MASK,
) -> Transform:
  """Hides spans of units whose lengths are geometric (Joshi et al. 2020, SpanBERT).

  Spans and the gaps between them, geometric too, follow each other along the row, so that each
  unit is hidden with probability `rate`. A span ends with its text, at a special token.

  Args:
    tokenizer: that of the rows.
    stream: which tokens.
    rate: the share of units hidden.
    mean_length: of a span, in units, before it meets the end of its text.
    unit: what is hidden as a whole.
    token: stands in the place of each token that is hidden.

  Raises:
    UserError: gaps of at least one unit leave no room for such a rate.
  """
  check_share('span_masking', 'rate', rate)
  if mean_length < 1 or rate * (mean_length + 1) > mean_length:
    raise UserError(
      f'data.transforms: span_masking(rate={rate}, mean_length={mean_length}): a span has at least '
      'one unit, and so has the gap after it; rate may be mean_length / (mean_length + 1) at most'
    )
  units, hidden_id = reader(tokenizer, stream, unit), _token_id(tokenizer, token)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    found = units(row)
    hidden_U = np.zeros(len(found.free), bool)
    count = int(found.free.sum())
    if rate:
      hidden_U[found.free] = _spans(count, rate, mean_length, rng)
    return row | {stream: _hide(row[stream], hidden_U[found.of_token], hidden_id)}

  return transform


def swaps(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 1.0,
  distance: int = 3,
  unit: str = 'word',
) -> Transform:
  """Moves units of a text a little (Lample et al. 2018, section 2.3).

  Unit i takes its rank by i + u, with u uniform between 0 and `distance` + 1, so that none ends up
  more than `distance` places away. A word moves with the space before it; the first word of a
  text, which has none, stays where it is.

  Args:
    tokenizer: that of the rows.
    stream: which tokens; nothing else in the row may go by their places.
    rate: the share of units that draw a u; the others have 0, and move when overtaken.
    distance: in units.
    unit: what moves as a whole.

  Raises:
    UserError: later, the row has tags or spans, or targets along it.
  """
  check_share('swaps', 'rate', rate)
  if distance < 1:
    raise UserError(f'data.transforms: swaps(distance={distance}): units move 1 or more places')
  units = reader(tokenizer, stream, unit)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    check_moves(row, stream, 'swaps')
    found = units(row)
    count = len(found.free)
    far_U = np.where(rng.random(count) < rate, rng.uniform(0, distance + 1, count), 0)
    key_U = np.arange(count) + far_U * (found.free & found.marked)
    rank_U = np.empty(count, np.int64)
    rank_U[np.lexsort((key_U, found.stretch))] = np.arange(count)
    return row | {stream: row[stream][np.argsort(rank_U[found.of_token], kind='stable')]}

  return transform


def _hide(ids_T: np.ndarray, hidden_T: np.ndarray, token: int) -> np.ndarray:
  return np.where(hidden_T, np.int32(token), ids_T)


def _spans(count: int, rate: float, mean_length: float, rng: np.random.Generator) -> np.ndarray:
  """Returns which of `count` units are in a span."""
  pairs = count // 2 + 1  # a span and a gap have two units at least
  spans = rng.geometric(1 / mean_length, pairs)
  gaps = rng.geometric(min(rate / (mean_length * (1 - rate)), 1), pairs)
  # What is left of a geometric length is geometric again: the row may begin inside a span.
  first = rng.random() < rate
  lengths = np.stack([spans, gaps] if first else [gaps, spans], axis=1).reshape(-1)
  return np.repeat(np.arange(2 * pairs) % 2 != first, lengths)[:count]


def _token_id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
  found = tokenizer.token_to_id(token)
  if found is None:
    known = [tokenizer.id_to_token(i) for i in sorted(special_ids(tokenizer))]
    there = ', '.join(map(repr, known))
    raise UserError(
      f'data.transforms: data.tokenizer has no token {token!r}; add it by '
      f'data.specials=({token!r},), or take one of {there}'
    )
  return found
