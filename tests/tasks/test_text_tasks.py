"""What tasks make of examples, before any architecture or tokenizer."""

import pytest

from lm.errors import UserError
from lm.tasks.text import classification, regression, tagging, text_to_text, translation
from lm.text.tokenizers import SEPARATOR, Special


def test_text_to_text_reads_source_and_generates_target():
  task, example = text_to_text(), {'source': 'ein Hund', 'target': 'a dog'}
  assert task.inputs(example) == ['ein Hund']
  assert task.target(example) == task.reference(example) == 'a dog'
  assert task.head_target is None and task.special_tokens == ()


def test_translation_inputs_start_with_the_target_language():
  task = translation(('en', 'fr'))
  example = {'source': 'ein Hund', 'target': 'a dog', 'target_language': 'en'}
  assert task.inputs(example) == ['<|to en|>', 'ein Hund']
  assert isinstance(task.inputs(example)[0], Special)
  assert task.special_tokens == ('<|to en|>', '<|to fr|>')
  with pytest.raises(UserError, match=r"target_language='de' .*languages=\('en', 'fr'\)"):
    task.inputs(example | {'target_language': 'de'})


def test_classification_has_separators_between_fields():
  task = classification(fields=('premise', 'hypothesis', 'note'), label='gold')
  example = {'premise': 'a', 'hypothesis': '<|sep|>', 'note': 'c', 'gold': 'neutral'}
  read = task.inputs(example)
  assert read == ['a', SEPARATOR, '<|sep|>', SEPARATOR, 'c']
  # A text that looks like a separator is none.
  assert [isinstance(part, Special) for part in read] == [False, True, False, True, False]
  assert task.head_target(example) == task.target(example) == task.reference(example) == 'neutral'


def test_regression_target_is_a_number_and_its_text():
  task, example = regression(value='stars'), {'text': 'good', 'stars': 4}
  assert task.inputs(example) == ['good']
  assert task.head_target(example) == task.reference(example) == 4.0
  assert task.target(example) == '4'
  assert task.target({'text': 'x', 'stars': 0.25}) == '0.25'
  pair = regression(fields=('a', 'b'))
  assert pair.inputs({'a': 'x', 'b': 'y', 'value': 1}) == ['x', SEPARATOR, 'y']


@pytest.mark.parametrize('separator', [' ', ''])
def test_tags_have_the_character_spans_of_their_words(separator):
  task, words, tags = tagging(), ['我', 'love', '北京'], ['O', 'O', 'B-LOC']
  example = {'words': words, 'tags': tags, 'separator': separator}
  (text,) = task.inputs(example)
  assert text == separator.join(words)
  spans = task.head_target(example)
  assert [text[start:stop] for start, stop, _ in spans] == words
  assert [tag for *_, tag in spans] == task.reference(example) == tags
  assert task.target(example) == 'O O B-LOC'


@pytest.mark.parametrize(
  ('task', 'example', 'message'),
  [
    (
      text_to_text(),
      {'src': 'a', 'target': 'b'},
      "no string under 'source'; it has 'src', 'target'",
    ),
    (classification(), {'text': 3, 'label': 'a'}, "'text' of an example is 3 and no string"),
    (tagging(), {'source': 'a'}, "no string under 'separator'; it has 'source'"),
  ],
)
def test_wrong_example_is_refused(task, example, message):
  with pytest.raises(UserError) as error:
    task.inputs(example)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ('task', 'example', 'message'),
  [
    (regression(), {'text': 'a', 'label': 'b'}, "no number under 'value'; it has 'text', 'label'"),
    (regression(), {'text': 'a', 'value': 'b'}, "'value' of an example is 'b' and no number"),
    (tagging(), {'separator': ' ', 'words': 'ab', 'tags': ['O']}, "is 'ab' and no list of strings"),
    (tagging(), {'separator': ' ', 'words': ['a'], 'tags': [1]}, 'is [1] and no list of strings'),
    (tagging(), {'separator': ' ', 'words': ['a'], 'tags': ['O', 'O']}, '1 words and 2 tags'),
  ],
)
def test_wrong_target_is_refused(task, example, message):
  with pytest.raises(UserError) as error:
    task.head_target(example)
  assert message in str(error.value)
