"""Precision, recall and F1 of words found in running text, as the SIGHAN bakeoffs count them."""

from collections.abc import Sequence

from lm.errors import UserError
from lm.metrics.scores import CorpusMetric, Scores, check_sizes

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


def spans(words: Sequence[str], text: str) -> list[Span]:
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
