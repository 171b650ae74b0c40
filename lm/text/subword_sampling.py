"""Subword sampling: another segmentation of the same words each time.

A word is what the pre-tokenizer makes of a text, written in the characters that stand for bytes;
its pieces always join to the word. The dropout of the `tokenizers` library cannot be seeded, so the
draws are made here, from a generator that is given.
"""

import bisect
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from lm.errors import UserError
from lm.text.tokenizers import special_ids

Pieces = tuple[int, ...]  # ids of tokens
Sample = Callable[[Sequence[str], np.random.Generator], list[Pieces]]

_WORDS = 2**14  # remembered, the latest ones
_LONG = 32  # bytes; longer words hardly come again, and would take much memory
_NEVER = sys.maxsize  # the rank of a pair that does not merge; a gap without end


def bpe_dropout(tokenizer: tokenizers.Tokenizer, rate: float) -> Sample:
  """Returns the function that draws the pieces of words by BPE-dropout (Provilkov et al. 2020).

  At each step of the merging every possible merge is left out with a probability, and the first of
  the others in the order of the vocabulary is made; where none is left, the word is done. Equal
  merges at several places are possible merges of their own, the leftmost first.

  Args:
    tokenizer: byte-level BPE.
    rate: the probability; 0 gives the tokenizer's own pieces, 1 single bytes.

  Raises:
    UserError: the tokenizer is of another kind.
  """
  model = _byte_level(tokenizer, 'BPE', 'bpe')
  vocab = model['vocab']
  merges = [(vocab[a], vocab[b], vocab[a + b]) for a, b in model['merges']]
  ranks = {(a, b): rank for rank, (a, b, _) in enumerate(merges)}
  merged = [both for _, _, both in merges]
  usual = standard(tokenizer)

  def sample(words: Sequence[str], rng: np.random.Generator) -> list[Pieces]:
    # How many merges are made before the next one is left out.
    gaps = (
      _endless(lambda count: rng.geometric(rate, count) - 1) if rate else itertools.repeat(_NEVER)
    )
    gap = next(gaps)
    found = []
    for word in words:
      pieces = usual(word)
      made = len(word) - len(pieces)  # merges on the way to the usual pieces
      if made <= gap:  # none of them is left out, which is most often so
        gap -= made
      else:
        pieces, gap = _merge([vocab[c] for c in word], ranks, merged, gap, gaps)
      found.append(pieces)
    return found

  return sample


def unigram_sampling(tokenizer: tokenizers.Tokenizer, alpha: float) -> Sample:
  """Returns the function that draws the pieces of words from a unigram model (Kudo 2018).

  Among all segmentations of a word one is drawn in proportion to its probability to the power of
  `alpha`, by sums forward over the word and draws backward.

  Args:
    tokenizer: byte-level unigram model.
    alpha: 0 makes all segmentations equally likely; large values leave the likeliest.

  Raises:
    UserError: the tokenizer is of another kind.
  """
  model = _byte_level(tokenizer, 'Unigram', 'unigram')
  special = special_ids(tokenizer)
  scores = {
    piece: (i, alpha * score) for i, (piece, score) in enumerate(model['vocab']) if i not in special
  }
  longest = max(map(len, scores))

  def lattice(word: str) -> list[_Ways]:
    forward, ways = [0.0], [_Ways((), (), ())]
    for end in range(1, len(word) + 1):
      starts = range(max(0, end - longest), end)
      there = [(s, *scores[word[s:end]]) for s in starts if word[s:end] in scores]
      logs = [forward[start] + score for start, _, score in there]
      most = max(logs)
      sums = [*itertools.accumulate(math.exp(log - most) for log in logs)]
      forward.append(most + math.log(sums[-1]))
      shares = (*(value / sums[-1] for value in sums[:-1]), 1.0)
      ways.append(_Ways(tuple(t[0] for t in there), tuple(t[1] for t in there), shares))
    return ways

  remembered = functools.lru_cache(_WORDS)(lattice)

  def draw(ways: list[_Ways], uniform: Iterator[float]) -> Pieces:
    pieces = []
    end = len(ways) - 1
    while end:
      starts, ids, shares = ways[end]
      one = bisect.bisect(shares, next(uniform))
      pieces.append(ids[one])
      end = starts[one]
    return tuple(reversed(pieces))

  def sample(words: Sequence[str], rng: np.random.Generator) -> list[Pieces]:
    uniform = _endless(rng.random)
    found = (remembered(word) if len(word) <= _LONG else lattice(word) for word in words)
    return [draw(ways, uniform) for ways in found]

  return sample


def standard(tokenizer: tokenizers.Tokenizer) -> Callable[[str], Pieces]:
  """Returns the function from a word to the pieces that the tokenizer itself makes of it."""
  model = tokenizer.model

  @functools.lru_cache(_WORDS)
  def pieces(word: str) -> Pieces:
    return tuple(token.id for token in model.tokenize(word))

  return pieces


def splitter(tokenizer: tokenizers.Tokenizer) -> Callable[[Sequence[int]], list[str | Pieces]]:
  """Returns the function from tokens to the words that they are of; needs a byte-level tokenizer.

  Special tokens come back as they are, and so does a stretch of tokens that is no text, because it
  was cut off inside a character.
  """
  special = special_ids(tokenizer)
  names = {i: token for token, i in tokenizer.get_vocab().items()}
  decoder, pre_tokenizer = decoders.ByteLevel(), tokenizer.pre_tokenizer

  def split(ids: Sequence[int]) -> list[str | Pieces]:
    found: list[str | Pieces] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
      stretch = tuple(group)
      tokens = [names[i] for i in stretch]
      words: list[str] = []
      if not is_special:
        words = [w for w, _ in pre_tokenizer.pre_tokenize_str(decoder.decode(tokens))]
      found += words if ''.join(words) == ''.join(tokens) else [stretch]
    return found

  return split


def _merge(
  pieces: list[int],
  ranks: dict[tuple[int, int], int],
  merged: Sequence[int],
  gap: int,
  gaps: Iterator[int],
) -> tuple[Pieces, int]:
  """Returns what is left of single bytes after merging, and the gap that is left."""
  order = [ranks.get(pair, _NEVER) for pair in itertools.pairwise(pieces)]
  left_out: list[tuple[int, int]] = []
  while (best := min(order, default=_NEVER)) != _NEVER:
    at = order.index(best)
    if gap == 0:
      gap = next(gaps)
      left_out.append((at, best))
      order[at] = _NEVER
      continue
    gap -= 1
    for place, rank in left_out:
      order[place] = rank
    left_out.clear()
    pieces[at : at + 2] = [merged[best]]
    del order[at]
    for place in range(max(at - 1, 0), min(at + 1, len(order))):
      order[place] = ranks.get((pieces[place], pieces[place + 1]), _NEVER)
  return tuple(pieces), gap


class _Ways(NamedTuple):
  """The pieces that may come last before a place in a word.

  Attributes:
    starts: where each begins.
    ids: their tokens.
    shares: cumulative probabilities, the last of them 1.
  """

  starts: tuple[int, ...]
  ids: tuple[int, ...]
  shares: tuple[float, ...]


def _byte_level(tokenizer: tokenizers.Tokenizer, kind: str, builder: str) -> dict[str, Any]:
  """Returns the model of a byte-level tokenizer, as tokenizer.json has it."""
  file = json.loads(tokenizer.to_str())
  model, pre = file['model'], file['pre_tokenizer'] or {'type': None}
  steps = pre['pretokenizers'] if pre['type'] == 'Sequence' else [pre]
  by_bytes = any(s['type'] == 'ByteLevel' and not s['add_prefix_space'] for s in steps)
  complete = set(pre_tokenizers.ByteLevel.alphabet()) <= tokenizer.get_vocab().keys()
  affixes = model.get('continuing_subword_prefix') or model.get('end_of_word_suffix')
  choices = model['type'] == kind and model.get('merges', True)
  if not (by_bytes and complete and choices) or affixes:
    raise UserError(
      f'data.transforms: this sampling needs a byte-level {kind} tokenizer such as '
      f'lm.text.tokenizers:{builder}, with merges or pieces and without add_prefix_space; '
      f'data.tokenizer is {model["type"]}'
    )
  return model


def _endless(draw: Callable[[int], np.ndarray]) -> Iterator[Any]:
  while True:
    yield from draw(256).tolist()
