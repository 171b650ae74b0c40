"""Features and predictions of encoders with a head."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from lm.errors import UserError
from lm.tasks.classification import classifier, first_tokens, multilabel, regressor, tagger
from lm.tasks.text import classification, regression, tagging, text_to_text
from lm.tasks.text import multilabel as multilabel_task
from lm.text.tokenizers import SEPARATOR, bpe, bytes, characters, with_special_tokens, words

END = 0
BYTES = with_special_tokens(bytes([]), [SEPARATOR])
TAGS = ('O', 'B-PER', 'B-LOC')


def test_class_is_a_value_of_the_example():
  task = classification(fields=('a', 'b'))
  converter = classifier(task)
  example = {'a': 'x', 'b': 'y', 'label': 'no'}
  (found,) = converter.features(BYTES, ('yes', 'no'), 16)(example)
  separator = BYTES.token_to_id(SEPARATOR)
  assert found.tokens['inputs'].tolist() == [END, ord('x') + 1, separator, ord('y') + 1]
  assert found.values == {'targets': 1, 'weights': 1} and found.source == {}
  assert converter.tokenizer_texts(example) == ['x', 'y']
  piece = found.tokens | {'values/logits': np.log([0.2, 0.8], dtype=np.float32)}
  prediction = converter.postprocess(('yes', 'no'), example, [{'tokens/inputs': [0], **piece}])
  assert prediction['label'] == 'no' and list(prediction['probabilities']) == ['no', 'yes']
  assert prediction['probabilities'] == pytest.approx({'yes': 0.2, 'no': 0.8})


def test_number_is_a_value_of_the_example():
  converter = regressor(regression())
  (found,) = converter.features(BYTES, (), 16)({'text': 'x', 'value': 3})
  assert found.values == {'targets': 3.0, 'weights': 1}
  assert isinstance(found.values['targets'], float)
  piece = {'values/logits': np.float32([2.5]), 'tokens/inputs': [0]}
  assert converter.postprocess((), {}, [piece]) == {'value': 2.5}


def test_labels_of_an_example_are_a_vector():
  converter = multilabel(multilabel_task())
  convert = converter.features(BYTES, ('x', 'y', 'z'), 16)
  (found,) = convert({'text': 'a', 'labels': ['z', 'x']})
  assert found.values['targets'].tolist() == [1, 0, 1] and found.values['weights'] == 1
  (none,) = convert({'text': 'a', 'labels': []})
  assert none.values['targets'].tolist() == [0, 0, 0]
  assert converter.inputs(BYTES, 16)({'text': 'a'})[0].values == {}
  with pytest.raises(UserError, match=r"data\.labels: no label 'w'"):
    convert({'text': 'a', 'labels': ['w']})


def test_label_errors_name_value_and_alternatives():
  example = {'text': 'x', 'label': 'spam'}
  convert = classifier(classification()).features
  with pytest.raises(UserError, match=r"'spam' .*'spams'.*: 'ham', 'spams'"):
    convert(BYTES, ('ham', 'spams'), 16)(example)
  with pytest.raises(UserError, match=r'data\.labels is empty'):
    convert(BYTES, (), 16)
  with pytest.raises(UserError, match=r"data\.labels has 'ham' twice"):
    convert(BYTES, ('ham', 'spams', 'ham'), 16)
  with pytest.raises(UserError, match=r'data\.converter: .*lm\.tasks\.seq2seq:encoder_decoder'):
    classifier(text_to_text()).features(BYTES, ('a',), 16)


def tagged(tokenizer, words, separator, found=None, limit=None):
  """Returns the text of the token that each word is labelled on, the tags read back, and the tags.

  The tags of the example are TAGS in turn. A model that errs says `found` everywhere; `limit` is
  how many tokens fit.
  """
  names = [TAGS[i % 3] for i in range(len(words))]
  example = {'words': words, 'tags': names, 'separator': separator}
  converter = tagger(tagging())
  (features,) = converter.features(tokenizer, TAGS, 64)(example)
  piece = {f'tokens/{name}': values[:limit] for name, values in features.tokens.items()}
  right = piece['tokens/targets']
  piece['tokens/tag'] = right if found is None else np.full_like(right, found)
  (text,) = tagging().inputs(example)
  plain = Tokenizer.from_str(tokenizer.to_str())
  plain.encode_special_tokens = True
  offsets = plain.encode(text, add_special_tokens=False).offsets[:limit]
  labelled = piece['tokens/weights'] > 0
  places = [text[slice(*offsets[i])] for i in np.flatnonzero(labelled)]
  piece['tokens/log_p'] = np.zeros(len(right))
  return places, converter.postprocess(TAGS, example, [piece])['tags'], names


def test_words_are_labeled_on_their_first_subword():
  text = 'Ada saw Peking twice. ' * 20
  tokenizer = bpe([text], 270)
  words = ['Ada', 'saw', 'Peking', 'zebras']
  places, read, names = tagged(tokenizer, words, ' ')
  # A token may begin with the space before the word, and words it has never seen are in pieces.
  pieces = tokenizer.encode(' '.join(words)).offsets
  assert len(pieces) > len(words)
  assert [place.strip()[0] for place in places] == ['A', 's', 'P', 'z']
  assert any(place.startswith(' ') for place in places)
  assert read == names


def test_space_token_is_not_labeled():
  places, read, names = tagged(BYTES, ['é', 'b'], ' ')
  assert places == ['é', 'b'] and read == names


def test_chinese_characters_as_words():
  tokenizer = characters(['我爱北京'])
  places, read, names = tagged(tokenizer, list('我爱北京!'), '')
  assert places == ['我', '爱', '北', '京', '!'] and read == names


def test_word_without_token_gets_the_first_label():
  tokenizer = words(['a b'] * 2)  # finds no word in spaces
  places, read, _ = tagged(tokenizer, ['a', '\u3000', 'b'], ' ')
  assert places == ['a', 'b']
  assert read == ['O', 'O', 'B-LOC']


def test_truncated_words_get_the_first_label():
  places, read, _ = tagged(BYTES, ['ab', 'c', 'd'], ' ', found=1, limit=4)
  assert places == ['a', 'c']
  assert read == ['B-PER', 'B-PER', 'O']


def test_special_token_lookalike_is_text():
  places, _, _ = tagged(BYTES, ['<|sep|>', 'x'], ' ')
  assert places == ['<', 'x']


@pytest.mark.parametrize(
  ('offsets', 'spans', 'expected'),
  [
    ([(0, 3), (3, 7)], [(0, 3), (4, 7)], [0, 1]),
    ([(0, 2)], [(0, 1), (1, 2)], [0, None]),  # both words in one token: it goes to the first
    ([(0, 3), (3, 5)], [(0, 2), (2, 5)], [0, 1]),  # and the second takes the next token
    ([(2, 3)], [(0, 1), (2, 3)], [None, 0]),
    ([], [(0, 1)], [None]),
    ([(0, 1), (0, 1), (1, 2)], [(0, 1), (1, 2)], [0, 2]),  # bytes of one character
  ],
)
def test_first_tokens(offsets, spans, expected):
  assert first_tokens(offsets, spans) == expected


def test_unknown_tag_is_refused():
  example = {'words': ['a'], 'tags': ['B-ORG'], 'separator': ' '}
  with pytest.raises(UserError, match=r"data\.labels: .*'B-ORG'.*'B-PER'"):
    tagger(tagging()).features(BYTES, TAGS, 16)(example)
