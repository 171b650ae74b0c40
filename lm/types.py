"""The values that packages exchange, and the glossary of axis letters.

Axis letters, used as suffixes in tensor code and in einsum strings:
  B batch row     T query or target position   S key or source position   D model width
  H query head    G key/value head             K head size                F feed-forward width
  V vocabulary    N layer                      C class                    E expert
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.errors import UserError

Array = jax.Array
Params = Any
# Arrays with a leading batch axis, by name. A language-model batch holds, each (B, T):
#   inputs, targets: int32 token ids; targets[t] follows inputs[t]
#   weights: float32, 1 where the target counts, 0 on padding
#   segments: int32, which document of the row a token belongs to, from 1; 0 is padding
#   positions: int32, index within the segment
#   bytes: int32, bytes of raw text accounted to the target (they sum to the size of the text)
# A batch of a task has in addition, or instead:
#   source, source_segments, source_positions: (B, S), what an encoder reads for a decoder
#   prefix: (B, T) int32, 1 where an input belongs to a prefix that is read both ways
#   examples: (B, P) int32, which features are in the row, in the order of their segments, each by
#     its index + 1; 0 fills up
#   targets, weights: (B, P) where an example as a whole has one target
Batch = Mapping[str, Array]
# Named (sum, weight) pairs, scalars. A mean is sum / weight, over microbatches and hosts alike.
WeightedSums = dict[str, tuple[Array, Array]]
# By the name of a metric, whether its highest value is the best. None: no value is better.
Directions = Mapping[str, bool | None]


class Mask(flax.struct.PyTreeNode):
  """Which queries attend to which keys, as a description that kernels interpret.

  A query attends to a key when all conditions that are set hold: equal segments; for causal masks
  `k_position <= q_position` or a key of the prefix; for windows `q_position - k_position < window`;
  and `allowed`. `ordered` says that queries and keys are the same tokens of the same rows and that
  each segment is contiguous with rising positions; causal kernels may then skip keys by index.
  `packed` says that a row may hold several segments; a row of one segment has padding at its end.
  """

  q_positions: Array  # (B, T) int32
  k_positions: Array  # (B, S) int32
  q_segments: Array | None = None  # (B, T) int32; 0 marks padding
  k_segments: Array | None = None  # (B, S) int32
  k_prefix: Array | None = None  # (B, S) int32; 1 where a causal mask allows the key for all
  allowed: Array | None = None  # (B, T, S) bool, for queries that continue different keys
  # A pytree, since it may hold parameters: (q_positions_BT, k_positions_BS) -> (B, H, T, S)
  bias: jax.tree_util.Partial | None = None
  window: int | None = flax.struct.field(pytree_node=False, default=None)
  causal: bool = flax.struct.field(pytree_node=False, default=True)
  ordered: bool = flax.struct.field(pytree_node=False, default=False)
  packed: bool = flax.struct.field(pytree_node=False, default=True)

  def block(self, q: slice, k: slice) -> 'Mask':
    """Returns the mask of some queries against some keys."""
    return self.replace(
      q_positions=self.q_positions[:, q],
      k_positions=self.k_positions[:, k],
      q_segments=None if self.q_segments is None else self.q_segments[:, q],
      k_segments=None if self.k_segments is None else self.k_segments[:, k],
      k_prefix=None if self.k_prefix is None else self.k_prefix[:, k],
      allowed=None if self.allowed is None else self.allowed[:, q, k],
    )

  def dense(self) -> Array | None:
    """Returns the (B, 1, T, S) boolean array, or None when every key is allowed."""
    q_BTx, k_BxS = self.q_positions[:, :, None], self.k_positions[:, None, :]
    allowed = None
    if self.causal:
      allowed = k_BxS <= q_BTx
      if self.k_prefix is not None:
        allowed |= self.k_prefix[:, None, :] > 0
    if self.window is not None:
      near = q_BTx - k_BxS < self.window
      if not self.causal:
        near &= k_BxS - q_BTx < self.window
      allowed = near if allowed is None else allowed & near
    if self.q_segments is not None and self.k_segments is not None:
      same = self.q_segments[:, :, None] == self.k_segments[:, None, :]
      allowed = same if allowed is None else allowed & same
    if self.allowed is not None:
      allowed = self.allowed if allowed is None else allowed & self.allowed
    return None if allowed is None else allowed[:, None]

  def dense_bias(self) -> Array | None:
    """Returns the (B, H, T, S) float32 additive bias, or None."""
    if self.bias is None:
      return None
    return self.bias(self.q_positions, self.k_positions)


class EmbeddingTable(NamedTuple):
  """The embeddings of a vocabulary (V, D), and, on a mesh, their all-gathered copies."""

  vectors_VD: Any
  gathered: Any = None  # lm.parallel.collectives.GatheredParam, or None


class OutputHead(flax.struct.PyTreeNode):
  """The map from hidden states to logits: a matmul with a table, a bias and a soft cap.

  `vocab_size` is the number of real rows of the kernel; later rows are padding with logits of -1e9.
  `axes` are the logical axes of the kernel.
  """

  table: EmbeddingTable
  bias_V: Array | None = None
  vocab_size: int = flax.struct.field(pytree_node=False, default=0)
  soft_cap: float | None = flax.struct.field(pytree_node=False, default=None)
  axes: tuple[str | None, str] = flax.struct.field(pytree_node=False, default=('vocab', 'embed'))

  @property
  def kernel_VD(self) -> Array:
    """The vectors that hidden states are compared with."""
    return self.table.vectors_VD

  @property
  def logical_axes(self) -> Any:
    """The logical axes of the kernel and of the bias, as an OutputHead of axes."""
    bias = None if self.bias_V is None else self.axes[:1]
    return self.replace(table=EmbeddingTable(self.axes), bias_V=bias)

  @property
  def padded_vocab_size(self) -> int:
    """The number of logits per position, padding included."""
    return self.kernel_VD.shape[0]

  def __call__(self, hidden_BTD: Array) -> Array:
    """Returns the (B, T, V) float32 logits."""
    B, T, D = hidden_BTD.shape
    # One matmul of matrices, for its gradient on CPUs (see lm.nn.layers.Linear).
    logits_BTV = jax.lax.dot_general(
      hidden_BTD.reshape(B * T, D),
      self.kernel_VD.astype(hidden_BTD.dtype),
      (((1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    ).reshape(B, T, -1)
    if self.bias_V is not None:
      logits_BTV += self.bias_V[None, None].astype(jnp.float32)
    if self.soft_cap is not None:
      logits_BTV = self.soft_cap * jnp.tanh(logits_BTV / self.soft_cap)
    padded = self.padded_vocab_size
    if self.vocab_size and padded > self.vocab_size:
      real_V = jnp.arange(padded) < self.vocab_size
      logits_BTV = jnp.where(real_V[None, None], logits_BTV, -1e9)
    return logits_BTV

  def mean(self, logits_BTV: Array) -> Array:
    """Returns the mean of the logits over the real rows, (B, T)."""
    padded = self.padded_vocab_size
    count = self.vocab_size or padded
    real_V = (jnp.arange(padded) < count).astype(logits_BTV.dtype)
    return jnp.einsum('btv,v->bt', logits_BTV, real_V) / count


class Output(NamedTuple):
  """The output of a model: hidden states (B, T, D) and the head that maps them to logits."""

  hidden: Array
  head: OutputHead
  aux: WeightedSums  # losses of layers: {}, for no objective adds them yet; apply_of refuses others
  cache: Any = None


class Apply(Protocol):
  """`apply(params, batch, key=None, cache=None) -> Output`; without a key there is no dropout."""

  def __call__(
    self, params: Params, batch: Batch, key: Array | None = None, cache: Any = None
  ) -> Output: ...

  def __hash__(self) -> int: ...


HOOKS_COLLECTION = 'hooks'  # the Flax collection that lm.nn.hooks reads
_STATE = nn.DenyList(('params', HOOKS_COLLECTION))


def apply_of(model: nn.Module) -> Apply:
  """Returns the pure function of a Linen model.

  Raises:
    UserError: when traced, the model has variables besides parameters, or losses of its layers.
  """

  def apply(params: Params, batch: Batch, key: Array | None = None, cache: Any = None) -> Output:
    rngs = {} if key is None else {'dropout': key}
    found = model.apply({'params': params}, batch, cache, rngs=rngs, mutable=_STATE)
    output, state = cast(tuple[Output, Params], found)
    if output.aux or state:
      refuse_state(output, state)
    return output

  return apply


def refuse_state(output: Output, state: Params) -> None:
  """Raises UserError where a step would drop losses of layers, or variables."""
  if output.aux:
    raise UserError(
      f'model.fn: Output.aux={sorted(output.aux)} would be dropped: there are no layer losses yet; '
      'return {}, and add the loss in an objective'
    )
  if state:
    names = {
      name: '/'.join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
      for name, tree in state.items()
      for path, _ in jax.tree_util.tree_leaves_with_path(tree)[:1]
    }
    there = ', '.join(f'{name!r} ({path})' for name, path in sorted(names.items()))
    raise UserError(
      f'model.fn: a layer sows or keeps variables of collection {there}, which would be dropped: '
      'there are no layer losses yet; a layer has parameters alone'
    )


@dataclasses.dataclass(frozen=True)
class Objective:
  """A training objective as pure functions.

  `loss_sums(apply, params, batch, key)` returns the named losses, each summed over the batch and
  scaled by its coefficient. `normalizers(batch)` returns the weight of each under the same names,
  from the batch alone. The weights of the whole batch are thus known before the gradient, so that
  `sum over names of loss_sums / normalizers` is exact under gradient accumulation and over hosts.

  `sample(batch, key)` adds what is random in a batch, before both. `microbatched` is False where
  rows of a batch share samples, so that microbatches cannot be taken. `sparse_rows(batch)` is for
  sparse updates alone: it returns, by the name of a table parameter, the unique rows (N,) that the
  batch uses, in any order and padded with any number that is no row, and the batch with rows
  renumbered by their index in N.
  """

  loss_sums: Callable[[Apply, Params, Batch, Array | None], dict[str, Array]]
  normalizers: Callable[[Batch], dict[str, Array]]
  sample: Callable[[Batch, Array], Batch] | None = None
  microbatched: bool = True
  sparse_rows: Callable[[Batch], tuple[dict[str, Array], Batch]] | None = None


class TrainState(flax.struct.PyTreeNode):
  """All that changes in training. The step is also the position in the data."""

  step: Array  # () int32, steps taken
  skipped: Array  # () int32, steps whose gradient was not finite
  streak: Array  # () int32, how many of the latest steps in a row were skipped
  params: Params
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Metric:
  """An evaluation metric as two pure functions.

  `terms(output, batch)` returns named (sum, weight) pairs, which are summed over a set of examples.
  `derive(means)` returns further values that follow from their means, such as perplexity.
  `higher_is_better` gives the direction of each value. A value without one cannot be monitored.
  """

  terms: Callable[[Output, Batch], WeightedSums]
  derive: Callable[[dict[str, float]], dict[str, float]] = lambda means: {}
  higher_is_better: Directions = dataclasses.field(default_factory=dict)
