"""Sentences, by punctuation marks."""

from collections.abc import Iterator

import regex

from lm.text.tokens import Text, split

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


def sentences(text: Text) -> Text:
  """Returns the text with each token split into sentences; see `spans`."""
  return split(text, spans)


def spans(raw: str) -> Iterator[tuple[int, int]]:
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
