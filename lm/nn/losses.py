"""Losses and statistics over a large vocabulary, chunk by chunk.

A scan over chunks of T avoids storing the logits of all B x T positions. The vocabulary may be
sharded. A masked sum selects the target's logit, so that devices all-reduce sums alone.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.parallel.collectives import apply_with_gathered, is_gathered_for, shard_map_over_batch
from lm.parallel.mesh import current_mesh, num_shards, platform
from lm.types import Array, EmbeddingTable, OutputHead

# Logits per chunk and device by default. Chunks are large, 512 MiB of float32, because each reads
# and updates the gradient of the output head. On CPUs they fit the caches, because logits are read
# several times.
LOGITS_BUDGET = 1 << 27
CPU_LOGITS_BUDGET = 1 << 22


class TokenStatistics(NamedTuple):
  """The likelihood of each target and whether it is the argmax, both (B, T)."""

  nats: Array  # float32, -log p(target)
  correct: Array  # float32, 1 where the target has the highest logit


def chunk_size(B: int, T: int, V: int, chunk: int = 0) -> int:
  """Returns the count of positions per chunk: at most `chunk`, in chunks of nearly equal size.

  If `chunk` is 0, the limit is the count of positions whose logits fit a budget per device.
  """
  budget = CPU_LOGITS_BUDGET if platform() == 'cpu' else LOGITS_BUDGET
  limit = chunk or max(1, budget * num_shards('batch', 'length', 'vocab') // (B * V))
  return -(-T // -(-T // limit))


def token_statistics(hidden_BTD: Array, unembed: OutputHead, targets_BT: Array) -> TokenStatistics:
  """Returns each target's negative log-likelihood in nats and whether it is the argmax."""

  def part(rows: tuple[Array, Array], unembed: OutputHead) -> TokenStatistics:
    def one(chunk: tuple[Array, Array]) -> TokenStatistics:
      hidden_BtD, targets_Bt = chunk
      logits_BtV = unembed(hidden_BtD)
      log_z_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
      picked_Bt = _take_target_logit(logits_BtV, targets_Bt)
      correct_Bt = (logits_BtV.argmax(-1) == targets_Bt).astype(jnp.float32)
      return TokenStatistics(log_z_Bt - picked_Bt, correct_Bt)

    if size == T:
      return one(rows)
    chunks = jax.lax.map(one, jax.tree.map(lambda x: _chunked(x, size), rows))
    return jax.tree.map(lambda y: _unchunked(y, T), chunks)

  _check_places(hidden_BTD, targets_BT)
  B, T = targets_BT.shape
  size = chunk_size(B, T, unembed.padded_vocab_size)
  rows, gathered = (hidden_BTD, targets_BT), unembed.table.gathered
  if gathered is None or not is_gathered_for(gathered, rows):
    return part(rows, unembed)
  return apply_with_gathered(
    lambda rows, x: part(rows, unembed.replace(table=EmbeddingTable(x))), rows, gathered
  )


def _check_places(hidden_BTD: Array, targets_BT: Array) -> None:
  """Raises UserError if a model has outputs at other places than there are targets."""
  if hidden_BTD.shape[:2] != targets_BT.shape:
    raise UserError(
      f'model: it has outputs of shape {hidden_BTD.shape[:2]} for targets of shape '
      f'{targets_BT.shape}; data.converter or data.transforms suit another kind of model'
    )


class CrossEntropy(flax.struct.PyTreeNode):
  """The weighted cross-entropy of a batch and its parts, all float32 scalars.

  Only `total` has a gradient. The parts are its addends with stopped gradients, for logging.
  """

  total: Array  # nats + z_loss + smoothing
  nats: Array  # the weighted sum of -log p(target)
  z_loss: Array  # the penalty on log(Z)
  smoothing: Array  # the difference that label smoothing makes


def cross_entropy(
  hidden_BTD: Array,
  unembed: OutputHead,
  targets_BT: Array,
  weights_BT: Array,
  z_loss: float = 0.0,
  smoothing: float = 0.0,
  chunk: int = 0,
) -> CrossEntropy:
  """Returns the weighted sum of -log p(target) and of two penalties.

  The penalties are z_loss * log(Z)^2 (Chowdhery et al. 2022, PaLM, section 5), and label smoothing
  (Szegedy et al. 2016, section 7): smoothing * (H(uniform, p) + log p(target)).

  The forward pass also computes the gradients, chunk by chunk from the same logits, so that logits
  are not recomputed. The gradients are those of `hidden_BTD`, `weights_BT` and the arrays of
  `unembed`. If its table has copies all-gathered for this batch (`EmbeddingTable.gathered`), the
  copies receive the gradient instead of the parameter.

  Args:
    hidden_BTD: hidden states.
    unembed: the map from hidden states to logits.
    targets_BT: int32 token ids.
    weights_BT: weight of each target; 0 for padding.
    z_loss: coefficient of the penalty on log(Z).
    smoothing: share of the target's probability that is spread over the vocabulary.
    chunk: positions per chunk; 0 for as many as a budget per device allows (see `chunk_size`).
  """
  _check_places(hidden_BTD, targets_BT)
  penalties = (z_loss, smoothing)
  weights_BT = weights_BT.astype(jnp.float32)
  total, parts = _total(hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk)
  nats, penalty, added = jax.lax.stop_gradient(parts)
  return CrossEntropy(total=total, nats=nats, z_loss=penalty, smoothing=added)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _total(hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk):
  """Returns the total and its parts; the gradient is the total's alone."""
  parts, _ = _forward(hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk, gradient=False)
  return sum(parts), parts


def _forward(hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk, gradient: bool):
  """Returns the parts of the total, and the gradients of (hidden, unembed, weights) or None."""
  B, T, _ = hidden_BTD.shape
  size = chunk_size(B, T, unembed.padded_vocab_size, chunk)
  # The kernel is gathered already, or is all-gathered once here, in the type of the matmul.
  table = unembed.table
  shared = table.gathered is not None and is_gathered_for(table.gathered, hidden_BTD)
  kernel = table.gathered if shared else table.vectors_VD.astype(hidden_BTD.dtype)

  def part(unembed: OutputHead, rows: tuple[Array, ...]):
    return _sums_and_gradients(unembed, rows, penalties, size, gradient)

  inputs, rows = unembed.replace(table=EmbeddingTable(kernel)), (hidden_BTD, targets_BT, weights_BT)
  if current_mesh() is None:
    sums, d_unembed, d_rows = part(inputs, rows)
  else:
    sums, d_unembed, d_rows = shard_map_over_batch(part, inputs, unembed.logical_axes, rows)
  if not gradient:
    return sums, None
  # The gradient belongs to the parameter or to its gathered copies, whichever was used.
  d_kernel = d_unembed.kernel_VD
  d_unembed = d_unembed.replace(
    table=EmbeddingTable(None, d_kernel) if shared else EmbeddingTable(d_kernel)
  )
  used = EmbeddingTable(None, table.gathered) if shared else EmbeddingTable(table.vectors_VD)
  used = unembed.replace(table=used)
  d_unembed = jax.tree.map(lambda d, x: d.astype(x.dtype), d_unembed, used)
  d_hidden, d_weights = d_rows
  return sums, (d_hidden, d_unembed, d_weights.astype(weights_BT.dtype))


def _sums_and_gradients(
  unembed: OutputHead, rows: tuple[Array, ...], penalties, size: int, gradient: bool
):
  """Returns the parts of the total, and the gradients of `unembed` and of (hidden, weights).

  Gradients of `unembed` are summed over chunks in float32. They are all-reduced in the type of the
  head, as in other layers. On CPUs they stay in float32, because XLA:CPU aborts on all-reduces of
  bfloat16.
  """
  z_loss, smoothing = penalties
  T = rows[0].shape[1]

  def sums_of(hidden_BtD, unembed, weights_Bt, targets_Bt):
    logits_BtV = unembed(hidden_BtD)
    log_z_Bt = jax.nn.logsumexp(logits_BtV, axis=-1)
    picked_Bt = _take_target_logit(logits_BtV, targets_Bt)
    sums = (
      jnp.sum(weights_Bt * (log_z_Bt - picked_Bt)),
      z_loss * jnp.sum(weights_Bt * jnp.square(log_z_Bt)) if z_loss else jnp.zeros(()),
      smoothing * jnp.sum(weights_Bt * (picked_Bt - unembed.mean(logits_BtV)))
      if smoothing
      else jnp.zeros(()),
    )
    return sum(sums), sums

  def body(carry, xs):
    sums, d_unembed = carry
    hidden_BtD, targets_Bt, weights_Bt = xs
    if not gradient:
      _, more = sums_of(hidden_BtD, unembed, weights_Bt, targets_Bt)
      return (jax.tree.map(jnp.add, sums, more), d_unembed), None
    differentiate = jax.value_and_grad(sums_of, argnums=(0, 1, 2), has_aux=True)
    (_, more), (d_hidden, d_u, d_weights) = differentiate(
      hidden_BtD, unembed, weights_Bt, targets_Bt
    )
    added = jax.tree.map(jnp.add, (sums, d_unembed), (more, d_u))
    return added, (d_hidden, d_weights)

  zero, head = (jnp.zeros(()),) * 3, unembed if gradient else None
  d_unembed = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), head)
  if size == T:
    (sums, d_unembed), d_rows = body((zero, d_unembed), rows)
  else:
    chunks = tuple(_chunked(x, size) for x in rows)
    (sums, d_unembed), d_rows = jax.lax.scan(body, (zero, d_unembed), chunks)
    d_rows = jax.tree.map(lambda d: _unchunked(d, T), d_rows)
  if gradient and platform() != 'cpu':
    d_unembed = jax.tree.map(lambda d, x: d.astype(x.dtype), d_unembed, unembed)
  return sums, d_unembed, d_rows


def _total_fwd(hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk):
  parts, gradients = _forward(
    hidden_BTD, unembed, targets_BT, weights_BT, penalties, chunk, gradient=True
  )
  return (sum(parts), parts), gradients


def _total_bwd(penalties, chunk, gradients, cotangents):
  scale, _ = cotangents  # the parts' gradients are stopped
  d_hidden, d_unembed, d_weights = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)
  return d_hidden, d_unembed, None, d_weights


_total.defvjp(_total_fwd, _total_bwd)


@jax.custom_vjp
def as_terms(total: Array, parts: dict[str, Array]) -> dict[str, Array]:
  """Returns the parts of a total as terms whose sum has the gradient of the total.

  The gradient of a single part is unknown, so all terms must have the same cotangent. If cotangents
  differ, for instance because only one term is differentiated, the gradient is NaN.

  Args:
    total: a differentiable scalar.
    parts: its addends by name, without gradients.
  """
  return parts


def _as_terms_bwd(_, cotangents):
  first, *others = cotangents.values()
  close = [jnp.abs(c - first) <= 1e-5 * jnp.abs(first) for c in others]
  agree = functools.reduce(jnp.logical_and, close, jnp.bool_(True))
  zeros = jax.tree.map(jnp.zeros_like, cotangents)
  return jnp.where(agree, first, jnp.nan), zeros


as_terms.defvjp(lambda total, parts: (parts, None), _as_terms_bwd)


@jax.custom_jvp
def _take_target_logit(logits_BtV: Array, targets_Bt: Array) -> Array:
  if num_shards('vocab') > 1:
    return _masked_sum(logits_BtV, targets_Bt)
  return jnp.take_along_axis(logits_BtV, targets_Bt[..., None], axis=-1)[..., 0]


@_take_target_logit.defjvp
def _pick_jvp(primals, tangents):
  # The gradient of a gather would be a scatter; that of a masked sum is elementwise.
  (logits_BtV, targets_Bt), (d_BtV, _) = primals, tangents
  return _take_target_logit(logits_BtV, targets_Bt), _masked_sum(d_BtV, targets_Bt)


def _masked_sum(logits_BtV: Array, targets_Bt: Array) -> Array:
  columns = jax.lax.broadcasted_iota(targets_Bt.dtype, logits_BtV.shape, logits_BtV.ndim - 1)
  return jnp.sum(jnp.where(columns == targets_Bt[..., None], logits_BtV, 0), axis=-1)


def _chunked(x: Array, size: int) -> Array:
  """Returns chunks of positions; zeros pad the last chunk, so padding also gets weight 0."""
  B, T = x.shape[:2]
  if T % size:
    x = jnp.pad(x, [(0, 0), (0, -T % size)] + [(0, 0)] * (x.ndim - 2))
  return x.reshape(B, -1, size, *x.shape[2:]).swapaxes(0, 1)


def _unchunked(x: Array, T: int) -> Array:
  chunks, B, size = x.shape[:3]
  return x.swapaxes(0, 1).reshape(B, chunks * size, *x.shape[3:])[:, :T]


def sigmoid_cross_entropy(scores: Array, labels: Array) -> Array:
  """Returns -log(sigmoid(score)) for labels of 1, and -log(1 - sigmoid(score)) for labels of 0."""
  return _softplus(jnp.where(labels > 0, -scores, scores))


@jax.custom_jvp
def _softplus(x: Array) -> Array:
  # jax.nn.softplus takes a third longer, because it supports infinities.
  return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


# At 0, where training begins, JAX's derivative of the formula is 0 and not sigmoid(0) = 0.5.
_softplus.defjvps(lambda t, y, x: t * jax.nn.sigmoid(x))


def squared_sigmoid(scores: Array, labels: Array) -> Array:
  """Returns (label - sigmoid(score))^2, whose gradient vanishes where the score is far wrong."""
  return jnp.square(labels - jax.nn.sigmoid(scores))
