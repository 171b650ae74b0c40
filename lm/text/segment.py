"""A text on its way through preprocessing: tokens that know their place in the raw text.

Steps are pure functions from Text to Text. `split_words` and `split_sentences` split its tokens,
others rewrite them, leave some out or tag them:

  text = segment.words(whole('The CAFÉ opened.'))
  text = stop_words.drop(normal.normalise(text), stop_words.of(['en']))
  [(token.text, token.start, token.end) for token in text.tokens]

Splitting comes first. So a token's place is found in the raw text itself, and never has to be
traced back through normal forms, which may be longer, shorter and in another order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import regex

from lm.errors import UserError
from lm.text.normalize import Case, Form, check_options, normalize, simplify_chinese, stop_word_key


class Token(NamedTuple):
  """A stretch of a raw text.

  Attributes:
    text: what stands for it, `raw[start:end]` until a step rewrites it.
    start: its first character in the raw text.
    end: the one after its last.
    tag: such as its part of speech.
  """

  text: str
  start: int
  end: int
  tag: str = ''


class Text(NamedTuple):
  """A raw text, and tokens of it in order; they do not overlap."""

  raw: str
  tokens: tuple[Token, ...]


def as_single_token(raw: str) -> Text:
  """Returns a text as one token, or as none when it is empty."""
  return Text(raw, (Token(raw, 0, len(raw)),) if raw else ())


def split(text: Text, spans: Callable[[str], Iterable[tuple[int, int]]]) -> Text:
  """Returns the text with each token replaced by parts of it.

  Args:
    text: its tokens are not rewritten yet.
    spans: from a string to the first and last character, exclusive, of its parts, in order.

  Raises:
    UserError: a token is rewritten already.
  """
  tokens: list[Token] = []
  for token in text.tokens:
    part = text.raw[token.start : token.end]
    if token.text != part:
      raise UserError(
        f'the token at {token.start}:{token.end} stands for {part!r:.40} and is rewritten as '
        f'{token.text!r:.40}; split a text before it is normalised'
      )
    tokens += [Token(part[a:b], token.start + a, token.start + b) for a, b in spans(part)]
  return Text(text.raw, tuple(tokens))


def normalize_tokens(
  text: Text, form: Form = 'NFKC', case: Case = 'fold', simplify: bool = False
) -> Text:
  """Returns the text with each token in its normal form; places stay. See `normalize`."""
  check_options(form, case)
  tokens = (t._replace(text=normalize(t.text, form, case, simplify)) for t in text.tokens)
  return Text(text.raw, tuple(tokens))


def remove_stop_words(text: Text, words: Set[str]) -> Text:
  """Returns the text without the tokens that are stop words, as `stop_words` returns them."""
  return Text(
    text.raw,
    tuple(token for token in text.tokens if stop_word_key(token.text) not in words),
  )


_ATTACHED = r'[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]'
# Runs of ideographs are cut off at a thousand, which bounds what jieba holds in memory. \b is the
# boundary of UAX #29; between flags it counts all of them from the first of the run, so that flags
# amid flags are taken by twos instead.
_PIECE = regex.compile(
  rf"""(?wsx)
    (?P<gap> [\s\p{{Cc}}\p{{Cf}}]++ )
  | (?P<han> (?: \p{{Han}} {_ATTACHED}*+ ){{1,1000}}+ )
  | (?: \p{{RI}} {_ATTACHED}*+ ){{2}} (?= \p{{RI}} )
  | .+? \b
  """
)
_ATTACHES = regex.compile(_ATTACHED)


def split_words(text: Text, simplify: bool = False) -> Text:
  """Returns the text with each token split into words; see `spans`."""
  return split(text, lambda part: word_spans(part, simplify))


def word_spans(raw: str, simplify: bool = False) -> Iterator[tuple[int, int]]:
  """Yields the first and last character, exclusive, of each word.

  A run of Han characters is cut by jieba: the likeliest way through its dictionary, and a hidden
  Markov model for what is not in it. All else is cut by the default word boundaries of UAX #29:
  "can't", '3,000.5' and a family of emoji are one word, and punctuation marks are words. What lies
  between words is white space, control characters and format characters.

  Not known: words of scripts that put no space between them. Japanese kanji are cut as if they were
  Chinese, hiragana, Thai, Lao, Khmer and Burmese into single characters with their marks.

  Args:
    raw: any string, also with lone surrogates, each of which is a word.
    simplify: cut Chinese as if it were written in simplified characters, which are what jieba's
      dictionary is in; for traditional text.

  Raises:
    UserError: a library that is needed is not installed.
  """
  for piece in _PIECE.finditer(raw):
    if piece.lastgroup == 'han':
      yield from _chinese(piece[0], piece.start(), simplify)
    elif piece.lastgroup != 'gap':
      yield piece.span()


def _chinese(run: str, first: int, simplify: bool) -> Iterator[tuple[int, int]]:
  """Yields the spans of the words of a run of ideographs that begins at `first`."""
  cut = jieba().tokenize(simplify_chinese(run) if simplify else run)
  # A variation selector belongs to the character before.
  starts = [start for _, start, _ in cut if not _ATTACHES.match(run, start)]
  for start, end in zip(starts, [*starts[1:], len(run)], strict=True):
    yield first + start, first + end


def jieba() -> Any:
  """Returns the module rjieba.

  Raises:
    UserError: it is not installed.
  """
  try:
    import rjieba
  except ModuleNotFoundError as e:
    raise UserError('words of Chinese need rjieba: pip install -e ".[zh]"') from e
  return rjieba


_MARK = r'[\p{SB=STerm}\p{SB=ATerm}…]'
# Quotation marks and brackets that close. The “ of „so“ closes where nothing follows it, and a
# French » may have a space before it at which no line breaks.
_CLOSES = r'(?: [\p{SB=Close}--\p{Ps}--\p{Pi}] | [\xa0\u202f]\p{Pf} | \p{Pi}(?=\s|\Z) )'
_END = regex.compile(
  rf"""(?V1x)
    (?P<mark> {_MARK}++ ) {_CLOSES}*+
  | (?P<blank> \n [^\S\n]*+ \n | \u2029 )
  """
)
_NEXT = regex.compile(r'(?s)(?P<space>\s*+)(?P<quote>\p{SB=Close}*+)(?P<first>.?)')
_GOES_ON = regex.compile(rf'\p{{SB=SContinue}}|{_MARK}')
_FULL_STOP = regex.compile(r'\p{SB=ATerm}')
_UNCASED = regex.compile(r'\p{SB=OLetter}')
_REACH = 24  # characters looked back for the word before a full stop; no abbreviation is longer
_WORD_BEFORE = regex.compile(r"[\p{L}\p{M}\p{N}.'\u2019]*\Z")
_INITIALS = regex.compile(r'(?:[\p{Lu}\p{Ll}]\p{M}*\.)*[\p{Lu}\p{Ll}]\p{M}*')
# What never ends a sentence, and what does not where a number follows: English, and some German.
_TITLES = regex.compile(
  'al|bzw|ca|capt|cf|col|dr|gen|gov|hon|lt|messrs|mr|mrs|ms|prof|rep|rev|sen|sgt|st|viz|vs',
  regex.IGNORECASE,
)
_NUMBERED = regex.compile(
  'art|ch|eq|figs?|nos?|nr|p|pp|sec|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec',
  regex.IGNORECASE,
)


def split_sentences(text: Text) -> Text:
  """Returns the text with each token split into sentences; see `spans`."""
  return split(text, sentence_spans)


def sentence_spans(raw: str) -> Iterator[tuple[int, int]]:
  """Yields the first and last character, exclusive, of each sentence, without white space around.

  A sentence ends at a blank line; after 。！？ and the like in any script; after .!?… before white
  space and no small letter, or, as people type Chinese, between characters that have no case.
  Marks that close quotations and brackets stay with it, and what a comma or dash continues goes on.
  A full stop after an initial, a title (Dr.), an abbreviation before its number (No. 5) or the
  number of an item at the beginning of a sentence is no end.

  Not known: whether an abbreviation such as U.S. ends a sentence too (it never does), whether one
  such as etc. before a capital letter does not (it does), that Yahoo! is a name, and whether a
  straight quotation mark opens (it is taken to close). Single line ends mean nothing.
  """
  first = 0
  for end in _END.finditer(raw):
    if end['blank'] or _ends(raw, first, end):
      yield from _without_space(raw, first, end.end())
      first = end.end()
  yield from _without_space(raw, first, len(raw))


def _ends(raw: str, first: int, end: regex.Match) -> bool:
  """Returns whether a sentence that began at `first` ends at a mark."""
  after = _NEXT.match(raw, end.end())
  follows, mark = after['first'], end['mark']
  if not follows:
    return True
  if not after['quote'] and _GOES_ON.match(follows):
    return False
  is_stop = _FULL_STOP.match(mark, len(mark) - 1) is not None
  if not is_stop and mark[-1] not in '!?…':
    return True
  if not after['space']:
    before = raw[max(end.start() - 1, 0) : end.start()]
    return bool(_UNCASED.match(follows) and (not is_stop or _UNCASED.match(before)))
  if follows.islower():
    return False
  return not is_stop or len(mark) > 1 or not _is_abbreviated(raw, first, end.start(), follows)


def _is_abbreviated(raw: str, first: int, stop: int, follows: str) -> bool:
  """Returns whether the full stop at `stop` belongs to the word before it."""
  word = _WORD_BEFORE.search(raw[max(first, stop - _REACH) : stop])[0]
  if word.isdecimal():
    return raw[first:stop].strip() == word
  if _INITIALS.fullmatch(word) or _TITLES.fullmatch(word):
    return True
  return bool(_NUMBERED.fullmatch(word) and follows.isdecimal())


def _without_space(raw: str, start: int, end: int) -> Iterator[tuple[int, int]]:
  part = raw[start:end].rstrip()
  kept = part.lstrip()
  if kept:
    yield start + len(part) - len(kept), start + len(part)


Tagger = Callable[[Sequence[str]], Sequence[str]]


def tag_words(text: Text, tagger: Tagger) -> Text:
  """Returns the text with each token tagged.

  Args:
    text: its tokens are words.
    tagger: from words in order to a tag for each: `parts_of_speech`, or what a trained model
      says. One that looks at neighbours sees all words of the text, so give it a sentence.

  Raises:
    ValueError: the tagger gives more or fewer tags than there are words.
  """
  tags = tagger([token.text for token in text.tokens])
  if len(tags) != len(text.tokens):
    raise ValueError(f'tagger: {len(tags)} tags for {len(text.tokens)} words')
  pairs = zip(text.tokens, tags, strict=True)
  return Text(text.raw, tuple(token._replace(tag=one) for token, one in pairs))


def parts_of_speech(words: Sequence[str]) -> list[str]:
  """Returns the tag of each Chinese word in jieba's dictionary: 'n', 'v', 'ns' and so on.

  They are looked up word by word. Numbers in digits are 'm', ASCII words 'eng', and words that are
  not in the dictionary 'x', punctuation marks among them.

  Raises:
    UserError: rjieba is not installed.
  """
  find = jieba().tag

  def look_up(word: str) -> str:
    found = find(word.encode(errors='replace').decode())  # it takes no lone surrogates
    return found[0][1] if len(found) == 1 else 'x'

  return [look_up(word) for word in words]
