"""Tokenizers of SentencePiece (Kudo & Richardson 2018) as tokenizer.json.

The package `sentencepiece` (extra `spm`) reads the model. The conversion is checked: texts of its
own pieces must get the ids that the package gives them. Of two unigram segmentations with the same
score, such as 's ss' and 'ss s', the libraries may take either, because they round differently.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers, processors

from lm.config.resolve import import_extra
from lm.errors import UserError, first_line
from lm.pretrained.pieces import NORMAL, UNKNOWN, USER_DEFINED, assemble, bpe_model
from lm.text.tokenizers import text_reader

NAMES = ('tokenizer.model', 'spiece.model')
# Classes of transformers whose ids are those of the model. Others move them, or change texts first.
_CLASSES = ('T5Tokenizer', 'MT5Tokenizer', 'LlamaTokenizer', 'GemmaTokenizer')
_SPACE = '\u2581'  # the mark of a space
_UNIGRAM, _BPE = 1, 2  # trainer_spec.model_type
_TEXTS = (
  '',
  ' ',
  'a',
  '  two  spaces ',
  ' a',
  'a ',
  'Zürich',
  '北京 2024',
  '\uff11\uff12 \ufb01',
  '\u200bx\ty\nz',
  '👍🏽 ok',
)


def read_folder(folder: Path) -> tokenizers.Tokenizer | None:
  """Returns the tokenizer of a folder of Hugging Face's that has a model of SentencePiece.

  The tokens that it adds are read from its JSON files. None without such a model.

  Raises:
    UserError: the tokenizer is of a class that is not supported, or cannot be converted.
  """
  file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
  if file is None:
    return None
  settings, more = (_read(folder / f'{name}.json') for name in ('tokenizer_config', 'added_tokens'))
  kind = str(settings.get('tokenizer_class') or 'LlamaTokenizer').removesuffix('Fast')
  if kind not in _CLASSES:
    raise UserError(
      f'{folder}: {file.name} of tokenizer_class={kind!r} is not supported, only those of '
      f'{", ".join(_CLASSES)}; tokenizer.json is needed'
    )
  try:
    added = {int(i): (t['content'], bool(t.get('special'))) for i, t in _decoder(settings)}
    added |= {int(i): (token, False) for token, i in more.items() if int(i) not in added}
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise UserError(f'{folder}: its added tokens are damaged: {first_line(e)}') from e
  tokenizer = convert(file, [(token, i, special) for i, (token, special) in sorted(added.items())])
  is_t5 = kind in _CLASSES[:2]
  if is_t5 and not added:  # its sentinels are then numbered from the end
    sentinels = [f'<extra_id_{i}>' for i in reversed(range(int(settings.get('extra_ids', 100))))]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in sentinels])
  begins = [_name(settings.get('bos_token', '<s>'))] * settings.get('add_bos_token', not is_t5)
  ends = [_name(settings.get('eos_token', '</s>'))] * settings.get('add_eos_token', is_t5)
  ids = [(token, tokenizer.token_to_id(token)) for token in begins + ends]
  if missing := [token for token, i in ids if i is None]:
    raise UserError(
      f'{folder}: tokenizer_config.json names {missing[0]!r}, which {file.name} lacks'
    )
  if ids:
    tokenizer.post_processor = processors.TemplateProcessing(
      single=[*begins, '$A', *ends], special_tokens=ids
    )
  return tokenizer


def _decoder(settings: dict[str, Any]) -> Any:
  return dict(settings.get('added_tokens_decoder') or {}).items()


def _name(token: Any) -> str:
  """Returns the text of a token in tokenizer_config.json, a string or an object."""
  return str(token['content'] if isinstance(token, dict) else token)


def _read(file: Path) -> dict[str, Any]:
  """Returns the content of a JSON file; {} if it is missing."""
  try:
    found = json.loads(file.read_text('utf-8')) if file.is_file() else {}
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f'{file} is damaged: {first_line(e)}') from e
  if not isinstance(found, dict):
    raise UserError(f'{file} is no JSON object')
  return found


def convert(file: Path, added: Sequence[tuple[str, int, bool]]) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a SentencePiece model of type unigram or BPE.

  Args:
    file: the model.
    added: tokens that the checkpoint adds: (token, id, whether it is special), by ascending id.

  Raises:
    UserError: the package is missing, the file is damaged, its kind is not supported, or the
      conversion gives other ids.
  """
  package = import_extra('sentencepiece', 'spm', f'{file} needs a package')
  proto = import_extra('sentencepiece.sentencepiece_model_pb2', 'spm', f'{file} needs a package')
  try:
    content = file.read_bytes()
    model = proto.ModelProto.FromString(content)
    processor = package.SentencePieceProcessor(model_proto=content)
  except Exception as e:  # the package raises many types for damaged files
    raise UserError(f'{file} is no model of SentencePiece, or damaged: {first_line(e)}') from e
  kind = model.trainer_spec.model_type
  if kind not in (_UNIGRAM, _BPE):
    raise UserError(f'{file}: its type is {kind}; it must be {_UNIGRAM}, unigram, or {_BPE}, BPE')
  if not model.normalizer_spec.escape_whitespaces or model.trainer_spec.treat_whitespace_as_suffix:
    raise UserError(f'{file}: spaces must be marked, at the start of words')
  tokenizer = assemble(
    _model(file, model),
    [p.piece for p in model.pieces],
    # A unigram model finds symbols of the user by their scores.
    [NORMAL if kind == _UNIGRAM and p.type == USER_DEFINED else p.type for p in model.pieces],
    _steps(model.normalizer_spec),
    model.normalizer_spec.add_dummy_prefix,
  )
  _check(file, model, processor, tokenizer)
  for token, i, is_special in added:
    if tokenizer.token_to_id(token) == i and not is_special:
      continue
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=is_special)])
    if tokenizer.token_to_id(token) != i:
      raise UserError(f'{file}: the added token {token!r} has id {i}, which does not follow it')
  return tokenizer


def _model(file: Path, model: Any) -> models.Model:
  names, scores, kinds = zip(*((p.piece, p.score, p.type) for p in model.pieces), strict=True)
  if UNKNOWN not in kinds:
    raise UserError(f'{file}: no piece for unknown characters')
  unknown = kinds.index(UNKNOWN)
  if model.trainer_spec.model_type == _BPE:
    return bpe_model(names, scores, kinds, unknown)
  best = max(
    (score for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL), default=0
  )
  # SentencePiece gives symbols of the user a score that no other segmentation reaches.
  vocabulary = [
    (name, len(name.encode()) * best - 0.1 if kind == USER_DEFINED else score)
    for name, score, kind in zip(names, scores, kinds, strict=True)
  ]
  return models.Unigram(vocabulary, unknown, model.trainer_spec.byte_fallback)


def _steps(spec: Any) -> list[normalizers.Normalizer]:
  steps: list[normalizers.Normalizer] = []
  if spec.precompiled_charsmap:
    steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
  if spec.remove_extra_whitespaces:
    steps += [normalizers.Strip(), normalizers.Replace(Regex(' {2,}'), ' ')]
  return steps


def _check(file: Path, model: Any, processor: Any, tokenizer: tokenizers.Tokenizer) -> None:
  """Raises UserError if a text gets other ids than those of the package."""
  reader, rng, sampled = text_reader(tokenizer), random.Random(0), (NORMAL, USER_DEFINED)
  pieces = [p.piece.replace(_SPACE, ' ') for p in model.pieces if p.type in sampled]
  texts = [*_TEXTS, *(''.join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(1000))]
  expected = processor.encode(texts)
  found = reader.encode_batch(texts, add_special_tokens=False)
  for text, ids, encoding in zip(texts, expected, found, strict=True):
    if not agree(model, ids, encoding.ids):
      raise UserError(
        f'{file} cannot be converted: for {text!r:.80} SentencePiece gives other ids; '
        'tokenizer.json is needed'
      )


def agree(model: Any, ids: Sequence[int], others: Sequence[int]) -> bool:
  """Returns whether two segmentations are equal, or have the same score in a unigram model."""

  def score(ids: Sequence[int]) -> tuple[int, float]:
    pieces = [model.pieces[i] for i in ids]
    return sum(p.type == UNKNOWN for p in pieces), sum(p.score for p in pieces)

  if ids == others or model.trainer_spec.model_type != _UNIGRAM:
    return ids == others
  (unknown, total), (other_unknown, other_total) = score(ids), score(others)
  return unknown == other_unknown and math.isclose(total, other_total, rel_tol=1e-6)
