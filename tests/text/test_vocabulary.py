from tokenizers import Tokenizer, models

from lm.text import tokenizers
from lm.text.tokenizers import special_ids, unknown_id, words_of


def test_words_are_neither_special_nor_added_nor_unknown():
  known = tokenizers.with_special_tokens(tokenizers.words(['b b a'], min_count=1), ['<|mask|>'])
  assert known.get_vocab() == {'<|end|>': 0, '<unk>': 1, 'b': 2, 'a': 3, '<|mask|>': 4}
  assert list(words_of(known).items()) == [('b', 2), ('a', 3)]
  assert special_ids(known) == {0, 1, 4}


def test_an_end_or_an_unknown_word_that_was_not_added_is_no_word():
  model = models.WordLevel({'<|end|>': 0, 'a': 1, '[UNK]': 2}, unk_token='[UNK]')
  assert words_of(Tokenizer(model)) == {'a': 1}
  assert unknown_id(Tokenizer(model)) == 2
  assert special_ids(Tokenizer(model)) == frozenset()
