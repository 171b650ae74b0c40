"""The types that packages share, and the glossary of axis letters.

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
import optax

from lm.errors import UserError

Array = jax.Array
Params = Any
# Arrays with a leading batch axis, by name. A language-model batch holds, each (B, T):
#   inputs, targets: int32 token ids; targets[t] follows inputs[t]
#   weights: float32, 1 where the target counts, 0 on padding
#   segments: int32, which document of the row a token belongs to, from 1; 0 is padding
#   positions: int32, index within the segment
#   bytes: int32, bytes of raw text that the target stands for; they sum to the size of the text
#   words: int32, with data.words: above 0 where a word begins (lm.text.words)
# A batch of a task has in addition, or instead:
#   source, source_segments, source_positions: (B, S), the inputs of the encoder
#   masked: (B, M) int32, the indices in the row of the tokens that an encoder predicts; targets and
#     weights are (B, M) then, with weight 0 where a row has fewer
#   prefix: (B, T) int32, 1 for inputs of a prefix with bidirectional attention
#   examples: (B, P) int32, for each segment of the row, 1 + the index of its `Features` among all
#     prepared ones (`FeatureRows.example` gives the example); 0 is padding
#   targets, weights: (B, P) for one target per example
Batch = Mapping[str, Array]
# Pairs of scalars (sum, weight), by name. Sums and weights are added over microbatches and hosts
# before the division, so that sum / weight is the mean over the full batch.
WeightedSums = dict[str, tuple[Array, Array]]
# Maps the name of a metric to whether higher values are better; None if neither direction is.
Directions = Mapping[str, bool | None]


class Mask(flax.struct.PyTreeNode):
  """A description of the keys that each query attends to, which kernels interpret.

  A query attends to a key when all conditions that are set hold: equal segments; for causal masks
  `k_position <= q_position` or a key of the prefix; for windows `q_position - k_position < window`;
  and `allowed`. With `ordered`, queries and keys are the same tokens of the same rows, and each
  segment is contiguous with rising positions; causal kernels may then skip keys by index. With
  `packed`, a row may hold several segments; otherwise it has one segment and padding at its end.
  """

  q_positions: Array  # (B, T) int32
  k_positions: Array  # (B, S) int32
  q_segments: Array | None = None  # (B, T) int32; 0 marks padding
  k_segments: Array | None = None  # (B, S) int32
  k_prefix: Array | None = None  # (B, S) int32; 1 for keys of the prefix, visible to all queries
  allowed: Array | None = None  # (B, T, S) bool, the keys that each query may see, in beam search
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
    return None if self.bias is None else self.bias(self.q_positions, self.k_positions)


class EmbeddingTable(NamedTuple):
  """The embeddings of a vocabulary (V, D), and, on a mesh, their all-gathered copies."""

  vectors_VD: Any
  gathered: Any = None  # lm.parallel.collectives.GatheredParam, or None


class OutputHead(flax.struct.PyTreeNode):
  """The map from hidden states to logits: a matmul with a table, a bias and a soft cap.

  `vocab_size` is the count of real rows of the kernel; later rows are padding with logits of -1e9.
  `axes` are the logical axes of the kernel.
  """

  table: EmbeddingTable
  bias_V: Array | None = None
  vocab_size: int = flax.struct.field(pytree_node=False, default=0)
  soft_cap: float | None = flax.struct.field(pytree_node=False, default=None)
  axes: tuple[str | None, str] = flax.struct.field(pytree_node=False, default=('vocab', 'embed'))

  @property
  def kernel_VD(self) -> Array:
    """The output vectors (V, D), whose matmul with hidden states gives the logits."""
    return self.table.vectors_VD

  @property
  def logical_axes(self) -> Any:
    """The logical axes of the kernel and of the bias, as an OutputHead of axes."""
    bias = None if self.bias_V is None else self.axes[:1]
    return self.replace(table=EmbeddingTable(self.axes), bias_V=bias)

  @property
  def padded_vocab_size(self) -> int:
    """The count of logits per position, padding included."""
    return self.kernel_VD.shape[0]

  def __call__(self, hidden_BTD: Array) -> Array:
    """Returns the (B, T, V) float32 logits."""
    B, T, D = hidden_BTD.shape
    # Axes B and T are flattened, because XLA:CPU transposes the gradients of a matmul with more
    # axes (see lm.nn.layers._matmul).
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
  losses: dict[str, Array]  # of the layers, by name; each is one term of the training loss
  cache: Any = None


class Apply(Protocol):
  """`apply(params, batch, key=None, cache=None) -> Output`; without a key there is no dropout."""

  def __call__(
    self, params: Params, batch: Batch, key: Array | None = None, cache: Any = None
  ) -> Output: ...

  def __hash__(self) -> int: ...


HOOKS_COLLECTION = 'hooks'  # the Flax collection that lm.nn.hooks reads
LOSSES_COLLECTION = 'losses'  # that of lm.nn.layers.layer_loss
_STATE = nn.DenyList(('params', HOOKS_COLLECTION))


def apply_of(model: nn.Module) -> Apply:
  """Returns the pure function of a Linen model, whose output has the losses of its layers.

  Raises:
    UserError: by the returned function when it is traced, if the model has variables besides
      parameters.
  """

  def apply(params: Params, batch: Batch, key: Array | None = None, cache: Any = None) -> Output:
    rngs = {} if key is None else {'dropout': key}
    result = model.apply({'params': params}, batch, cache, rngs=rngs, mutable=_STATE)
    output, state = cast(tuple[Output, Params], result)
    if state:
      sown = state.pop(LOSSES_COLLECTION, {})
      refuse_state(state)
      output = output._replace(losses=_sum_by_name(sown, output.losses))
    return output

  return apply


def _sum_by_name(sown: Params, losses: dict[str, Array]) -> dict[str, Array]:
  """Returns the sum over layers of each loss, added to those that the model itself returns."""
  total = dict(losses)
  for path, x_N in jax.tree_util.tree_leaves_with_path(sown):
    name = path[-1].key
    total[name] = total.get(name, 0.0) + jnp.sum(x_N)
  return total


def refuse_state(state: Params) -> None:
  """Raises UserError if a model has variables besides parameters, which a step would drop."""
  if state:
    names = {
      name: '/'.join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
      for name, tree in state.items()
      for path, _ in jax.tree_util.tree_leaves_with_path(tree)[:1]
    }
    listed = ', '.join(f'{name!r} ({path})' for name, path in sorted(names.items()))
    raise UserError(
      f'model.fn: a layer sows or keeps variables of collection {listed}, which would be dropped; '
      'a layer may have parameters, and losses by lm.nn.layers.layer_loss'
    )


MAIN = 'model'  # the name of the main tree, where an objective gets several
Schedule = Callable[[Array], Array]


class Optimizer(NamedTuple):
  """An Optax transformation and the learning rate it follows, `step -> rate`.

  `evaluated(params, opt_state)` returns the parameters of evaluations and programs, such as an
  average of those that are trained; None for these themselves.
  """

  transformation: optax.GradientTransformation
  schedule: Schedule
  evaluated: Callable[[Params, Any], Params] | None = None


class View(NamedTuple):
  """Parameters of the model that are computed from those that are trained, as in LoRA.

  `split(key, initial parameters) -> (trained, frozen)`, each a tree of any structure. A leaf with
  path and shape of a parameter is sharded like it, any other is replicated.
  `merge(trained, frozen)` returns the parameters of the model.
  """

  split: Callable[[Array, Params], tuple[Params, Params]]
  merge: Callable[[Params, Params], Params]


@dataclasses.dataclass(frozen=True)
class Objective:
  """A training objective as pure functions.

  `loss_sums(apply, params, batch, key)` returns the named losses, each summed over the batch and
  scaled by its coefficient. `normalizers(batch)` returns the weight of each under the same names,
  from the batch alone. The weights of the full batch are thus known before the gradient, so that
  `sum over names of loss_sums / normalizers` is exact under gradient accumulation and over hosts.
  `loss_sums` also returns `Output.losses`, the terms of the layers, which have no normalizer.

  `sample(batch, key)` runs before both and adds random arrays to the batch. `microbatched` is False
  if rows of a batch share samples, which excludes microbatches.

  `sparse_rows(batch)` is needed for sparse updates only. It returns a dict from the name of each
  table parameter to the unique row ids (N,) that the batch uses. They are in any order, padded with
  values that are not row ids. It also returns the batch with each row id replaced by its index
  among the N.

  `initial(abstract)` returns the parameters that training starts from, NumPy arrays of the shapes
  and types of `abstract`, where the corpus determines them; None for those of the model.
  """

  loss_sums: Callable[[Apply, Params, Batch, Array | None], dict[str, Array]]
  normalizers: Callable[[Batch], dict[str, Array]]
  sample: Callable[[Batch, Array], Batch] | None = None
  microbatched: bool = True
  sparse_rows: Callable[[Batch], tuple[dict[str, Array], Batch]] | None = None
  initial: Callable[[Params], Params] | None = None


class TrainState(flax.struct.PyTreeNode):
  """The state of training. The step is also the position in the data."""

  step: Array  # () int32, steps taken
  skipped: Array  # () int32, steps whose gradient was not finite
  streak: Array  # () int32, the count of consecutive skipped steps up to the latest one
  params: Params  # those that are trained
  opt_state: Any
  # Trees that a step reads and does not change; checkpoints have none (lm.training.named_trees).
  frozen: Params = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Metric:
  """An evaluation metric as two pure functions.

  `terms(output, batch)` returns named (sum, weight) pairs, which are summed over a set of examples.
  `derive(means)` returns values computed from the means, such as perplexity.
  `higher_is_better` gives the direction of each value. A value without one cannot be monitored.
  """

  terms: Callable[[Output, Batch], WeightedSums]
  derive: Callable[[dict[str, float]], dict[str, float]] = lambda means: {}
  higher_is_better: Directions = dataclasses.field(default_factory=dict)
