"""Questions about a passage, answered by a stretch of it."""

from lm.task import Example, Task, mismatch
from lm.text.tokenizers import SEPARATOR


def extraction() -> Task:
  """Finds the answer to a question in its context, or that there is none.

  Rajpurkar et al. 2016 and 2018. Examples have question, context, and answers, each with text and
  start. A head finds (start, stop) in characters of the context; a model that writes is taught the
  first of the answers, and to write nothing where there is none, which is what lm.metrics.answers
  expects.
  """

  def inputs(example: Example) -> list[str]:
    for field in ('question', 'context'):
      if not isinstance(example.get(field), str):
        raise mismatch(example, field, 'string')
    if not isinstance(example.get('answers'), list | tuple):
      raise mismatch(example, 'answers', 'list')
    return [example['question'], SEPARATOR, example['context']]

  def texts(example: Example) -> list[str]:
    return [answer['text'] for answer in example['answers']]

  def spans(example: Example) -> list[tuple[int, int]]:
    starts = [answer['start'] for answer in example['answers']]
    return [(s, s + len(text)) for s, text in zip(starts, texts(example), strict=True)]

  return Task(inputs, lambda example: (texts(example) or [''])[0], texts, spans)
