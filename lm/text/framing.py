"""Framing: the special tokens and the types of the texts that an encoder reads."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from lm.errors import UserError, did_you_mean
from lm.text.tokenizers import Special, end_id, parts_encoder, separated, text_parts, text_reader


class Framed(NamedTuple):
  """The N tokens of one or more texts, special tokens included.

  Attributes:
    ids: (N,) token ids.
    text: (N,) the index of the text of each token; -1 for special tokens.
    offsets: (N, 2) the first character of each token in its text, and the one after its last; 0
      for special tokens.
    types: (N,) token types, such as 0 in the first text of a pair and 1 in the second; None for a
      framing without types.
  """

  ids: np.ndarray
  text: np.ndarray
  offsets: np.ndarray
  types: np.ndarray | None = None

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the arrays of a row, by name."""
    return {'inputs': self.ids} | ({} if self.types is None else {'types': self.types})

  def shortened(self, limit: int) -> np.ndarray:
    """Returns the indices of `limit` tokens: the longest text loses its last tokens first.

    The texts of a pair are shortened to equal lengths at most, as by the strategy 'longest_first'
    of the library `tokenizers`. Special tokens stay.

    Raises:
      UserError: the special tokens leave no tokens for texts.
    """
    free = limit - int((self.text < 0).sum())
    if free < 1:
      raise UserError(
        f'data.seq_len={limit}: special tokens take {limit - free} of a row and leave none for '
        'texts; raise it'
      )
    places = [np.flatnonzero(self.text == i) for i in range(int(self.text.max(initial=-1)) + 1)]
    cut: list[np.ndarray] = []
    for k, place in enumerate(sorted(places, key=len)):
      kept = min(len(place), free // (len(places) - k))
      cut, free = [*cut, place[kept:]], free - kept
    return np.delete(np.arange(len(self.ids)), np.concatenate(cut))


Frame = Callable[[Sequence[str]], Framed]


def framing_of(tokenizer: tokenizers.Tokenizer) -> str:
  """Returns 'template' for a tokenizer that has one, else 'end'."""
  return 'template' if tokenizer.num_special_tokens_to_add(False) else 'end'


def frame(
  tokenizer: tokenizers.Tokenizer,
  special_tokens: str,
  reader: tokenizers.Tokenizer | None = None,
) -> Frame:
  """Returns the function from the inputs of a task to their tokens.

  Text that looks like a special token is encoded as text.

  Args:
    tokenizer: of the run.
    special_tokens: 'none' for the inputs alone, 'end' for END in front of them, or 'template' for
      the special tokens and types of the tokenizer's own post-processor, such as
      [CLS] a [SEP] b [SEP].
    reader: encodes texts; `text_reader(tokenizer)` by default.

  Raises:
    UserError: `special_tokens` is none of these, or the tokenizer has no template. The function
      raises it for inputs that the template has no place for.
  """
  key = f'data.converter: special_tokens={special_tokens!r}'
  if special_tokens == 'template':
    return _template(tokenizer, reader or text_reader(tokenizer), key)
  if special_tokens not in ('none', 'end'):
    near = did_you_mean(special_tokens, _CHOICES)
    raise UserError(f'{key} must be one of {", ".join(map(repr, _CHOICES))}{near}')
  encode, reader = parts_encoder(tokenizer), reader or text_reader(tokenizer)
  first = _special([end_id(tokenizer)] if special_tokens == 'end' else [])

  def framed(parts: Sequence[str]) -> Framed:
    pieces, texts = [first], 0
    for part in parts:
      if isinstance(part, Special):
        pieces.append(_special(encode([part])))
        continue
      encoding = reader.encode(part, add_special_tokens=False)
      ids = np.array(encoding.ids, int)
      offsets = np.array(encoding.offsets, int).reshape(-1, 2)
      pieces.append(Framed(ids, np.full(len(ids), texts), offsets))
      texts += 1
    ids, text, offsets = (np.concatenate(arrays) for arrays in list(zip(*pieces, strict=True))[:3])
    return Framed(ids, text, offsets)

  return framed


_CHOICES = ('none', 'end', 'template')


def _special(ids: Sequence[int]) -> Framed:
  return Framed(np.array(ids, int), np.full(len(ids), -1), np.zeros((len(ids), 2), int))


def _template(tokenizer: tokenizers.Tokenizer, reader: tokenizers.Tokenizer, key: str) -> Frame:
  if not tokenizer.num_special_tokens_to_add(False):
    raise UserError(
      f"{key}: the tokenizer's post-processor adds no special tokens; use the tokenizer.json of an "
      'encoder (lm.text.tokenizers:existing)'
    )

  def framed(parts: Sequence[str]) -> Framed:
    texts = text_parts(parts)
    if not 1 <= len(texts) <= 2 or list(parts) != separated(texts):
      shown = ', '.join(map(repr, parts))
      raise UserError(f'{key} has places for one text or two, not for the inputs {shown:.80}')
    one, *other = (reader.encode(text, add_special_tokens=False) for text in texts)
    joined = tokenizer.post_process(one, other[0] if other else None)
    text = np.array([-1 if i is None else i for i in joined.sequence_ids], int)
    offsets = np.array(joined.offsets, int).reshape(-1, 2)
    return Framed(np.array(joined.ids, int), text, offsets, np.array(joined.type_ids, int))

  return framed
