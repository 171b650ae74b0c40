"""Denoising of running text for encoder-decoders and prefix language models, at read time.

The transforms take rows of text (lm.data.packed_rows.PackedRows), whose `targets` are the tokens of
the text. Those for encoder-decoders add `source`, the corrupted text, with its segments and
positions, so that a packed row stays packed. Units are as in lm.data.masking.
"""

import re
from collections.abc import Sequence

import numpy as np
import tokenizers

from lm.data.batches import NumpyBatch, Transform
from lm.data.masking import (
  Units,
  borders,
  check_rate,
  check_text,
  padded,
  text_units,
  tokens_alone,
)
from lm.errors import UserError, check_range
from lm.text.tokenizers import end_id, mask_token, special_ids

SUFFIX = 'suffix'  # the denoiser that continues a text
_SENTENCE = 2  # the mark of the first token of a sentence, as in lm.text.words
_MODES = ('<|R|>', '<|X|>', '<|S|>')  # regular, extreme and sequential denoising
_SENTINEL = re.compile(r'<extra_id_(\d+)>')


def span_corruption(
  tokenizer: tokenizers.Tokenizer,
  rate: float = 0.15,
  mean_length: float = 3.0,
  unit: str = 'token',
) -> Transform:
  """Replaces spans by sentinels, and makes the decoder generate them (Raffel et al. 2020, 3.1.4).

  The source is the text with a sentinel for each span. The targets are, for each span, its sentinel
  and its tokens, and END. Sentinels are <extra_id_0>, <extra_id_1> and so on in each segment. The
  source has T tokens, and the targets have space for the spans of one text that fills the row. Rows
  of many short texts need more sentinels and ENDs: spans that do not fit stay in the source. A
  segment without spans is not in the source.

  Args:
    tokenizer: the tokenizer of the rows, with sentinels.
    rate: share of units in spans.
    mean_length: mean units of a span.
    unit: 'token', as in T5, or 'word'.

  Raises:
    UserError: an argument is wrong, or the tokenizer has no sentinels. The transform raises it for
      rows without words, full rows that have nothing to mask, and texts with too few sentinels.
  """
  return _denoisers(tokenizer, ((mean_length, rate),), unit, modes=False)


def mixture_of_denoisers(
  tokenizer: tokenizers.Tokenizer,
  denoisers: Sequence[tuple[float, float] | str] = (
    (3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5), SUFFIX,
  ),
  unit: str = 'token',
  modes: bool = True,
) -> Transform:  # fmt: skip
  """Applies one of several denoisers to each row, uniformly (UL2, Tay et al. 2023, section 3.1).

  Args:
    tokenizer: the tokenizer of the rows, with sentinels.
    denoisers: pairs (mean_length, rate) of `span_corruption`, or 'suffix': one span from a uniform
      place to the end of each text.
    unit: 'token' or 'word'.
    modes: whether each source starts with the token of its paradigm: <|S|> for a suffix, <|X|> for
      a mean length of at least 12 or a rate of at least 0.3, else <|R|>.

  Raises:
    UserError: as in `span_corruption`, or the tokenizer lacks the tokens of the paradigms.
  """
  return _denoisers(tokenizer, denoisers, unit, modes)


def infilling(
  tokenizer: tokenizers.Tokenizer,
  rate: float = 0.3,
  mean_length: float = 3.0,
  unit: str = 'word',
  permute: bool = True,
) -> Transform:
  """Corrupts the source by text infilling, for a decoder that generates the text (BART).

  Lewis et al. 2020, section 2.2: spans with lengths of a Poisson distribution become one mask each,
  also spans of length 0, and sentences are permuted. Inputs and targets of the decoder stay.

  Args:
    tokenizer: the tokenizer of the rows, with a mask.
    rate: share of units in spans.
    mean_length: mean units of a span.
    unit: 'word' or 'token'.
    permute: whether the sentences of each text are permuted; `data.words` marks them.

  Raises:
    UserError: an argument is wrong, or the tokenizer has no mask. The transform raises it for rows
      without words, and full rows that have nothing to mask.
  """
  check_rate('infilling', 'rate', rate)
  _check_length('infilling', mean_length)
  units_of, (_, mask) = text_units(tokenizer, unit), mask_token(tokenizer)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    units = units_of(row)
    segments_T, size = row['segments'], len(row['targets'])
    order_T = np.arange(size)
    if permute:
      if 'words' not in row:
        raise UserError(
          'data.transforms: infilling(permute=True) needs the boundaries of sentences; set '
          "data.words='lm.text.words:word_marks', or permute=False"
        )
      order_T = _permuted_sentences(row, units, rng)
    lengths = _poisson_lengths(int(units.maskable.sum()), rate, mean_length, rng)
    noise_T, firsts, inserted = _spans(units, lengths, rng)
    kept_T = ~noise_T & (segments_T > 0)
    kept_T[firsts] = True
    free = size - int(kept_T.sum())
    before_T = np.zeros(size, bool)  # tokens that a mask for a span of length 0 precedes
    before_T[rng.permutation(inserted)[:free]] = True
    tokens_T = row['targets'].copy()
    tokens_T[firsts] = mask
    columns = (before_T[order_T], mask), (kept_T[order_T], tokens_T[order_T])
    return tokens_alone(row) | _stream('source', segments_T[order_T], size, *columns)

  return transform


def prefix_lm(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
  """Makes each text a prefix and a continuation (Raffel et al. 2020, section 3.2.1), for a decoder.

  The prefix has at least one input and is uniformly long. Its inputs see each other, and the loss
  covers the targets after it.
  """
  check_text(row)
  segments_T, positions_T = row['segments'], row['positions']
  sizes = np.bincount(segments_T)
  ends = 1 + np.floor(rng.random(len(sizes)) * np.maximum(sizes - 1, 1)).astype(np.int32)
  prefix_T = (positions_T < ends[segments_T]) & (segments_T > 0)
  # The last input of the prefix predicts the first token after it.
  counted_T = (positions_T >= ends[segments_T] - 1) & (segments_T > 0)
  fields = {'prefix': prefix_T.astype(np.int32), 'weights': counted_T.astype(np.float32)}
  return tokens_alone(row) | fields


def _denoisers(
  tokenizer: tokenizers.Tokenizer,
  denoisers: Sequence[tuple[float, float] | str],
  unit: str,
  modes: bool,
) -> Transform:
  if not denoisers:
    raise UserError('data.transforms: denoisers=() has none; give pairs such as ((3.0, 0.15),)')
  for denoiser in denoisers:
    if denoiser != SUFFIX:
      if not isinstance(denoiser, tuple | list) or len(denoiser) != 2:
        raise UserError(
          f"data.transforms: denoiser {denoiser!r} must be 'suffix' or a pair such as (3.0, 0.15)"
        )
      check_rate('span_corruption', 'rate', denoiser[1])
      _check_length('span_corruption', denoiser[0])
  sentinel_ids, end, units_of = (
    _sentinels(tokenizer),
    end_id(tokenizer),
    text_units(tokenizer, unit),
  )
  mode_ids = [tokenizer.token_to_id(mode) for mode in _MODES]
  if modes and None in mode_ids:
    raise UserError(
      f'data.tokenizer has no {_MODES[mode_ids.index(None)]!r}; add the paradigms of denoising by '
      f'data.special_tokens={_MODES}, or set modes=False'
    )

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    units, row = units_of(row), tokens_alone(row)
    tokens_T, segments_T = row['targets'], row['segments']
    capacity = max(_capacity(len(tokens_T), denoiser) for denoiser in denoisers)
    denoiser = denoisers[int(rng.integers(len(denoisers)))]
    if isinstance(denoiser, str):
      noise_T, firsts = _suffixes(units, segments_T, rng)
    else:
      mean_length, rate = denoiser
      lengths = _fixed_lengths(int(units.maskable.sum()), rate, mean_length, rng)
      noise_T, firsts, _ = _spans(units, lengths, rng)
    start = np.array([mode_ids[_mode(denoiser)]] if modes else [], np.int32)
    return row | _spans_and_rest(
      tokens_T, segments_T, noise_T, firsts, sentinel_ids, end, start, capacity, rng
    )

  return transform


def _capacity(size: int, denoiser: tuple[float, float] | str) -> int:
  """Returns the targets of one text of `size` tokens."""
  if isinstance(denoiser, str):
    return size + 2  # a sentinel, the text and END: a row may end inside the text
  mean_length, rate = denoiser
  noise = max(1, round(rate * size))
  return noise + max(1, round(noise / mean_length)) + 1


def _mode(denoiser: tuple[float, float] | str) -> int:
  if isinstance(denoiser, str):
    return 2
  return int(denoiser[0] >= 12 or denoiser[1] >= 0.3)


def _fixed_lengths(
  units: int, rate: float, mean_length: float, rng: np.random.Generator
) -> np.ndarray:
  """Returns random positive lengths of spans; their count and sum follow from the rates."""
  noise = min(max(1, round(rate * units)), units)
  if not noise:
    return np.zeros(0, int)
  spans = min(max(1, round(noise / mean_length)), units - noise + 1)  # a gap between two of them
  return _composition(noise, spans, 1, rng)


def _poisson_lengths(
  units: int, rate: float, mean_length: float, rng: np.random.Generator
) -> np.ndarray:
  """Returns lengths of spans of a Poisson distribution, with the sum that `rate` gives."""
  noise = round(rate * units)
  lengths = rng.poisson(mean_length, 2 * round(noise / mean_length) + 8)
  ends = np.cumsum(lengths)
  lengths = lengths[: int(np.searchsorted(ends, noise)) + 1]
  lengths[-1] -= max(0, int(lengths.sum()) - noise)
  return lengths[: units - noise + 1]


def _composition(total: int, parts: int, least: int, rng: np.random.Generator) -> np.ndarray:
  """Returns `parts` random lengths of at least `least`, 0 or 1, whose sum is `total`."""
  places = total - 1 if least else total + parts - 1
  edges = np.empty(parts + 1, int)
  edges[0], edges[-1] = -1, places
  edges[1:-1] = np.sort(rng.permutation(places)[: parts - 1])
  return edges[1:] - edges[:-1] - (0 if least else 1)


def _spans(
  units: Units, lengths: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Places spans of units at random, with a gap of at least one unit between two.

  A span ends where a special token does.

  Returns:
    noise: (T,) whether a token is in a span.
    firsts: the indices of the first tokens of the spans.
    inserted: the indices of the tokens before which a span of length 0 is.
  """
  maskable = np.flatnonzero(units.maskable)
  starts_U = np.cumsum(units.sizes) - units.sizes
  empty = np.zeros(0, int)
  if not len(lengths) or not len(maskable):
    return np.zeros(len(units.ids), bool), empty, empty
  inner = np.ones(len(lengths) - 1, int)
  free = len(maskable) - int(lengths.sum()) - len(inner)
  gaps = _composition(free, len(lengths) + 1, 0, rng)
  gaps[1:-1] += inner
  first = np.cumsum(gaps[:-1]) + np.cumsum(lengths) - lengths
  span_of = np.repeat(np.arange(len(lengths)), lengths)
  chosen = maskable[np.repeat(first, lengths) + np.arange(len(span_of)) - np.repeat(
    np.cumsum(lengths) - lengths, lengths
  )]  # fmt: skip
  # Units of one span that a special token separates are two spans.
  begins = np.append(True, (np.diff(chosen) > 1) | (np.diff(span_of) > 0))[: len(chosen)]
  noise_U = np.zeros(len(units.sizes), bool)
  noise_U[chosen] = True
  at = first[(lengths == 0) & (first < len(maskable))]
  return noise_U[units.ids], starts_U[chosen[begins]], starts_U[maskable[at]]


def _suffixes(
  units: Units, segments_T: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the tokens after a random unit of each text, (T,), and the first ones."""
  noise_T, firsts = np.zeros(len(segments_T), bool), []
  starts_U = np.cumsum(units.sizes) - units.sizes
  for segment in range(1, int(segments_T.max(initial=0)) + 1):
    inside = np.flatnonzero(units.maskable & (segments_T[starts_U] == segment))
    if len(inside):
      chosen = inside[rng.integers(len(inside)) :]
      noise_T |= np.isin(units.ids, chosen)
      firsts.append(starts_U[chosen[0]])
  return noise_T, np.array(firsts, int)


def _spans_and_rest(
  tokens_T: np.ndarray,
  segments_T: np.ndarray,
  noise_T: np.ndarray,
  firsts: np.ndarray,
  sentinel_ids: np.ndarray,
  end: int,
  start: np.ndarray,
  capacity: int,
  rng: np.random.Generator,
) -> NumpyBatch:
  """Returns the fields of an encoder-decoder: the source with sentinels, and the spans."""
  size = len(tokens_T)
  is_first = np.zeros(size, bool)
  is_first[firsts] = True
  span_T = np.cumsum(is_first) - 1
  lengths, owners = np.bincount(span_T[noise_T], minlength=len(firsts)), segments_T[firsts]
  kept = _fitting(lengths, owners, np.bincount(segments_T), len(start), size, capacity, rng)
  noise_T = noise_T & np.append(kept, False)[span_T]
  is_first &= noise_T
  owners = owners[kept]
  # The index of a span in its segment is that of its sentinel.
  nth = np.arange(len(owners)) - np.searchsorted(owners, owners)
  if len(nth) and nth.max() >= len(sentinel_ids):
    raise UserError(
      f'data.transforms: a text has {nth.max() + 1} spans and data.tokenizer {len(sentinel_ids)} '
      'sentinels; train it with more (lm.text.tokenizers.sentinels), or take longer spans'
    )
  sentinel_T = np.zeros(size, np.int32)
  sentinel_T[is_first] = sentinel_ids[nth]
  corrupted = np.zeros(int(segments_T.max()) + 1, bool)
  corrupted[owners] = True
  reads_T = corrupted[segments_T]
  # The last token of the last span of each segment, which END follows.
  ends_T = np.zeros(size, bool)
  last = np.flatnonzero(noise_T)
  ends_T[last[borders(segments_T[last][::-1])[::-1]]] = True
  begins_T = borders(segments_T) & reads_T if len(start) else np.zeros(size, bool)
  source = _stream(
    'source', segments_T, size,
    (begins_T, start[0] if len(start) else 0),
    (reads_T & (~noise_T | is_first), np.where(is_first, sentinel_T, tokens_T)),
  )  # fmt: skip
  targets = _stream(
    'targets', segments_T, capacity, (is_first, sentinel_T), (noise_T, tokens_T), (ends_T, end)
  )
  real = targets['segments'] > 0
  inputs = np.where(targets['positions'] > 0, np.roll(targets['targets'], 1), np.int32(end))
  inputs, weights = np.where(real, inputs, 0).astype(np.int32), real.astype(np.float32)
  return source | targets | {'inputs': inputs, 'weights': weights}


def _fitting(
  lengths: np.ndarray,
  owners: np.ndarray,
  sizes: np.ndarray,
  start: int,
  size: int,
  capacity: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Returns which spans to keep, all but random ones that exceed the size of either stream."""
  kept = np.ones(len(lengths), bool)
  for span in rng.permutation(len(lengths)):
    noise, spans, own = int(lengths[kept].sum()), int(kept.sum()), owners[kept]
    texts = own[borders(own)]
    source = int(sizes[texts].sum()) - noise + spans + start * len(texts)
    if noise + spans + len(texts) <= capacity and source <= size:
      break
    kept[span] = False
  return kept


def _stream(
  name: str, segments_T: np.ndarray, size: int, *columns: tuple[np.ndarray, np.ndarray | int]
) -> NumpyBatch:
  """Returns the padded tokens of a row, their segments and positions, as fields of a stream.

  Args:
    name: of the stream.
    segments_T: the segment of each place of the text.
    size: of the stream.
    *columns: up to one token for each place, in this order: whether there is one, and which.
  """
  prefix = 'source_' if name == 'source' else ''
  there = np.stack([mask_T for mask_T, _ in columns], axis=1)
  tokens = np.empty(there.shape, np.int32)
  for i, (_, tokens_T) in enumerate(columns):
    tokens[:, i] = tokens_T
  segments = np.repeat(segments_T, there.sum(1))
  starts = np.flatnonzero(borders(segments))
  lengths = np.append(starts[1:], len(segments)) - starts
  positions = np.arange(len(segments)) - np.repeat(starts, lengths)
  arrays = {name: tokens[there], f'{prefix}segments': segments, f'{prefix}positions': positions}
  return {field: padded(values, size) for field, values in arrays.items()}


def _permuted_sentences(row: NumpyBatch, units: Units, rng: np.random.Generator) -> np.ndarray:
  """Returns the order of tokens, (T,), after permuting the sentences of each text.

  Special tokens stay where they are.
  """
  segments_T, fixed_T = row['segments'], ~units.maskable[units.ids]
  # A block is a run of sentences without special tokens between them.
  border_T = borders(segments_T)
  border_T[1:] |= fixed_T[1:] | fixed_T[:-1]
  sentence_T = np.cumsum(border_T | (row['words'] == _SENTENCE)) - 1
  key = rng.random(int(sentence_T[-1]) + 1)
  return np.lexsort((np.arange(len(fixed_T)), key[sentence_T], np.cumsum(border_T)))


def _sentinels(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the ids of the sentinels in order."""
  found = {}
  for i in special_ids(tokenizer):
    if match := _SENTINEL.fullmatch(tokenizer.id_to_token(i) or ''):
      found[int(match[1])] = i
  if not found or sorted(found) != list(range(len(found))):
    raise UserError(
      'data.tokenizer has no sentinels <extra_id_0>, <extra_id_1> and so on; add them by '
      'data.special_tokens=sentinels(100) (lm.text.tokenizers)'
    )
  return np.array([found[i] for i in range(len(found))], np.int32)


def _check_length(name: str, mean_length: float) -> None:
  check_range(f'data.transforms: {name}: mean_length', mean_length, 1, 10_000)
