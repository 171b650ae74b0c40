"""The values that travel between the floors, and the glossary of axis letters.

Axis letters, used as suffixes in tensor code and in einsum strings:
  B batch row     T query or target position   S key or source position   D model width
  H query head    G key/value head             K head size                F feed-forward width
  V vocabulary    N layer                      C class                    E expert
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp

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
Terms = dict[str, tuple[Array, Array]]
# By the name of a metric, whether its highest value is the best. None: no value is better.
Directions = Mapping[str, bool | None]


class Mask(flax.struct.PyTreeNode):
  """Who may attend to whom, described and not materialised.

  A query sees a key when all the conditions that are set hold: equal segments, and for causal
  masks `k_position <= q_position` or a key of the prefix, and for windows
  `q_position - k_position < window`; and `visible` shows it, where that is given.
  `ordered` says that queries and keys are the same tokens of the same rows and that each segment
  is a run of neighbours in rising position; causal implementations may then skip keys by index.
  `packed` says that a row may hold several segments; where it holds one, padding comes after it.
  """

  q_positions: Array  # (B, T) int32
  k_positions: Array  # (B, S) int32
  q_segments: Array | None = None  # (B, T) int32; 0 marks padding
  k_segments: Array | None = None  # (B, S) int32
  k_prefix: Array | None = None  # (B, S) int32; 1 where a causal mask shows the key to all
  visible: Array | None = None  # (B, T, S) bool, of queries that go on from different keys
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
      visible=None if self.visible is None else self.visible[:, q, k],
    )

  def dense(self) -> Array | None:
    """Returns the (B, 1, T, S) boolean array, or None when everything is visible."""
    q_BTx, k_BxS = self.q_positions[:, :, None], self.k_positions[:, None, :]
    visible = None
    if self.causal:
      visible = k_BxS <= q_BTx
      if self.k_prefix is not None:
        visible |= self.k_prefix[:, None, :] > 0
    if self.window is not None:
      near = q_BTx - k_BxS < self.window
      if not self.causal:
        near &= k_BxS - q_BTx < self.window
      visible = near if visible is None else visible & near
    if self.q_segments is not None and self.k_segments is not None:
      same = self.q_segments[:, :, None] == self.k_segments[:, None, :]
      visible = same if visible is None else visible & same
    if self.visible is not None:
      visible = self.visible if visible is None else visible & self.visible
    return None if visible is None else visible[:, None]

  def dense_bias(self) -> Array | None:
    """Returns the (B, H, T, S) float32 additive bias, or None."""
    if self.bias is None:
      return None
    return self.bias(self.q_positions, self.k_positions)


class Table(NamedTuple):
  """Vectors of a vocabulary, (V, D), and what devices have of them for their rows (lm.shards)."""

  vectors_VD: Any
  copies: Any = None  # Copies, or None where all devices work on the vectors


class Unembed(flax.struct.PyTreeNode):
  """How hidden states become logits: a product with a table's vectors, a bias and a soft cap.

  `vocab_size` is the number of real entries; rows of the kernel beyond it are padding and get a
  logit of -1e9, so they never count. `axes` are the logical axes of the kernel.
  """

  table: Table
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
    """The logical axes of the kernel and of the bias, each in its place."""
    bias = None if self.bias_V is None else self.axes[:1]
    return self.replace(table=Table(self.axes), bias_V=bias)

  @property
  def entries(self) -> int:
    """Logits a position that are held at once, padding included."""
    return self.kernel_VD.shape[0]

  def __call__(self, hidden_BTD: Array) -> Array:
    """Returns the (B, T, V) float32 logits."""
    B, T, D = hidden_BTD.shape
    # One product of matrices, for the sake of its gradient (see lm.nn.layers.Linear).
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
    padded = self.kernel_VD.shape[0]
    if self.vocab_size and padded > self.vocab_size:
      real_V = jnp.arange(padded) < self.vocab_size
      logits_BTV = jnp.where(real_V[None, None], logits_BTV, -1e9)
    return logits_BTV

  def mean(self, logits_BTV: Array) -> Array:
    """Returns the mean of the logits of the real entries, (B, T)."""
    padded = self.kernel_VD.shape[0]
    count = self.vocab_size or padded
    real_V = (jnp.arange(padded) < count).astype(logits_BTV.dtype)
    return jnp.einsum('btv,v->bt', logits_BTV, real_V) / count


class Output(NamedTuple):
  """What a model returns: hidden states (B, T, D) and how to unembed them, not the logits."""

  hidden: Array
  unembed: Unembed
  aux: Terms  # losses of layers: {}, for no objective adds them up yet; anything else is refused
  cache: Any = None


class Apply(Protocol):
  """`apply(params, batch, key=None, cache=None) -> Output`; no key means no dropout."""

  def __call__(
    self, params: Params, batch: Batch, key: Array | None = None, cache: Any = None
  ) -> Output: ...

  def __hash__(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Objective:
  """A training objective as two pure functions.

  `sums(apply, params, batch, key)` returns the named losses, each summed over the batch and scaled
  by its coefficient. `weights(batch)` returns the weight of each under the same names, from the
  batch alone: it is known for the whole batch before the gradient pass, so that
  `sum over names of sums / weights` is exact under microbatching and over hosts.

  `draw(batch, key)` adds to a whole batch what is random in it, before all else; `sums` and
  `weights` see what it returns. `rows(batch)` says which rows of tables the batch touches, so that
  nothing is computed of the others: by the name of a parameter that is a table, the different rows
  (N,), in any order and filled up with any number that is no row's; and the batch with rows
  numbered by their places in N. Empty, it leaves all parameters whole. `whole` says that rows of a
  batch share what is drawn, so that it cannot be taken in microbatches.
  """

  sums: Callable[[Apply, Params, Batch, Array | None], dict[str, Array]]
  weights: Callable[[Batch], dict[str, Array]]
  draw: Callable[[Batch, Array], Batch] = lambda batch, key: batch
  rows: Callable[[Batch], tuple[dict[str, Array], Batch]] = lambda batch: ({}, batch)
  whole: bool = False


@dataclasses.dataclass(frozen=True)
class Metric:
  """An evaluation metric as two pure functions.

  `terms(output, batch)` returns named (sum, weight) pairs, added up over a whole set of examples.
  `derive(means)` returns further values that follow from their means, such as perplexity.
  `higher_is_better` says of each value which direction is better. A value that it does not name has
  no best step, and no run can go by it.
  """

  terms: Callable[[Output, Batch], Terms]
  derive: Callable[[dict[str, float]], dict[str, float]] = lambda means: {}
  higher_is_better: Directions = dataclasses.field(default_factory=dict)
