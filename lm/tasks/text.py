"""Tasks from text to text, to a class, to a number, or to a tag per word."""

import dataclasses
import itertools
import re

from lm.errors import UserError
from lm.task import Example, Task, mismatch, string_field, strings_field
from lm.text.tokenizers import Special, separated


def text_to_text() -> Task:
  """Generates `target` from `source`: translation in one direction, or data to text."""
  return Task(lambda e: [string_field(e, 'source')], _target, _target, fields=('source',))


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

  fields = ('source', 'target_language')
  return Task(inputs, _target, _target, special_tokens=tuple(tags.values()), fields=fields)


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

  return Task(inputs, name, name, name, fields=fields)


def multilabel(fields: tuple[str, ...] = ('text',), labels: str = 'labels') -> Task:
  """Finds all labels of a text, or of several with separators between them.

  Args:
    fields: the fields to read, in order.
    labels: the field with the list of labels, which may be empty.
  """

  def names(example: Example) -> list[str]:
    return strings_field(example, labels)

  one_label = classification(fields)
  return dataclasses.replace(
    one_label, target=lambda e: ', '.join(names(e)), reference=names, head_target=names
  )


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
    fields=fields,
  )


def tagging(word: str = r'\S+', separator: str = ' ') -> Task:
  r"""Tags each word; examples have words, tags, and the separator that joins the words.

  Args:
    word: regular expression of the words of a raw text, whose tags a user asks for; r'\S' for one
      tag a character.
    separator: the separator of such words, that of training.
  """
  pattern = re.compile(word)

  def question(row: Example) -> Example:
    if 'words' in row:
      found = {'words': strings_field(row, 'words'), 'separator': row.get('separator', separator)}
    else:
      matches = list(pattern.finditer(string_field(row, 'text')))
      spans = {'offsets': [match.span() for match in matches]}
      found = {'words': [match[0] for match in matches], 'separator': separator, **spans}
    return {**found, 'tags': row.get('tags', [''] * len(found['words']))}

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
    question=question,
  )


def _target(example: Example) -> str:
  return string_field(example, 'target')
