"""Tasks from text to text, or to a class, a number, or a tag a word."""

from lm.errors import UserError
from lm.task import Example, Task, mismatch
from lm.text.tokenizers import SEPARATOR, Special


def text_to_text() -> Task:
  """Writes target from source: translation in one direction, generation from a description."""

  def written(example: Example) -> str:
    return _text(example, 'target')

  return Task(lambda example: [_text(example, 'source')], written, written)


def translation(languages: tuple[str, ...]) -> Task:
  """Translates in many directions in one model; a token names the language to write.

  Johnson et al. 2017, section 3. Examples have source, target and target_language.

  Args:
    languages: those that are written.
  """
  tags = {language: Special(f'<|to {language}|>') for language in languages}

  def inputs(example: Example) -> list[str]:
    language = example.get('target_language')
    if language not in tags:
      raise UserError(
        f'data.task: target_language={language!r} is none of languages={tuple(languages)}'
      )
    return [tags[language], _text(example, 'source')]

  return Task(
    inputs=inputs,
    target=lambda example: _text(example, 'target'),
    reference=lambda example: _text(example, 'target'),
    specials=tuple(tags.values()),
  )


def classification(fields: tuple[str, ...] = ('text',), label: str = 'label') -> Task:
  """Finds the class of a text, or of several with separators between.

  Args:
    fields: what is read, in order.
    label: the field with the class by name.
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
  """Finds a number for a text."""

  def number(example: Example) -> float:
    found = example.get(value)
    if not isinstance(found, int | float) or isinstance(found, bool):
      raise mismatch(example, value, 'number')
    return float(found)

  return Task(
    inputs=lambda example: [_text(example, field)],
    target=lambda example: f'{number(example):g}',
    reference=number,
    answer=number,
  )


def tagging() -> Task:
  """Finds a tag for each word; examples have words, tags, and the separator that joins words."""

  def words(example: Example) -> list[tuple[int, int, str]]:
    spans, start = [], 0
    found, tags = _texts(example, 'words'), _texts(example, 'tags')
    if len(found) != len(tags):
      raise UserError(f'data.source: an example has {len(found)} words and {len(tags)} tags')
    separator = _text(example, 'separator')
    for word, tag in zip(found, tags, strict=True):
      spans.append((start, start + len(word), tag))
      start += len(word) + len(separator)
    return spans

  return Task(
    inputs=lambda example: [_text(example, 'separator').join(_texts(example, 'words'))],
    target=lambda example: ' '.join(_texts(example, 'tags')),
    reference=lambda example: _texts(example, 'tags'),
    answer=words,
  )


def _text(example: Example, field: str) -> str:
  text = example.get(field)
  if not isinstance(text, str):
    raise mismatch(example, field, 'string')
  return text


def _texts(example: Example, field: str) -> list[str]:
  texts = example.get(field)
  if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
    raise mismatch(example, field, 'list of strings')
  return list(texts)
