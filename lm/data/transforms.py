"""Transforms of rows at read time: noise on the input of a model, and sampled segmentations.

The functions build transforms (lm.data.batches). `stream` names the tokens that change: 'source',
the input of an encoder-decoder's encoder, or 'inputs', the input of other models.

Noise changes units: a 'word', from one space to the next, or a 'token', for languages written
without spaces. Special tokens, padding and all lengths stay unchanged.

Segmentations apply to 'source', to 'inputs' of an encoder with a classification or regression head,
or to 'targets' of an encoder-decoder, whose inputs change accordingly. Longer segmentations need
space: data.packing_slack=1.3 packs rows as if examples had 30 % more tokens. If the tokens still do
not fit, random words keep the tokenizer's own segmentation until they do.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from lm.data.batches import NumpyBatch, Transform
from lm.errors import UserError, did_you_mean
from lm.text import subword_sampling
from lm.text.subword_sampling import Pieces, Sample
from lm.text.tokenizers import special_ids, vocabulary_size

MASK = '<|mask|>'
STREAMS = ('inputs', 'source')
SEGMENTS = {'inputs': 'segments', 'source': 'source_segments', 'targets': 'segments'}
UNITS = ('word', 'token')
# The standard fields of a task's row. Other fields, such as spans, may refer to token positions.
_DECODER = {'inputs', 'targets', 'weights', 'segments', 'positions', 'examples'}
_ENCODER = {'source', 'source_segments', 'source_positions'}


def word_dropout(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 0.1,
  unit: str = 'word',
  token: str = MASK,
) -> Transform:
  """Masks units independently (Iyyer et al. 2015; Bowman et al. 2016 in a decoder).

  Args:
    tokenizer: the tokenizer of the rows.
    stream: field of the tokens: 'inputs' or 'source'.
    rate: probability of masking a unit.
    unit: 'word' or 'token'.
    token: replaces each masked token.
  """
  _check_fraction('word_dropout', 'rate', rate)
  groups_of, mask_id = word_groups(tokenizer, stream, unit), _token_id(tokenizer, token)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    groups = groups_of(row)
    masked_U = groups.maskable & (rng.random(len(groups.maskable)) < rate)
    return row | {stream: np.where(masked_U[groups.group_ids], np.int32(mask_id), row[stream])}

  return transform


def span_masking(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 0.15,
  mean_length: float = 3.0,
  unit: str = 'word',
  token: str = MASK,
) -> Transform:
  """Masks spans of units with geometric lengths (Joshi et al. 2020, SpanBERT).

  Spans alternate with gaps, also geometric, so that each unit is masked with probability `rate`. A
  span ends at a special token, where its text ends.

  Args:
    tokenizer: the tokenizer of the rows.
    stream: field of the tokens: 'inputs' or 'source'.
    rate: expected fraction of masked units.
    mean_length: mean length of a span in units, before the end of a text cuts it.
    unit: 'word' or 'token'.
    token: replaces each masked token.

  Raises:
    UserError: the rate is impossible, as a gap has at least one unit.
  """
  _check_fraction('span_masking', 'rate', rate)
  if mean_length < 1 or rate * (mean_length + 1) > mean_length:
    raise UserError(
      f'data.transforms: span_masking(rate={rate}, mean_length={mean_length}): a span and the gap '
      'after it have at least one unit each; rate is at most mean_length / (mean_length + 1)'
    )
  groups_of, mask_id = word_groups(tokenizer, stream, unit), _token_id(tokenizer, token)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    groups = groups_of(row)
    masked_U = np.zeros(len(groups.maskable), bool)
    if rate:
      masked_U[groups.maskable] = _spans(int(groups.maskable.sum()), rate, mean_length, rng)
    return row | {stream: np.where(masked_U[groups.group_ids], np.int32(mask_id), row[stream])}

  return transform


def swaps(
  tokenizer: tokenizers.Tokenizer,
  stream: str,
  rate: float = 1.0,
  distance: int = 3,
  unit: str = 'word',
) -> Transform:
  """Permutes units of a text locally (Lample et al. 2018, section 2.3).

  Unit i is sorted by i + u, with u uniform between 0 and `distance` + 1. No unit thus moves more
  than `distance` positions. A word moves with its leading space. The first word of a text has no
  leading space and stays.

  Args:
    tokenizer: the tokenizer of the rows.
    stream: field of the tokens; no other field may refer to their positions.
    rate: fraction of units with a random u; the others have u = 0, but units move past them.
    distance: maximum shift of a unit.
    unit: 'word' or 'token'.

  Raises:
    UserError: the transform raises it for a row with tags, spans, or a target per token.
  """
  _check_fraction('swaps', 'rate', rate)
  if distance < 1:
    raise UserError(f'data.transforms: swaps(distance={distance}): must be at least 1')
  groups_of = word_groups(tokenizer, stream, unit)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    _check_movable(row, stream, 'swaps')
    groups = groups_of(row)
    count = len(groups.maskable)
    shift_U = np.where(rng.random(count) < rate, rng.uniform(0, distance + 1, count), 0)
    key_U = np.arange(count) + shift_U * (groups.maskable & groups.word_initial)
    rank_U = np.empty(count, np.int64)
    rank_U[np.lexsort((key_U, groups.segment))] = np.arange(count)
    return row | {stream: row[stream][np.argsort(rank_U[groups.group_ids], kind='stable')]}

  return transform


def bpe_dropout(tokenizer: tokenizers.Tokenizer, stream: str, rate: float = 0.1) -> Transform:
  """Skips merges of byte pair encoding at random (Provilkov et al. 2020).

  At a rate of 0.1, German and English captions in a vocabulary of 8,000 have 1.27 times as many
  tokens.

  Args:
    tokenizer: the byte-level BPE tokenizer of the rows.
    stream: field of the tokens: 'inputs', 'source' or 'targets'.
    rate: probability of skipping a merge.

  Raises:
    UserError: the tokenizer is of another kind. The transform raises it for an unsuitable row.
  """
  _check_fraction('bpe_dropout', 'rate', rate)
  sample = subword_sampling.bpe_dropout(tokenizer, rate)
  return _resample_segmentation(tokenizer, stream, sample, 'bpe_dropout')


def subword_regularization(
  tokenizer: tokenizers.Tokenizer, stream: str, alpha: float = 0.2
) -> Transform:
  """Samples the segmentation of each word from a unigram model (Kudo 2018).

  German and English captions in a vocabulary of 8,000 have 1.04 times as many tokens at an alpha of
  0.5, 1.3 times as many at 0.2, and 1.75 times at 0.1.

  Args:
    tokenizer: the byte-level unigram tokenizer of the rows.
    stream: field of the tokens: 'inputs', 'source' or 'targets'.
    alpha: exponent of the probabilities; smaller values give more varied and longer segmentations.

  Raises:
    UserError: the tokenizer is of another kind. The transform raises it for an unsuitable row.
  """
  if alpha < 0:
    raise UserError(f'data.transforms: subword_regularization(alpha={alpha!r}) is below 0')
  sample = subword_sampling.unigram_sampling(tokenizer, alpha)
  return _resample_segmentation(tokenizer, stream, sample, 'subword_regularization')


class WordGroups(NamedTuple):
  """The U units of a row of T tokens.

  Attributes:
    group_ids: (T,) the index of each token's unit, increasing from 0.
    maskable: (U,) False for special tokens and padding.
    word_initial: (U,) whether the first token of the unit can begin a word inside a text. If tokens
      include the leading space, this is False for the first word of a text, which has no space.
    segment: (U,) index of the text that contains the unit; special tokens separate texts.
  """

  group_ids: np.ndarray
  maskable: np.ndarray
  word_initial: np.ndarray
  segment: np.ndarray


def word_groups(
  tokenizer: tokenizers.Tokenizer, stream: str, unit: str
) -> Callable[[NumpyBatch], WordGroups]:
  """Returns the function from a row to the units of one of its streams.

  Raises:
    UserError: the stream or unit is unknown. The function raises it if the row lacks the stream.
  """
  _check_known('stream', stream, STREAMS)
  _check_known('unit', unit, UNITS)
  special_V = np.zeros(vocabulary_size(tokenizer), bool)
  special_V[list(special_ids(tokenizer))] = True
  initial_V = _word_initial(tokenizer) if unit == 'word' else np.ones_like(special_V)

  def groups(row: NumpyBatch) -> WordGroups:
    _check_stream(row, stream)
    ids_T, segments_T = row[stream], row[SEGMENTS[stream]]
    fixed_T = special_V[ids_T] | (segments_T == 0)
    border_T = fixed_T | np.append(True, fixed_T[:-1]) | (np.diff(segments_T, prepend=0) != 0)
    begins_T = border_T | initial_V[ids_T]
    (firsts_U,) = np.nonzero(begins_T)
    return WordGroups(
      group_ids=np.cumsum(begins_T) - 1,
      maskable=~fixed_T[firsts_U],
      word_initial=initial_V[ids_T[firsts_U]],
      segment=np.cumsum(border_T)[firsts_U],
    )

  return groups


def _word_initial(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns for each token, (V,), whether a word inside a text can begin with it."""
  initial_V = np.ones(vocabulary_size(tokenizer), bool)
  model = type(tokenizer.model).__name__
  for token, i in tokenizer.get_vocab().items():
    if model == 'WordPiece':
      initial_V[i] = not token.startswith(tokenizer.model.continuing_subword_prefix)
    elif model != 'WordLevel':
      initial_V[i] = token.startswith('▁') or tokenizer.decode([i])[:1].isspace()
  return initial_V


def _spans(count: int, rate: float, mean_length: float, rng: np.random.Generator) -> np.ndarray:
  """Returns which of `count` units are in a span."""
  pairs = count // 2 + 1  # a span and a gap have at least two units
  spans = rng.geometric(1 / mean_length, pairs)
  gaps = rng.geometric(min(rate / (mean_length * (1 - rate)), 1), pairs)
  # The remainder of a geometric length is geometric again: the row may begin inside a span.
  first = rng.random() < rate
  lengths = np.stack([spans, gaps] if first else [gaps, spans], axis=1).reshape(-1)
  return np.repeat(np.arange(2 * pairs) % 2 != first, lengths)[:count]


def _token_id(tokenizer: tokenizers.Tokenizer, token: str) -> int:
  token_id = tokenizer.token_to_id(token)
  if token_id is None:
    known = [tokenizer.id_to_token(i) for i in sorted(special_ids(tokenizer))]
    raise UserError(
      f'data.transforms: data.tokenizer has no token {token!r}; add it by '
      f'data.special_tokens=({token!r},), or use one of {", ".join(map(repr, known))}'
    )
  return token_id


def _resample_segmentation(
  tokenizer: tokenizers.Tokenizer, stream: str, sample: Sample, name: str
) -> Transform:
  """Returns the transform that samples a segmentation for each word of a stream."""
  _check_known('stream', stream, tuple(SEGMENTS))
  split = subword_sampling.word_splitter(tokenizer)
  default = subword_sampling.default_pieces(tokenizer)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    if stream == 'targets':
      _check_generated(row, name)
    else:
      _check_movable(row, stream, name)
    ids, segments = row[stream], row[SEGMENTS[stream]]
    texts = [split(ids[segments == s].tolist()) for s in range(1, segments.max() + 1)]
    words = [*itertools.chain.from_iterable(texts)]
    sampled = iter(sample([word for word in words if isinstance(word, str)], rng))
    pieces = [next(sampled) if isinstance(word, str) else word for word in words]
    # Preparation encodes the parts of an example's text separately. A word that spans two parts is
    # one word here, and its default pieces may be more than the tokens of the two parts.
    if not _fit(pieces, words, default, len(ids), rng):
      return row
    segment_of_word = [segment for segment, text in enumerate(texts, 1) for _ in text]
    return row | _fields_of(row, stream, pieces, segment_of_word)

  return transform


def _fit(
  pieces: list[Pieces],
  words: Sequence[str | Pieces],
  default: Callable[[str], Pieces],
  size: int,
  rng: np.random.Generator,
) -> bool:
  """Resets random words to their default pieces until all fit; returns whether they do."""
  total = sum(map(len, pieces))
  for i in rng.permutation(len(words)) if total > size else ():
    word = words[i]
    if isinstance(word, str) and len(default(word)) < len(pieces[i]):
      total += len(default(word)) - len(pieces[i])
      pieces[i] = default(word)
    if total <= size:
      break
  return total <= size


def _fields_of(
  row: NumpyBatch, stream: str, pieces: Sequence[Pieces], segment_of_word: Sequence[int]
) -> NumpyBatch:
  """Returns the fields of a row that depend on the pieces of its words."""
  lengths = np.array([len(word) for word in pieces])
  used = int(lengths.sum())
  names = (stream, SEGMENTS[stream], SEGMENTS[stream].replace('segments', 'positions'))
  arrays = {name: np.zeros_like(row[name]) for name in names}
  ids, segments, positions = arrays.values()
  ids[:used] = np.fromiter(itertools.chain.from_iterable(pieces), np.int32, used)
  segments[:used] = np.repeat(segment_of_word, lengths)
  starts = np.flatnonzero(np.diff(segments[:used], prepend=0))
  positions[:used] = np.arange(used) - np.repeat(starts, np.diff(starts, append=used))
  if stream == 'targets':
    weights = (segments > 0).astype(row['weights'].dtype)
    arrays |= {'inputs': _shifted(ids, segments, row), 'weights': weights}
  return arrays


def _shifted(targets: np.ndarray, segments: np.ndarray, row: NumpyBatch) -> np.ndarray:
  """Returns the inputs of a decoder: at each position the previous target of the segment.

  The first position of each segment keeps the row's input, such as END.
  """
  inputs = np.where(segments > 0, np.roll(targets, 1), 0).astype(row['inputs'].dtype)
  inputs[_firsts(segments)] = row['inputs'][_firsts(row['segments'])]
  return inputs


def _firsts(segments: np.ndarray) -> np.ndarray:
  return np.flatnonzero((np.diff(segments, prepend=0) != 0) & (segments > 0))


def _check_known(key: str, value: str, known: Sequence[str]) -> None:
  if value not in known:
    raise UserError(
      f'data.transforms: {key}={value!r}{did_you_mean(value, known)} must be one of '
      f'{", ".join(map(repr, known))}'
    )


def _check_fraction(name: str, key: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise UserError(f'data.transforms: {name}({key}={value!r}) is not between 0 and 1')


def _check_stream(row: NumpyBatch, stream: str) -> None:
  if stream not in row:
    present = ' and '.join(repr(name) for name in STREAMS if name in row)
    raise UserError(f'data.transforms: stream={stream!r}: the rows have {present} only')


def _check_movable(row: NumpyBatch, stream: str, name: str) -> None:
  """Raises UserError if other fields may refer to positions in the stream."""
  _check_stream(row, stream)
  others = _other_fields(row)
  if stream == 'inputs' and 'examples' in row and row['targets'].shape != row['examples'].shape:
    others = ['targets', *others]
  if others:
    raise UserError(
      f'data.transforms: {name}(stream={stream!r}) moves tokens, but {others[0]!r} of the row may '
      "refer to their positions; it suits stream='source' of lm.tasks.seq2seq:encoder_decoder, and "
      "stream='inputs' of lm.tasks.classification:classifier and lm.tasks.classification:regressor"
    )


def _check_generated(row: NumpyBatch, name: str) -> None:
  """Raises UserError if targets are not the generated text of an encoder-decoder."""
  if not (
    'source' in row
    and not _other_fields(row)
    and (row['weights'] == (row['segments'] > 0)).all()
    and (row['inputs'] == _shifted(row['targets'], row['segments'], row)).all()
  ):
    raise UserError(
      f"data.transforms: {name}(stream='targets') suits rows of lm.tasks.seq2seq:encoder_decoder, "
      'and must come before transforms that change their inputs'
    )


def _other_fields(row: NumpyBatch) -> list[str]:
  """Returns the fields of a row that may refer to positions of tokens."""
  return sorted(row.keys() - _DECODER - _ENCODER)
