"""Texts that repeat others: equal texts, similar texts, and n-grams that two texts share.

Similarity is the Jaccard index of the sets of shingles: the runs of a few characters in a text. No
words are needed, so that Chinese works like English.

  texts = [normalize(text) for text in raw]
  kept = [i for i, repeat in enumerate(find_repeats(texts)) if repeat is None]
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import regex

from lm.config.resolve import import_extra

_PERMUTATIONS = 128  # entries of a MinHash sketch
_RECALL = 0.99  # at least, of a pair whose similarity is the threshold
_PIECE = 2**16  # shingles that are hashed together, which bounds memory
_SEED = 0
_WORD = regex.compile(r'[\p{L}\p{M}\p{N}]+')
# Scripts without spaces between words.
_UNSPACED = regex.compile(
  r'[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*'
)


class Repeat(NamedTuple):
  """An earlier text that a text repeats.

  Attributes:
    of: index of the earlier text.
    similarity: Jaccard index of both; 1.0 also for texts of equal shingles.
    equal: whether the two are equal.
  """

  of: int
  similarity: float
  equal: bool


def find_repeats(
  texts: Sequence[str], near: float | None = 0.8, size: int = 5
) -> Iterator[Repeat | None]:
  """Yields for each text the earlier one that it repeats, or None for a text to keep.

  A text is a repeat if it equals an earlier text, or if its similarity to an earlier text that is
  kept is at least `near`; of several, the first counts. The first of equal or similar texts is thus
  kept, and the result is a function of the texts and their order.

  MinHash sketches in bands find the candidates (Broder 1997, "On the resemblance and containment of
  documents"; Leskovec et al. 2014, "Mining of Massive Datasets", chapter 3). The similarity of each
  is then computed from the shingles. A repeat is thus never wrong, and one of similarity `near` is
  found with a probability of at least 0.99. Equality is that of digests of 128 bits.

  The texts are not held in memory; 1.7 KB of each are. Candidates are read again. Shingles of the
  two texts that are compared take about 120 bytes a character.

  Args:
    texts: by index, in a normal form of the caller's choice.
    near: from above 0 to 1; None for equal texts alone.
    size: characters of a shingle. A shorter text is one shingle.

  Raises:
    UserError: rensa, which makes the sketches, is not installed.
  """
  if near is not None:
    rensa = import_extra('rensa', 'dedup', 'near duplicates need rensa')
    bands, rows = _bands(near)
    similar = rensa.RMinHashLSH(near, bands * rows, bands)
  equal: dict[bytes, int] = {}
  for i in range(len(texts)):
    text = texts[i]
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    repeat = Repeat(equal[digest], 1.0, True) if digest in equal else None
    equal.setdefault(digest, i)
    if near is not None and repeat is None:
      sketch = rensa.RMinHash(bands * rows, _SEED)
      for start in range(0, max(1, len(text) - size + 1), _PIECE):
        sketch.update(_shingles(text, size, start, start + _PIECE))
      repeat = _first_near(text, texts, sorted(set(similar.query(sketch))), near, size)
      if repeat is None:
        similar.insert(i, sketch)
    yield repeat


def _first_near(
  text: str, texts: Sequence[str], candidates: Sequence[int], near: float, size: int
) -> Repeat | None:
  """Returns the first candidate whose similarity to a text is at least `near`."""
  ours = set(_shingles(text, size)) if candidates else set()
  for i in candidates:
    theirs = set(_shingles(texts[i], size))
    shared = len(ours & theirs)
    similarity = shared / (len(ours) + len(theirs) - shared)
    if similarity >= near:
      return Repeat(i, similarity, False)
  return None


def _shingles(text: str, size: int, start: int = 0, stop: int | None = None) -> list[str]:
  """Returns the runs of `size` characters that begin from `start` to `stop`, exclusive."""
  last = max(1, len(text) - size + 1)
  return [text[i : i + size] for i in range(start, last if stop is None else min(stop, last))]


def _bands(near: float) -> tuple[int, int]:
  """Returns the bands and the rows of each: most rows, at a recall of at least `_RECALL`.

  A pair of similarity s agrees in all rows of at least one band with the probability
  1 - (1 - s**rows)**bands. More rows give fewer candidates.
  """
  for rows in range(_PERMUTATIONS, 1, -1):
    bands = _PERMUTATIONS // rows
    if 1 - (1 - near**rows) ** bands >= _RECALL:
      return bands, rows
  return _PERMUTATIONS, 1


# Overlap.


def is_unspaced(text: str) -> bool:
  """Returns whether most letters and digits are of scripts without spaces, such as Chinese."""
  spaced_or_not = sum(map(len, _WORD.findall(text)))
  return 2 * sum(map(len, _UNSPACED.findall(text))) > spaced_or_not


def word_ngrams(text: str, size: int) -> Iterator[str]:
  """Yields each run of `size` words, without punctuation, joined by spaces."""
  words = _WORD.findall(text)
  joined = ' '.join(words)
  ends = list(itertools.accumulate(len(word) + 1 for word in words))
  return (joined[a : b - 1] for a, b in zip([0, *ends], ends[size - 1 :], strict=False))


def character_ngrams(text: str, size: int) -> Iterator[str]:
  """Yields each run of `size` letters and digits, without spaces and punctuation."""
  joined = ''.join(_WORD.findall(text))
  return (joined[i : i + size] for i in range(len(joined) - size + 1))
