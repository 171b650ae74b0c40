import pytest

from lm.errors import UserError
from lm.metrics.answers import squad
from lm.tasks.extractive_qa import extraction
from lm.tasks.seq2seq import encoder_decoder
from lm.text import tokenizers
from lm.text.tokenizers import SEPARATOR

CONTEXT = 'Rain fell in May, and in June.'
ASKED = {
  'id': '1',
  'question': 'When did rain fall?',
  'context': CONTEXT,
  'answers': [{'text': 'May', 'start': 13}, {'text': 'in June', 'start': 22}],
}
UNANSWERED = ASKED | {'question': 'Why?', 'answers': []}


def test_answers_are_spans_of_the_last_part():
  task = extraction()
  assert task.inputs(ASKED) == ['When did rain fall?', SEPARATOR, CONTEXT]
  assert [CONTEXT[start:stop] for start, stop in task.answer(ASKED)] == ['May', 'in June']
  assert task.reference(ASKED) == ['May', 'in June']
  assert task.target(ASKED) == 'May'


def test_a_question_without_an_answer_is_right_with_nothing():
  task = extraction()
  assert (task.answer(UNANSWERED), task.target(UNANSWERED)) == ([], '')
  references = [task.reference(example) for example in (ASKED, UNANSWERED)]
  assert squad()(['in june', ''], references).values == {'exact_match': 100, 'f1': 100}
  assert squad()(['in june', 'May'], references).values == {'exact_match': 50, 'f1': 50}


def test_a_model_that_writes_learns_the_first_answer_or_to_end_at_once():
  tokenizer = tokenizers.with_special_tokens(tokenizers.bytes([]), [SEPARATOR])
  convert = encoder_decoder(extraction()).features(tokenizer, (), 64)
  (features,), (nothing,) = convert(ASKED), convert(UNANSWERED)
  assert features.tokens['targets'].tolist() == [ord(c) + 1 for c in 'May'] + [0]
  assert nothing.tokens['targets'].tolist() == [0]


def test_an_example_of_another_kind_is_told():
  with pytest.raises(UserError, match="no string under 'question'; it has 'text'"):
    extraction().inputs({'text': 'x'})
  with pytest.raises(UserError, match="'context' of an example is None and no string"):
    extraction().inputs({'question': 'x', 'context': None, 'answers': []})
