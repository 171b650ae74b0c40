"""Larger vocabularies: tokens added to a checkpoint, whose rows are the mean of the others."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError
from lm.pretrained import families
from lm.text import tokenizers


class Enlarged(NamedTuple):
  """A checkpoint with more tokens.

  Attributes:
    config: its config.json.
    tokenizer: its tokenizer.
    first: id of the first new token; the tokens before it give the mean.
    size: rows of the tables.
    paths: of the parameters with a row for each token.
  """

  config: dict[str, Any]
  tokenizer: Tokenizer
  first: int
  size: int
  paths: frozenset[str]

  def rows(self, path: str, x: np.ndarray) -> np.ndarray:
    """Returns a parameter with the rows of the new tokens, if it has a row for each token.

    The mean is computed in float64. New rows replace unused rows of the checkpoint first.
    """
    if path not in self.paths:
      return x
    count = tokenizers.vocabulary_size(self.tokenizer) - self.first
    mean = x[: self.first].mean(0, dtype=np.float64).astype(x.dtype)
    new = np.broadcast_to(mean, (count, *mean.shape))
    return np.concatenate([x[: self.first], new, x[self.first + count :]])

  def summary(self) -> str:
    """Returns a line that states the count of new rows."""
    count = tokenizers.vocabulary_size(self.tokenizer) - self.first
    return f'{count} rows added: mean of {self.first:,} rows'


def cut_to(tokenizer: Tokenizer, size: int, name: str) -> tuple[Tokenizer, list[str]]:
  """Returns a tokenizer with the ids below `size`, and the special tokens that it lost.

  Some checkpoints have a special token without a row, such as <mask> in bart-large-cnn. No text
  becomes one.

  Raises:
    UserError: a token of texts, or one that frames them, has no row; `name` is the checkpoint's.
  """
  rows = tokenizers.vocabulary_size(tokenizer)
  if rows <= size:
    return tokenizer, []
  file = json.loads(tokenizer.to_str())
  lost = sorted(token for token, i in tokenizer.get_vocab().items() if i >= size)
  frames = json.dumps(file['post_processor'], ensure_ascii=False)
  special = {token['content'] for token in file['added_tokens'] if token['special']}
  if not special.issuperset(lost) or any(token in frames for token in lost):
    raise UserError(
      f'{name}: its tokenizer has {rows} tokens, and the embedding has {size} rows '
      '(config.json: vocab_size)'
    )
  file['added_tokens'] = [token for token in file['added_tokens'] if token['id'] < size]
  entries = file['model']['vocab']
  file['model']['vocab'] = (
    {token: i for token, i in entries.items() if i < size}
    if isinstance(entries, dict)
    else entries[:size]
  )
  return Tokenizer.from_str(json.dumps(file)), lost


def add_tokens(
  config: Mapping[str, Any], tokenizer: Tokenizer, tokens: Sequence[str], names: Collection[str]
) -> Enlarged:
  """Returns a checkpoint with special tokens after its own.

  Args:
    config: its config.json.
    tokenizer: its tokenizer.
    tokens: to add.
    names: of its tensors.

  Raises:
    UserError: a token is empty, occurs twice or is known already.
  """
  known = tokenizer.get_vocab()
  for i, token in enumerate(tokens):
    if not token or token in known or token in tokens[:i]:
      problem = 'is empty' if not token else 'exists already' if token in known else 'occurs twice'
      raise UserError(f'--add_tokens={",".join(tokens)}: the token {token!r} {problem}')
  first = tokenizers.vocabulary_size(tokenizer)
  larger = tokenizers.with_special_tokens(tokenizer, tokens)
  old = families.family_of(config, names)
  size = max(old.model.vocab_size, first + len(tokens))
  # The parameters whose shape follows the size of the vocabulary.
  other = families.family_of(families.with_vocabulary(config, old.model.vocab_size + 1), names)
  paths = (
    entry.path
    for entry, more in zip(old.entries, other.entries, strict=True)
    if entry.transform.shapes != more.transform.shapes
  )
  return Enlarged(families.with_vocabulary(config, size), larger, first, size, frozenset(paths))
