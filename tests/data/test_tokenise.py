"""From texts to tokens."""

from lm.data import pipeline
from lm.text import tokenizers


def test_text_that_looks_like_a_special_token_is_text():
  texts = ['a<|end|>é', '', '<|end|>']
  found = pipeline.text_encoder(tokenizers.bytes([]))(texts)
  # By hand: byte b is token b + 1, and the one END of a document, token 0, stands behind it.
  expected = [[b + 1 for b in text.encode()] + [0] for text in texts]
  assert found.tokens.tolist() == [token for ids in expected for token in ids]
  assert found.counts.tolist() == [11, 1, 8]
  assert found.sizes.tolist() == [10, 0, 7]
