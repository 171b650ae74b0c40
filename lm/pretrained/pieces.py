"""Tokenizers of SentencePiece's pieces, as tokenizers of the library `tokenizers`."""

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

# Kinds of pieces, as numbered by SentencePiece (sentencepiece_model.proto).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_SPACE = '\u2581'


def assemble(
  model: models.Model,
  pieces: Sequence[str],
  kinds: Sequence[int],
  steps: Sequence[normalizers.Normalizer],
  space_prefix: bool,
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a model of pieces, some of which are single bytes such as <0x0A>.

  Args:
    model: of the pieces.
    pieces: by id, distinct.
    kinds: of pieces; those that are defined by the user are cut out of a text first.
    steps: normalizers before spaces are marked.
    space_prefix: whether a space is put before each text that is not empty.

  Raises:
    Exception: the pieces are malformed; the library has no narrower type.
  """
  tokenizer = tokenizers.Tokenizer(model)
  prefix = [normalizers.Prepend(_SPACE)] if space_prefix else []
  tokenizer.normalizer = normalizers.Sequence([*steps, *prefix, normalizers.Replace(' ', _SPACE)])
  fallback = [decoders.ByteFallback()] if '<0x00>' in pieces else []
  strip = [decoders.Strip(' ', 1, 0)] if space_prefix else []
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, ' '), *fallback, decoders.Fuse(), *strip]
  )
  each = [
    (AddedToken(piece, normalized=False), kind) for piece, kind in zip(pieces, kinds, strict=True)
  ]
  tokenizer.add_special_tokens([token for token, kind in each if kind in (UNKNOWN, CONTROL)])
  tokenizer.add_tokens([token for token, kind in each if kind == USER_DEFINED])
  return tokenizer


def bpe_model(
  pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: int
) -> models.BPE:
  """Returns the merges that the scores of pieces mean.

  SentencePiece joins the neighbors whose joint piece has the highest score. A merge for each way
  to split a piece, in the order of scores, does the same (Kudo and Richardson 2018).
  """
  ids = {piece: i for i, piece in enumerate(pieces)}
  normal = [i for i, kind in enumerate(kinds) if kind == NORMAL]
  joined = {pieces[i] for i in normal}
  merges = []
  for i in sorted(normal, key=lambda i: -scores[i]):
    piece = pieces[i]
    splits = ((piece[:n], piece[n:]) for n in range(1, len(piece)))
    found = [pair for pair in splits if pair[0] in joined and pair[1] in joined]
    merges += sorted(found, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
  return models.BPE(
    ids, merges, unk_token=pieces[unknown], fuse_unk=True, byte_fallback='<0x00>' in ids
  )
