"""Interpolated modified Kneser-Ney smoothing of n-grams, counted in one pass over the corpus.

Chen and Goodman 1998, sections 3 and 4.1; the counts of lower orders are those of Kneser and Ney
1995. With c the count of an n-gram, h its context and h' that context without its first token:

  p(w | h) = (c(h w) - D(c(h w))) / c(h *) + backoff(h) p(w | h')
  backoff(h) = sum over w of D(c(h w)) / c(h *)

At the highest order c is the count of occurrences. At lower orders it is the count of different
tokens before the n-gram, except for n-grams at the start of a document, which have none: there it
is the count of occurrences. The order below the first is uniform. A document is END, its tokens
and END, and no n-gram crosses it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from lm.errors import UserError, check_range
from lm.models.ngram import Tables
from lm.nn.losses import token_statistics
from lm.types import Apply, Array, Batch, Objective, Params


def kneser_ney(
  order: int = 5,
  fallback: tuple[float, float, float] | None = None,
  corpus: tuple[np.ndarray, np.ndarray] | None = None,
) -> Objective:
  """Returns the negative log-likelihood; training starts from the tables of the corpus.

  The parameters are those of `lm.models.ngram:Ngram`. No gradient can improve them, so that
  `objective.train_step` must name a step that changes nothing.

  Args:
    order: N, the tokens of the longest n-gram.
    fallback: D(1), D(2) and D(3 and more) of an order whose counts determine none; None for an
      error. Small vocabularies have no token that follows one other token alone, and so need it.
    corpus: passed by `lm.components.pass_corpus`.

  Raises:
    UserError: `fallback` is not three discounts, each above 0 and at most its count.
  """
  if fallback is not None:
    if not isinstance(fallback, tuple | list) or len(fallback) != 3:
      raise UserError(
        f'objective.fallback={fallback!r} must have three discounts, such as (0.5, 1.0, 1.5)'
      )
    for k, discount in enumerate(fallback, 1):
      # A larger one makes probabilities negative; with 0, tokens that were never seen have none.
      check_range(f'objective.fallback={tuple(fallback)}: D({k})', discount, 1e-6, k)

  def initial(abstract: Params) -> Params:
    assert corpus is not None, 'an n-gram model needs a corpus'
    size, vocab_size = len(abstract['token']), len(abstract['unigram'])
    tables = count(*corpus, vocab_size, order, fallback)
    if (nodes := len(tables.token)) > size:
      raise UserError(f'model.size={size}: the corpus has {nodes:,} n-grams; raise it to that')
    fills = {'token': 0, 'first': nodes, 'added': 0, 'backoff': 1, 'unigram': 0}
    return {name: _padded(getattr(tables, name), abstract[name], x) for name, x in fills.items()}

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    output = apply(params, batch)
    nats_BT = token_statistics(output.hidden, output.head, batch['targets']).nats
    return {'loss': jnp.sum(batch['weights'] * nats_BT)}

  return Objective(loss_sums, lambda batch: {'loss': jnp.sum(batch['weights'])}, initial=initial)


def count(
  tokens: np.ndarray,
  ends: np.ndarray,
  vocab_size: int,
  order: int,
  fallback: tuple[float, float, float] | None = None,
) -> Tables:
  """Returns the tables of a corpus, as large as they need to be.

  Args:
    tokens: (tokens,) integers below `vocab_size`, one document after another; each ends with END.
    ends: (documents,) cumulative number of tokens.
    vocab_size: V.
    order: N.
    fallback: see `kneser_ney`.

  Raises:
    UserError: the counts of an order determine no discounts.
  """
  V, lengths = vocab_size, np.diff(ends, prepend=0)
  end = tokens[ends[0] - 1]
  stream = np.insert(tokens.astype(np.int64), ends - lengths, end)
  stops = np.cumsum(lengths + 1)
  room = np.repeat(stops, lengths + 1) - np.arange(len(stream))  # tokens up to the document's end
  opens = np.zeros(len(stream), bool)
  opens[stops - lengths - 1] = True  # END before a document
  nodes, size = stream + 1, 1 + V  # the node of the n-gram at each place, at first of one token
  parents, token, counts = [np.zeros(V, np.int64)], [np.zeros(1, np.int64), np.arange(V)], []
  occurrences, opening = np.zeros(V, np.int64), np.zeros(V, bool)
  for n in range(2, order + 1):
    places = np.flatnonzero(room >= n)
    keys = nodes[places] * V + stream[places + n - 1]
    distinct, one, inverse, new = np.unique(
      keys, return_index=True, return_inverse=True, return_counts=True
    )
    # Each distinct n-gram is one more different token before its last n - 1 tokens.
    shorter = nodes[places[one] + 1] - (size - len(occurrences))
    before = np.bincount(shorter, minlength=len(occurrences))
    counts.append(np.where(opening, occurrences, before))
    occurrences, opening = new, opens[places[one]]
    parents.append(distinct // V)
    token.append(distinct % V)
    nodes = np.full(len(stream), -1)
    nodes[places], size = size + inverse, size + len(distinct)
  counts.append(occurrences)
  taken = [_discounts(c, n, fallback) for n, c in enumerate(counts, 1)]
  added, backoff = [np.zeros(1 + V)], np.ones(size)
  for of_level, c, d in zip(parents[1:], counts[1:], taken[1:], strict=True):
    total = np.bincount(of_level, c, size)
    added.append((c - d) / total[of_level])
    backoff = np.where(total > 0, np.bincount(of_level, d, size) / np.maximum(total, 1), backoff)
  return Tables(
    token=np.concatenate(token),
    first=1 + np.searchsorted(np.concatenate(parents), np.arange(size + 1)),
    added=np.concatenate(added),
    backoff=backoff,
    unigram=(counts[0] - taken[0] + taken[0].sum() / V) / counts[0].sum(),
  )


def _padded(x: np.ndarray, like: Any, fill: float) -> np.ndarray:
  return np.pad(x, (0, len(like) - len(x)), constant_values=fill).astype(like.dtype)


def _discounts(
  counts: np.ndarray, order: int, fallback: tuple[float, float, float] | None
) -> np.ndarray:
  """Returns the discount of each count: D(1), D(2), or D(3 and more); 0 for a count of 0.

  D(k) = k - (k + 1) Y n[k + 1] / n[k], where Y = n[1] / (n[1] + 2 n[2]) and n[k] is the number of
  n-grams with count k (Chen and Goodman 1998, eq. 26).

  Raises:
    UserError: one of n[1] to n[4] is 0 or a discount is negative, and there is no fallback.
  """
  n = [int(np.sum(counts == k)) for k in range(1, 5)]
  y = n[0] / max(n[0] + 2 * n[1], 1)
  exact = [k - (k + 1) * y * n[k] / max(n[k - 1], 1) for k in (1, 2, 3)]
  found = exact if min(n) > 0 and min(exact) >= 0 else fallback
  if found is None:
    raise UserError(
      f'objective.fallback=None: {n} n-grams of order {order} have counts 1 to 4, which determine '
      'no discounts; give some, such as (0.5, 1.0, 1.5), or take more text'
    )
  return np.array([0, *found])[np.minimum(counts, 3)]
