"""Word2vec: skip-gram and CBOW, with negative sampling or hierarchical softmax.

Both output losses avoid the full softmax, whose cost grows with the vocabulary.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.nn.embedding import compact_ids
from lm.nn.losses import sigmoid_cross_entropy
from lm.nn.windows import window_extents, window_sum
from lm.types import Apply, Array, Batch, Objective, Params


class OutputLoss(NamedTuple):
  """The loss of predicting words from vectors.

  Attributes:
    sample: `(batch, key) -> arrays` that the batch needs in addition to `centers` (B, T).
    ids: names of the arrays of a batch that hold row ids of the output table.
    all_pairs: `(hidden_BSD, table_VD, batch, weights_BTS) -> loss`, the weighted sum over all
      predictions of word t from vector s.
    paired: `(hidden_BTD, table_VD, batch, weights_BT) -> loss`, of word t from vector t.
  """

  sample: Callable[[Batch, Array], dict[str, Array]]
  ids: tuple[str, ...]
  all_pairs: Callable[[Array, Array, Batch, Array], Array]
  paired: Callable[[Array, Array, Batch, Array], Array]


def negative_sampling(
  counts: np.ndarray,
  negatives: int = 5,
  num_sampled: int = 4,
  rows_per_sample: int = 16,
  power: float = 0.75,
  loss: Callable[[Array, Array], Array] = sigmoid_cross_entropy,
) -> OutputLoss:
  """Returns negative sampling (Mikolov et al. 2013, arXiv:1310.4546, eq. 4).

  Several rows share their negative samples, so that the scores are a matmul. The samples are
  weighted to count as `negatives` of them per word. Unlike in the authors' programs, a sample that
  equals the word itself is not left out.

  Args:
    counts: (V,) how often each token occurs.
    negatives: total weight of the negative samples of a word.
    num_sampled: samples per row. With fewer than one per 32 tokens, gradients that are summed over
      the batch, as in word2vec, start to oscillate.
    rows_per_sample: at least this many rows share their samples, or all rows of a smaller batch.
    power: words are sampled in proportion to their counts to this power.
    loss: `(scores, labels) -> losses`, of lm.nn.losses: `sigmoid_cross_entropy` or
      `squared_sigmoid`.

  Raises:
    UserError: an argument is out of its range.
  """
  for key, value in (
    ('negatives', negatives),
    ('num_sampled', num_sampled),
    ('rows_per_sample', rows_per_sample),
  ):
    if value < 1:
      raise UserError(f'objective.output: {key}={value} is not a positive number of words')
  mass_V = np.where(counts > 0, counts.astype(np.float64) ** power, 0)
  # As 32-bit integers: in float32 the shares of rare words would be lost in a sum near 1.
  cumulative_V = np.minimum(np.cumsum(mass_V) / max(mass_V.sum(), 1e-300) * 2**32, 2**32 - 1)
  cumulative_V = cumulative_V.astype(np.uint32)

  def sample(batch: Batch, key: Array) -> dict[str, Array]:
    rows = batch['centers'].shape[0]
    groups = max(n for n in range(1, max(1, rows // rows_per_sample) + 1) if rows % n == 0)
    bits_GN = jax.random.bits(key, (groups, num_sampled * rows // groups))
    places = jnp.searchsorted(cumulative_V, bits_GN, side='right')
    return {'negatives': jnp.minimum(places, len(cumulative_V) - 1).astype(jnp.int32)}

  def found(table_VD: Array, batch: Batch) -> tuple[Array, Array]:
    """Returns the vectors of the words that are there, (B, T, D), and of those drawn, (G, N, D)."""
    centers_BT = batch['centers']
    # Read together, so that their gradients are put together too.
    ids = jnp.concatenate([centers_BT.ravel(), batch['negatives'].ravel()])
    vectors = jnp.take(table_VD, ids, axis=0, mode='clip')
    there, drawn = vectors[: centers_BT.size], vectors[centers_BT.size :]
    return there.reshape(*centers_BT.shape, -1), drawn.reshape(*batch['negatives'].shape, -1)

  def against(hidden_BTD: Array, drawn_GND: Array, weights_BT: Array) -> Array:
    G, N, D = drawn_GND.shape
    # The many words of a group last: XLA works along the last axis on CPUs.
    scores_GNW = jnp.einsum('gnd,gwd->gnw', drawn_GND, hidden_BTD.reshape(G, -1, D))
    weights_G1W = weights_BT.reshape(G, 1, -1)
    of_word_GW = jnp.sum(loss(scores_GNW, jnp.zeros(())) * weights_G1W, axis=1)
    return negatives / N * jnp.sum(of_word_GW)

  def all_pairs(hidden_BSD: Array, table_VD: Array, batch: Batch, weights_BTS: Array) -> Array:
    found_BTD, drawn_GND = found(table_VD, batch)
    scores_BTS = jnp.einsum('btd,bsd->bts', found_BTD, hidden_BSD)
    there = jnp.sum(loss(scores_BTS, jnp.ones(())) * weights_BTS)
    return there + against(hidden_BSD, drawn_GND, jnp.sum(weights_BTS, axis=1))

  def paired(hidden_BTD: Array, table_VD: Array, batch: Batch, weights_BT: Array) -> Array:
    found_BTD, drawn_GND = found(table_VD, batch)
    scores_BT = jnp.sum(found_BTD * hidden_BTD, axis=-1)
    there = jnp.sum(loss(scores_BT, jnp.ones(())) * weights_BT)
    return there + against(hidden_BTD, drawn_GND, weights_BT)

  return OutputLoss(sample, ('centers', 'negatives'), all_pairs, paired)


def hierarchical_softmax(
  counts: np.ndarray, loss: Callable[[Array, Array], Array] = sigmoid_cross_entropy
) -> OutputLoss:
  """Returns the loss of a word's path down the Huffman tree (Morin and Bengio 2005).

  With the sigmoid loss a word's probability is the product of those of its branches, and over all
  words they sum to 1. The output table has the vectors of the V - 1 inner nodes.

  Args:
    counts: (V,) how often each token occurs.
    loss: as in `negative_sampling`.
  """
  nodes_VL, turns_VL, lengths_V = huffman(counts)

  def sample(batch: Batch, key: Array) -> dict[str, Array]:
    del key
    centers_BT = batch['centers']
    along_11L = jnp.arange(nodes_VL.shape[1])[None, None]
    return {
      'nodes': jnp.take(nodes_VL, centers_BT, axis=0),
      'turns': jnp.take(turns_VL, centers_BT, axis=0),
      'on_path': (along_11L < jnp.take(lengths_V, centers_BT)[..., None]).astype(jnp.float32),
    }

  def all_pairs(hidden_BSD: Array, table_VD: Array, batch: Batch, weights_BTS: Array) -> Array:
    nodes_BTLD = jnp.take(table_VD, batch['nodes'], axis=0, mode='clip')
    scores_BTLS = jnp.einsum('btld,bsd->btls', nodes_BTLD, hidden_BSD)
    losses_BTLS = loss(scores_BTLS, batch['turns'][..., None])
    return jnp.sum(losses_BTLS * batch['on_path'][..., None] * weights_BTS[:, :, None])

  def paired(hidden_BTD: Array, table_VD: Array, batch: Batch, weights_BT: Array) -> Array:
    nodes_BTLD = jnp.take(table_VD, batch['nodes'], axis=0, mode='clip')
    losses_BTL = loss(jnp.einsum('btld,btd->btl', nodes_BTLD, hidden_BTD), batch['turns'])
    return jnp.sum(losses_BTL * batch['on_path'] * weights_BT[..., None])

  return OutputLoss(sample, ('nodes',), all_pairs, paired)


def huffman(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns each word's path in the Huffman tree of their counts (Huffman 1952).

  Returns:
    (V, L) int32 the inner nodes from the root on, (V, L) float32 the turns, 1 to the rarer side,
    and (V,) int32 how long the path is; it is 0 for words that do not occur.
  """
  words = np.flatnonzero(counts)
  heap = [(int(counts[word]), i, int(word)) for i, word in enumerate(words)]
  heapq.heapify(heap)
  parents: dict[int, tuple[int, int]] = {}  # of a word w, or of an inner node as ~node
  for node in range(max(0, len(words) - 1)):
    (light, _, left), (heavy, _, right) = heapq.heappop(heap), heapq.heappop(heap)
    parents[left], parents[right] = (~node, 1), (~node, 0)
    heapq.heappush(heap, (light + heavy, len(words) + node, ~node))
  paths: dict[int, list[tuple[int, int]]] = {}
  for word in words.tolist():
    path, member = [], word
    while member in parents:
      member, turn = parents[member]
      path.append((~member, turn))
    paths[word] = path[::-1]
  longest = max(map(len, paths.values()), default=0) or 1
  nodes, turns = (
    np.zeros((len(counts), longest), np.int32),
    np.zeros((len(counts), longest), np.float32),
  )
  lengths = np.zeros(len(counts), np.int32)
  for word, path in paths.items():
    lengths[word] = len(path)
    if path:
      nodes[word, : len(path)], turns[word, : len(path)] = zip(*path, strict=True)
  return nodes, turns, lengths


def skip_gram(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], OutputLoss] = negative_sampling,
  counts: np.ndarray | None = None,
) -> Objective:
  """Returns the objective of finding a word from each of its neighbours.

  Args:
    window: how many kept words on either side are neighbours at the most.
    subsample: words of a higher share of the corpus are left out at random; 0 keeps all.
    output: what it is to find a word, of lm.objectives.word2vec.
    counts: (V,) how often each token occurs; 0 for those that are no words.

  Raises:
    UserError: an argument is out of its range.
  """

  def loss(to: OutputLoss, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    weights_BTS = batch['neighbours'].astype(hidden_BTD.dtype)
    return to.all_pairs(hidden_BTD, table_VD, batch, weights_BTS)

  def lay(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    found_BTS = neighbours(kept_BT, window_BT, segments_BT)
    return {'inputs': words_BT, 'centers': words_BT, 'neighbours': found_BTS}

  return _objective(loss, lay, window, subsample, output, counts)


def cbow(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], OutputLoss] = negative_sampling,
  counts: np.ndarray | None = None,
) -> Objective:
  """Returns the objective of finding a word from the mean of its neighbours.

  As in word2vec and Gensim each neighbour takes the whole gradient of the mean and not its share;
  else words in wide windows would learn slowly.

  Args:
    window, subsample, output, counts: as in `skip_gram`.

  Raises:
    UserError: as `skip_gram`.
  """

  def reach_of(T: int) -> int:
    return max(1, min(window, T - 1))

  def loss(to: OutputLoss, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    reach = reach_of(hidden_BTD.shape[1])
    sum_BTD = window_sum(hidden_BTD, batch['left'], batch['right'], reach)
    count_BT = (batch['left'] + batch['right']).astype(hidden_BTD.dtype)
    mean_BTD = sum_BTD / jnp.maximum(count_BT, 1)[:, :, None]
    mean_BTD = sum_BTD + jax.lax.stop_gradient(mean_BTD - sum_BTD)
    return to.paired(mean_BTD, table_VD, batch, jnp.minimum(count_BT, 1))

  def lay(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    words_BT, window_BT, segments_BT = together(kept_BT, words_BT, window_BT, segments_BT)
    left_BT, right_BT = window_extents(window_BT, segments_BT, reach_of(words_BT.shape[1]))
    return {'inputs': words_BT, 'centers': words_BT, 'left': left_BT, 'right': right_BT}

  return _objective(loss, lay, window, subsample, output, counts)


def _objective(
  loss: Callable[[OutputLoss, Array, Array, Batch], Array],
  lay: Callable[[Array, Array, Array, Array], Batch],
  window: int,
  subsample: float,
  output: Callable[[np.ndarray], OutputLoss],
  counts: np.ndarray | None,
) -> Objective:
  if window < 1:
    raise UserError(f'objective.window={window} is not a positive number of words')
  if not 0 <= subsample < 1:
    raise UserError(f'objective.subsample={subsample} is no share: it is at least 0 and below 1')
  known = np.zeros(1) if counts is None else counts
  keep_V, to = keep_probability(known, subsample), output(known)

  def sample(batch: Batch, key: Array) -> Batch:
    assert counts is not None, 'lm.components.pass_word_counts says how often words occur'
    of_row, of_output = jax.random.split(key)
    words_BT = batch['targets']
    kept_BT, window_BT = _drawn(jax.random.bits(of_row, words_BT.shape), window)
    kept_BT = kept_BT < jnp.take(keep_V, words_BT, mode='clip')
    laid = lay(words_BT, kept_BT, window_BT, batch['segments'])
    drawn = {**laid, 'weights': batch['weights']}
    return drawn | to.sample(drawn, of_output)

  def rows(batch: Batch) -> tuple[dict[str, Array], Batch]:
    size = len(keep_V)
    inputs, batch = compact_ids(batch, ('inputs',), size)
    outputs, batch = compact_ids(batch, to.ids, size)
    return {'embedding': inputs, 'unembedding': outputs}, batch

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    found = apply(params, batch, key=key)
    return {'loss': loss(to, found.hidden, found.head.kernel_VD, batch)}

  def normalizers(batch: Batch) -> dict[str, Array]:
    return {'loss': jnp.sum(batch['weights'])}

  return Objective(loss_sums, normalizers, sample, microbatched=False, sparse_rows=rows)


def keep_probability(counts: np.ndarray, subsample: float) -> np.ndarray:
  """Returns with what probability each word stays, (V,) float32.

  sqrt(t / f) + t / f of its share f of the corpus and t = `subsample`, at the most 1, as in the
  program word2vec (the paper has 1 less sqrt(t / f) left out).
  """
  share_V = counts / max(1, counts.sum())
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio_V = np.where(share_V > 0, subsample / share_V if subsample else 1.0, 0.0)
  return np.minimum(1, np.sqrt(ratio_V) + ratio_V).astype(np.float32)


def neighbours(kept_BT: Array, window_BT: Array, segments_BT: Array) -> Array:
  """Returns (B, T, T) bool: whether the second word is a neighbour of the first.

  Both are kept, in one segment, and at the most the first one's window apart, counting kept words.
  """
  at_BT = jnp.cumsum(kept_BT, axis=1, dtype=jnp.int32)
  distance_BTS = jnp.abs(at_BT[:, :, None] - at_BT[:, None, :])
  near = (distance_BTS > 0) & (distance_BTS <= window_BT[:, :, None])
  there = kept_BT[:, :, None] & kept_BT[:, None, :]
  return near & there & (segments_BT[:, :, None] == segments_BT[:, None, :])


def together(kept_BT: Array, *arrays: Array) -> tuple[Array, ...]:
  """Returns (B, T) integers with those of each row that are kept at its front, and 0 behind."""
  B, T = kept_BT.shape
  at_BT = jnp.where(kept_BT, jnp.cumsum(kept_BT, axis=1, dtype=jnp.int32) - 1, T)
  of_BTx = jnp.stack(arrays, axis=2)
  row_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
  found_BTx = jnp.zeros_like(of_BTx).at[row_B1, at_BT].set(of_BTx, mode='drop')
  return tuple(found_BTx[:, :, i] for i in range(len(arrays)))


def _drawn(bits: Array, window: int) -> tuple[Array, Array]:
  """Returns of 32 random bits numbers in [0, 1), and whole ones from 1 to `window`, all alike.

  From one draw, and by products of 16 bits: they and not what is done with them take the time.
  """
  share = (bits >> 16).astype(jnp.float32) * 2.0**-16
  return share, 1 + (((bits & 0xFFFF) * window) >> 16).astype(jnp.int32)
