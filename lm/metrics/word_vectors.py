"""Evaluation of word vectors against human judgments: similarity, analogies, groups.

A word is looked up as spelled, or else in lower case. Items with an unknown word are excluded, and
the coverage is the share that remains; only scores of similar coverage are comparable.

A config names the builder of a `VectorMetric` by import path, with literal arguments, as in
'lm.metrics.word_vectors:pairs(file="$LM_DATA/word_eval/wordsim353.tsv")'.
"""

import collections
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.errors import UserError
from lm.metrics.labels import regression
from lm.metrics.scores import Scores
from lm.text.files import decode, expand_path
from lm.text.vectors import (
  Analogy,
  Vectors,
  analogies,
  cosines,
  three_cos_add,
  three_cos_mul,
  unit_rows,
)

Pair = tuple[str, str, float]  # two words and their similarity
Question = tuple[str, str, str, str]  # a is to b as c to d
# The covered items: the rows of their words, and their indices.
_Covered = tuple[list[tuple[int, ...]], list[int]]
SCORES: Mapping[str, Analogy] = {'add': three_cos_add, 'mul': three_cos_mul}


class VectorMetric(NamedTuple):
  """An evaluation of word vectors with values from 0 to 1.

  Attributes:
    name: the prefix of the values.
    score: the function from vectors to the values.
    check: takes the row of each word, before training, and raises the UserError that `score` would
      raise for lack of words.
    higher_is_better: the direction of each value; None for a value without a direction.
  """

  name: str
  score: Callable[[Vectors], Scores]
  check: Callable[[Mapping[str, int]], object] = lambda index: None
  higher_is_better: Mapping[str, bool | None] = {}


def pairs(file: str, name: str = '') -> VectorMetric:
  """Returns the metric of a file of word pairs, 'spearman' and 'coverage'; see `similarity`.

  Args:
    file: as for `read_pairs`; ~ and $VARIABLES are expanded.
    name: of the metric; by default the name of the file without suffix.

  Raises:
    UserError: the file is missing or wrong; in `score` and `check`: no pair is covered.
  """
  path = expand_path(file, 'file')
  read = read_pairs(path)
  return VectorMetric(
    name or path.stem,
    lambda vectors: similarity(vectors, read),
    lambda index: _covered_pairs(index, read),
    {'spearman': True, 'coverage': True},
  )


def questions(file: str, name: str = '', sections: bool = False) -> VectorMetric:
  """Returns the metric of a file of analogies: 'add_accuracy', 'mul_accuracy' and 'coverage'.

  The accuracies use 3CosAdd and 3CosMul; see `accuracy`.

  Args:
    file: as for `read_questions`; ~ and $VARIABLES are expanded.
    name: of the metric; by default the name of the file without suffix.
    sections: whether to add the values of each section, as 'SECTION/add_accuracy'.

  Raises:
    UserError: the file is missing or wrong; in `score` and `check`: no question is covered.
  """
  path = expand_path(file, 'file')
  read = read_questions(path)

  def score(vectors: Vectors) -> Scores:
    return Scores(
      {
        re.sub('accuracy$', f'{short}_accuracy', key): value
        for short, function in SCORES.items()
        for key, value in accuracy(vectors, read, function).values.items()
        if sections or '/' not in key
      }
    )

  values = [*(f'{short}_accuracy' for short in SCORES), 'coverage']
  names = values + [f'{section}/{value}' for section in read if sections for value in values]
  return VectorMetric(
    name or path.stem,
    score,
    lambda index: _covered_questions(index, read),
    dict.fromkeys(names, True),
  )


def groups(groups: Mapping[str, Sequence[str]], name: str = 'groups') -> VectorMetric:
  """Returns the metric of groups of words: 'accuracy' and 'coverage'.

  A word is covered if it and another word of its group are known. The accuracy is the share of
  covered words whose nearest covered word is in the same group.

  Args:
    groups: the words of each group, as in {'days': ['monday', 'friday'], 'months': ['may', ...]}.
    name: of the metric.

  Raises:
    UserError: there are fewer than two groups, one has fewer than two words, or a word is repeated;
      in `score` and `check`: fewer than two groups are covered.
  """
  words = [word for members in groups.values() for word in members]
  group_of = np.array([i for i, members in enumerate(groups.values()) for _ in members])
  if len(groups) < 2 or any(len(members) < 2 for members in groups.values()):
    raise UserError(f'groups={dict(groups)!r:.80}: at least two groups of two words are needed')
  if twice := [word for word, count in collections.Counter(words).items() if count > 1]:
    raise UserError(f'groups: {twice[0]!r:.40} is repeated')

  def covered(index: Mapping[str, int]) -> tuple[list[int], np.ndarray]:
    """Returns the rows of the covered words, and the groups that they are in."""
    empty = (
      f'groups: metric on an empty set; of {len(groups)} groups fewer than two have two words '
      'among the vectors'
    )
    rows, indices = _covered(index, [(word,) for word in words], empty)
    kinds = group_of[indices]
    known = np.flatnonzero(np.bincount(kinds)[kinds] > 1)
    if len(set(kinds[known])) < 2:
      raise UserError(empty)
    return [rows[i][0] for i in known], kinds[known]

  def score(vectors: Vectors) -> Scores:
    rows, kinds = covered(vectors.index)
    units = unit_rows(vectors.matrix[rows])
    cos = units @ units.T
    np.fill_diagonal(cos, -np.inf)
    correct = kinds[cos.argmax(axis=1)] == kinds
    return Scores({'accuracy': float(correct.mean()), 'coverage': len(rows) / len(words)})

  return VectorMetric(name, score, covered, {'accuracy': True, 'coverage': True})


def read_pairs(path: str | Path) -> list[Pair]:
  """Reads pairs of words with their similarity, such as Gensim's WordSim-353 and SimLex-999.

  Lines are 'word TAB word TAB score'; those that start with '#' are comments.

  Raises:
    UserError: the file cannot be read, a line is wrong, or there is no pair.
  """
  pairs = []
  lines = (numbered for numbered in _lines(path) if not numbered[1].startswith('#'))
  for place, line in lines:
    one, other, score = _fields(line, '\t', 3, place)
    try:
      value = float(score)
    except ValueError:
      value = np.nan
    if not np.isfinite(value):
      raise UserError(f'{place}: {score!r:.40} is not a score; a finite number is needed')
    pairs.append((one, other, value))
  if not pairs:
    raise UserError(f'{path}: it has no pairs of words')
  return pairs


def read_questions(path: str | Path) -> dict[str, list[Question]]:
  """Reads analogies by section, such as questions-words.txt of word2vec and the Chinese CA8.

  Lines are four words separated by spaces; a line that starts with ':' names a section.

  Raises:
    UserError: the file cannot be read, a line is wrong, a question precedes all sections, a section
      is repeated, or there is no question.
  """
  sections: dict[str, list[Question]] = {}
  name = None
  for place, line in _lines(path):
    if line.startswith(':'):
      name = line.removeprefix(':').strip()
      if name in sections:
        raise UserError(f'{place}: the section {name!r:.40} is repeated')
      sections[name] = []
    elif name is None:
      raise UserError(f"{place}: {line!r:.40} precedes the first section, such as ': family'")
    else:
      a, b, c, d = _fields(line, ' ', 4, place)
      sections[name].append((a, b, c, d))
  if not any(sections.values()):
    raise UserError(f'{path}: it has no questions')
  return sections


def similarity(vectors: Vectors, pairs: Sequence[Pair]) -> Scores:
  """Returns 'spearman' and 'coverage' of pairs.

  Spearman's rank correlation is between the cosines and the scores of covered pairs. Ties share the
  mean of their ranks. It is NaN if either side is constant, as for one pair.

  Raises:
    UserError: no pair is covered.
  """
  rows, covered = _covered_pairs(vectors.index, pairs)
  scores = [pairs[i][2] for i in covered]
  spearman = regression()(cosines(vectors, rows).tolist(), scores).values['spearman']
  return Scores({'spearman': spearman, 'coverage': len(covered) / len(pairs)})


def accuracy(
  vectors: Vectors,
  sections: Mapping[str, Sequence[Question]],
  score: Analogy = three_cos_add,
) -> Scores:
  """Returns 'accuracy' and 'coverage' of analogies, in total and as 'SECTION/...'.

  The answer is the best of all words but a, b and c; it is correct if it is d. A section without
  covered questions has no accuracy.

  Raises:
    UserError: no question is covered.
  """
  names = [name for name, members in sections.items() for _ in members]
  rows, covered = _covered_questions(vectors.index, sections)
  rows_N4 = np.array(rows)
  correct = analogies(vectors, rows_N4[:, :3], score) == rows_N4[:, 3]
  section = np.array([names[i] for i in covered])
  values = {'accuracy': float(correct.mean()), 'coverage': len(covered) / len(names)}
  for name, members in sections.items():
    inside = section == name
    if inside.any():
      values[f'{name}/accuracy'] = float(correct[inside].mean())
    if members:
      values[f'{name}/coverage'] = float(inside.sum() / len(members))
  return Scores(values)


def _covered_pairs(index: Mapping[str, int], pairs: Sequence[Pair]) -> _Covered:
  return _covered(
    index,
    [pair[:2] for pair in pairs],
    f'similarity: metric on an empty set; none of the {len(pairs)} pairs has both words',
  )


def _covered_questions(
  index: Mapping[str, int], sections: Mapping[str, Sequence[Question]]
) -> _Covered:
  questions = [question for members in sections.values() for question in members]
  return _covered(
    index,
    questions,
    f'accuracy: metric on an empty set; none of the {len(questions)} questions has all four words',
  )


def _covered(index: Mapping[str, int], items: Sequence[tuple], empty: str) -> _Covered:
  """Returns the items whose words are all known: the rows of their words, and their indices.

  Raises:
    UserError: there is no such item; its message is `empty`.
  """
  rows = [tuple(index.get(word, index.get(word.lower(), -1)) for word in item) for item in items]
  covered = [i for i, item in enumerate(rows) if min(item) >= 0]
  if not covered:
    raise UserError(empty)
  return [rows[i] for i in covered], covered


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
  """Yields the lines of a file that are not blank, each with its place."""
  try:
    text = decode(Path(path).read_bytes(), Path(path))
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e
  for n, line in enumerate(text.split('\n'), 1):
    if line.strip():
      yield f'{path}, line {n}', line.removesuffix('\r')


def _fields(line: str, delimiter: str, count: int, place: str) -> list[str]:
  fields = line.split(delimiter)
  if len(fields) != count or not all(fields):
    raise UserError(f'{place}: {line!r:.80} is not {count} fields with {delimiter!r} between them')
  return fields
