"""Tasks from text to text, to a class, to a number, or to a tag per word."""

from lm.errors import UserError
from lm.task import Example, Task, mismatch
from lm.text.tokenizers import SEPARATOR, Special


def text_to_text() -> Task:
  """Generates `target` from `source`: translation in one direction, or data to text."""
  return Task(lambda example: [_text(example, 'source')], _target, _target)


def translation(languages: tuple[str, ...]) -> Task:
  """Translates in many directions with one model; a token names the target language.

  Johnson et al. 2017, section 3. Examples have source, target and target_language.

  Args:
    languages: the target languages.
  """
  tags = {language: Special(f'<|to {language}|>') for language in languages}

  def inputs(example: Example) -> list[str]:
    language = example.get('target_language')
    if language not in tags:
      raise UserError(
        f'data.task: target_language={language!r} must be one of languages={tuple(languages)}'
      )
    return [tags[language], _text(example, 'source')]

  return Task(inputs, _target, _target, special_tokens=tuple(tags.values()))


def classification(fields: tuple[str, ...] = ('text',), label: str = 'label') -> Task:
  """Classifies a text, or several with separators between them.

  Args:
    fields: the fields to read, in order.
    label: the field with the name of the class.
  """

  def inputs(example: Example) -> list[str]:
    parts: list[str] = []
    for field in fields:
      parts += [SEPARATOR, _text(example, field)] if parts else [_text(example, field)]
    return parts

  def name(example: Example) -> str:
    return _text(example, label)

  return Task(inputs, name, name, name)


def regression(field: str = 'text', value: str = 'value') -> Task:
  """Predicts the number in field `value` from the text in `field`."""

  def number(example: Example) -> float:
    found = example.get(value)
    if not isinstance(found, int | float) or isinstance(found, bool):
      raise mismatch(example, value, 'number')
    return float(found)

  return Task(
    inputs=lambda example: [_text(example, field)],
    target=lambda example: f'{number(example):g}',
    reference=number,
    head_target=number,
  )


def tagging() -> Task:
  """Tags each word; examples have words, tags, and the separator that joins the words."""

  def words(example: Example) -> list[tuple[int, int, str]]:
    spans, start = [], 0
    words, tags = _texts(example, 'words'), _texts(example, 'tags')
    if len(words) != len(tags):
      raise UserError(f'data.source: an example has {len(words)} words and {len(tags)} tags')
    separator = _text(example, 'separator')
    for word, tag in zip(words, tags, strict=True):
      spans.append((start, start + len(word), tag))
      start += len(word) + len(separator)
    return spans

  return Task(
    inputs=lambda example: [_text(example, 'separator').join(_texts(example, 'words'))],
    target=lambda example: ' '.join(_texts(example, 'tags')),
    reference=lambda example: _texts(example, 'tags'),
    head_target=words,
  )


def _text(example: Example, field: str) -> str:
  text = example.get(field)
  if not isinstance(text, str):
    raise mismatch(example, field, 'string')
  return text


def _target(example: Example) -> str:
  return _text(example, 'target')


def _texts(example: Example, field: str) -> list[str]:
  texts = example.get(field)
  if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
    raise mismatch(example, field, 'list of strings')
  return list(texts)
