"""Tokenizers: builders `fn(texts, **options) -> tokenizers.Tokenizer`, saved as tokenizer.json.

Tokenizers trained here have END, the token between documents, at id 0. Training is deterministic.
The trainers of the `tokenizers` library number some tokens in the order of a hash table, so unigram
and wordpiece vocabularies get a fixed order. `texts` is iterated more than once: pass a list, or an
object with its own `__iter__`.

Tokenizers of `bytes`, `bpe` and `unigram` decode any text exactly, and those of `characters` any
text of known characters. Those of `words` and `wordpiece` do so only for words separated by single
spaces (see their docstrings).
"""

import collections
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence

import tokenizers
from tokenizers import (
  Regex,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from lm.errors import UserError, check_range
from lm.text import probe
from lm.text.files import expand_path

END = '<|end|>'
UNKNOWN = '<unk>'
_WORD = r'\w+|[^\w\s]'


class Special(str):
  """A special token among the inputs of a task, as opposed to a text that looks like one."""


SEPARATOR = Special('<|sep|>')  # between parts; tokenizers of tasks have it
MASKS = ('[MASK]', '<mask>', '<|mask|>')  # names of the mask; the first that a tokenizer has counts
# Names of the end-of-text token in other tokenizers; the first match counts. END is last: if there
# is another, as in Phi-3 and gpt-oss, END ends a turn rather than a text.
_ENDS = (
  '<|endoftext|>',
  '<|end_of_text|>',
  '<eos>',
  '</s>',
  '<\uff5cend\u2581of\u2581sentence\uff5c>',  # DeepSeek's
  '[SEP]',
  END,
)
# The time of trainers is quadratic in the longest word, such as a line of DNA or of base64. Longer
# words are split: into pieces of this many bytes, or of WordPiece's limit in characters.
_PIECE = {'bpe': 1024, 'unigram': 256, 'wordpiece': 100}
# Unigram training needs much time per byte of a long word without repetitions, so it uses a prefix
# of each word.
_UNIGRAM_BYTES = 2**14
_MAX_ID = 2**31 - 1  # batches hold int32


def bytes(texts: Iterable[str]) -> tokenizers.Tokenizer:
  """Returns a tokenizer of END and the 256 bytes, without training; byte b is token b + 1."""
  vocab = {END: 0} | {character: b + 1 for b, character in enumerate(_byte_characters())}
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return _assemble(models.BPE(vocab, merges=[]), byte_level, decoders.ByteLevel())


def characters(texts: Iterable[str], min_count: int = 1) -> tokenizers.Tokenizer:
  """Returns a tokenizer of Unicode characters that occur at least `min_count` times.

  Any other character becomes <unk>, which models never generate. Tokens are in code point order.
  """
  check_range('data.tokenizer.min_count', min_count, 0, 2**32 - 1)
  counts = collections.Counter(itertools.chain.from_iterable(texts))
  known = sorted(c for c, count in counts.items() if count >= min_count)
  vocab = {token: i for i, token in enumerate([END, UNKNOWN, *known])}
  # A BPE without merges splits text into characters, quickly and without a pre-tokenizer.
  return _assemble(models.BPE(vocab, merges=[], unk_token=UNKNOWN), None, decoders.Fuse())


def words(
  texts: Iterable[str],
  min_count: int = 2,
  vocab_size: int | None = None,
  pattern: str = _WORD,
) -> tokenizers.Tokenizer:
  r"""Returns a word-level vocabulary, the most frequent words first.

  Words with fewer than `min_count` occurrences become <unk>, which models never generate. Decoding
  joins words with single spaces, and so loses line ends and the spacing of punctuation marks.

  Args:
    texts: the corpus.
    min_count: minimum number of occurrences.
    vocab_size: size with special tokens; None keeps all words with enough occurrences.
    pattern: regular expression of a word. The default matches runs of letters and digits, and
      single other marks; r'\S+' suits segmented text.

  Raises:
    UserError: `vocab_size` is below 3 or too large for the words that occur often enough; `pattern`
      is not a regular expression, or fails or hangs on a text.
  """
  check_range('data.tokenizer.min_count', min_count, 0, 2**32 - 1)
  try:
    Regex(pattern)
  except Exception as e:  # the library has no narrower type
    raise UserError(f'data.tokenizer.pattern={pattern!r} is no regular expression: {e}') from e
  if pattern != _WORD:  # the default takes linear time
    with tempfile.NamedTemporaryFile() as file:
      known_words([END, UNKNOWN], pattern).save(file.name)
      probe.check(file.name, texts, f'data.tokenizer.pattern={pattern!r}')
  if vocab_size is not None:
    _check_size(vocab_size, 3, 'END, <unk> and a word')
  trainer = trainers.WordLevelTrainer(
    vocab_size=vocab_size or 2**32, min_frequency=min_count, show_progress=False
  )
  counted = _train(models.WordLevel(unk_token=UNKNOWN), trainer, texts, _split(pattern)).get_vocab()
  # A corpus may contain the word <unk>, which must not be numbered twice.
  frequent = sorted(counted.keys() - {END, UNKNOWN}, key=counted.__getitem__)
  return _check_filled(known_words([END, UNKNOWN, *frequent][:vocab_size], pattern), vocab_size)


def known_words(words: Sequence[str], pattern: str = _WORD) -> tokenizers.Tokenizer:
  """Returns a vocabulary of distinct words in this order, <|end|> and <unk> included."""
  model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
  return _assemble(model, _split(pattern))


def bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Returns byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019).

  It encodes any text and decodes it exactly. For training, words are split after every 1,024 bytes.

  Raises:
    UserError: `vocab_size` is too small for the bytes, or the corpus yields fewer tokens.
  """
  _check_size(vocab_size, 1 + 256, 'END and the 256 bytes')
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END],
    initial_alphabet=_byte_characters(),
    show_progress=False,
  )
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer = _train(models.BPE(), trainer, texts, byte_level, _split_long(_PIECE['bpe']))
  tokenizer.pre_tokenizer = byte_level
  tokenizer.decoder = decoders.ByteLevel()
  return _check_filled(tokenizer, vocab_size)


def unigram(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Returns a unigram language model of subwords (Kudo 2018) over bytes.

  It encodes any text and decodes it exactly. Training uses the first 16 KiB of a word, split after
  every 256 bytes.

  Raises:
    UserError: `vocab_size` is too small for the bytes, or the corpus yields fewer pieces.
  """
  _check_size(vocab_size, 1 + 256, 'END and the 256 bytes')
  trainer = trainers.UnigramTrainer(
    vocab_size=vocab_size,
    special_tokens=[END],
    initial_alphabet=_byte_characters(),
    show_progress=False,
  )
  byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  beginning, pieces = _split_long(_UNIGRAM_BYTES, first=True), _split_long(_PIECE['unigram'])
  trained = _train(models.Unigram(), trainer, texts, byte_level, beginning, pieces)
  vocab = json.loads(trained.to_str())['model']['vocab']
  model = models.Unigram(_in_stable_order(vocab))
  return _check_filled(_assemble(model, byte_level, decoders.ByteLevel()), vocab_size)


def wordpiece(
  texts: Iterable[str], vocab_size: int, lowercase: bool = True
) -> tokenizers.Tokenizer:
  """Returns BERT's subwords (Devlin et al. 2019); '##' marks a piece inside a word.

  Spaces, punctuation and Chinese characters separate words. A word becomes <unk> if it has an
  unknown character or more than 100 characters. Training splits longer words after every 100
  characters. Decoding joins words with single spaces, except before common punctuation. With
  `lowercase`, case and accents are lost.

  Raises:
    UserError: `vocab_size` is too small for the alphabet, or the corpus yields fewer pieces.
  """
  normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  splits = pre_tokenizer, _split_long(_PIECE['wordpiece'])
  counter = trainers.WordLevelTrainer(vocab_size=2**32, min_frequency=0, show_progress=False)
  counted = _train(
    models.WordLevel(unk_token=UNKNOWN), counter, texts, *splits, normalizer=normalizer
  )
  alphabet = _wordpiece_alphabet(counted.get_vocab())
  _check_size(vocab_size, 2 + len(alphabet), 'END, <unk> and the characters of the corpus')
  # The alphabet gets its ids before training, because ids break ties between pairs.
  trainer = trainers.WordPieceTrainer(
    vocab_size=vocab_size, special_tokens=[END, UNKNOWN, *alphabet], show_progress=False
  )
  trained = _train(
    models.WordPiece(unk_token=UNKNOWN), trainer, texts, *splits, normalizer=normalizer
  )
  model = models.WordPiece(
    trained.get_vocab(), unk_token=UNKNOWN, max_input_chars_per_word=_PIECE['wordpiece']
  )
  decoder = decoders.WordPiece(prefix='##')
  return _check_filled(_assemble(model, pre_tokenizer, decoder, normalizer), vocab_size)


def existing(texts: Iterable[str], file: str, end: str | None = None) -> tokenizers.Tokenizer:
  """Returns the tokenizer of an existing tokenizer.json, without truncation and padding.

  Documents end with the token that its post-processor appends to a text. Without one, they end with
  the first of its special tokens among <|endoftext|>, <|end_of_text|>, <eos>, </s>, DeepSeek's end
  of sentence, [SEP] and <|end|>. Otherwise <|end|> is added after its last token.

  Args:
    texts: the corpus; the first texts test whether the tokenizer works.
    file: the path of the tokenizer.json.
    end: the name of the token that ends a document; None for the rule above.

  Raises:
    UserError: the file is missing or not a tokenizer, lacks the token `end`, or fails or hangs on a
      text.
  """
  path = expand_path(file, 'data.tokenizer.file')
  if not path.is_file():
    raise UserError(f'data.tokenizer.file={file!r}: no such file')
  probe.check(str(path), texts, f'data.tokenizer.file={file!r}')
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  if (rows := vocabulary_size(tokenizer)) > _MAX_ID:
    raise UserError(
      f'data.tokenizer.file={file!r}: its highest id is {rows - 1}, not below {_MAX_ID}'
    )
  tokenizer.no_truncation()
  tokenizer.no_padding()
  if end is not None and tokenizer.token_to_id(end) is None:
    raise UserError(f'data.tokenizer.end={end!r}: {file!r} has no such token')
  name = end if end is not None else _end_token(tokenizer) or END
  if tokenizer.token_to_id(name) not in special_ids(tokenizer):
    tokenizer = _add_special_tokens(tokenizer, name)
  return _with_end(tokenizer, name)


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the number of rows of an embedding table for all tokens: the highest id plus one.

  The number of tokens may be smaller, as some existing tokenizers skip ids.
  """
  return max(tokenizer.get_vocab().values(), default=-1) + 1


def end_id(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the id of the token that ends a document.

  Raises:
    UserError: the tokenizer has none.
  """
  end = _end_token(tokenizer)
  token = None if end is None else tokenizer.token_to_id(end)
  if token is None:
    raise UserError(
      f'data.tokenizer: no end-of-text token; its special tokens need one of {", ".join(_ENDS)}'
    )
  return token


def ids_before(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Returns the ids that the tokenizer's own post-processor puts before a text, such as <bos>."""
  encodings = (tokenizer.encode(text, add_special_tokens=False) for text in tokenizer.get_vocab())
  framed = tokenizer.post_process(next(encoding for encoding in encodings if encoding.ids))
  before = itertools.takewhile(lambda of: of is None, framed.sequence_ids)
  return tuple(framed.ids[: len(list(before))])


def mask_token(tokenizer: tokenizers.Tokenizer) -> tuple[str, int]:
  """Returns the name and the id of the mask.

  Raises:
    UserError: the tokenizer has none.
  """
  for name in MASKS:
    if (token := tokenizer.token_to_id(name)) is not None:
      return name, token
  raise UserError(
    f'data.tokenizer has no mask, which is one of {", ".join(MASKS)}; '
    f'data.special_tokens=({MASKS[-1]!r},) adds it to a tokenizer that is trained'
  )


def sentinels(count: int = 100) -> tuple[str, ...]:
  """Returns T5's names of sentinels, for data.special_tokens; each replaces a span of a text."""
  return tuple(f'<extra_id_{i}>' for i in range(count))


def with_special_tokens(
  tokenizer: tokenizers.Tokenizer, special_tokens: Sequence[str]
) -> tokenizers.Tokenizer:
  """Returns the tokenizer with additional special tokens, after its other tokens.

  Raises:
    UserError: one of them is a character that occurs in texts.
  """
  known = special_ids(tokenizer) | {None}
  for name in special_tokens:
    if len(name) == 1 and tokenizer.token_to_id(name) not in known:
      raise UserError(
        f"data.special_tokens: {name!r} is a token of texts; use a name such as '<|name|>'"
      )
  end = _end_token(tokenizer)
  made = _add_special_tokens(tokenizers.Tokenizer.from_str(tokenizer.to_str()), *special_tokens)
  return made if end is None else _with_end(made, end)


def text_reader(tokenizer: tokenizers.Tokenizer, visible: str = '') -> tokenizers.Tokenizer:
  """Returns the tokenizer for encoding texts: same ids, but no text becomes a special token.

  The exception is the token `visible`, such as '[MASK]'.

  With `encode_special_tokens` the library no longer matches special tokens. The model itself still
  finds those in its vocabulary, such as a word '<|end|>' or a piece '</s>' of a Unigram model. Such
  entries are renamed here to names that no text contains. Unknown words keep their id.
  """
  file = json.loads(tokenizer.to_str())
  model = file['model']
  unigram = model['type'] == 'Unigram'
  entries = {piece for piece, _ in model['vocab']} if unigram else model['vocab'].keys()
  for token in file['added_tokens']:
    token['special'] &= token['content'] != visible
  special = {token['content'] for token in file['added_tokens'] if token['special']}
  special.add(_end_token(tokenizer))
  # U+10FFFF is a noncharacter, which text does not contain.
  hidden = {name: f'\U0010ffff{name}\U0010ffff' for name in special & entries}
  if hidden:
    if unigram:
      model['vocab'] = [(hidden.get(piece, piece), score) for piece, score in model['vocab']]
    else:
      model['vocab'] = {hidden.get(name, name): i for name, i in model['vocab'].items()}
    if model.get('unk_token') in hidden:
      model['unk_token'] = hidden[model['unk_token']]
    if 'merges' in model:
      model['merges'] = [(a, b) for a, b in model['merges'] if not {a, b, a + b} & hidden.keys()]
    for token in file['added_tokens']:
      token['content'] = hidden.get(token['content'], token['content'])
    file['post_processor'] = None
  reader = tokenizers.Tokenizer.from_str(json.dumps(file))
  reader.encode_special_tokens = True
  return reader


def parts_encoder(tokenizer: tokenizers.Tokenizer) -> Callable[[Iterable[str]], list[int]]:
  """Returns the function from parts of a text to ids; a Special part is one special token.

  In other parts, text that looks like a special token is encoded as text.
  """
  reader, ids_of = text_reader(tokenizer), tokenizer.get_vocab()

  def encode(parts: Iterable[str]) -> list[int]:
    ids: list[int] = []
    for part in parts:
      if not isinstance(part, Special):
        ids += reader.encode(part, add_special_tokens=False).ids
      elif part in ids_of:
        ids.append(ids_of[part])
      else:
        raise UserError(f'data.tokenizer lacks the special token {part!r}, which the task needs')
    return ids

  return encode


def special_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
  """Returns the ids of the special tokens, such as END."""
  added = tokenizer.get_added_tokens_decoder()
  return frozenset(i for i, token in added.items() if token.special)


def unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
  """Returns the id of the unknown word; None if the model has none."""
  word = getattr(tokenizer.model, 'unk_token', None)
  return tokenizer.token_to_id(word) if word else None


def word_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Returns the ids of all words, in order, without added tokens, END and the unknown word.

  The spelling is that of the vocabulary: a subword may start with the mark of a space.
  """
  others = {*tokenizer.get_added_tokens_decoder(), end_id(tokenizer), unknown_id(tokenizer)}
  known = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
  return {word: i for word, i in known if i not in others}


def separated(texts: Iterable[str]) -> list[str]:
  """Returns the texts with SEPARATOR between them, the inputs of a task."""
  return [part for text in texts for part in (SEPARATOR, text)][1:]


def text_parts(parts: Iterable[str]) -> list[str]:
  """Returns the parts of a text that are not special tokens."""
  return [part for part in parts if not isinstance(part, Special)]


def _end_token(tokenizer: tokenizers.Tokenizer) -> str | None:
  """Returns the name of the token that ends texts; None for a tokenizer without one."""
  appended = _appended_token(tokenizer.post_processor)
  if appended is not None and tokenizer.token_to_id(appended) is not None:
    return appended
  if tokenizer.id_to_token(0) == END:  # as in tokenizers trained here
    return END
  special = {tokenizer.id_to_token(i) for i in special_ids(tokenizer)}
  return next((name for name in _ENDS if name in special), None)


def _with_end(tokenizer: tokenizers.Tokenizer, end: str) -> tokenizers.Tokenizer:
  """Returns the tokenizer with `end` recorded in its file as the token that ends texts."""
  if _end_token(tokenizer) != end:
    # Files record it in the post-processor, which this code base never applies.
    tokenizer.post_processor = processors.TemplateProcessing(
      single=['$A', end], special_tokens=[(end, tokenizer.token_to_id(end))]
    )
  return tokenizer


def _appended_token(processor: processors.PostProcessor | None) -> str | None:
  """Returns the first special token that a post-processor appends to a text."""
  state = {} if processor is None else json.loads(processor.__getstate__())
  for step in state.get('processors', [state]):
    if 'sep' in step:  # BertProcessing and RobertaProcessing
      return step['sep'][0]
    parts = step.get('single', [])
    text = max((i for i, part in enumerate(parts) if 'Sequence' in part), default=len(parts))
    for part in parts[text + 1 :]:
      return step['special_tokens'][part['SpecialToken']['id']]['tokens'][0]
  return None


def _add_special_tokens(tokenizer: tokenizers.Tokenizer, *tokens: str) -> tokenizers.Tokenizer:
  new = [name for name in tokens if tokenizer.token_to_id(name) is None]
  if new and (rows := vocabulary_size(tokenizer)) > tokenizer.get_vocab_size():
    # The library numbers new tokens from the vocabulary size on, where ids may be taken.
    file = json.loads(tokenizer.to_str())
    file['model']['vocab'] |= {name: rows + i for i, name in enumerate(dict.fromkeys(new))}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
  tokenizer.add_special_tokens(list(tokens))
  return tokenizer


def _train(
  model: models.Model,
  trainer: trainers.Trainer,
  texts: Iterable[str],
  *splits: pre_tokenizers.PreTokenizer,
  normalizer: normalizers.Normalizer | None = None,
) -> tokenizers.Tokenizer:
  """Returns a tokenizer trained on texts that the pre-tokenizers split in turn."""
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splits))
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer


def _assemble(
  model: models.Model,
  pre_tokenizer: pre_tokenizers.PreTokenizer | None,
  decoder: decoders.Decoder | None = None,
  normalizer: normalizers.Normalizer | None = None,
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of these parts, with END and the unknown token of the model, if any."""
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = decoder
  unknown = getattr(model, 'unk_token', None)
  return _add_special_tokens(tokenizer, END, *([unknown] if unknown else []))


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
  """Returns the pre-tokenizer that keeps the matches of a regular expression."""
  return pre_tokenizers.Split(Regex(pattern), 'removed', invert=True)


def _split_long(length: int, first: bool = False) -> pre_tokenizers.PreTokenizer:
  """Returns the pre-tokenizer that splits words into pieces, or keeps the `first` piece alone."""
  start = r'\A' if first else ''
  return _split(f'(?m){start}.{{1,{length}}}')  # Oniguruma's m: the dot matches a line end


def _byte_characters() -> list[str]:
  """Returns the character that represents each byte in byte-level models, by byte value.

  Printable Latin-1 represents itself; the other bytes are the code points from 256 on, in order.
  """
  alphabet = set(pre_tokenizers.ByteLevel.alphabet())
  others = iter(sorted(c for c in alphabet if ord(c) >= 256))
  return [chr(b) if chr(b) in alphabet else next(others) for b in range(256)]


def _in_stable_order(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
  """Returns END, then the pieces by descending score.

  Scores are rounded, as their last digits depend on the trainer's order of summation. The trainer
  appends unused single bytes in hash order, with scores in steps of 1e-4 from the minimum. Here
  these bytes all get one score, below all others.
  """
  scores = {piece: score for piece, score in pieces if piece != END}
  minimum = min(scores.values(), default=0.0)

  def appended(piece: str, score: float) -> bool:
    steps = (score - minimum) / 1e-4
    return len(piece) == 1 and steps < 256 and abs(steps - round(steps)) < 1e-3

  scores = {p: round(minimum - 1 if appended(p, s) else s, 6) for p, s in scores.items()}
  return [(END, 0.0), *sorted(scores.items(), key=lambda item: (-item[1], item[0]))]


def _wordpiece_alphabet(words: Iterable[str]) -> list[str]:
  """Returns the first characters of words and, with '##', the inner ones, in code point order."""
  first = {word[0] for word in words if word}
  inside = set(itertools.chain.from_iterable(word[1:] for word in words))
  return [*sorted(first), *('##' + c for c in sorted(inside))]


def _check_size(vocab_size: int, minimum: int, what: str) -> None:
  if vocab_size < minimum:
    raise UserError(f'data.tokenizer.vocab_size={vocab_size}: {what} alone need {minimum}')


def _check_filled(tokenizer: tokenizers.Tokenizer, vocab_size: int | None) -> tokenizers.Tokenizer:
  size = tokenizer.get_vocab_size()
  if vocab_size is not None and size < vocab_size:
    raise UserError(
      f'data.tokenizer.vocab_size={vocab_size}: the corpus yields only {size}; set that or less, '
      'or use more text'
    )
  return tokenizer
