"""Precision, recall and F1 of spans: tagged entities, and words found in running text."""

import re
from collections.abc import Collection, Sequence

from lm.errors import UserError
from lm.metrics.scores import TAGS, CorpusMetric, Scores, higher, validated

Span = tuple[int, int]

_TAG = re.compile(r'O|([BIES])(?:-(.+))?')


def entities() -> CorpusMetric:
  """Returns 'precision', 'recall', 'f1' of entities and 'accuracy' of tags, from 0 to 1.

  Predictions and references are sentences, each a list of BIO or IOBES tags ('B-PER', 'I-PER',
  'O'). An entity is correct if its type, start and end are; all types are pooled (seqeval's default
  mode and micro average; CoNLL's conlleval). A score with denominator 0 is 0.

  Raises:
    UserError: when the metric is called; there are no tags, or a tag is neither BIO nor IOBES.
    ValueError: when the metric is called; a sentence has more or fewer predicted tags than
      reference tags.
  """

  def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Scores:
    check(references)
    is_correct: list[bool] = []
    for predicted, actual in zip(predictions, references, strict=True):
      if len(predicted) != len(actual):
        raise ValueError(f'entities: {len(predicted)} predictions for {len(actual)} tags')
      is_correct += [tag == gold for tag, gold in zip(predicted, actual, strict=True)]
    spans = ([entity_spans(tags) for tags in side] for side in (predictions, references))
    values = _precision_recall_f1(*spans)
    return Scores(values | {'accuracy': sum(is_correct) / len(is_correct)})

  def check(references: Sequence[Sequence[str]]) -> None:
    if not any(references):
      raise UserError('entities: metric on an empty set; its sentences have no tags')
    for sentence in references:
      entity_spans(sentence)

  def accuracy(tags: Sequence[str], reference: Sequence[str]) -> float:
    """Returns the share of correct tags, because a sentence without entities would have F1 0."""
    correct = sum(tag == actual for tag, actual in zip(tags, reference, strict=True))
    return correct / len(reference) if reference else 1.0

  directions = higher('precision', 'recall', 'f1', 'accuracy')
  metric = CorpusMetric(score, directions, check, ('accuracy', accuracy))
  return validated('entities', metric, TAGS, TAGS)


def entity_spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
  """Returns the entities of a sentence: (type, first tag, index after the last).

  It is as lenient as conlleval: an I or E after another type starts an entity, and an entity may
  end without E.

  Raises:
    UserError: a tag is neither BIO nor IOBES.
  """
  spans = set()
  start, last_prefix, last_kind = 0, 'O', ''
  for i, tag in enumerate((*tags, 'O')):
    match = _TAG.fullmatch(tag)
    if not match:
      raise UserError(f"tag {tag!r} is neither BIO nor IOBES, such as 'B-PER', 'I-PER' or 'O'")
    prefix, kind = match[1] or 'O', match[2] or ''
    continues = prefix in 'IE' and last_prefix in 'BI' and kind == last_kind
    if not continues:
      if last_prefix != 'O':
        spans.add((last_kind, start, i))
      start = i
    last_prefix, last_kind = prefix, kind
  return spans


def is_entity_tag(tag: str) -> bool:
  """Returns whether a tag is BIO or IOBES, such as 'B-PER' or 'O'."""
  return _TAG.fullmatch(tag) is not None


def segmentation() -> CorpusMetric:
  """Returns 'precision', 'recall' and 'f1' of words in running text, from 0 to 1.

  Predictions and references are texts, each a list of words as (start, end) in characters. A word
  is correct if its start and its end are, as in the SIGHAN bakeoffs (Sproat and Emerson 2003).

  Raises:
    UserError: when the metric is called; there are no texts, or no words in the references.
    ValueError: when the metric is called; words of a text overlap or are out of order.
  """

  def score(predictions: Sequence[Sequence[Span]], references: Sequence[Sequence[Span]]) -> Scores:
    check(references)
    for words in (*predictions, *references):
      _check_order(words)
    return Scores(_precision_recall_f1(predictions, references))

  def check(references: Sequence[Sequence[Span]]) -> None:
    if not any(references):
      raise UserError('segmentation: metric on an empty set; the references have no words')

  return validated('segmentation', CorpusMetric(score, higher('precision', 'recall', 'f1'), check))


def word_spans(words: Sequence[str], text: str) -> list[Span]:
  """Returns the (start, end) of the words of a text, with only white space between them.

  Raises:
    UserError: the words are not those of the text.
  """
  spans, end = [], 0
  for word in words:
    start = end
    while text[start : start + 1].isspace() and not text.startswith(word, start):
      start += 1
    if not text.startswith(word, start):
      raise UserError(f'the words do not spell the text: {word!r} is not at character {end}')
    end = start + len(word)
    spans.append((start, end))
  if text[end:].strip():
    raise UserError(f'the words do not spell the text: no word is at character {end}')
  return spans


def _precision_recall_f1(
  predictions: Sequence[Collection], references: Sequence[Collection]
) -> dict[str, float]:
  """Returns the scores of the items of all examples, pooled; a score with denominator 0 is 0."""
  pairs = zip(predictions, references, strict=True)
  correct = sum(len(set(predicted) & set(actual)) for predicted, actual in pairs)
  predicted, actual = sum(map(len, predictions)), sum(map(len, references))
  return {
    'precision': correct / predicted if predicted else 0.0,
    'recall': correct / actual if actual else 0.0,
    'f1': 2 * correct / (predicted + actual) if predicted + actual else 0.0,
  }


def _check_order(words: Sequence[Span]) -> None:
  last = 0
  for start, end in words:
    if not last <= start < end:
      raise ValueError(
        f'segmentation: the word {start}:{end} does not follow one that ends at {last}'
      )
    last = end
