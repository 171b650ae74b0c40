"""Masking of running text at read time, for encoders and for decoders with masked rows.

The transforms take rows of text (lm.data.packed_rows.PackedRows). Units are masked entirely: a
'word', whose boundaries `data.words` gives, or a 'token'. Special tokens, such as END, and padding
are never masked.
"""

import numbers
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tokenizers

from lm.data.batches import NumpyBatch, Transform
from lm.errors import UserError, check_range, did_you_mean
from lm.text.tokenizers import mask_token, special_ids, vocabulary_size

UNITS = ('word', 'token')


def masked(
  tokenizer: tokenizers.Tokenizer,
  rate: float = 0.15,
  unit: str = 'word',
  kept: float = 0.1,
  random: float = 0.1,
) -> Transform:
  """Masks units for an encoder that predicts their tokens (Devlin et al. 2019, section 3.1).

  The encoder reads the row's `inputs`, in which END comes before each text, as it does in the rows
  of tasks. Random units are chosen until `rate` of the tokens are; a unit that would exceed it is
  left out. `masked` (M,) has the indices of their tokens in the row, with M = rate * T, and
  `targets` the tokens. An encoder then computes logits of these alone. A row without a unit that
  fits has weights of 0.

  The defaults mask entire words, as in BERT's later checkpoints. RoBERTa has unit='token'.
  ModernBERT has rate=0.3, unit='token', kept=0 and random=0.

  Args:
    tokenizer: the tokenizer of the rows, with a mask.
    rate: share of tokens to predict.
    unit: 'word' or 'token'.
    kept: share of the chosen tokens that stay as they are.
    random: share of the chosen tokens that become random ones; all others become the mask.

  Raises:
    UserError: an argument is wrong, or the tokenizer has no mask. The transform raises it for rows
      without words, or for a full row that has nothing to mask.
  """
  check_rate('masked', 'rate', rate)
  for key, share in {'kept': kept, 'random': random}.items():
    check_range(f'data.transforms: masked: {key}', share, 0, 1)
  if kept + random > 1:
    raise UserError(f'data.transforms: masked(kept={kept!r}, random={random!r}) have a sum above 1')
  units_of, (_, mask) = text_units(tokenizer, unit), mask_token(tokenizer)
  ordinary = _ordinary(tokenizer)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    tokens_T, capacity = row['inputs'], max(1, round(rate * len(row['inputs'])))
    units = units_of(row, inputs=True)
    (places,) = np.nonzero(choose(units, rate, capacity, rng))
    share = rng.random(len(places))
    inputs_T = tokens_T.copy()
    inputs_T[places[share >= kept + random]] = mask
    replaced = places[share < random]
    inputs_T[replaced] = rng.choice(ordinary, len(replaced))
    fields = {
      'inputs': inputs_T,
      'masked': padded(places, capacity),
      'targets': padded(tokens_T[places], capacity),
      'weights': padded(np.ones(len(places)), capacity, np.float32),
    }
    return tokens_alone(row) | fields

  return transform


def replaced(tokenizer: tokenizers.Tokenizer, rate: float = 0.15, unit: str = 'word') -> Transform:
  """Replaces tokens by random ones and makes `targets` 1 there, for evaluations of detection.

  Training takes the samples of a generator instead (lm.objectives.replaced_tokens).

  Args:
    tokenizer: the tokenizer of the rows.
    rate: share of tokens to replace.
    unit: 'word' or 'token'.

  Raises:
    UserError: as `masked` does.
  """
  check_rate('replaced', 'rate', rate)
  units_of = text_units(tokenizer, unit)
  ordinary = _ordinary(tokenizer)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    chosen_T = choose(units_of(row, inputs=True), rate, len(row['inputs']), rng)
    random_T = rng.choice(ordinary, len(chosen_T)).astype(np.int32)
    inputs_T = np.where(chosen_T, random_T, row['inputs'])
    targets_T = (inputs_T != row['inputs']).astype(np.int32)
    return tokens_alone(row) | {'inputs': inputs_T, 'targets': targets_T}

  return transform


def masked_next_tokens(
  tokenizer: tokenizers.Tokenizer, causal: float = 0.5, rate: float = 0.15, unit: str = 'word'
) -> Transform:
  """Makes some rows causal and masks the others, for one decoder (Charpentier and Samuel 2024).

  A decoder predicts each token at the place before it in both kinds of rows: GPT-BERT's masked
  next-token prediction. In a masked row all inputs see each other (`prefix`), and the loss covers
  the masked tokens. Their weights are 1 / rate, so that the two kinds of rows count alike.

  Args:
    tokenizer: the tokenizer of the rows, with a mask.
    causal: probability of a causal row.
    rate: share of the tokens to mask in the others.
    unit: 'word' or 'token'.

  Raises:
    UserError: as `masked` does.
  """
  check_rate('masked_next_tokens', 'rate', rate)
  check_range('data.transforms: masked_next_tokens: causal', causal, 0, 1)
  units_of, (_, mask) = text_units(tokenizer, unit), mask_token(tokenizer)

  def transform(row: NumpyBatch, rng: np.random.Generator) -> NumpyBatch:
    units, row, real_T = units_of(row), tokens_alone(row), row['segments'] > 0
    if rng.random() < causal:
      return row | {'prefix': np.zeros_like(row['segments'])}
    chosen_T = choose(units, rate, len(real_T), rng)
    # Target t is input t + 1 of its segment; the last one is no input at all.
    hidden_T = np.append(False, chosen_T[:-1]) & (row['positions'] > 0)
    return row | {
      'inputs': np.where(hidden_T, np.int32(mask), row['inputs']),
      'weights': (chosen_T / rate).astype(np.float32),
      'prefix': real_T.astype(np.int32),
    }

  return transform


class Units(NamedTuple):
  """The U units of a row of T tokens: words or tokens.

  Attributes:
    ids: (T,) the index of each token's unit, rising from 0.
    maskable: (U,) False for special tokens and padding.
    sizes: (U,) tokens of each.
  """

  ids: np.ndarray
  maskable: np.ndarray
  sizes: np.ndarray


def text_units(tokenizer: tokenizers.Tokenizer, unit: str) -> Callable[..., Units]:
  """Returns `(row of text, inputs=False) -> units`, those of its targets or of its inputs.

  Raises:
    UserError: the unit is unknown. The function raises it for rows that are no text, that have no
      words, or that are full of special tokens.
  """
  if unit not in UNITS:
    raise UserError(
      f'data.transforms: unit={unit!r}{did_you_mean(unit, UNITS)} must be one of '
      f'{", ".join(map(repr, UNITS))}'
    )
  special_V = np.zeros(vocabulary_size(tokenizer), bool)
  special_V[list(special_ids(tokenizer))] = True

  def units(row: NumpyBatch, inputs: bool = False) -> Units:
    check_text(row)
    if unit == 'word' and 'words' not in row:
      raise UserError(
        "data.transforms: unit='word' needs the boundaries of words; set "
        "data.words='lm.text.words:word_marks', or unit='token'"
      )
    segments_T, tokens_T = row['segments'], row['inputs' if inputs else 'targets']
    fixed_T = special_V[tokens_T] | (segments_T == 0)
    if fixed_T.all() and segments_T.all():
      raise UserError('data.transforms: a row has nothing to mask: all tokens are special ones')
    begins_T = borders(segments_T)
    begins_T[1:] |= fixed_T[1:] | fixed_T[:-1]
    if unit == 'token':
      begins_T[:] = True
    elif inputs:  # input t + 1 is target t
      begins_T[1:] |= row['words'][:-1] > 0
    else:
      begins_T |= row['words'] > 0
    ids_T = np.cumsum(begins_T) - 1
    return Units(ids_T, ~fixed_T[begins_T], np.bincount(ids_T))

  return units


def choose(units: Units, rate: float, limit: int, rng: np.random.Generator) -> np.ndarray:
  """Returns for each token, (T,), whether it is in a chosen unit.

  Units in random order are chosen if all their tokens are within `rate` of those that can be
  masked, at least one token and at most `limit`.
  """
  maskable = np.flatnonzero(units.maskable)
  left = min(limit, max(1, round(rate * units.sizes[maskable].sum())))
  order = rng.permutation(maskable)
  sizes, chosen_U = units.sizes[order], np.zeros(len(units.sizes), bool)
  while len(sizes):
    fits = int(np.searchsorted(np.cumsum(sizes), left, 'right'))
    chosen_U[order[:fits]] = True
    left -= int(sizes[:fits].sum())
    smaller = np.flatnonzero(sizes[fits:] <= left)
    skipped = fits + (smaller[0] if len(smaller) else len(sizes))
    order, sizes = order[skipped:], sizes[skipped:]
  return chosen_U[units.ids]


def _ordinary(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the ids of all tokens but the special ones."""
  return np.setdiff1d(np.arange(vocabulary_size(tokenizer)), [*special_ids(tokenizer)])


def borders(values: np.ndarray) -> np.ndarray:
  """Returns for each value whether it differs from the one before it; the first one does."""
  found = np.ones(len(values), bool)
  np.not_equal(values[1:], values[:-1], out=found[1:])
  return found


def check_text(row: NumpyBatch) -> None:
  """Raises UserError for a row of a task, or of another transform of this kind."""
  if 'bytes' not in row:
    raise UserError(
      'data.transforms: masking and denoising take rows of running text, unchanged by other '
      'transforms; leave data.task empty, and give one such transform'
    )


def tokens_alone(row: NumpyBatch) -> NumpyBatch:
  """Returns a row without its bytes and words, which belong to the text as it was."""
  return {name: values for name, values in row.items() if name not in ('bytes', 'words')}


def padded(values: np.ndarray, size: int, dtype: type = np.int32) -> np.ndarray:
  """Returns an array with zeros after its values."""
  array: np.ndarray = np.zeros(size, dtype)
  array[: len(values)] = values
  return array


def check_rate(name: str, key: str, value: float) -> None:
  """Raises UserError if a share is not between 0 and 1, both excluded."""
  if not isinstance(value, numbers.Real) or not 0 < value < 1:
    raise UserError(
      f'data.transforms: {name}({key}={value!r}) must be above 0 and below 1, such as 0.15'
    )
