"""Word vectors: different words, and a row of numbers for each.

lm.text.vector_files reads and writes them, lm.text.vector_space asks what lies near what.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from lm.errors import UserError, did_you_mean
from lm.text.tokenizers import END, UNKNOWN

_COMPARED = 100_000  # words that a misspelt one is compared with: half a second
_BLOCK = 4096  # rows looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
  """V words and their vectors of D numbers; `checked` makes them.

  Attributes:
    words: (V,) all different; by custom the most frequent come first.
    matrix: (V, D) float32, finite.
    index: the row of each word.
  """

  words: tuple[str, ...]
  matrix: np.ndarray
  index: Mapping[str, int] = dataclasses.field(repr=False)


def checked(words: Iterable[str], matrix: ArrayLike) -> Vectors:
  """Returns words with their vectors.

  Args:
    words: V different strings.
    matrix: (V, D) numbers; not copied where they are float32 already.

  Raises:
    UserError: there are no words, or not as many as rows; an empty word, or one twice; a number
      that is not finite in float32.
  """
  words = tuple(words)
  with np.errstate(over='ignore'):  # found below, with its word
    rows = np.asarray(matrix).astype(np.float32, copy=False)
  if not words or rows.ndim != 2 or len(words) != len(rows) or not rows.shape[1]:
    raise UserError(
      f'{len(words)} words with vectors of shape {rows.shape}; at least one word, and for each a '
      'row of numbers, are needed'
    )
  index: dict[str, int] = {}
  for i, word in enumerate(words):
    if not word:
      raise UserError(f'word {i + 1} of {len(words)} is empty')
    if index.setdefault(word, i) != i:
      raise UserError(f'word {i + 1} is {word!r:.80}, and so is word {index[word] + 1}')
  if bad := not_finite(rows):
    raise UserError(f'the vector of {words[bad[0]]!r:.80} holds {rows[bad]}, not a finite number')
  return Vectors(words, rows, index)


def not_finite(matrix: np.ndarray) -> tuple[int, int] | None:
  """Returns row and column of the first NaN or infinity; None where there is none."""
  for start in range(0, len(matrix), _BLOCK):
    finite = np.isfinite(matrix[start : start + _BLOCK])
    if not finite.all():
      row, column = np.argwhere(~finite)[0]
      return start + int(row), int(column)
  return None


def row(vectors: Vectors, word: str) -> int:
  """Returns the row of a word.

  Raises:
    UserError: there is no such word; it names words of like spelling among the first 100,000.
  """
  if word not in vectors.index:
    if word in (END, UNKNOWN):
      raise UserError(f'{word!r} stands for no word, and has no neighbours; it is left out')
    close = did_you_mean(word, vectors.words[:_COMPARED])
    raise UserError(f'{word!r:.80} is not among the {len(vectors.words):,} words{close}')
  return vectors.index[word]
