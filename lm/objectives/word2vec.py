"""Word2vec: skip-gram and CBOW, with negative sampling or hierarchical softmax.

Both output losses avoid the full softmax, whose cost grows with the vocabulary.
"""

import functools
import heapq
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.nn.embedding import compact_ids
from lm.nn.losses import sigmoid_cross_entropy
from lm.types import Apply, Array, Batch, Objective, Params


class OutputLoss(NamedTuple):
  """The loss of predicting words from vectors.

  Attributes:
    sample: `(batch, key) -> arrays`, which are added to a batch that has `centers` (B, T).
    ids: names of the arrays of a batch that hold ids of rows of the output table.
    all_pairs: `(hidden_BSD, table_VD, batch, weights_BTS) -> loss`, the weighted sum over all
      predictions of word t from vector s.
    paired: `(hidden_BTD, table_VD, batch, weights_BT) -> loss`, the weighted sum over all
      predictions of word t from vector t.
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

  Several rows share their negative samples, so that the scores are a matmul. The losses of the
  samples are scaled so that they count as `negatives` samples per word. Unlike in the authors'
  programs, a sample that equals the word itself is not left out.

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
      raise UserError(f'objective.output: {key}={value} is not a positive number')
  mass_V = np.where(counts > 0, counts.astype(np.float64) ** power, 0)
  # As 32-bit integers: in float32 the shares of rare words would be lost in a sum near 1.
  cumulative_V = np.minimum(np.cumsum(mass_V) / max(mass_V.sum(), 1e-300) * 2**32, 2**32 - 1)
  cumulative_V = cumulative_V.astype(np.uint32)

  def sample(batch: Batch, key: Array) -> dict[str, Array]:
    rows = batch['centers'].shape[0]
    groups = max(n for n in range(1, max(1, rows // rows_per_sample) + 1) if rows % n == 0)
    bits_GN = jax.random.bits(key, (groups, num_sampled * rows // groups))
    ids_GN = jnp.searchsorted(cumulative_V, bits_GN, side='right')
    return {'negatives': jnp.minimum(ids_GN, len(cumulative_V) - 1).astype(jnp.int32)}

  def output_vectors(table_VD: Array, batch: Batch) -> tuple[Array, Array]:
    """Returns the output vectors of the centers, (B, T, D), and of the negatives, (G, N, D)."""
    centers_BT, negatives_GN = batch['centers'], batch['negatives']
    # One lookup, so that the gradient is one scatter.
    ids = jnp.concatenate([centers_BT.ravel(), negatives_GN.ravel()])
    vectors = jnp.take(table_VD, ids, axis=0, mode='clip')
    centers, sampled = vectors[: centers_BT.size], vectors[centers_BT.size :]
    return centers.reshape(*centers_BT.shape, -1), sampled.reshape(*negatives_GN.shape, -1)

  def negative_loss(hidden_BTD: Array, sampled_GND: Array, weights_BT: Array) -> Array:
    G, N, D = sampled_GND.shape
    # The words W of a group, the longest axis, are last: XLA vectorizes the last axis on CPUs.
    scores_GNW = jnp.einsum('gnd,gwd->gnw', sampled_GND, hidden_BTD.reshape(G, -1, D))
    weights_G1W = weights_BT.reshape(G, 1, -1)
    loss_GW = jnp.sum(loss(scores_GNW, jnp.zeros(())) * weights_G1W, axis=1)
    return negatives / N * jnp.sum(loss_GW)

  def all_pairs(hidden_BSD: Array, table_VD: Array, batch: Batch, weights_BTS: Array) -> Array:
    centers_BTD, sampled_GND = output_vectors(table_VD, batch)
    scores_BTS = jnp.einsum('btd,bsd->bts', centers_BTD, hidden_BSD)
    positive_loss = jnp.sum(loss(scores_BTS, jnp.ones(())) * weights_BTS)
    return positive_loss + negative_loss(hidden_BSD, sampled_GND, jnp.sum(weights_BTS, axis=1))

  def paired(hidden_BTD: Array, table_VD: Array, batch: Batch, weights_BT: Array) -> Array:
    centers_BTD, sampled_GND = output_vectors(table_VD, batch)
    scores_BT = jnp.sum(centers_BTD * hidden_BTD, axis=-1)
    positive_loss = jnp.sum(loss(scores_BT, jnp.ones(())) * weights_BT)
    return positive_loss + negative_loss(hidden_BTD, sampled_GND, weights_BT)

  return OutputLoss(sample, ('centers', 'negatives'), all_pairs, paired)


def hierarchical_softmax(
  counts: np.ndarray, loss: Callable[[Array, Array], Array] = sigmoid_cross_entropy
) -> OutputLoss:
  """Returns the loss of a word's path down the Huffman tree (Morin and Bengio 2005).

  With the sigmoid loss the probability of a word is the product over the branches of its path, and
  the probabilities of all words sum to 1. The output table has the vectors of the V - 1 inner
  nodes.

  Args:
    counts: (V,) how often each token occurs.
    loss: as in `negative_sampling`.
  """
  nodes_VL, codes_VL, lengths_V = huffman(counts)
  on_path_VL = (np.arange(nodes_VL.shape[1]) < lengths_V[:, None]).astype(np.float32)
  paths = {'nodes': nodes_VL, 'on_path': on_path_VL, 'path_codes': codes_VL}

  def sample(batch: Batch, key: Array) -> dict[str, Array]:
    return {name: jnp.take(x, batch['centers'], axis=0) for name, x in paths.items()}

  def all_pairs(hidden_BSD: Array, table_VD: Array, batch: Batch, weights_BTS: Array) -> Array:
    nodes_BTLD = jnp.take(table_VD, batch['nodes'], axis=0, mode='clip')
    scores_BTLS = jnp.einsum('btld,bsd->btls', nodes_BTLD, hidden_BSD)
    losses_BTLS = loss(scores_BTLS, batch['path_codes'][..., None])
    return jnp.sum(losses_BTLS * batch['on_path'][..., None] * weights_BTS[:, :, None])

  def paired(hidden_BTD: Array, table_VD: Array, batch: Batch, weights_BT: Array) -> Array:
    nodes_BTLD = jnp.take(table_VD, batch['nodes'], axis=0, mode='clip')
    losses_BTL = loss(jnp.einsum('btld,btd->btl', nodes_BTLD, hidden_BTD), batch['path_codes'])
    return jnp.sum(losses_BTL * batch['on_path'] * weights_BT[..., None])

  return OutputLoss(sample, ('nodes',), all_pairs, paired)


def huffman(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the path of each word in the Huffman tree of the counts (Huffman 1952).

  Returns:
    (V, L) int32, the inner nodes from the root; (V, L) float32, the code: 1 for the branch with the
    lower count; and (V,) int32, the length of the path, 0 for words that do not occur.
  """
  words = np.flatnonzero(counts).tolist()
  heap = [(int(counts[word]), i, word) for i, word in enumerate(words)]
  heapq.heapify(heap)
  # Maps a word, or an inner node as ~node, to (~parent, code).
  parents: dict[int, tuple[int, int]] = {}
  for node in range(max(0, len(words) - 1)):
    (light, _, left), (heavy, _, right) = heapq.heappop(heap), heapq.heappop(heap)
    parents[left], parents[right] = (~node, 1), (~node, 0)
    heapq.heappush(heap, (light + heavy, len(words) + node, ~node))

  def path_from_root(member: int) -> list[tuple[int, int]]:
    if member not in parents:
      return []
    parent, code = parents[member]
    return [*path_from_root(parent), (~parent, code)]

  paths = [path_from_root(word) for word in words]
  longest = max(map(len, paths), default=0) or 1
  nodes, codes = np.zeros((2, len(counts), longest))
  lengths = np.zeros(len(counts), np.int32)
  for word, path in zip(words, paths, strict=True):
    lengths[word] = len(path)
    for i, step in enumerate(path):
      nodes[word, i], codes[word, i] = step
  return nodes.astype(np.int32), codes.astype(np.float32), lengths


def skip_gram(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], OutputLoss] = negative_sampling,
  counts: np.ndarray | None = None,
) -> Objective:
  """Returns the skip-gram objective, which predicts a word from each of its neighbors.

  Args:
    window: maximum distance of neighbors, in words that subsampling kept.
    subsample: words with a larger share of the corpus are dropped at random; 0 keeps all.
    output: the output loss, of lm.objectives.word2vec.
    counts: (V,) how often each token occurs; 0 for tokens that are not words.

  Raises:
    UserError: an argument is out of its range.
  """

  def loss(output_loss: OutputLoss, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    weights_BTS = batch['neighbors'].astype(hidden_BTD.dtype)
    return output_loss.all_pairs(hidden_BTD, table_VD, batch, weights_BTS)

  def make_batch(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    neighbors_BTS = neighbors(kept_BT, window_BT, segments_BT)
    return {'inputs': words_BT, 'centers': words_BT, 'neighbors': neighbors_BTS}

  return _objective(loss, make_batch, window, subsample, output, counts)


def cbow(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], OutputLoss] = negative_sampling,
  counts: np.ndarray | None = None,
) -> Objective:
  """Returns the CBOW objective, which predicts a word from the mean of its neighbors.

  As in word2vec and Gensim each neighbor receives the full gradient of the mean, and not a share of
  it. With shares, words in wide windows would learn slowly.

  Args:
    window, subsample, output, counts: as in `skip_gram`.

  Raises:
    UserError: as `skip_gram`.
  """

  def reach_of(T: int) -> int:
    return max(1, min(window, T - 1))

  def loss(output_loss: OutputLoss, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    reach = reach_of(hidden_BTD.shape[1])
    sum_BTD = window_sum(hidden_BTD, batch['left'], batch['right'], reach)
    count_BT = (batch['left'] + batch['right']).astype(hidden_BTD.dtype)
    mean_BTD = sum_BTD / jnp.maximum(count_BT, 1)[:, :, None]
    mean_BTD = sum_BTD + jax.lax.stop_gradient(mean_BTD - sum_BTD)
    return output_loss.paired(mean_BTD, table_VD, batch, jnp.minimum(count_BT, 1))

  def make_batch(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    words_BT, window_BT, segments_BT = compact(kept_BT, words_BT, window_BT, segments_BT)
    left_BT, right_BT = window_extents(window_BT, segments_BT, reach_of(words_BT.shape[1]))
    return {'inputs': words_BT, 'centers': words_BT, 'left': left_BT, 'right': right_BT}

  return _objective(loss, make_batch, window, subsample, output, counts)


def _objective(
  loss: Callable[[OutputLoss, Array, Array, Batch], Array],
  make_batch: Callable[[Array, Array, Array, Array], Batch],
  window: int,
  subsample: float,
  output: Callable[[np.ndarray], OutputLoss],
  counts: np.ndarray | None,
) -> Objective:
  if window < 1:
    raise UserError(f'objective.window={window} is not a positive number of words')
  if not 0 <= subsample < 1:
    raise UserError(f'objective.subsample={subsample} is not a share in [0, 1)')
  known = np.zeros(1) if counts is None else counts
  keep_V, output_loss = keep_probability(known, subsample), output(known)

  def sample(batch: Batch, key: Array) -> Batch:
    assert counts is not None, 'word2vec needs counts, which lm.components.pass_corpus passes'
    rows_key, output_key = jax.random.split(key)
    words_BT = batch['targets']
    uniform_BT, window_BT = _sample_windows(jax.random.bits(rows_key, words_BT.shape), window)
    kept_BT = uniform_BT < jnp.take(keep_V, words_BT, mode='clip')
    made = {**make_batch(words_BT, kept_BT, window_BT, batch['segments'])}
    return made | {'weights': batch['weights']} | output_loss.sample(made, output_key)

  def rows(batch: Batch) -> tuple[dict[str, Array], Batch]:
    inputs, batch = compact_ids(batch, ('inputs',), len(keep_V))
    outputs, batch = compact_ids(batch, output_loss.ids, len(keep_V))
    return {'embedding': inputs, 'unembedding': outputs}, batch

  def loss_sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    result = apply(params, batch, key=key)
    return {'loss': loss(output_loss, result.hidden, result.head.kernel_VD, batch)}

  def normalizers(batch: Batch) -> dict[str, Array]:
    return {'loss': jnp.sum(batch['weights'])}

  return Objective(loss_sums, normalizers, sample, microbatched=False, sparse_rows=rows)


def keep_probability(counts: np.ndarray, subsample: float) -> np.ndarray:
  """Returns the probability that subsampling keeps each word, (V,) float32.

  It is min(1, sqrt(t / f) + t / f) for a word with share f of the corpus and t = `subsample`, as in
  the program word2vec. The paper drops words with probability 1 - sqrt(t / f).
  """
  share_V = counts / max(1, counts.sum())
  with np.errstate(divide='ignore', invalid='ignore'):
    ratio_V = np.where(share_V > 0, subsample / share_V if subsample else 1.0, 0.0)
  return np.minimum(1, np.sqrt(ratio_V) + ratio_V).astype(np.float32)


def neighbors(kept_BT: Array, window_BT: Array, segments_BT: Array) -> Array:
  """Returns (B, T, T) bool: whether the second word is a neighbor of the first.

  Neighbors are kept words of one segment. Their distance, counted in kept words, is at most the
  window of the first.
  """
  index_BT = jnp.cumsum(kept_BT, axis=1, dtype=jnp.int32)
  distance_BTS = jnp.abs(index_BT[:, :, None] - index_BT[:, None, :])
  near = (distance_BTS > 0) & (distance_BTS <= window_BT[:, :, None])
  both_kept = kept_BT[:, :, None] & kept_BT[:, None, :]
  return near & both_kept & (segments_BT[:, :, None] == segments_BT[:, None, :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def window_sum(x_BTD: Array, left_BT: Array, right_BT: Array, reach: int) -> Array:
  """Returns the sum over the neighbors of each token, (B, T, D).

  Sums of shifted rows take a third of the time of matmuls with (T, T) matrices on CPUs.

  Args:
    x_BTD: the addends.
    left_BT, right_BT: int32, the count of neighbors before and after each token. All neighbors
      must be inside the row.
    reach: the largest of these numbers, at least 1.
  """
  padded_BSD = _pad(x_BTD, reach)
  parts = [
    jnp.where(number_BT >= d, 1.0, 0.0)[:, :, None] * _shift(padded_BSD, x_BTD, start)
    for d in range(1, reach + 1)
    for number_BT, start in ((left_BT, reach - d), (right_BT, reach + d))
  ]
  return functools.reduce(jnp.add, parts).astype(x_BTD.dtype)


def _window_sum_fwd(x_BTD: Array, left_BT: Array, right_BT: Array, reach: int):
  return window_sum(x_BTD, left_BT, right_BT, reach), (left_BT, right_BT)


def _window_sum_bwd(reach: int, extents: tuple[Array, Array], gradient_BTD: Array):
  """Returns, for each token, the sum of the gradients of the tokens whose neighbor it is.

  JAX's own transpose of shifted rows takes nine times as long.
  """
  padded_BSD = _pad(gradient_BTD, reach)
  left_BS, right_BS = (_pad(number_BT, reach) for number_BT in extents)
  parts = []
  for d in range(1, reach + 1):
    for number_BS, start in ((left_BS, reach + d), (right_BS, reach - d)):
      near_BT = jnp.where(_shift(number_BS, gradient_BTD, start) >= d, 1.0, 0.0)
      parts.append(near_BT[:, :, None] * _shift(padded_BSD, gradient_BTD, start))
  return functools.reduce(jnp.add, parts).astype(gradient_BTD.dtype), None, None


window_sum.defvjp(_window_sum_fwd, _window_sum_bwd)


def _pad(x: Array, reach: int) -> Array:
  return jnp.pad(x, [(0, 0), (reach, reach)] + [(0, 0)] * (x.ndim - 2))


def _shift(padded: Array, like: Array, start: int) -> Array:
  return padded[:, start : start + like.shape[1]]


def window_extents(window_BT: Array, segments_BT: Array, reach: int) -> tuple[Array, Array]:
  """Returns the count of neighbors before and after each token, both (B, T) int32.

  Neighbors of a token are in its segment, at a distance of at most `window_BT` and at most `reach`.
  Segment 0 has none.
  """
  padded_BS = _pad(segments_BT, reach)

  def extent(direction: int) -> Array:
    same = [
      _shift(padded_BS, segments_BT, reach + direction * d) == segments_BT
      for d in range(1, reach + 1)
    ]
    run_BT = functools.reduce(jnp.add, [x.astype(jnp.int32) for x in same])
    return jnp.where(segments_BT > 0, jnp.minimum(run_BT, window_BT), 0)

  return extent(-1), extent(1)


def compact(kept_BT: Array, *arrays: Array) -> tuple[Array, ...]:
  """Returns the arrays (B, T) of integers, each row with its kept values first and then zeros."""
  B, T = kept_BT.shape
  index_BT = jnp.where(kept_BT, jnp.cumsum(kept_BT, axis=1, dtype=jnp.int32) - 1, T)
  stacked_BTx = jnp.stack(arrays, axis=2)
  row_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
  moved_BTx = jnp.zeros_like(stacked_BTx).at[row_B1, index_BT].set(stacked_BTx, mode='drop')
  return tuple(moved_BTx[:, :, i] for i in range(len(arrays)))


def _sample_windows(bits: Array, window: int) -> tuple[Array, Array]:
  """Returns uniform numbers in [0, 1) and uniform integers from 1 to `window`.

  Each takes 16 of the 32 random bits, because sampling bits takes most of the time.
  """
  uniform = (bits >> 16).astype(jnp.float32) * 2.0**-16
  return uniform, 1 + (((bits & 0xFFFF) * window) >> 16).astype(jnp.int32)
