"""Subword regularization: another segmentation of the same words at each call.

A word is a pre-token in byte-level characters; its pieces always join to the word. The dropout of
the `tokenizers` library cannot be seeded, so the sampling here uses a given random generator.
"""

import bisect
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers

from lm.errors import UserError
from lm.text.tokenizers import special_ids

Pieces = tuple[int, ...]  # ids of tokens
Sample = Callable[[Sequence[str], np.random.Generator], list[Pieces]]
# The pieces that can end a prefix of a word, as three tuples: the start of each piece, its token,
# and the cumulative probabilities of the pieces, which end with 1.
_LastPieces = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]

_CACHE_SIZE = 2**14  # words
_LONGEST_CACHED = 32  # bytes; longer words rarely repeat, and would take much memory
_NEVER = 2**63 - 1  # the rank of a pair that never merges; the gap if no merge is ever dropped


def bpe_dropout(tokenizer: tokenizers.Tokenizer, rate: float) -> Sample:
  """Returns the sampler of BPE-dropout (Provilkov et al. 2020).

  At each step, every possible merge is dropped with a probability, and the first remaining merge in
  the order of the vocabulary is applied. The word is complete when no merge remains. Equal merges
  at several positions are dropped independently, and the leftmost is applied first.

  Args:
    tokenizer: byte-level BPE.
    rate: the dropout probability; 0 gives the tokenizer's own pieces, 1 single bytes.

  Raises:
    UserError: the tokenizer has another type.
  """
  model = _byte_level(tokenizer, 'BPE', 'bpe')
  vocab = model['vocab']
  ranks = {(vocab[a], vocab[b]): rank for rank, (a, b) in enumerate(model['merges'])}
  merged = [vocab[a + b] for a, b in model['merges']]
  usual = default_pieces(tokenizer)

  def sample(words: Sequence[str], rng: np.random.Generator) -> list[Pieces]:
    # Each gap is the count of merges to apply before the next dropped one.
    gaps = (
      _endless(lambda count: rng.geometric(rate, count) - 1) if rate else itertools.repeat(_NEVER)
    )
    gap = next(gaps)
    sampled = []
    for word in words:
      pieces = usual(word)
      merge_count = len(word) - len(pieces)  # merges from bytes to the usual pieces
      if merge_count <= gap:  # none of them is dropped: the most frequent case
        gap -= merge_count
      else:
        pieces, gap = _merge([vocab[c] for c in word], ranks, merged, gap, gaps)
      sampled.append(pieces)
    return sampled

  return sample


def unigram_sampling(tokenizer: tokenizers.Tokenizer, alpha: float) -> Sample:
  """Returns the sampler of subword regularization with a unigram model (Kudo 2018).

  The probability of a segmentation is proportional to its model probability to the power of
  `alpha`. Forward filtering over the word and backward sampling are exact.

  Args:
    tokenizer: byte-level unigram model.
    alpha: 0 makes all segmentations equally likely; large values select the most probable one.

  Raises:
    UserError: the tokenizer has another type.
  """
  model = _byte_level(tokenizer, 'Unigram', 'unigram')
  special = special_ids(tokenizer)
  scores = {
    piece: (i, alpha * score) for i, (piece, score) in enumerate(model['vocab']) if i not in special
  }
  longest = max(map(len, scores))

  def lattice(word: str) -> list[_LastPieces]:
    forward: list[float] = [0.0]
    ways: list[_LastPieces] = [((), (), ())]
    for end in range(1, len(word) + 1):
      starts = range(max(0, end - longest), end)
      last = [(s, *scores[word[s:end]]) for s in starts if word[s:end] in scores]
      logs = [forward[start] + score for start, _, score in last]
      largest = max(logs)
      sums = [*itertools.accumulate(math.exp(log - largest) for log in logs)]
      forward.append(largest + math.log(sums[-1]))
      cumulative = (*(value / sums[-1] for value in sums[:-1]), 1.0)
      ways.append((tuple(t[0] for t in last), tuple(t[1] for t in last), cumulative))
    return ways

  cached = functools.lru_cache(_CACHE_SIZE)(lattice)

  def sample_word(ways: list[_LastPieces], uniform: Iterator[float]) -> Pieces:
    pieces = []
    end = len(ways) - 1
    while end:
      starts, ids, cumulative = ways[end]
      i = bisect.bisect(cumulative, next(uniform))
      pieces.append(ids[i])
      end = starts[i]
    return tuple(reversed(pieces))

  def sample(words: Sequence[str], rng: np.random.Generator) -> list[Pieces]:
    uniform = _endless(rng.random)
    lattices = (cached(word) if len(word) <= _LONGEST_CACHED else lattice(word) for word in words)
    return [sample_word(ways, uniform) for ways in lattices]

  return sample


def default_pieces(tokenizer: tokenizers.Tokenizer) -> Callable[[str], Pieces]:
  """Returns the function from a word to the tokenizer's own segmentation of it."""
  model = tokenizer.model

  @functools.lru_cache(_CACHE_SIZE)
  def pieces(word: str) -> Pieces:
    return tuple(token.id for token in model.tokenize(word))

  return pieces


def word_splitter(tokenizer: tokenizers.Tokenizer) -> Callable[[Sequence[int]], list[str | Pieces]]:
  """Returns the function from tokens of a byte-level tokenizer to words.

  Special tokens stay tokens, and so does a run of tokens that is truncated within a character.
  """
  special = special_ids(tokenizer)
  names = {i: token for token, i in tokenizer.get_vocab().items()}
  decoder, pre_tokenizer = decoders.ByteLevel(), tokenizer.pre_tokenizer

  def split(ids: Sequence[int]) -> list[str | Pieces]:
    words: list[str | Pieces] = []
    for is_special, group in itertools.groupby(ids, special.__contains__):
      run = tuple(group)
      tokens = [names[i] for i in run]
      pre_tokens: list[str] = []
      if not is_special:
        pre_tokens = [w for w, _ in pre_tokenizer.pre_tokenize_str(decoder.decode(tokens))]
      words += pre_tokens if ''.join(pre_tokens) == ''.join(tokens) else [run]
    return words

  return split


def _merge(
  pieces: list[int],
  ranks: dict[tuple[int, int], int],
  merged: Sequence[int],
  gap: int,
  gaps: Iterator[int],
) -> tuple[Pieces, int]:
  """Returns the pieces after merging with dropout, and the remaining gap.

  Args:
    pieces: the single bytes of a word; modified.
    ranks: the rank of each pair that merges.
    merged: the id of the merged pair, by rank.
    gap: the count of merges before the next dropped one.
    gaps: the following gaps.
  """
  order = [ranks.get(pair, _NEVER) for pair in itertools.pairwise(pieces)]
  dropped: list[tuple[int, int]] = []
  while (best := min(order, default=_NEVER)) != _NEVER:
    at = order.index(best)
    if gap == 0:
      gap = next(gaps)
      dropped.append((at, best))
      order[at] = _NEVER
      continue
    gap -= 1
    for place, rank in dropped:
      order[place] = rank
    dropped.clear()
    pieces[at : at + 2] = [merged[best]]
    del order[at]
    for place in range(max(at - 1, 0), min(at + 1, len(order))):
      order[place] = ranks.get((pieces[place], pieces[place + 1]), _NEVER)
  return tuple(pieces), gap


def _byte_level(tokenizer: tokenizers.Tokenizer, kind: str, builder: str) -> dict[str, Any]:
  """Returns the model of a byte-level tokenizer, as in tokenizer.json."""
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
      f'lm.text.tokenizers:{builder}, without add_prefix_space; a BPE model must have merges. '
      f'data.tokenizer is {model["type"]}'
    )
  return model


def _endless(sample: Callable[[int], np.ndarray]) -> Iterator[Any]:
  """Yields random values forever, sampled 256 at a time."""
  while True:
    yield from sample(256).tolist()
