"""Skip-gram and CBOW (Mikolov et al. 2013, arXiv:1301.3781 and 1310.4546).

Words of a row within a window of each other are neighbours: skip-gram finds a word from each of
its neighbours, CBOW from their mean. A row is T tokens of a document, and its pairs are entries of
a (T, T) matrix, most of them 0: products of matrices over whole rows are faster than reading pair
by pair. No window reaches over the end of a row.

As in word2vec, what is rare in a text is kept and what is frequent left out at random before
windows are laid (subsampling), and each word draws its own window of 1 to `window` words. All of
it is drawn from (seed, step, row). The loss is a mean over the tokens read, so that a rate of r
times the tokens of a batch is word2vec's rate of r.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.errors import UserError
from lm.nn.rows import renumbered
from lm.nn.windows import around, sides
from lm.objectives.word_outputs import WordOutput, negative_sampling
from lm.types import Apply, Array, Batch, Objective, Params


def skip_gram(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], WordOutput] = negative_sampling,
  counts: np.ndarray | None = None,
) -> Objective:
  """Returns the objective of finding a word from each of its neighbours.

  Args:
    window: how many kept words on either side are neighbours at the most.
    subsample: words of a higher share of the corpus are left out at random; 0 keeps all.
    output: what it is to find a word, of lm.objectives.word_outputs.
    counts: (V,) how often each token occurs; 0 for those that are no words.

  Raises:
    UserError: an argument is out of its range.
  """

  def loss(to: WordOutput, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    weights_BTS = batch['neighbours'].astype(hidden_BTD.dtype)
    return to.crossed(hidden_BTD, table_VD, batch, weights_BTS)

  def lay(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    found_BTS = neighbours(kept_BT, window_BT, segments_BT)
    return {'inputs': words_BT, 'centers': words_BT, 'neighbours': found_BTS}

  return _objective(loss, lay, window, subsample, output, counts)


def cbow(
  window: int = 5,
  subsample: float = 1e-3,
  output: Callable[[np.ndarray], WordOutput] = negative_sampling,
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

  def loss(to: WordOutput, hidden_BTD: Array, table_VD: Array, batch: Batch) -> Array:
    reach = reach_of(hidden_BTD.shape[1])
    sum_BTD = around(hidden_BTD, batch['left'], batch['right'], reach)
    count_BT = (batch['left'] + batch['right']).astype(hidden_BTD.dtype)
    mean_BTD = sum_BTD / jnp.maximum(count_BT, 1)[:, :, None]
    mean_BTD = sum_BTD + jax.lax.stop_gradient(mean_BTD - sum_BTD)
    return to.aligned(mean_BTD, table_VD, batch, jnp.minimum(count_BT, 1))

  def lay(words_BT: Array, kept_BT: Array, window_BT: Array, segments_BT: Array) -> Batch:
    words_BT, window_BT, segments_BT = together(kept_BT, words_BT, window_BT, segments_BT)
    left_BT, right_BT = sides(window_BT, segments_BT, reach_of(words_BT.shape[1]))
    return {'inputs': words_BT, 'centers': words_BT, 'left': left_BT, 'right': right_BT}

  return _objective(loss, lay, window, subsample, output, counts)


def _objective(
  loss: Callable[[WordOutput, Array, Array, Batch], Array],
  lay: Callable[[Array, Array, Array, Array], Batch],
  window: int,
  subsample: float,
  output: Callable[[np.ndarray], WordOutput],
  counts: np.ndarray | None,
) -> Objective:
  if window < 1:
    raise UserError(f'objective.window={window} is not a positive number of words')
  if not 0 <= subsample < 1:
    raise UserError(f'objective.subsample={subsample} is no share: it is at least 0 and below 1')
  known = np.zeros(1) if counts is None else counts
  keep_V, to = keep_probability(known, subsample), output(known)

  def draw(batch: Batch, key: Array) -> Batch:
    assert counts is not None, 'lm.run.build.with_counts says how often words occur'
    of_row, of_output = jax.random.split(key)
    words_BT = batch['targets']
    kept_BT, window_BT = _drawn(jax.random.bits(of_row, words_BT.shape), window)
    kept_BT = kept_BT < jnp.take(keep_V, words_BT, mode='clip')
    laid = lay(words_BT, kept_BT, window_BT, batch['segments'])
    drawn = {**laid, 'weights': batch['weights']}
    return drawn | to.draw(drawn, of_output)

  def rows(batch: Batch) -> tuple[dict[str, Array], Batch]:
    size = len(keep_V)
    inputs, batch = renumbered(batch, ('inputs',), size)
    outputs, batch = renumbered(batch, to.ids, size)
    return {'embedding': inputs, 'unembedding': outputs}, batch

  def sums(apply: Apply, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    found = apply(params, batch, key=key)
    return {'loss': loss(to, found.hidden, found.unembed.kernel_VD, batch)}

  def weights(batch: Batch) -> dict[str, Array]:
    return {'loss': jnp.sum(batch['weights'])}

  return Objective(sums, weights, draw, rows, whole=True)


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
