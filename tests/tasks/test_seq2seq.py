"""Features of generative models, checked token by token with bytes as tokens."""

import pytest
from tokenizers.processors import TemplateProcessing

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


def test_encoder_reads_source_and_decoder_generates_target():
  converter = encoder_decoder(text_to_text())
  (found,) = converter.features(TOKENIZER, (), 16)(EXAMPLE)
  assert lists(found.source) == {'source': [*ids('hé'), END]}
  assert lists(found.tokens) == {'inputs': [END, *ids('abc')], 'targets': [*ids('abc'), END]}
  assert found.values == {}
  prompt = converter.encode_prompt(TOKENIZER)(EXAMPLE)
  assert lists(prompt.source) == lists(found.source)
  assert lists(prompt.tokens) == {'inputs': [END]}


def test_decoder_starts_from_given_tokens():
  converter = encoder_decoder(text_to_text(), start=(7, 9))
  (found,) = converter.features(TOKENIZER, (), 16)(EXAMPLE)
  assert found.tokens['inputs'].tolist() == [7, 9, *ids('abc')]
  assert found.tokens['targets'].tolist() == [9, *ids('abc'), END]
  assert converter.encode_prompt(TOKENIZER)(EXAMPLE).tokens['inputs'].tolist() == [7, 9]


@pytest.mark.parametrize('start', [(), (-1,), (1000,), ('</s>',)])
def test_other_start_tokens_are_refused(start):
  with pytest.raises(UserError, match=r'data\.converter: start=.* must be ids of tokens'):
    encoder_decoder(text_to_text(), start=start).encode_prompt(TOKENIZER)


def test_encoder_reads_the_template_of_the_tokenizer():
  framed = bytes([])
  framed.post_processor = TemplateProcessing(
    single='a $A <|end|> b',
    special_tokens=[('a', ids('a')[0]), ('b', ids('b')[0]), ('<|end|>', END)],
  )
  converter = encoder_decoder(text_to_text(), special_tokens='template')
  (found,) = converter.features(framed, (), 16)({'source': 'x<|end|>', 'target': 'y'})
  assert found.source['source'].tolist() == [*ids('ax<|end|>'), END, *ids('b')]
  with pytest.raises(UserError, match=r"special_tokens='both' must be 'end' or 'template'"):
    encoder_decoder(text_to_text(), special_tokens='both').encode_prompt(framed)


@pytest.mark.parametrize('prefix_lm', [True, False])
def test_decoder_has_one_sequence(prefix_lm):
  converter = decoder(text_to_text(), prefix_lm=prefix_lm)
  (found,) = converter.features(TOKENIZER, (), 16)(EXAMPLE)
  read = [END, *ids('hé'), SEP]
  expected = {
    'inputs': [*read, *ids('abc')],
    'targets': [*ids('hé'), SEP, *ids('abc'), END],
    # The separator predicts the first token of the target; inputs have no loss.
    'weights': [0] * 4 + [1] * 4,
  }
  prefix = {'prefix': [1] * 5 + [0] * 3} if prefix_lm else {}
  assert lists(found.tokens) == expected | prefix
  assert found.source == {} and found.values == {}
  prompt = converter.encode_prompt(TOKENIZER)(EXAMPLE)
  assert lists(prompt.tokens) == {'inputs': read} | ({'prefix': [1] * 5} if prefix_lm else {})


@pytest.mark.parametrize('build', [encoder_decoder, decoder])
def test_prompt_is_the_prefix_before_the_first_target(build):
  converter = build(classification(fields=('a', 'b')))
  example = {'a': 'x', 'b': 'y', 'label': 'yes'}
  (found,) = converter.features(TOKENIZER, (), 32)(example)
  prompt = converter.encode_prompt(TOKENIZER)(example)
  length = len(prompt.tokens['inputs'])
  for name, values in prompt.tokens.items():
    assert found.tokens[name][:length].tolist() == values.tolist()
  assert found.tokens['targets'][length - 1 :].tolist() == [*ids('yes'), END]
  # A prompt needs no target: there is none where a model is used.
  assert lists(converter.encode_prompt(TOKENIZER)({'a': 'x', 'b': 'y'}).tokens) == lists(
    prompt.tokens
  )


def test_special_tokens_come_from_the_task_and_never_from_a_text():
  converter = encoder_decoder(translation(('en',)))
  example = {'source': '<|sep|>', 'target': '<|end|>', 'target_language': 'en'}
  (found,) = converter.features(TOKENIZER, (), 16)(example)
  assert found.source['source'].tolist() == [TO_EN, *ids('<|sep|>'), END]
  assert found.tokens['targets'].tolist() == [*ids('<|end|>'), END]
  with pytest.raises(UserError, match=r"special token '<\|to en\|>'"):
    converter.features(bytes([]), (), 16)(example)


@pytest.mark.parametrize('build', [encoder_decoder, decoder])
def test_tokenizer_texts_are_inputs_and_target(build):
  example = {'source': 'a', 'target': 'b', 'target_language': 'en'}
  assert build(translation(('en',))).tokenizer_texts(example) == ['a', 'b']
