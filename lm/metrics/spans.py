"""Precision, recall and F1 of tagged entities, as CoNLL's conlleval and seqeval count them."""

import collections
import re
from collections.abc import Sequence

from lm.errors import UserError
from lm.metrics.scores import CorpusMetric, Scores, check_kind, check_sizes

_TAG = re.compile(r'O|([BIES])(?:-(.+))?')


def entities() -> CorpusMetric:
  """Returns 'precision', 'recall', 'f1' of entities and 'accuracy' of tags, as shares.

  Predictions and references are sentences, each a list of BIO or IOBES tags ('B-PER', 'I-PER',
  'O'). An entity is right where its type, start and end are; all types count together (seqeval's
  default mode and micro average). Without entities to count, the shares are 0.

  Raises:
    UserError: from the metric; there are no tags, or one is neither BIO nor IOBES.
    ValueError: from the metric; a sentence has more or fewer predictions than references.
  """

  def metric(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    check_sizes('entities', predictions, references)
    check_kind('entities', [*predictions, *references], list, 'lists of tags')
    count: collections.Counter[str] = collections.Counter()
    for predicted, actual in zip(predictions, references, strict=True):
      if len(predicted) != len(actual):
        raise ValueError(f'entities: {len(predicted)} predictions for {len(actual)} tags')
      found, gold = entity_spans(predicted), entity_spans(actual)
      count['tags'] += len(actual)
      count['right_tags'] += sum(p == r for p, r in zip(predicted, actual, strict=True))
      count['predicted'] += len(found)
      count['actual'] += len(gold)
      count['correct'] += len(found & gold)
    if not count['tags']:
      raise UserError('entities: metric on an empty set; its sentences have no tags')
    share = {
      'precision': (count['correct'], count['predicted']),
      'recall': (count['correct'], count['actual']),
      'f1': (2 * count['correct'], count['predicted'] + count['actual']),
      'accuracy': (count['right_tags'], count['tags']),
    }
    return Scores({name: part / whole if whole else 0.0 for name, (part, whole) in share.items()})

  def check(references: Sequence[Sequence[str]]) -> None:
    check_kind('entities', references, list, 'lists of tags')
    if not any(references):
      raise UserError('entities: metric on an empty set; its sentences have no tags')
    for sentence in references:
      entity_spans(sentence)

  directions = {'precision': True, 'recall': True, 'f1': True, 'accuracy': True}
  return CorpusMetric(metric, directions, check)


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """Returns the entities of a sentence: (type, first tag, index after the last).

  Lenient, as conlleval is: an I or E that continues nothing of its type begins an entity, and an
  entity need not be closed by E.

  Raises:
    UserError: a tag is neither BIO nor IOBES.
  """
  found = set()
  start, last_prefix, last_kind = 0, 'O', ''
  for i, tag in enumerate((*tags, 'O')):
    match = _TAG.fullmatch(tag)
    if not match:
      raise UserError(f"tag {tag!r} is neither BIO nor IOBES, such as 'B-PER', 'I-PER' or 'O'")
    prefix, kind = match[1] or 'O', match[2] or ''
    continues = prefix in 'IE' and last_prefix in 'BI' and kind == last_kind
    if not continues:
      if last_prefix != 'O':
        found.add((last_kind, start, i))
      start = i
    last_prefix, last_kind = prefix, kind
  return found


Span = tuple[int, int]


def segmentation() -> CorpusMetric:
  """Returns 'precision', 'recall' and 'f1' of words, as shares.

  Predictions and references are texts, each a list of words given by their first and last
  character, exclusive. A word is right where both are (Sproat and Emerson 2003).

  Raises:
    UserError: from the metric; there are no texts, or no words in the references.
    ValueError: from the metric; words of a text overlap or are out of order.
  """

  def metric(predictions: Sequence[Sequence[Span]], references: Sequence[Sequence[Span]]) -> Scores:
    check_sizes('segmentation', predictions, references)
    predicted = actual = correct = 0
    for found, gold in zip(predictions, references, strict=True):
      _check_order(found)
      _check_order(gold)
      predicted += len(found)
      actual += len(gold)
      correct += len(set(found) & set(gold))
    if not actual:
      raise UserError('segmentation: metric on an empty set; the references have no words')
    return Scores(
      {
        'precision': correct / predicted if predicted else 0.0,
        'recall': correct / actual,
        'f1': 2 * correct / (predicted + actual),
      }
    )

  def check(references: Sequence[Sequence[Span]]) -> None:
    if not any(references):
      raise UserError('segmentation: metric on an empty set; the references have no words')

  return CorpusMetric(metric, {'precision': True, 'recall': True, 'f1': True}, check)


def word_spans(words: Sequence[str], text: str) -> list[Span]:
  """Returns where each of the words of a text stands in it; only white space lies between them.

  Raises:
    UserError: the words are not those of the text.
  """
  found, end = [], 0
  for word in words:
    start = end
    while text[start : start + 1].isspace() and not text.startswith(word, start):
      start += 1
    if not text.startswith(word, start):
      raise UserError(f'the words do not spell the text: {word!r} is not at character {end}')
    end = start + len(word)
    found.append((start, end))
  if text[end:].strip():
    raise UserError(f'the words do not spell the text: none is at character {end}')
  return found


def _check_order(words: Sequence[Span]) -> None:
  last = 0
  for start, end in words:
    if not last <= start < end:
      raise ValueError(
        f'segmentation: the word {start}:{end} does not follow one that ends at {last}'
      )
    last = end
