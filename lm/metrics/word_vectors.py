"""Word vectors against what people say of words: likeness of pairs, analogies, groups.

A word is looked up as it is written, or else in lower case. What has a word that is not there is
left out, and the coverage says how much was not: compare scores of like coverage only.

A config names the builder of a `VectorMetric` by import path, with literal arguments, as in
'lm.metrics.word_vectors:pairs(file="$LM_DATA/word_eval/wordsim353.tsv")'.
"""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from lm.errors import UserError
from lm.metrics.labels import regression
from lm.metrics.scores import Scores
from lm.text.files import decode, expand, lines
from lm.text.vectors import (
  Analogy,
  Vectors,
  analogies,
  cosines,
  three_cos_add,
  three_cos_mul,
  unit_rows,
)

Pair = tuple[str, str, float]  # two words, and how alike people find them
Question = tuple[str, str, str, str]  # a is to b as c to d
_LONGEST = 10_000  # bytes of a line
_Covered = tuple[list[tuple[int, ...]], list[int]]
SCORES: Mapping[str, Analogy] = {'add': three_cos_add, 'mul': three_cos_mul}


class VectorMetric(NamedTuple):
  """What is asked of word vectors, under a name of its own; the values are shares.

  Attributes:
    name: stands before the values.
    score: finds them.
    check: takes words with their rows, before there are vectors, and raises the UserError that
      `score` would for the lack of words.
    higher_is_better: the name of each value, and whether its highest is the best; None where no
      value is better.
  """

  name: str
  score: Callable[[Vectors], Scores]
  check: Callable[[Mapping[str, int]], object] = lambda index: None
  higher_is_better: Mapping[str, bool | None] = MappingProxyType({})


def pairs(file: str, name: str = '') -> VectorMetric:
  """Returns the metric 'spearman' and 'coverage' of a file of pairs, as of `similarity`.

  Args:
    file: as `read_pairs` takes it; ~ and $VARIABLES are replaced.
    name: of the metric; that of the file, without its suffix, unless given.

  Raises:
    UserError: the file is missing or wrong; or, from the metric, no pair is covered.
  """
  path = expand(file, 'file')
  read = read_pairs(path)
  return VectorMetric(
    name or path.stem,
    lambda vectors: similarity(vectors, read),
    lambda index: _covered_pairs(index, read),
    {'spearman': True, 'coverage': True},
  )


def questions(file: str, name: str = '', sections: bool = False) -> VectorMetric:
  """Returns the metric 'add_accuracy', 'mul_accuracy' and 'coverage' of a file of analogies.

  The accuracies are those of 3CosAdd and of 3CosMul, as of `accuracy`.

  Args:
    file: as `read_questions` takes it; ~ and $VARIABLES are replaced.
    name: of the metric; that of the file, without its suffix, unless given.
    sections: whether each section has values too, as 'SECTION/add_accuracy'.

  Raises:
    UserError: the file is missing or wrong; or, from the metric, no question is covered.
  """
  path = expand(file, 'file')
  read = read_questions(path)

  def score(vectors: Vectors) -> Scores:
    values: dict[str, float] = {}
    for short, function in SCORES.items():
      for key, value in accuracy(vectors, read, function).values.items():
        if sections or '/' not in key:
          values[re.sub('accuracy$', f'{short}_accuracy', key)] = value
    return Scores(values)

  values = [*(f'{short}_accuracy' for short in SCORES), 'coverage']
  names = values + [f'{section}/{value}' for section in read if sections for value in values]
  return VectorMetric(
    name or path.stem,
    score,
    lambda index: _covered_questions(index, read),
    dict.fromkeys(names, True),
  )


def groups(groups: Mapping[str, Sequence[str]], name: str = 'groups') -> VectorMetric:
  """Returns the metric 'accuracy' and 'coverage' of words that belong together.

  The words asked are those that are there, with another one of their group; the coverage is their
  share. The accuracy is the share of them whose nearest, among the words asked, is of their group.

  Args:
    groups: the words of each group, as in {'days': ['monday', 'friday'], 'months': ['may', ...]}.
    name: of the metric.

  Raises:
    UserError: there are fewer than two groups, one has fewer than two words, or a word comes twice;
      or, from the metric, fewer than two groups are covered.
  """
  words = [word for members in groups.values() for word in members]
  of = np.array([i for i, members in enumerate(groups.values()) for _ in members])
  if len(groups) < 2 or any(len(members) < 2 for members in groups.values()):
    raise UserError(f'groups={dict(groups)!r:.80}: at least two groups of two words are needed')
  if twice := [word for word, count in collections.Counter(words).items() if count > 1]:
    raise UserError(f'groups: {twice[0]!r:.40} comes twice')

  def asked_of(index: Mapping[str, int]) -> tuple[list[int], np.ndarray]:
    """Returns the rows of the words asked, and the groups that they are of."""
    rows, found = _covered(index, [(word,) for word in words])
    inside = np.bincount(of[found], minlength=len(groups))
    asked = np.flatnonzero(inside[of[found]] > 1)
    if len(set(of[found][asked])) < 2:
      raise UserError(
        f'groups: metric on an empty set; of {len(groups)} groups fewer than two have two words '
        'among the vectors'
      )
    return [rows[i][0] for i in asked], of[found][asked]

  def score(vectors: Vectors) -> Scores:
    rows, kinds = asked_of(vectors.index)
    directions = unit_rows(vectors.matrix[rows])
    cos = directions @ directions.T
    np.fill_diagonal(cos, -np.inf)
    right = kinds[cos.argmax(axis=1)] == kinds
    return Scores({'accuracy': float(right.mean()), 'coverage': len(rows) / len(words)})

  return VectorMetric(name, score, asked_of, {'accuracy': True, 'coverage': True})


def read_pairs(path: str | Path) -> list[Pair]:
  """Reads pairs of words with their scores, such as WordSim-353 and SimLex-999 as Gensim has them.

  Lines are 'word TAB word TAB score'; those that begin with '#' are comments.

  Raises:
    UserError: the file cannot be read, a line is wrong, or there is no pair.
  """
  pairs = []
  for place, line in _lines(path):
    if line.startswith('#'):
      continue
    one, other, score = _fields(line, '\t', 3, place)
    try:
      value = float(score)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise UserError(f'{place}: {score!r:.40} is not a score; a finite number is needed')
    pairs.append((one, other, value))
  if not pairs:
    raise UserError(f'{path}: it has no pairs of words')
  return pairs


def read_questions(path: str | Path) -> dict[str, list[Question]]:
  """Reads analogies by section, such as questions-words.txt of word2vec and the Chinese CA8.

  Lines are four words between spaces; one that begins with ':' names the section that follows.

  Raises:
    UserError: the file cannot be read, a line is wrong, a question comes before all sections, a
      section comes twice, or there is no question.
  """
  sections: dict[str, list[Question]] = {}
  name = None
  for place, line in _lines(path):
    if line.startswith(':'):
      name = line.removeprefix(':').strip()
      if name in sections:
        raise UserError(f'{place}: the section {name!r:.40} is there already')
      sections[name] = []
    elif name is None:
      raise UserError(f"{place}: {line!r:.40} comes before the first section, such as ': family'")
    else:
      a, b, c, d = _fields(line, ' ', 4, place)
      sections[name].append((a, b, c, d))
  if not any(sections.values()):
    raise UserError(f'{path}: it has no questions')
  return sections


def similarity(vectors: Vectors, pairs: Sequence[Pair]) -> Scores:
  """Returns 'spearman' and 'coverage' of pairs, as shares.

  Spearman's rank correlation is between cosines and scores, of the pairs that are covered; ties
  share the mean of their ranks. It is NaN where either side is constant, as for one pair.

  Raises:
    UserError: no pair is covered.
  """
  rows, found = _covered_pairs(vectors.index, pairs)
  scores = [pairs[i][2] for i in found]
  spearman = regression()(cosines(vectors, rows).tolist(), scores).values['spearman']
  return Scores({'spearman': spearman, 'coverage': len(found) / len(pairs)})


def accuracy(
  vectors: Vectors,
  sections: Mapping[str, Sequence[Question]],
  score: Analogy = three_cos_add,
) -> Scores:
  """Returns 'accuracy' and 'coverage' of analogies, as shares, and 'SECTION/...' of each.

  The answer is the best of all words but a, b and c, and is right if it is d. A section of which
  nothing is covered has no accuracy.

  Raises:
    UserError: no question is covered.
  """
  names = [name for name, members in sections.items() for _ in members]
  rows, found = _covered_questions(vectors.index, sections)
  asked = np.array(rows)
  right = analogies(vectors, asked[:, :3], score) == asked[:, 3]
  section = np.array([names[i] for i in found])
  values = {'accuracy': float(right.mean()), 'coverage': len(found) / len(names)}
  for name, members in sections.items():
    inside = section == name
    if inside.any():
      values[f'{name}/accuracy'] = float(right[inside].mean())
    if members:
      values[f'{name}/coverage'] = float(inside.sum() / len(members))
  return Scores(values)


def _covered_pairs(index: Mapping[str, int], pairs: Sequence[Pair]) -> _Covered:
  rows, found = _covered(index, [pair[:2] for pair in pairs])
  if not rows:
    raise UserError(f'similarity: metric on an empty set; no pair of {len(pairs)} has both words')
  return rows, found


def _covered_questions(
  index: Mapping[str, int], sections: Mapping[str, Sequence[Question]]
) -> _Covered:
  questions = list(itertools.chain.from_iterable(sections.values()))
  rows, found = _covered(index, questions)
  if not rows:
    raise UserError(
      f'accuracy: metric on an empty set; no question of {len(questions)} has all four words'
    )
  return rows, found


def _covered(index: Mapping[str, int], groups: Sequence[tuple]) -> _Covered:
  """Returns the rows of the words of each group that has them all, and which groups those are."""
  rows = [tuple(index.get(word, index.get(word.lower(), -1)) for word in g) for g in groups]
  found = [i for i, group in enumerate(rows) if min(group) >= 0]
  return [rows[i] for i in found], found


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
  """Returns the lines of a file that are not blank, each with its place."""
  at = 0
  try:
    with open(path, 'rb') as file:
      for i, data in enumerate(lines(file, path, _LONGEST)):
        line = decode(data, Path(path), at).removesuffix('\n')
        at += len(data)
        line = line if i else line.removeprefix('\ufeff')
        if line.strip():
          yield f'{path}, line {i + 1}', line.removesuffix('\r')
  except OSError as e:
    raise UserError(f'{path} cannot be read: {e.strerror}') from e


def _fields(line: str, delimiter: str, count: int, place: str) -> list[str]:
  fields = line.split(delimiter)
  if len(fields) != count or not all(fields):
    raise UserError(f'{place}: {line!r:.80} is not {count} fields with {delimiter!r} between them')
  return fields
