"""Byte pair encoding of SentencePiece's pieces, as a tokenizer of the library `tokenizers`."""

from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

# Kinds of pieces, as numbered by SentencePiece (sentencepiece_model.proto).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_SPACE = '\u2581'


def byte_pair_encoding(
  pieces: Sequence[str],
  scores: Sequence[float],
  kinds: Sequence[int],
  unknown: int,
  first: int | None = None,
  space_prefix: bool = False,
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of distinct pieces, some of which are single bytes such as <0x0A>.

  SentencePiece joins the neighbors whose joint piece has the highest score. A merge for each way
  to split a piece, in the order of scores, does the same (Kudo and Richardson 2018).

  Args:
    pieces: by id.
    scores: of pieces.
    kinds: of pieces; those that are defined by the user are cut out of a text first.
    unknown: id of the piece of unknown characters.
    first: id of the token that starts texts; None if there is none.
    space_prefix: whether a space is put before each text.

  Raises:
    Exception: the pieces are malformed; the library has no narrower type.
  """
  tokenizer = tokenizers.Tokenizer(bpe_model(pieces, scores, kinds, unknown))
  prefix = [normalizers.Prepend(_SPACE)] if space_prefix else []
  tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(' ', _SPACE)])
  strip = [decoders.Strip(' ', 1, 0)] if space_prefix else []
  tokenizer.decoder = decoders.Sequence(
    [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  special = {UNKNOWN, CONTROL}
  tokenizer.add_special_tokens([pieces[i] for i, kind in enumerate(kinds) if kind in special])
  tokenizer.add_tokens(
    [
      AddedToken(pieces[i].replace(_SPACE, ' '), normalized=False)
      for i, kind in enumerate(kinds)
      if kind == USER_DEFINED
    ]
  )
  if first is not None:
    start = pieces[first]
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[start, '$A'], pair=[start, '$A', start, '$B'], special_tokens=[(start, first)]
    )
  return tokenizer


def bpe_model(
  pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], unknown: int
) -> models.BPE:
  """Returns the merges that the scores of pieces mean; see `byte_pair_encoding`."""
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
