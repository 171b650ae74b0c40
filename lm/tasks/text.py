"""Tasks from text to text, to a class, to a number, or to a tag per word."""

import itertools

from lm.errors import UserError
from lm.task import Example, Task, mismatch, string_field, strings_field
from lm.text.tokenizers import Special, separated


def text_to_text() -> Task:
  """Generates `target` from `source`: translation in one direction, or data to text."""
  return Task(lambda example: [string_field(example, 'source')], _target, _target)


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
    return [tags[language], string_field(example, 'source')]

  return Task(inputs, _target, _target, special_tokens=tuple(tags.values()))


def classification(fields: tuple[str, ...] = ('text',), label: str = 'label') -> Task:
  """Classifies a text, or several with separators between them.

  Args:
    fields: the fields to read, in order.
    label: the field with the name of the class.
  """

  def inputs(example: Example) -> list[str]:
    return separated(string_field(example, field) for field in fields)

  def name(example: Example) -> str:
    return string_field(example, label)

  return Task(inputs, name, name, name)


def regression(fields: tuple[str, ...] = ('text',), value: str = 'value') -> Task:
  """Predicts a number from a text, or from several with separators between them.

  Args:
    fields: the fields to read, in order.
    value: the field with the number.
  """

  def number(example: Example) -> float:
    given = example.get(value)
    if not isinstance(given, int | float) or isinstance(given, bool):
      raise mismatch(example, value, 'number')
    return float(given)

  return Task(
    inputs=lambda example: separated(string_field(example, field) for field in fields),
    target=lambda example: f'{number(example):g}',
    reference=number,
    head_target=number,
  )


def tagging() -> Task:
  """Tags each word; examples have words, tags, and the separator that joins the words."""

  def words(example: Example) -> list[tuple[int, int, str]]:
    words, tags = strings_field(example, 'words'), strings_field(example, 'tags')
    if len(words) != len(tags):
      raise UserError(f'data.source: an example has {len(words)} words and {len(tags)} tags')
    gap = len(string_field(example, 'separator'))
    starts = itertools.accumulate((len(word) + gap for word in words), initial=0)
    triples = zip(starts, words, tags, strict=False)
    return [(start, start + len(word), tag) for start, word, tag in triples]

  return Task(
    inputs=lambda example: [
      string_field(example, 'separator').join(strings_field(example, 'words'))
    ],
    target=lambda example: ' '.join(strings_field(example, 'tags')),
    reference=lambda example: strings_field(example, 'tags'),
    head_target=words,
  )


def _target(example: Example) -> str:
  return string_field(example, 'target')
