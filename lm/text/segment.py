"""Preprocessing of a text: tokens with their character offsets in the raw text.

Steps are functions from Text to Text: some split the tokens, others rewrite, remove or tag them.

  text = split_words(as_single_token('The CAFÉ opened.'))
  text = remove_stop_words(normalize_tokens(text), stop_words(['en']))
  [(token.text, token.start, token.end) for token in text.tokens]

Splitting comes first, so that offsets are found in the raw text itself. A normal form may be
longer, shorter or in another order, and offsets could not be traced back through it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

import regex

from lm.config.resolve import import_extra
from lm.errors import UserError
from lm.text.normalize import Case, Form, check_options, normalize, simplify_chinese, stop_word_key

Tagger = Callable[[Sequence[str]], Sequence[str]]


class Token(NamedTuple):
  """A span of a raw text.

  Attributes:
    text: `raw[start:end]`, until a step rewrites it.
    start: its first character in the raw text.
    end: the index after its last character.
    tag: such as its part of speech.
  """

  text: str
  start: int
  end: int
  tag: str = ''


class Text(NamedTuple):
  """A raw text and its tokens, in order and without overlaps."""

  raw: str
  tokens: tuple[Token, ...]


def as_single_token(raw: str) -> Text:
  """Returns a text as one token, or without tokens if it is empty."""
  return Text(raw, (Token(raw, 0, len(raw)),) if raw else ())


def split(text: Text, spans: Callable[[str], Iterable[tuple[int, int]]]) -> Text:
  """Returns the text with each token replaced by its parts.

  Args:
    text: a text whose tokens no step has rewritten.
    spans: from a string to the (start, end) of its parts, in order.

  Raises:
    UserError: a step has rewritten a token.
  """
  tokens: list[Token] = []
  for token in text.tokens:
    part = text.raw[token.start : token.end]
    if token.text != part:
      raise UserError(
        f'the token at {token.start}:{token.end} is {token.text!r:.40}, rewritten from '
        f'{part!r:.40}; split a text before it is normalized'
      )
    tokens += [Token(part[a:b], token.start + a, token.start + b) for a, b in spans(part)]
  return Text(text.raw, tuple(tokens))


def normalize_tokens(
  text: Text, form: Form = 'NFKC', case: Case = 'fold', simplify: bool = False
) -> Text:
  """Returns the text with each token in its normal form (`normalize`) and its old offsets."""
  check_options(form, case)
  options = (form, case, simplify)
  return Text(text.raw, tuple(t._replace(text=normalize(t.text, *options)) for t in text.tokens))


def remove_stop_words(text: Text, words: Set[str]) -> Text:
  """Returns the text without its stop words; `words` are those of `normalize.stop_words`."""
  return Text(text.raw, tuple(t for t in text.tokens if stop_word_key(t.text) not in words))


def tag_words(text: Text, tagger: Tagger) -> Text:
  """Returns the text with each token tagged.

  Args:
    text: its tokens are words.
    tagger: maps a list of words to a tag for each, such as `parts_of_speech` or a trained model. A
      model may use all words as context, so pass a single sentence.

  Raises:
    ValueError: the tagger returns more or fewer tags than words.
  """
  tags = tagger([token.text for token in text.tokens])
  if len(tags) != len(text.tokens):
    raise ValueError(f'tagger: {len(tags)} tags for {len(text.tokens)} words')
  pairs = zip(text.tokens, tags, strict=True)
  return Text(text.raw, tuple(token._replace(tag=tag) for token, tag in pairs))


def parts_of_speech(words: Sequence[str]) -> list[str]:
  """Returns the tag of each Chinese word in jieba's dictionary: 'n', 'v', 'ns' and so on.

  The lookup is word by word. Numbers in digits are 'm', ASCII words 'eng'. Words outside the
  dictionary are 'x', punctuation marks included.

  Raises:
    UserError: rjieba is not installed.
  """
  jieba = _jieba()

  def look_up(word: str) -> str:
    tagged = jieba.tag(word.encode(errors='replace').decode())  # it rejects lone surrogates
    return tagged[0][1] if len(tagged) == 1 else 'x'

  return [look_up(word) for word in words]


# Words.

_ATTACHED = r'[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]'
# Runs of ideographs are limited to a thousand, which bounds jieba's memory. \b is the boundary of
# UAX #29. A flag is two regional indicators (RI). At each RI, \b counts those before it in the run,
# which takes quadratic time in a long run. The third alternative avoids this: it matches each flag
# that another RI follows.
_WORD = regex.compile(
  rf"""(?wsx)
    (?P<gap> [\s\p{{Cc}}\p{{Cf}}]++ )
  | (?P<han> (?: \p{{Han}} {_ATTACHED}*+ ){{1,1000}}+ )
  | (?: \p{{RI}} {_ATTACHED}*+ ){{2}} (?= \p{{RI}} )
  | .+? \b
  """
)
_ATTACHES = regex.compile(_ATTACHED)


def split_words(text: Text, simplify: bool = False) -> Text:
  """Returns the text with each token split into words; see `word_spans`."""
  return split(text, lambda part: word_spans(part, simplify))


def word_spans(raw: str, simplify: bool = False) -> Iterator[tuple[int, int]]:
  """Yields the (start, end) of each word.

  jieba segments runs of Han characters: the most probable path through its dictionary, and a hidden
  Markov model for unknown words. All else follows the default word boundaries of UAX #29: "can't",
  '3,000.5' and a family of emoji are one word, and punctuation marks are words. White space,
  control characters and format characters separate words.

  Limits: other scripts without spaces have no dictionary. Japanese kanji are segmented as Chinese;
  hiragana, Thai, Lao, Khmer and Burmese are split into single characters with their marks.

  Args:
    raw: any string. A lone surrogate is a word.
    simplify: whether jieba, whose dictionary is simplified Chinese, receives the text converted to
      simplified characters; for traditional text.

  Raises:
    UserError: a required library is not installed.
  """
  for match in _WORD.finditer(raw):
    if match.lastgroup == 'han':
      yield from _chinese_words(match[0], match.start(), simplify)
    elif match.lastgroup != 'gap':
      yield match.span()


def _chinese_words(run: str, first: int, simplify: bool) -> Iterator[tuple[int, int]]:
  """Yields the spans of the words of a run of ideographs that starts at `first`."""
  cut = _jieba().tokenize(simplify_chinese(run) if simplify else run)
  # A variation selector belongs to the previous character.
  starts = [start for _, start, _ in cut if not _ATTACHES.match(run, start)]
  for start, end in zip(starts, [*starts[1:], len(run)], strict=True):
    yield first + start, first + end


def _jieba() -> Any:
  return import_extra('rjieba', 'zh', 'words of Chinese need rjieba')


# Sentences.

_MARK = r'[\p{SB=STerm}\p{SB=ATerm}…]'
# Closing quotation marks and brackets. The “ of „so“ closes if white space or the end of the text
# follows it. A French » may have a no-break space before it.
_CLOSES = r'(?: [\p{SB=Close}--\p{Ps}--\p{Pi}] | [\xa0\u202f]\p{Pf} | \p{Pi}(?=\s|\Z) )'
_END = regex.compile(
  rf"""(?V1x)
    (?P<mark> {_MARK}++ ) {_CLOSES}*+
  | (?P<blank> \n [^\S\n]*+ \n | \u2029 )
  """
)
_NEXT = regex.compile(r'(?s)(?P<space>\s*+)(?P<quote>\p{SB=Close}*+)(?P<first>.?)')
_CONTINUES = regex.compile(rf'\p{{SB=SContinue}}|{_MARK}')
_FULL_STOP = regex.compile(r'\p{SB=ATerm}')
_UNCASED = regex.compile(r'\p{SB=OLetter}')
# The word before a full stop is read from this many characters; abbreviations are shorter.
_LOOKBEHIND = 24
_WORD_BEFORE = regex.compile(r"[\p{L}\p{M}\p{N}.'\u2019]*\Z")
_INITIALS = regex.compile(r'(?:[\p{Lu}\p{Ll}]\p{M}*\.)*[\p{Lu}\p{Ll}]\p{M}*')
# Abbreviations, English and some German. _TITLES never end a sentence; _NUMBERED do not end one if
# a number follows.
_TITLES = regex.compile(
  'al|bzw|ca|capt|cf|col|dr|gen|gov|hon|lt|messrs|mr|mrs|ms|prof|rep|rev|sen|sgt|st|viz|vs',
  regex.IGNORECASE,
)
_NUMBERED = regex.compile(
  'art|ch|eq|figs?|nos?|nr|p|pp|sec|vol|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec',
  regex.IGNORECASE,
)


def split_sentences(text: Text) -> Text:
  """Returns the text with each token split into sentences; see `sentence_spans`."""
  return split(text, sentence_spans)


def sentence_spans(raw: str) -> Iterator[tuple[int, int]]:
  """Yields the (start, end) of each sentence, without surrounding white space.

  A sentence ends at a blank line, and after 。！？ and similar marks of any script. After .!?… it
  ends before white space, unless a lower-case letter follows. Between characters without case, .!?…
  end it without white space too, as in Chinese with ASCII punctuation. Closing quotation marks and
  brackets belong to the sentence; a comma or dash after them continues it. A full stop does not end
  it after an initial, a title (Dr.), an abbreviation before its number (No. 5), or the count of an
  item at the start of a sentence.

  Limits: an abbreviation such as "U.S." never ends a sentence; the abbreviation "etc." always ends
  one before a capital letter. Names such as Yahoo! are unknown, and a straight quotation mark
  always closes. Single line ends have no effect.
  """
  first = 0
  for end in _END.finditer(raw):
    if end['blank'] or _ends(raw, first, end):
      yield from _stripped(raw, first, end.end())
      first = end.end()
  yield from _stripped(raw, first, len(raw))


def _ends(raw: str, first: int, end: regex.Match) -> bool:
  """Returns whether a sentence that starts at `first` ends at a mark."""
  after = _NEXT.match(raw, end.end())
  follows, mark = after['first'], end['mark']
  if not follows:
    return True
  if not after['quote'] and _CONTINUES.match(follows):
    return False
  is_stop = _FULL_STOP.match(mark, len(mark) - 1) is not None
  if not is_stop and mark[-1] not in '!?…':
    return True
  if not after['space']:
    before = raw[max(end.start() - 1, 0) : end.start()]
    return bool(_UNCASED.match(follows) and (not is_stop or _UNCASED.match(before)))
  is_abbreviated = is_stop and len(mark) == 1 and _is_abbreviated(raw, first, end.start(), follows)
  return not (follows.islower() or is_abbreviated)


def _is_abbreviated(raw: str, first: int, stop: int, follows: str) -> bool:
  """Returns whether the full stop at `stop` belongs to the word before it."""
  word = _WORD_BEFORE.search(raw[max(first, stop - _LOOKBEHIND) : stop])[0]
  if word.isdecimal():
    return raw[first:stop].strip() == word
  is_numbered = _NUMBERED.fullmatch(word) and follows.isdecimal()
  return bool(_INITIALS.fullmatch(word) or _TITLES.fullmatch(word) or is_numbered)


def _stripped(raw: str, start: int, end: int) -> Iterator[tuple[int, int]]:
  part = raw[start:end].rstrip()
  kept = part.lstrip()
  if kept:
    yield start + len(part) - len(kept), start + len(part)
