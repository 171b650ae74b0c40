"""Word vectors: cosines, nearest words, analogies, principal components.

lm.text.vector_files reads and writes them. The cosine of a zero vector with any other counts as 0.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from lm.errors import UserError, check_range, did_you_mean
from lm.text.tokenizers import END, UNKNOWN

# Scores candidates d of "a is to b as c to d". The arguments are the cosines of the candidates with
# a, b and c, in arrays of equal shape.
Analogy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

_COMPARED = 100_000  # words that are compared with an unknown word, in half a second
_BLOCK = 4096  # rows checked at a time
_COSINES = 1 << 22  # cosines computed at a time, 16 MiB
_QUESTIONS = 64  # questions scored at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
  """V words and their vectors of size D, as from `make_vectors`.

  Attributes:
    words: (V,) distinct; by convention the most frequent first.
    matrix: (V, D) float32, finite.
    index: the row of each word.
  """

  words: tuple[str, ...]
  matrix: np.ndarray
  index: Mapping[str, int] = dataclasses.field(repr=False)


def make_vectors(words: Iterable[str], matrix: ArrayLike) -> Vectors:
  """Returns words with their vectors.

  Args:
    words: V distinct strings.
    matrix: (V, D); float32 is not copied.

  Raises:
    UserError: there are no words, or not as many as rows; a word is empty or repeated; a number is
      not finite in float32.
  """
  words = tuple(words)
  with np.errstate(over='ignore'):  # the check below names the word
    rows = np.asarray(matrix).astype(np.float32, copy=False)
  if not words or rows.ndim != 2 or len(words) != len(rows) or not rows.shape[1]:
    raise UserError(
      f'{len(words)} words with vectors of shape {rows.shape}; expected at least one word, and a '
      'vector for each'
    )
  index: dict[str, int] = {}
  for i, word in enumerate(words):
    if not word:
      raise UserError(f'word {i + 1} of {len(words)} is empty')
    if index.setdefault(word, i) != i:
      raise UserError(f'word {i + 1} is {word!r:.80}, and so is word {index[word] + 1}')
  for start in range(0, len(rows), _BLOCK):
    wrong = np.argwhere(~np.isfinite(rows[start : start + _BLOCK]))
    if len(wrong):
      i, column = wrong[0] + (start, 0)
      raise UserError(f'the vector of {words[i]!r:.80} has {rows[i, column]}, not a finite number')
  return Vectors(words, rows, index)


def row_of(vectors: Vectors, word: str) -> int:
  """Returns the row of a word.

  Raises:
    UserError: the word is unknown; the message has similar spellings among the first 100,000 words.
  """
  if word not in vectors.index:
    if word in (END, UNKNOWN):
      raise UserError(f'{word!r} is a special token and has no word vector')
    hint = did_you_mean(word, vectors.words[:_COMPARED])
    raise UserError(f'{word!r:.80} is not among the {len(vectors.words):,} words{hint}')
  return vectors.index[word]


def three_cos_add(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """Scores by b - a + c: 3CosAdd (Mikolov, Yih and Zweig 2013)."""
  return b - a + c


def three_cos_mul(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
  """Scores by b c / (a + 0.001) of cosines moved to [0, 1]: 3CosMul (Levy and Goldberg 2014)."""
  return (1 + b) / 2 * ((1 + c) / 2) / ((1 + a) / 2 + 0.001)


def unit_rows(matrix: np.ndarray) -> np.ndarray:
  """Returns (N, D) rows normalized to length 1, in float32; zero rows stay."""
  # The squares of float32 numbers overflow or underflow float32.
  lengths = np.sqrt(np.einsum('nd,nd->n', matrix, matrix, dtype=np.float64))
  lengths[lengths == 0] = 1
  rows = np.empty(matrix.shape, np.float32)
  return np.divide(matrix, lengths[:, None], out=rows, casting='same_kind')


def cosines(vectors: Vectors, pairs: ArrayLike) -> np.ndarray:
  """Returns the cosine of each pair of words (N,), given as rows (N, 2)."""
  sides = np.asarray(pairs, np.int64).reshape(-1, 2).T
  units = (unit_rows(vectors.matrix[rows]) for rows in sides)
  return np.clip(np.einsum('nd,nd->n', *units), -1, 1)


def cosine(vectors: Vectors, one: str, other: str) -> float:
  """Returns the cosine of two words.

  Raises:
    UserError: a word is unknown.
  """
  return float(cosines(vectors, [(row_of(vectors, one), row_of(vectors, other))])[0])


def nearest_words(
  vectors: Vectors, query: str | ArrayLike, k: int = 10, exclude: Iterable[str] = ()
) -> list[tuple[str, float]]:
  """Returns the (at most) k words with the highest cosines, best first.

  Args:
    vectors: the vectors to search.
    query: a word, which is not among the results, or a vector (D,).
    k: at least 1.
    exclude: words to leave out, known or not.

  Raises:
    UserError: the word is unknown; k is below 1.
    ValueError: the query has another size, or is not finite.
  """
  if isinstance(query, str):
    vector = vectors.matrix[row_of(vectors, query)]
    exclude = (query, *exclude)
  else:
    vector = np.asarray(query, np.float32)
    if vector.shape != vectors.matrix.shape[1:] or not np.isfinite(vector).all():
      raise ValueError(f'expected {vectors.matrix.shape[1]} finite numbers, not {vector!r:.80}')
  scores = _cosines_with_all(vectors, vector[None])[0]
  return _best(vectors, scores, k, (vectors.index[w] for w in exclude if w in vectors.index))


def analogy(
  vectors: Vectors, a: str, b: str, c: str, k: int = 10, score: Analogy = three_cos_add
) -> list[tuple[str, float]]:
  """Returns the (at most) k words that are to c as b is to a, with scores, best first.

  a, b and c are excluded.

  Raises:
    UserError: a word is unknown; k is below 1.
  """
  rows = [row_of(vectors, word) for word in (a, b, c)]
  return _best(vectors, score(*_cosines_with_all(vectors, vectors.matrix[rows])), k, rows)


def analogies(vectors: Vectors, questions: ArrayLike, score: Analogy = three_cos_add) -> np.ndarray:
  """Returns the best answer to each of N questions "a is to b as c to what?", as rows (N,).

  The memory does not grow with questions times words. The first of equal answers counts; -1 means
  that no word but a, b and c is left.

  Args:
    vectors: the candidates.
    questions: (N, 3) the rows of a, b and c.
    score: `three_cos_add` or `three_cos_mul`.
  """
  asked_N3 = np.asarray(questions, np.int64).reshape(-1, 3)
  rows_U, places_N3 = np.unique(asked_N3, return_inverse=True)
  places_N3 = places_N3.reshape(asked_N3.shape)
  of_asked_UD = unit_rows(vectors.matrix[rows_U])
  best_N = np.full(len(asked_N3), -np.inf, np.float32)
  answers_N = np.full(len(asked_N3), -1)
  # Each block of candidates is compared with all questions, so that the cosines of a word that
  # occurs in several questions are computed once.
  width = max(1, min(4096, _COSINES // max(1, len(rows_U))))
  for start in range(0, len(vectors.words), width):
    cos_UW = _cosines(of_asked_UD, vectors.matrix[start : start + width])
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
  """Returns the principal components of N vectors (Pearson 1901).

  Args:
    matrix: (N, D).
    count: count of components. The sign of each makes its largest weight positive.

  Returns:
    (N, count) centered coordinates, and the share of the total variance of each component
    (count,); zeros for missing components.
  """
  centered = np.asarray(matrix, np.float64)
  centered = centered - centered.mean(axis=0)
  _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
  sizes, directions = sizes[:count], directions[:count]
  largest = np.abs(directions).argmax(axis=1)
  directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
  missing = count - len(sizes)
  points = np.pad(centered @ directions.T, ((0, 0), (0, missing)))
  return points, np.pad(sizes**2, (0, missing)) / (np.sum(centered**2) or 1.0)


def _cosines(units: np.ndarray, matrix: np.ndarray) -> np.ndarray:
  """Returns the cosines (Q, W) of unit rows (Q, D) with rows (W, D)."""
  return np.clip(units @ unit_rows(matrix).T, -1, 1)


def _cosines_with_all(vectors: Vectors, queries: np.ndarray) -> np.ndarray:
  """Returns the cosines (Q, V) of a few vectors (Q, D) with all, without a copy of the matrix."""
  width = max(1, _COSINES // vectors.matrix.shape[1])
  blocks = range(0, len(vectors.words), width)
  rows = unit_rows(queries)
  return np.concatenate([_cosines(rows, vectors.matrix[i : i + width]) for i in blocks], axis=1)


def _best(
  vectors: Vectors, scores: np.ndarray, k: int, exclude: Iterable[int]
) -> list[tuple[str, float]]:
  check_range('k', k, 1)
  out = set(exclude)
  order = np.argsort(-scores, kind='stable')[: k + len(out)]
  return [(vectors.words[i], float(scores[i])) for i in order.tolist() if i not in out][:k]
