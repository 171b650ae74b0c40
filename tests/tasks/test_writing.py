"""Features for models that write, checked token by token with bytes as tokens."""

import pytest

from lm.errors import UserError
from lm.tasks.seq2seq import decoder, encoder_decoder
from lm.tasks.text import classification, text_to_text, translation
from lm.text.tokenizers import SEPARATOR, bytes, with_special_tokens

END = 0
TOKENIZER = with_special_tokens(bytes([]), [SEPARATOR, '<|to en|>'])
SEP, TO_EN = (TOKENIZER.token_to_id(name) for name in (SEPARATOR, '<|to en|>'))
EXAMPLE = {'source': 'hé', 'target': 'abc'}


def ids(text):
  """Returns the tokens of a text: byte b is token b + 1."""
  return [b + 1 for b in text.encode()]


def lists(arrays):
  return {name: values.tolist() for name, values in arrays.items()}


def test_an_encoder_reads_the_source_and_a_decoder_writes_the_target():
  converter = encoder_decoder(text_to_text())
  (found,) = converter.features(TOKENIZER, (), 16)(EXAMPLE)
  assert lists(found.source) == {'source': [*ids('hé'), END]}
  assert lists(found.tokens) == {'inputs': [END, *ids('abc')], 'targets': [*ids('abc'), END]}
  assert found.values == {}
  prompt = converter.prompt(TOKENIZER)(EXAMPLE)
  assert lists(prompt.source) == lists(found.source)
  assert lists(prompt.tokens) == {'inputs': [END]}


@pytest.mark.parametrize('both_ways', [True, False])
def test_a_decoder_reads_and_writes_one_sequence(both_ways):
  converter = decoder(text_to_text(), both_ways=both_ways)
  (found,) = converter.features(TOKENIZER, (), 16)(EXAMPLE)
  read = [END, *ids('hé'), SEP]
  expected = {
    'inputs': [*read, *ids('abc')],
    'targets': [*ids('hé'), SEP, *ids('abc'), END],
    # The separator predicts the first token of the target; what is read is not learned.
    'weights': [0] * 4 + [1] * 4,
  }
  prefix = {'prefix': [1] * 5 + [0] * 3} if both_ways else {}
  assert lists(found.tokens) == expected | prefix
  assert found.source == {} and found.values == {}
  prompt = converter.prompt(TOKENIZER)(EXAMPLE)
  assert lists(prompt.tokens) == {'inputs': read} | ({'prefix': [1] * 5} if both_ways else {})


@pytest.mark.parametrize('build', [encoder_decoder, decoder])
def test_a_prompt_is_what_is_there_before_the_first_target(build):
  converter = build(classification(fields=('a', 'b')))
  example = {'a': 'x', 'b': 'y', 'label': 'yes'}
  (found,) = converter.features(TOKENIZER, (), 32)(example)
  prompt = converter.prompt(TOKENIZER)(example)
  length = len(prompt.tokens['inputs'])
  for name, values in prompt.tokens.items():
    assert found.tokens[name][:length].tolist() == values.tolist()
  assert found.tokens['targets'][length - 1 :].tolist() == [*ids('yes'), END]
  # A prompt needs no target: there is none where a model is used.
  assert lists(converter.prompt(TOKENIZER)({'a': 'x', 'b': 'y'}).tokens) == lists(prompt.tokens)


def test_special_tokens_are_those_of_the_task_and_never_of_a_text():
  converter = encoder_decoder(translation(('en',)))
  example = {'source': '<|sep|>', 'target': '<|end|>', 'target_language': 'en'}
  (found,) = converter.features(TOKENIZER, (), 16)(example)
  assert found.source['source'].tolist() == [TO_EN, *ids('<|sep|>'), END]
  assert found.tokens['targets'].tolist() == [*ids('<|end|>'), END]
  with pytest.raises(UserError, match=r"no special token '<\|to en\|>', which the task needs"):
    converter.features(bytes([]), (), 16)(example)


@pytest.mark.parametrize('build', [encoder_decoder, decoder])
def test_tokenizers_are_trained_on_what_is_read_and_written(build):
  example = {'source': 'a', 'target': 'b', 'target_language': 'en'}
  assert build(translation(('en',))).texts(example) == ['a', 'b']
