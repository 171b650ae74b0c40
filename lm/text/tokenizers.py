"""Tokenizers: builders `fn(texts, **leaves) -> tokenizers.Tokenizer`, all saved as tokenizer.json.

Those trained here put END, the token between documents, at id 0. Training is deterministic: the
trainers of the `tokenizers` library number some tokens in the order of a hash table, so unigram and
wordpiece vocabularies are put in a fixed order afterwards or beforehand. `texts` is read more than
once and must start afresh each time (a list, or an object with its own `__iter__`).

What decodes back to the very text: everything with bytes, bpe and unigram; with characters every
text of known characters; with words and wordpiece only text whose words are separated by single
spaces (their docstrings say what is lost).
"""

import itertools
import json
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

from lm.errors import UserError
from lm.text import probe
from lm.text.files import expand

END = '<|end|>'
UNKNOWN = '<unk>'
_WORD = r'\w+|[^\w\s]'


class Special(str):
  """A part of what a task reads that is one token of its own, and not a text that looks like it."""


SEPARATOR = Special('<|sep|>')  # between parts; the tokenizers of tasks have it
# Names of the end of text in tokenizers made elsewhere; the first one found counts. END is last:
# where there is another, as in Phi-3 and gpt-oss, it ends a turn and not a text.
_ENDS = (
  '<|endoftext|>',
  '<|end_of_text|>',
  '<eos>',
  '</s>',
  '<\uff5cend\u2581of\u2581sentence\uff5c>',  # DeepSeek's
  '[SEP]',
  END,
)
# Trainers take the square of the longest word, such as a line of DNA or of base64. They are given
# long words in pieces of so many bytes; of WordPiece, of the characters that it reads of a word.
_PIECE = {'bpe': 1024, 'unigram': 256, 'wordpiece': 100}
# Unigram training besides takes long for each byte of text that does not repeat.
_UNIGRAM_BYTES = 2**14  # of a word, from its beginning
_MAX_ID = 2**31 - 1  # batches hold int32


def bytes(texts: Iterable[str]) -> tokenizers.Tokenizer:
  """Returns the 256 bytes of UTF-8 (byte b is token b + 1) and END; it has nothing to train."""
  vocab = {END: 0} | {character: b + 1 for b, character in enumerate(_byte_characters())}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges=[]))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  tokenizer.decoder = decoders.ByteLevel()
  return _with_specials(tokenizer, END)


def characters(texts: Iterable[str], min_count: int = 1) -> tokenizers.Tokenizer:
  """Returns one token for every Unicode character that occurs at least `min_count` times.

  Every other character becomes <unk>, which no model writes. Tokens are in code point order.
  """
  _check_count(min_count)
  counts: dict[str, int] = {}
  for text in texts:
    for character in set(text):
      counts[character] = counts.get(character, 0) + text.count(character)
  known = sorted(c for c, count in counts.items() if count >= min_count)
  vocab = {token: i for i, token in enumerate([END, UNKNOWN, *known])}
  # A BPE without merges takes text apart character by character, at once and without offsets.
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges=[], unk_token=UNKNOWN))
  tokenizer.decoder = decoders.Fuse()
  return _with_specials(tokenizer, END, UNKNOWN)


def words(
  texts: Iterable[str],
  min_count: int = 2,
  vocab_size: int | None = None,
  pattern: str = _WORD,
) -> tokenizers.Tokenizer:
  r"""Returns whole words, the most frequent first.

  Words seen fewer than `min_count` times become <unk>, which no model writes. Decoding joins words
  with single spaces, so it keeps neither line ends nor the space before a punctuation mark.

  Args:
    texts: the corpus.
    min_count: the frequency cut.
    vocab_size: with special tokens; None keeps every word above the cut.
    pattern: regular expression of a word. The default takes runs of letters and digits, and each
      other mark alone; r'\S+' takes text that has been segmented before.

  Raises:
    UserError: fewer than `vocab_size` words occur often enough, it has no room for a word, or
      `pattern` is no regular expression.
  """
  _check_count(min_count)
  try:
    Regex(pattern)
  except Exception as e:  # the library raises nothing more precise
    raise UserError(f'data.tokenizer.pattern={pattern!r} is no regular expression: {e}') from e
  if vocab_size is not None:
    _check_room(vocab_size, 3, 'END, <unk> and a word')
  scratch = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
  scratch.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), 'removed', invert=True)
  trainer = trainers.WordLevelTrainer(
    vocab_size=vocab_size or 2**32, min_frequency=min_count, show_progress=False
  )
  scratch.train_from_iterator(texts, trainer)
  counted = scratch.get_vocab()
  # A corpus may have <unk> among its words; it is not to be numbered twice.
  frequent = sorted(counted.keys() - {END, UNKNOWN}, key=counted.__getitem__)
  return _filled(known_words([END, UNKNOWN, *frequent][:vocab_size], pattern), vocab_size)


def known_words(words: Sequence[str], pattern: str = _WORD) -> tokenizers.Tokenizer:
  """Returns these words, all different, in this order; <|end|> and <unk> are among them."""
  model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), 'removed', invert=True)
  return _with_specials(tokenizer, END, UNKNOWN)


def bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Returns byte-level byte pair encoding (Sennrich et al. 2016; Radford et al. 2019).

  Any text can be encoded and decodes exactly. Words of more than 1,024 bytes are cut into pieces of
  that length for training.

  Raises:
    UserError: `vocab_size` has no room for the bytes, or the corpus yields fewer tokens.
  """
  _check_room(vocab_size, 1 + 256, 'END and the 256 bytes')
  tokenizer = tokenizers.Tokenizer(models.BPE())
  pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizer, _pieces(_PIECE['bpe'])])
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END],
    initial_alphabet=_byte_characters(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  tokenizer.pre_tokenizer = pre_tokenizer
  return _filled(tokenizer, vocab_size)


def unigram(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
  """Returns a unigram language model of pieces (Kudo 2018) over bytes.

  Any text can be encoded and decodes exactly. Of a word, the first 16 KiB are trained on, in pieces
  of 256 bytes.

  Raises:
    UserError: `vocab_size` has no room for the bytes, or the corpus yields fewer pieces.
  """
  _check_room(vocab_size, 1 + 256, 'END and the 256 bytes')
  scratch = tokenizers.Tokenizer(models.Unigram())
  pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  beginning = _pieces(_UNIGRAM_BYTES, first=True)
  scratch.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizer, beginning, _pieces(_PIECE['unigram'])]
  )
  trainer = trainers.UnigramTrainer(
    vocab_size=vocab_size,
    special_tokens=[END],
    initial_alphabet=_byte_characters(),
    show_progress=False,
  )
  scratch.train_from_iterator(texts, trainer)
  pieces = json.loads(scratch.to_str())['model']['vocab']
  tokenizer = tokenizers.Tokenizer(models.Unigram(_stable(pieces)))
  tokenizer.pre_tokenizer = pre_tokenizer
  tokenizer.decoder = decoders.ByteLevel()
  return _filled(_with_specials(tokenizer, END), vocab_size)


def wordpiece(
  texts: Iterable[str], vocab_size: int, lowercase: bool = True
) -> tokenizers.Tokenizer:
  """Returns BERT's subwords (Devlin et al. 2019): '##' marks a piece inside a word.

  Words are split at spaces and punctuation, Chinese characters stand alone. A word with an unknown
  character, or of more than 100, becomes <unk>; training cuts such a word into pieces of 100.
  Decoding joins words with single spaces and closes up common punctuation; case (and accents with
  it) is lost where `lowercase`.

  Raises:
    UserError: `vocab_size` has no room for the alphabet, or the corpus yields fewer pieces.
  """
  normalizer = normalizers.BertNormalizer(lowercase=lowercase)
  pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  cut = pre_tokenizers.Sequence([pre_tokenizer, _pieces(_PIECE['wordpiece'])])
  alphabet = _wordpiece_alphabet(texts, normalizer, cut)
  _check_room(vocab_size, 2 + len(alphabet), 'END, <unk> and the characters of the corpus')
  scratch = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
  scratch.normalizer, scratch.pre_tokenizer = normalizer, cut
  # Numbered beforehand, because ids decide between pairs of equal frequency.
  trainer = trainers.WordPieceTrainer(
    vocab_size=vocab_size, special_tokens=[END, UNKNOWN, *alphabet], show_progress=False
  )
  scratch.train_from_iterator(texts, trainer)
  model = models.WordPiece(
    scratch.get_vocab(), unk_token=UNKNOWN, max_input_chars_per_word=_PIECE['wordpiece']
  )
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
  tokenizer.decoder = decoders.WordPiece(prefix='##')
  return _filled(_with_specials(tokenizer, END, UNKNOWN), vocab_size)


def existing(texts: Iterable[str], file: str, end: str | None = None) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a tokenizer.json made elsewhere.

  Documents end with the token that its post-processor puts after a text. Where there is none, they
  end with the first of these that is a special token there: <|endoftext|>, <|end_of_text|>, <eos>,
  </s>, DeepSeek's end of sentence, [SEP], <|end|>. Else <|end|> is added after its last token. Its
  truncation and padding are switched off.

  Args:
    texts: the corpus; the first texts show whether the tokenizer works.
    file: the path of the tokenizer.json.
    end: the token that ends a document, by name; None for the rule above.

  Raises:
    UserError: the file is missing or is no tokenizer, it has no token `end`, or it fails or
      hangs on a text.
  """
  path = expand(file, 'data.tokenizer.file')
  if not path.is_file():
    raise UserError(f'data.tokenizer.file={file!r}: no such file')
  probe.check(path, texts, f'data.tokenizer.file={file!r}')
  tokenizer = tokenizers.Tokenizer.from_file(str(path))
  if (rows := vocabulary_size(tokenizer)) > _MAX_ID:
    raise UserError(
      f'data.tokenizer.file={file!r}: its highest id is {rows - 1}, not below {_MAX_ID}'
    )
  tokenizer.no_truncation()
  tokenizer.no_padding()
  if end is not None and tokenizer.token_to_id(end) is None:
    raise UserError(f'data.tokenizer.end={end!r}: {file!r} has no such token')
  found = _find_end(tokenizer) if end is None else tokenizer.token_to_id(end)
  name = END if found is None else tokenizer.id_to_token(found)
  assert name is not None
  if found not in _special_ids(tokenizer):
    tokenizer = _with_specials(tokenizer, name)
  return _ending_with(tokenizer, name)


def vocabulary_size(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the rows that a table of all tokens needs: the highest id plus one.

  The number of entries is smaller where ids are left out, as in some files made elsewhere.
  """
  return max(tokenizer.get_vocab().values(), default=-1) + 1


def end_id(tokenizer: tokenizers.Tokenizer) -> int:
  """Returns the id of the token that ends a document.

  Raises:
    UserError: the tokenizer has none.
  """
  found = _find_end(tokenizer)
  if found is None:
    raise UserError(
      f'data.tokenizer: no end-of-text token; it needs one of {", ".join(_ENDS)} among its special '
      'tokens'
    )
  return found


def with_special_tokens(
  tokenizer: tokenizers.Tokenizer, specials: Iterable[str]
) -> tokenizers.Tokenizer:
  """Returns a tokenizer that has these special tokens too, after its other tokens.

  Raises:
    UserError: one of them is a character that the tokenizer spells text with.
  """
  names = list(specials)
  known = _special_ids(tokenizer)
  for name in names:
    if len(name) == 1 and tokenizer.token_to_id(name) not in known | {None}:
      raise UserError(
        f'data.specials: {name!r} is a token that text is made of; a special token has a name '
        "of its own, such as '<|name|>'"
      )
  found = _find_end(tokenizer)
  end = None if found is None else tokenizer.id_to_token(found)
  made = _with_specials(tokenizers.Tokenizer.from_str(tokenizer.to_str()), *names)
  return made if end is None else _ending_with(made, end)


def text_reader(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """Returns a tokenizer with the same ids for reading text: no text becomes a special token.

  `encode_special_tokens` alone keeps the library from looking for special tokens, but the model
  finds those that are among its own entries: a word '<|end|>', or a piece '</s>' of a Unigram
  model. These entries get names here that no text has. The unknown word stays what it is.
  """
  file = json.loads(tokenizer.to_str())
  model = file['model']
  unigram = model['type'] == 'Unigram'
  entries = {piece for piece, _ in model['vocab']} if unigram else model['vocab'].keys()
  special = {token['content'] for token in file['added_tokens'] if token['special']}
  if (end := _find_end(tokenizer)) is not None:
    special.add(tokenizer.id_to_token(end))
  # U+10FFFF is a noncharacter: Unicode keeps it out of text.
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
  """Returns the function that turns parts of a text, some of them Special, into ids.

  What looks like a special token inside a part that is none is text.
  """
  reader, ids_of = text_reader(tokenizer), tokenizer.get_vocab()

  def encode(parts: Iterable[str]) -> list[int]:
    ids: list[int] = []
    for part in parts:
      if not isinstance(part, Special):
        ids += reader.encode(part, add_special_tokens=False).ids
        continue
      token = ids_of.get(part)
      if token is None:
        raise UserError(f'data.tokenizer has no special token {part!r}, which the task needs')
      ids.append(token)
    return ids

  return encode


def text_parts(parts: Iterable[str]) -> list[str]:
  """Returns the parts of a text that are not special tokens."""
  return [part for part in parts if not isinstance(part, Special)]


def _special_ids(tokenizer: tokenizers.Tokenizer) -> set[int]:
  added = tokenizer.get_added_tokens_decoder()
  return {i for i, token in added.items() if token.special}


def _find_end(tokenizer: tokenizers.Tokenizer) -> int | None:
  stated = _after_a_text(tokenizer.post_processor)
  if stated is not None and tokenizer.token_to_id(stated) is not None:
    return tokenizer.token_to_id(stated)
  if tokenizer.id_to_token(0) == END:  # as all that are trained here
    return 0
  ids = {tokenizer.id_to_token(i): i for i in _special_ids(tokenizer)}
  return next((ids[name] for name in _ENDS if name in ids), None)


def _ending_with(tokenizer: tokenizers.Tokenizer, end: str) -> tokenizers.Tokenizer:
  """Returns a tokenizer whose file says that texts end with this token."""
  if _find_end(tokenizer) != tokenizer.token_to_id(end):
    # This project never applies the post-processor, which is where files have it.
    tokenizer.post_processor = processors.TemplateProcessing(
      single=['$A', end], special_tokens=[(end, tokenizer.token_to_id(end))]
    )
  return tokenizer


def _after_a_text(processor: processors.PostProcessor | None) -> str | None:
  """Returns the first special token that a post-processor puts after a text."""
  state = {} if processor is None else json.loads(processor.__getstate__())
  for step in state.get('processors', [state]):
    if 'sep' in step:  # BertProcessing and RobertaProcessing
      return step['sep'][0]
    parts = step.get('single', [])
    text = max((i for i, part in enumerate(parts) if 'Sequence' in part), default=len(parts))
    for part in parts[text + 1 :]:
      return step['special_tokens'][part['SpecialToken']['id']]['tokens'][0]
  return None


def _with_specials(tokenizer: tokenizers.Tokenizer, *tokens: str) -> tokenizers.Tokenizer:
  new = [name for name in tokens if tokenizer.token_to_id(name) is None]
  if new and (rows := vocabulary_size(tokenizer)) > tokenizer.get_vocab_size():
    # The library numbers new tokens from the number of entries on, where other tokens may be.
    file = json.loads(tokenizer.to_str())
    file['model']['vocab'] |= {name: rows + i for i, name in enumerate(dict.fromkeys(new))}
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
  tokenizer.add_special_tokens(list(tokens))
  return tokenizer


def _pieces(length: int, first: bool = False) -> pre_tokenizers.PreTokenizer:
  """Returns what cuts words into pieces, or cuts off what comes after the `first` one."""
  start = r'\A' if first else ''
  pattern = Regex(f'(?m){start}.{{1,{length}}}')  # in Oniguruma, m lets the dot be a line end
  return pre_tokenizers.Split(pattern, 'removed', invert=True)


def _byte_characters() -> list[str]:
  """Returns the character that stands for each byte in byte-level models, by byte value.

  Printable Latin-1 stands for itself; the other bytes take the code points from 256 on, in order.
  """
  alphabet = set(pre_tokenizers.ByteLevel.alphabet())
  others = iter(sorted(c for c in alphabet if ord(c) >= 256))
  return [chr(b) if chr(b) in alphabet else next(others) for b in range(256)]


def _stable(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
  """Returns END, then pieces by falling score, without the noise of the trainer's summation order.

  Single bytes that the trainer appended because nothing needed them come with scores in hash order,
  from the least of all on by steps of 1e-4; they all get the same one, below every other.
  """
  scores = {piece: score for piece, score in pieces if piece != END}
  least = min(scores.values(), default=0.0)

  def appended(piece: str, score: float) -> bool:
    steps = (score - least) / 1e-4
    return len(piece) == 1 and steps < 256 and abs(steps - round(steps)) < 1e-3

  scores = {p: round(least - 1 if appended(p, s) else s, 6) for p, s in scores.items()}
  return [(END, 0.0), *sorted(scores.items(), key=lambda item: (-item[1], item[0]))]


def _wordpiece_alphabet(
  texts: Iterable[str],
  normalizer: normalizers.Normalizer,
  pre_tokenizer: pre_tokenizers.PreTokenizer,
) -> list[str]:
  """Returns the first characters of words, and with '##' those inside, in code point order."""
  counter = tokenizers.Tokenizer(models.WordLevel(unk_token=UNKNOWN))
  counter.normalizer, counter.pre_tokenizer = normalizer, pre_tokenizer
  trainer = trainers.WordLevelTrainer(vocab_size=2**32, min_frequency=0, show_progress=False)
  counter.train_from_iterator(texts, trainer)
  found = counter.get_vocab()
  first = {word[0] for word in found if word}
  inside = set(itertools.chain.from_iterable(word[1:] for word in found))
  return [*sorted(first), *('##' + c for c in sorted(inside))]


def _check_count(min_count: int) -> None:
  if not 0 <= min_count < 2**32:
    raise UserError(
      f'data.tokenizer.min_count={min_count} is out of range: it is at least 0 and below 2**32'
    )


def _check_room(vocab_size: int, least: int, what: str) -> None:
  if vocab_size < least:
    raise UserError(f'data.tokenizer.vocab_size={vocab_size}: {what} alone need {least}')


def _filled(tokenizer: tokenizers.Tokenizer, vocab_size: int | None) -> tokenizers.Tokenizer:
  size = tokenizer.get_vocab_size()
  if vocab_size is not None and size < vocab_size:
    raise UserError(
      f'data.tokenizer.vocab_size={vocab_size}: the corpus yields only {size}; '
      'take that many or fewer, or more text'
    )
  return tokenizer


def special_ids(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
  """Returns the ids of the tokens that stand for no text, such as END."""
  added = tokenizer.get_added_tokens_decoder()
  return frozenset(i for i, token in added.items() if token.special)


def unknown_id(tokenizer: tokenizers.Tokenizer) -> int | None:
  """Returns the id of the word that stands for all unknown ones; None where there is no such."""
  word = getattr(tokenizer.model, 'unk_token', None)
  return tokenizer.token_to_id(word) if word else None


def word_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
  """Returns the ids of the words in rising order: neither added nor END nor the unknown word.

  They are spelled as the vocabulary has them: a subword may begin with a mark for a space.
  """
  added, end = tokenizer.get_added_tokens_decoder(), end_id(tokenizer)
  unknown = unknown_id(tokenizer)
  known = sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
  return {word: i for word, i in known if i not in added and i not in (end, unknown)}
