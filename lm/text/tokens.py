"""A text on its way through preprocessing: tokens that know their place in the raw text.

Steps are pure functions from Text to Text. lm.text.sentences and lm.text.segment split its tokens,
lm.text.normal rewrites them, lm.text.stop_words leaves some out and lm.text.tags tags them:

  text = segment.words(whole('The CAFÉ opened.'))
  text = stop_words.drop(normal.normalise(text), stop_words.of(['en']))
  [(token.text, token.start, token.end) for token in text.tokens]

Splitting comes first. So a token's place is found in the raw text itself, and never has to be
traced back through normal forms, which may be longer, shorter and in another order.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lm.errors import UserError


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


def whole(raw: str) -> Text:
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
