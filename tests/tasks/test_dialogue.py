import itertools

import numpy as np
import pytest

from lm.errors import UserError
from lm.tasks.dialogue import decoder, encoder_decoder, expand_turns, replies, split_turns
from lm.text import tokenizers
from lm.text.tokenizers import END, SEPARATOR

TURNS = ['ab', 'cde', 'f', 'gh']


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.with_special_tokens(tokenizers.characters(['abcdefgh']), [SEPARATOR])


def shown(tokenizer, ids):
  """Returns tokens as a string, with | for the separator and . for END."""
  names = {SEPARATOR: '|', END: '.'}
  return ''.join(names.get(t, t) for t in map(tokenizer.id_to_token, map(int, ids)))


def sequences(tokenizer, example, longest=50, context=50):
  """Returns inputs, targets and weights of each of an example's features, as strings."""
  convert = decoder(replies(), longest).features(tokenizer, (), context)
  return [
    (
      shown(tokenizer, features.tokens['inputs']),
      shown(tokenizer, features.tokens['targets']),
      ''.join(map(str, features.tokens['weights'])),
    )
    for features in convert(example)
  ]


def test_expand_turns_yields_one_example_per_reply():
  first, second, third = expand_turns([{'turns': TURNS}])
  assert first == {'turns': ['ab', 'cde'], 'replies': [1], 'last': False}
  assert second == {'turns': ['ab', 'cde', 'f'], 'replies': [1, 2], 'last': False}
  assert third == {'turns': TURNS, 'replies': [1, 2, 3], 'last': True}


@pytest.mark.parametrize(
  ('first', 'every', 'expected'), [(1, 2, [[1], [1, 3]]), (2, 2, [[2]]), (3, 1, [[3]]), (4, 1, [])]
)
def test_replies_by_first_and_every(first, every, expected):
  found = list(expand_turns([{'turns': TURNS}], first, every))
  assert [example['replies'] for example in found] == expected
  for example in found:
    assert example['turns'] == TURNS[: example['replies'][-1] + 1]
    assert example['last'] == (example is found[-1])


def test_task_inputs_are_the_turns_before_a_reply():
  _, example, _ = expand_turns([{'turns': TURNS}])
  task = replies()
  assert task.inputs(example) == ['ab', SEPARATOR, 'cde']
  assert task.target(example) == task.reference(example) == 'f'


def test_tokenizer_texts_have_each_dialogue_once():
  examples = list(expand_turns([{'turns': TURNS}]))
  for converter in (encoder_decoder(replies()), decoder(replies())):
    assert list(itertools.chain(*map(converter.tokenizer_texts, examples))) == TURNS


def test_encoder_reads_history_and_decoder_generates_reply(tokenizer):
  converter = encoder_decoder(replies())
  _, _, example = expand_turns([{'turns': TURNS}])
  (features,) = converter.features(tokenizer, (), 50)(example)
  assert shown(tokenizer, features.source['source']) == 'ab|cde|f.'
  assert shown(tokenizer, features.tokens['inputs']) == '.gh'
  assert shown(tokenizer, features.tokens['targets']) == 'gh.'
  prompt = converter.encode_prompt(tokenizer)(example)
  assert shown(tokenizer, prompt.source['source']) == 'ab|cde|f.'
  assert shown(tokenizer, prompt.tokens['inputs']) == '.'


@pytest.mark.parametrize(
  ('longest', 'read'), [(9, 'ab|cde|f.'), (8, 'cde|f.'), (6, 'cde|f.'), (5, 'f.'), (2, 'f.')]
)
def test_encoder_history_drops_oldest_turns(longest, read, tokenizer):
  _, _, example = expand_turns([{'turns': TURNS}])
  converter = encoder_decoder(replies(), longest)
  (features,) = converter.features(tokenizer, (), 50)(example)
  assert shown(tokenizer, features.source['source']) == read
  assert shown(tokenizer, converter.encode_prompt(tokenizer)(example).source['source']) == read


@pytest.mark.parametrize(
  ('longest', 'begun'),
  [(10, '.ab|cde|f|'), (9, '.cde|f|'), (7, '.cde|f|'), (6, '.f|'), (3, '.f|'), (2, '.|')],
)
def test_decoder_prompt_drops_oldest_turns(longest, begun, tokenizer):
  _, _, example = expand_turns([{'turns': TURNS}])
  prompt = decoder(replies(), longest).encode_prompt(tokenizer)(example)
  assert shown(tokenizer, prompt.tokens['inputs']) == begun


def test_last_turn_is_truncated_from_the_left(tokenizer):
  (example,) = expand_turns([{'turns': ['abcdefgh', 'a']}])
  (features,) = encoder_decoder(replies(), 4).features(tokenizer, (), 50)(example)
  assert shown(tokenizer, features.source['source']) == 'fgh.'
  prompt = decoder(replies(), 4).encode_prompt(tokenizer)(example)
  assert shown(tokenizer, prompt.tokens['inputs']) == '.gh|'


def test_decoder_trains_on_all_replies_in_one_sequence(tokenizer):
  first, second, third = expand_turns([{'turns': TURNS}])
  assert sequences(tokenizer, third) == [('.ab|cde|f|gh', 'ab.cde.f.gh.', '000111111111')]
  assert sequences(tokenizer, first) == sequences(tokenizer, second) == [('.', '.', '0')]
  _, last = expand_turns([{'turns': TURNS}], every=2)
  assert sequences(tokenizer, last) == [('.ab|cde|f|gh', 'ab.cde.f.gh.', '000111100111')]


def test_decoder_prompts_are_prefixes_of_training_sequences(tokenizer):
  examples = list(expand_turns([{'turns': TURNS}]))
  ((inputs, targets, _),) = sequences(tokenizer, examples[-1])
  prompt = decoder(replies()).encode_prompt(tokenizer)
  for example in examples:
    begun = shown(tokenizer, prompt(example).tokens['inputs'])
    assert inputs.startswith(begun)
    assert targets[len(begun) - 1 :].startswith(example['turns'][-1] + '.')


def test_long_dialogue_is_split_between_turns(tokenizer):
  *_, example = expand_turns([{'turns': TURNS}])  # turns of 3, 4, 2 and 3 tokens
  assert sequences(tokenizer, example, longest=4, context=8) == [
    ('.ab|cde', 'ab.cde.', '0001111'),
    ('.cde|f', 'cde.f.', '000011'),
    ('.f|gh', 'f.gh.', '00111'),
  ]
  # A turn that is longer than a row is left to data.too_long; the opening one is no reply.
  inputs = [inputs for inputs, *_ in sequences(tokenizer, example, longest=4, context=3)]
  assert inputs == ['.cde', '.f', '.gh']


def test_every_turn_is_new_in_exactly_one_part():
  rng = np.random.default_rng(0)
  for _ in range(200):
    sizes = rng.integers(1, 9, rng.integers(1, 12)).tolist()
    longest, seq_len = rng.integers(0, 12), rng.integers(9, 20)
    found = list(split_turns(sizes, longest, seq_len))
    assert [i for _, new, stop in found for i in range(new, stop)] == list(range(len(sizes)))
    for start, new, stop in found:
      assert sum(sizes[start:stop]) <= seq_len
      assert sum(sizes[start:new]) <= longest
      before = sum(sizes[start - 1 : new])  # with one turn more
      assert start == 0 or before > longest or before + sizes[new] > seq_len
      assert stop == len(sizes) or sum(sizes[start : stop + 1]) > seq_len


def test_every_reply_has_loss_once_and_every_example_has_features(tokenizer):
  rng = np.random.default_rng(1)
  for every in (1, 2):
    turns = ['a' * n for n in rng.integers(1, 9, 20)]
    examples = list(expand_turns([{'turns': turns}], every=every))
    found = [sequences(tokenizer, example, longest=12, context=24) for example in examples]
    assert all(found)
    weights = ''.join(weights for parts in found for *_, weights in parts)
    assert weights.count('1') == sum(len(turn) + 1 for turn in turns[1::every])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (
      lambda: list(expand_turns([{'text': 'x'}])),
      "no list of strings under 'turns'; it has 'text'",
    ),
    (lambda: list(expand_turns([{'turns': 'abc'}])), "'turns' of an example is 'abc' and no list"),
    (lambda: list(expand_turns([], first=0)), 'first=0 is not 1 or more'),
    (lambda: replies().inputs({'turns': TURNS}), 'expand_turns'),
    (
      lambda: decoder(replies()).tokenizer_texts({'turns': TURNS}),
      'expand_turns',
    ),
    (lambda: decoder(replies(), longest=1), 'longest=1'),
  ],
)
def test_errors_name_key_and_value(make, message):
  with pytest.raises(UserError, match=message):
    make()
