"""Word vectors: different words, and a row of numbers for each.

lm.text.vector_files reads and writes them, lm.text.vectors asks what lies near what.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from lm.errors import UserError, nearest
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
    close = nearest(word, vectors.words[:_COMPARED])
    raise UserError(f'{word!r:.80} is not among the {len(vectors.words):,} words{close}')
  return vectors.index[word]


# From the cosines of candidates with a, b and c to their scores as the d of "a is to b as c to d";
# arrays of one shape.
Analogy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_NUMBERS = 1 << 22  # of a block of cosines: 16 MiB
_QUESTIONS = 64  # scored together


def three_cos_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """Scores by b - a + c: 3CosAdd (Mikolov, Yih and Zweig 2013)."""
  return b - a + c


def three_cos_mul(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """Scores by b c / (a + 0.001) of cosines moved to [0, 1]: 3CosMul (Levy and Goldberg 2014)."""
  return (1 + b) / 2 * ((1 + c) / 2) / ((1 + a) / 2 + 0.001)


def unit(matrix: np.ndarray) -> np.ndarray:
  """Returns (N, D) rows at length 1 in float32; rows of zeros stay."""
  # The squares of large and small numbers fit float64 alone.
  lengths = np.sqrt(np.einsum('nd,nd->n', matrix, matrix, dtype=np.float64))
  lengths[lengths == 0] = 1
  rows = np.empty(matrix.shape, np.float32)
  return np.divide(matrix, lengths[:, None], out=rows, casting='same_kind')


def cosines(vectors: Vectors, pairs: ArrayLike) -> np.ndarray:
  """Returns the cosine (N,) of each pair of words, given by their rows (N, 2)."""
  left, right = np.asarray(pairs, np.int64).reshape(-1, 2).T
  matrix = vectors.matrix
  return np.clip(np.einsum('nd,nd->n', unit(matrix[left]), unit(matrix[right])), -1, 1)


def cosine(vectors: Vectors, one: str, other: str) -> float:
  """Returns the cosine of two words.

  Raises:
    UserError: there is no such word.
  """
  return float(cosines(vectors, [(row(vectors, one), row(vectors, other))])[0])


def nearest_words(
  vectors: Vectors, query: str | ArrayLike, k: int = 10, leave_out: Iterable[str] = ()
) -> list[tuple[str, float]]:
  """Returns the k words of the highest cosine with a word or a vector, best first.

  A word is not among its own nearest. There are fewer than k where no more are left.

  Args:
    vectors: what is searched.
    query: a word, or (D,) numbers.
    k: at least 1.
    leave_out: words that are not wanted; they need not be there.

  Raises:
    UserError: there is no such word; k is below 1.
    ValueError: the vector has another size, or is not finite.
  """
  if isinstance(query, str):
    vector = vectors.matrix[row(vectors, query)]
    leave_out = (query, *leave_out)
  else:
    vector = np.asarray(query, np.float32)
    if vector.shape != vectors.matrix.shape[1:] or not np.isfinite(vector).all():
      raise ValueError(f'{vectors.matrix.shape[1]} finite numbers are needed, not {vector!r:.80}')
  scores = _cosines_with_all(vectors, vector[None])[0]
  return _best(vectors, scores, k, (vectors.index[w] for w in leave_out if w in vectors.index))


def analogy(
  vectors: Vectors, a: str, b: str, c: str, k: int = 10, score: Analogy = three_cos_add
) -> list[tuple[str, float]]:
  """Returns the k words that are to c as b is to a, with their scores, best first.

  a, b and c are not among them. There are fewer than k where no more are left.

  Raises:
    UserError: there is no such word; k is below 1.
  """
  rows = [row(vectors, word) for word in (a, b, c)]
  return _best(vectors, score(*_cosines_with_all(vectors, vectors.matrix[rows])), k, rows)


def analogies(vectors: Vectors, questions: ArrayLike, score: Analogy = three_cos_add) -> np.ndarray:
  """Returns the best answer to each of N questions "a is to b as c to what?".

  Their memory does not grow with questions times words.

  Args:
    vectors: any word but a, b and c may be the answer.
    questions: (N, 3) the rows of a, b and c.
    score: `three_cos_add` or `three_cos_mul`.

  Returns:
    (N,) the row of each answer, the first of equal ones; -1 where no word is left.
  """
  asked_N3 = np.asarray(questions, np.int64).reshape(-1, 3)
  rows_U, places_N3 = np.unique(asked_N3, return_inverse=True)
  places_N3 = places_N3.reshape(asked_N3.shape)
  of_asked_UD = unit(vectors.matrix[rows_U])
  best_N = np.full(len(asked_N3), -np.inf, np.float32)
  answers_N = np.full(len(asked_N3), -1)
  # A block of words for all questions: each word that is asked about is multiplied once.
  width = max(1, min(4096, _NUMBERS // max(1, len(rows_U))))
  for start in range(0, len(vectors.words), width):
    cos_UW = _product(of_asked_UD, vectors.matrix[start : start + width])
    for first in range(0, len(asked_N3), _QUESTIONS):
      part = slice(first, first + _QUESTIONS)
      scores_QW = score(*(cos_UW[places_N3[part, i]] for i in range(3)))
      for own_Q in asked_N3[part].T - start:
        inside = np.flatnonzero((own_Q >= 0) & (own_Q < scores_QW.shape[1]))
        scores_QW[inside, own_Q[inside]] = -np.inf
      tops_Q = scores_QW.argmax(axis=1)
      values_Q = scores_QW[np.arange(len(tops_Q)), tops_Q]
      answers_N[part] = np.where(values_Q > best_N[part], start + tops_Q, answers_N[part])
      best_N[part] = np.maximum(values_Q, best_N[part])
  return answers_N


def principal_components(matrix: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
  """Returns N vectors in the directions in which they vary most (Pearson 1901).

  Args:
    matrix: (N, D).
    count: of directions. Each points to where its largest weight is positive.

  Returns:
    (N, count) coordinates around their mean, and the share (count,) that each direction has of the
    whole variance; zeros where there are fewer directions, or no variance.
  """
  centred = np.asarray(matrix, np.float64)
  centred = centred - centred.mean(axis=0)
  _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
  sizes, directions = sizes[:count], directions[:count]
  largest = np.abs(directions).argmax(axis=1)
  directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
  missing = count - len(sizes)
  points = np.pad(centred @ directions.T, ((0, 0), (0, missing)))
  variance = np.sum(centred**2)
  return points, np.pad(sizes**2, (0, missing)) / (variance or 1.0)


def _product(of_unit_length: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Returns the cosines (Q, W) of rows (Q, D) at length 1 with rows (W, D)."""
  return np.clip(of_unit_length @ unit(matrix).T, -1, 1)


def _cosines_with_all(vectors: Vectors, queries: np.ndarray) -> np.ndarray:
  """Returns the cosines (Q, V) of a few vectors (Q, D) with all; the matrix is not copied."""
  width = max(1, _NUMBERS // vectors.matrix.shape[1])
  blocks = range(0, len(vectors.words), width)
  rows = unit(queries)
  return np.concatenate([_product(rows, vectors.matrix[i : i + width]) for i in blocks], axis=1)


def _best(
  vectors: Vectors, scores: np.ndarray, k: int, leave_out: Iterable[int]
) -> list[tuple[str, float]]:
  if k < 1:
    raise UserError(f'k={k}: at least one word must be asked for')
  out = set(leave_out)
  order = np.argsort(-scores, kind='stable')[: k + len(out)]
  return [(vectors.words[i], float(scores[i])) for i in order.tolist() if i not in out][:k]
