"""Where words and sentences begin among the tokens of a text, for `data.words`."""

from collections.abc import Iterable, Sequence

import numpy as np

from lm.text.segment import sentence_spans, word_spans

WORD, SENTENCE = 1, 2


def word_marks(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
  """Returns the marks (N,) of tokens with the words and sentences of lm.text.segment.

  Chinese words need rjieba (extra `zh`).

  Args:
    text: the text.
    offsets: the (start, end) of the characters of each of the N tokens.

  Raises:
    UserError: a required library is not installed.
  """
  return marks(offsets, word_spans(text), sentence_spans(text))


def marks(
  offsets: Sequence[tuple[int, int]],
  words: Iterable[tuple[int, int]],
  sentences: Iterable[tuple[int, int]] = (),
) -> np.ndarray:
  """Returns for each token 0 inside a word, WORD where one begins, SENTENCE at its first word.

  Tokens that share a word are one word, also where a token covers parts of several. Tokens outside
  of all words, such as line ends, are words of their own.

  Args:
    offsets: the (start, end) of the characters of each of the N tokens.
    words: the (start, end) of each word, in order.
    sentences: the same of sentences.
  """
  starts_N, ends_N = np.array([*offsets], np.int64).reshape(-1, 2).T
  found_W = np.array([*words], np.int64).reshape(-1, 2)
  first_N = np.searchsorted(found_W[:, 1], starts_N, 'right')  # the words that a token overlaps
  last_N = np.searchsorted(found_W[:, 0], ends_N, 'left') - 1
  shared_N = (first_N[1:] <= last_N[:-1]) & (first_N[1:] <= last_N[1:])
  # The bytes of a character are tokens with equal offsets.
  shared_N |= (starts_N[1:] == starts_N[:-1]) & (ends_N[1:] == ends_N[:-1])
  begins_N = np.append(True, ~shared_N)[: len(starts_N)]
  marks_N = np.where(begins_N, WORD, 0).astype(np.uint8)
  firsts = np.array([start for start, _ in sentences], np.int64)
  places = np.searchsorted(ends_N, firsts, 'right')
  places = places[places < len(marks_N)]
  marks_N[places[begins_N[places]]] = SENTENCE
  return marks_N
