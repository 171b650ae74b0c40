"""What the entries of a vocabulary are: words, or tokens that stand for no text."""

import tokenizers

from lm.text.tokenizers import end_id


def specials(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
  """Returns the ids of the tokens that stand for no text, such as END."""
  added = tokenizer.get_added_tokens_decoder()
  return frozenset(i for i, token in added.items() if token.special)


def unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
  """Returns the id of the word that stands for all unknown ones; None where there is no such."""
  word = getattr(tokenizer.model, 'unk_token', None)
  return tokenizer.token_to_id(word) if word else None


def words_of(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Returns the ids of the words in rising order: neither added nor END nor the unknown word.

  They are spelled as the vocabulary has them: a subword may begin with a mark for a space.
  """
  added, end = tokenizer.get_added_tokens_decoder(), end_id(tokenizer)
  unknown = unknown_id(tokenizer)
  known = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
  return {word: i for word, i in known if i not in added and i not in (end, unknown)}
