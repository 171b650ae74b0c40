"""What the entries of a vocabulary are: words, or tokens that stand for no text."""

import tokenizers

from lm.text.tokenizers import end_id


def specials(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
  """Returns the ids of the tokens that stand for no text, such as END."""
  added = tokenizer.get_added_tokens_decoder()
  return frozenset(i for i, token in added.items() if token.special)


def words_of(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Returns the ids of the words in rising order: neither added nor END nor the unknown word.

  They are spelled as the vocabulary has them: a subword may begin with a mark for a space.
  """
  added, end = tokenizer.get_added_tokens_decoder(), end_id(tokenizer)
  unknown = getattr(tokenizer.model, 'unk_token', None)
  known = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
  return {word: i for word, i in known if i not in added and i != end and word != unknown}
