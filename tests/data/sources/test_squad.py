import json
import os

import pytest

from lm.data import pipeline
from lm.data.sources import squad
from lm.errors import UserError


def question(name, *answers):
  marked = [{'text': text, 'answer_start': start} for text, start in answers]
  return {'id': name, 'question': f'{name}?', 'answers': marked}


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes paragraphs in both layouts and returns the names."""

  def write(*paragraphs):
    nested = [{'context': context, 'qas': list(qas)} for context, *qas in paragraphs]
    articles = [{'title': 't', 'paragraphs': [paragraph]} for paragraph in nested]
    (tmp_path / 'a.json').write_text(json.dumps({'version': '2', 'data': articles}))
    lines = [json.dumps(q | {'context': context}) for context, *qas in paragraphs for q in qas]
    (tmp_path / 'b.jsonl').write_text('\n'.join(lines))
    return str(tmp_path / 'a.json'), str(tmp_path / 'b.jsonl')

  return write


def test_both_layouts_have_the_same_questions(write):
  context = '𝄞 is a clef.'
  files = write((context, question('what', ('clef', 7), ('a clef', 5)), question('who')))
  expected = [
    {
      'id': 'what',
      'context': context,
      'question': 'what?',
      'answers': [{'text': 'clef', 'start': 7}, {'text': 'a clef', 'start': 5}],
    },
    {'id': 'who', 'context': context, 'question': 'who?', 'answers': []},
  ]
  assert [list(squad('train', file)) for file in files] == [expected, expected]


def test_a_context_is_not_divided_between_splits(write):
  paragraphs = [(f'text {n}', *(question(f'{n}{k}') for k in range(9 - n))) for n in range(4)]
  for file in write(*paragraphs):
    train, aside = (squad(split, file, validation=0.5) for split in ('train', 'validation'))
    assert {q['context'] for q in train} == {'text 0', 'text 1'} and len(train) == 17
    assert {q['context'] for q in aside} == {'text 2', 'text 3'} and len(aside) == 13


@pytest.mark.parametrize('answer', [('clef', 6), ('clef', -5), ('', 0), ('clef', 99)])
def test_a_misplaced_answer_is_reported(write, answer):
  for file in write(('x is a clef.', question('q7', answer))):
    with pytest.raises(UserError, match=rf"question 'q7': the answer '{answer[0]}' is not at"):
      squad('train', file)


def test_other_layouts_are_reported(tmp_path):
  contents = {
    'a.json': ('[1]', 'does not have the layout of SQuAD'),
    'b.json': ('{"data": [{"paragraphs": [{"context": "a"}]}]}', "not have the layout.*'qas'"),
    'c.json': ('{', 'c.json: not JSON'),
    'd.jsonl': ('{"id": "a", "context": "b", "question": "c"}', "line 1: no key 'answers'"),
    'e.jsonl': (
      '{"id": "a", "context": "b", "question": "c", "answers": {"text": ["b"]}}',
      "question 'a': 'answers' is .'text': .*, neither a list of .* nor an object of two lists",
    ),
    'f.txt': ('a', 'its name must end in .json or .jsonl'),
  }
  for name, (content, message) in contents.items():
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
      squad('train', str(tmp_path / name))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'question': None}, "'question' is None, not a string"),
    ({'context': 5}, "'context' is 5, not a string"),
    ({'answers': 'clef'}, "'answers' is 'clef', neither a list"),
    ({'answers': [['clef', 7]]}, "'answers' is .*, neither a list"),
    ({'answers': {'text': ['clef'], 'answer_start': []}}, "'answers' is .* of equal length"),
    ({'answers': [{'text': 'clef', 'answer_start': '4'}]}, "of 'clef' is '4', not an integer"),
    ({'answers': [{'text': 'clef', 'answer_start': True}]}, "of 'clef' is True, not an integer"),
    ({'answers': [{'text': None, 'answer_start': 4}]}, "'text' of an answer is None, not a string"),
    ({'question': 'a\ud800'}, r"has the lone surrogate '\\ud800' at character 1, after 'a'"),
  ],
)
def test_fields_of_other_types_are_reported(changes, message, tmp_path):
  answers = [{'text': 'clef', 'answer_start': 7}]
  asked = {'id': 'q7', 'context': 'x is a clef.', 'question': 'what?', 'answers': answers} | changes
  paragraph = {'context': asked['context'], 'qas': [asked]}
  file = tmp_path / 'a.json'
  file.write_text(json.dumps({'data': [{'paragraphs': [paragraph]}]}))
  with pytest.raises(UserError, match=f"a.json: question 'q7'.*{message}") as error:
    squad('train', str(file))
  assert '\n' not in str(error.value)


def test_answers_may_be_an_object_of_two_lists(tmp_path):
  answers = {'text': ['clef', 'a clef'], 'answer_start': [7, 5]}
  asked = {'id': 'q7', 'context': 'x is a clef.', 'question': 'what?', 'answers': answers}
  (tmp_path / 'a.jsonl').write_text(json.dumps(asked))
  (question,) = squad('train', str(tmp_path / 'a.jsonl'))
  assert question['answers'] == [{'text': 'clef', 'start': 7}, {'text': 'a clef', 'start': 5}]


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')
@pytest.mark.parametrize(
  ('file', 'split', 'questions', 'unanswerable'),
  [
    ('squad/{split}.jsonl', 'dev', 298, 0),
    ('squad/dev-v1.1-style.json', 'train', 298, 0),
    ('squad/v2.0-part.json', 'train', 1271, 644),
    ('cmrc2018/{split}.json', 'dev', 704, 0),
  ],
)
def test_real_questions(file, split, questions, unanswerable):
  examples = squad(split, f'$LM_DATA/{file}')
  assert len(examples) == questions
  assert sum(not q['answers'] for q in examples) == unanswerable


def test_misplaced_answers_may_be_skipped_and_are_counted(write):
  paragraph = (
    'x is a clef.',
    question('right', ('clef', 7)),
    question('one of two', ('clef', 3), ('a', 5)),
    question('wrong', ('clef', 99)),
    question('without'),
  )
  for file in write(paragraph):
    examples = squad('train', file, misplaced='skip')
    answers = {q['id']: [(a['text'], a['start']) for a in q['answers']] for q in examples}
    # A question that loses all its answers does not become an unanswerable question.
    assert answers == {'right': [('clef', 7)], 'one of two': [('a', 5)], 'without': []}
    assert examples.note.startswith('2 misplaced answers are skipped, the first: ')
    assert (
      f"{file}: question 'one of two': the answer 'clef' is not at character 3" in examples.note
    )
    with pytest.raises(UserError, match="misplaced='skip'"):
      squad('train', file)
  with pytest.raises(UserError, match=r"misplaced='skp' .did you mean 'skip'"):
    squad('train', file, misplaced='skp')
  for file in write(paragraph[:2]):
    assert squad('train', file, misplaced='skip').note == ''


def test_the_note_of_rows_counts_skipped_answers(write, section):
  file, _ = write(('x is a clef.', question('a', ('clef', 7)), question('b', ('clef', 99))))
  data = section(
    f'lm.data.sources:squad(files={file!r}, misplaced="skip")',
    task='lm.tasks.extractive_qa:extraction',
    converter='lm.tasks.extractive_qa:converter',
    labels=(),
    too_long='truncate',
    seq_len=32,
  )
  rows = pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), 0)
  assert rows.note.startswith('1 misplaced answers are skipped') and rows.documents == 1
