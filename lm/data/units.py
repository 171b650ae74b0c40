"""The words or tokens of a row, for transforms that change some of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tokenizers

from lm.data.batches import NumpyBatch
from lm.errors import UserError, did_you_mean
from lm.text.tokenizers import special_ids, vocabulary_size

SEGMENTS = {'inputs': 'segments', 'source': 'source_segments'}
UNITS = ('word', 'token')
# What a row of a task has where nothing else goes by the places of tokens.
_DECODER = {'inputs', 'targets', 'weights', 'segments', 'positions', 'examples'}
_ENCODER = {'source', 'source_segments', 'source_positions'}


class Units(NamedTuple):
  """The units of a row, T tokens in U units.

  Attributes:
    of_token: (T,) the unit that each token belongs to, from 0, in order.
    free: (U,) whether it may change; special tokens and padding may not.
    marked: (U,) whether it begins as words begin in the middle of a text, with its space.
    stretch: (U,) which stretch of text between special tokens it lies in.
  """

  of_token: np.ndarray
  free: np.ndarray
  marked: np.ndarray
  stretch: np.ndarray


def reader(
  tokenizer: tokenizers.Tokenizer, stream: str, unit: str
) -> Callable[[NumpyBatch], Units]:
  """Returns the function from a row to the units of one of its streams.

  Raises:
    UserError: there is no such stream or unit; later, the row has no such stream.
  """
  for key, value, known in (('stream', stream, SEGMENTS), ('unit', unit, UNITS)):
    if value not in known:
      there = ', '.join(map(repr, known))
      raise UserError(
        f'data.transforms: {key}={value!r}{did_you_mean(value, known)} is none of {there}'
      )
  special_V = np.zeros(vocabulary_size(tokenizer), bool)
  special_V[list(special_ids(tokenizer))] = True
  marked_V = _word_starts(tokenizer) if unit == 'word' else np.ones_like(special_V)

  def units(row: NumpyBatch) -> Units:
    check_stream(row, stream)
    ids_T, segments_T = row[stream], row[SEGMENTS[stream]]
    fixed_T = special_V[ids_T] | (segments_T == 0)
    border_T = fixed_T | np.append(True, fixed_T[:-1]) | (np.diff(segments_T, prepend=0) != 0)
    begins_T = border_T | marked_V[ids_T]
    firsts_U = np.flatnonzero(begins_T)
    free_U = ~fixed_T[firsts_U]
    return Units(
      of_token=np.cumsum(begins_T) - 1,
      free=free_U,
      marked=marked_V[ids_T[firsts_U]],
      stretch=np.cumsum(border_T)[firsts_U],
    )

  return units


def check_stream(row: NumpyBatch, stream: str) -> None:
  """Raises UserError where a row has no such stream."""
  if stream not in row:
    there = ' and '.join(repr(name) for name in SEGMENTS if name in row)
    raise UserError(f'data.transforms: stream={stream!r}: the rows have {there} only')


def check_moves(row: NumpyBatch, stream: str, name: str) -> None:
  """Raises UserError where moving what an encoder reads would tear it from something else."""
  check_stream(row, stream)
  others = other_fields(row)
  if stream == 'inputs' and 'examples' in row and row['targets'].shape != row['examples'].shape:
    others = ['targets', *others]
  if others:
    raise UserError(
      f'data.transforms: {name}(stream={stream!r}) moves tokens, and the row has {others[0]!r}, '
      "which may go by their places; it suits stream='source' of lm.tasks.seq2seq:encoder_decoder, "
      "and stream='inputs' of the classifier and the regressor of lm.tasks.classification"
    )


def other_fields(row: NumpyBatch) -> list[str]:
  """Returns the fields of a row that may go by the places of tokens, for all that is known."""
  return sorted(row.keys() - _DECODER - _ENCODER)


def check_share(name: str, key: str, value: float) -> None:
  """Raises UserError where a value is no share."""
  if not 0 <= value <= 1:
    raise UserError(f'data.transforms: {name}({key}={value!r}) is not between 0 and 1')


def _word_starts(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns for each token, (V,), whether a word begins with it in the middle of a text."""
  starts_V = np.ones(vocabulary_size(tokenizer), bool)
  model = type(tokenizer.model).__name__
  for token, i in tokenizer.get_vocab().items():
    if model == 'WordPiece':
      starts_V[i] = not token.startswith(tokenizer.model.continuing_subword_prefix)
    elif model != 'WordLevel':
      starts_V[i] = token.startswith('▁') or tokenizer.decode([i])[:1].isspace()
  return starts_V
