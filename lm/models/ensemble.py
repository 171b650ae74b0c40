"""Ensembles of models as one model (Hansen and Salamon 1990).

The members share a vocabulary; their architectures and sizes may differ. An ensemble can replace a
model everywhere: its hidden states are those of its members, concatenated, and its output head
splits them again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead, Params

# mean(logits_MBTV) -> logits_BTV, of M members
Mean = Callable[[Array], Array]


def probabilities(logits_MBTV: Array) -> Array:
  """Returns the log of the mean of the members' probabilities, a mixture.

  A token with probability 0 for one member can still be likely, which suits members with different
  strengths.
  """
  log_p_MBTV = jax.nn.log_softmax(logits_MBTV, axis=-1)
  return jax.nn.logsumexp(log_p_MBTV, axis=0) - jnp.log(logits_MBTV.shape[0])


def logits(logits_MBTV: Array) -> Array:
  """Returns the mean of the members' logits.

  Its softmax is the normalized geometric mean of the members' probabilities (product of experts):
  each member can veto a token. It also suits outputs that are not a distribution over V, such as
  regression values and scores along T.
  """
  return logits_MBTV.mean(0)


class Members(flax.struct.PyTreeNode):
  """The output heads of the members, on concatenated hidden states (B, T, sum of D)."""

  members: tuple[OutputHead, ...]
  widths: tuple[int, ...] = flax.struct.field(pytree_node=False)
  dtypes: tuple[Any, ...] = flax.struct.field(pytree_node=False)
  mean_of: Mean = flax.struct.field(pytree_node=False)

  table = EmbeddingTable(None)  # each member has its own

  @property
  def padded_vocab_size(self) -> int:
    """The logits per position, summed over the members."""
    return sum(member.padded_vocab_size for member in self.members)

  def __call__(self, hidden_BTD: Array) -> Array:
    """Returns the (B, T, V) float32 logits; a single member's logits are returned unchanged."""
    parts = jnp.split(hidden_BTD, np.cumsum(self.widths)[:-1], axis=-1)
    inputs = [part.astype(dtype) for part, dtype in zip(parts, self.dtypes, strict=True)]
    logits = [member(own_BTD) for member, own_BTD in zip(self.members, inputs, strict=True)]
    if len(logits) == 1:
      return logits[0]
    # The tables of members may be padded to different sizes.
    real = [x[..., : m.vocab_size or None] for x, m in zip(logits, self.members, strict=True)]
    return self.mean_of(jnp.stack(real))

  def mean(self, logits_BTV: Array) -> Array:
    """Returns the mean of the logits of the real entries, (B, T)."""
    return self.members[0].mean(logits_BTV) if len(self.members) == 1 else logits_BTV.mean(-1)


class Ensemble(nn.Module):
  """Models of one vocabulary as one model: `(batch, cache) -> Output`, built by `make_ensemble`.

  Parameters are {'members_0': those of the first, ...}. A cache is a tuple of the members' caches.
  """

  members: tuple[nn.Module, ...]
  mean: Mean = probabilities

  @property
  def vocab_size(self) -> int:
    return self.members[0].vocab_size

  @property
  def context(self) -> int:
    return min(member.context for member in self.members)

  @property
  def continues_prompts(self) -> bool:
    return all(member.continues_prompts for member in self.members)

  @property
  def reads_source(self) -> bool:
    return all(getattr(member, 'reads_source', False) for member in self.members)

  @property
  def reads_on(self) -> bool:
    return all(member.reads_on for member in self.members)

  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    caches = [None] * len(self.members) if cache is None else cache
    outputs = [member(batch, own) for member, own in zip(self.members, caches, strict=True)]
    hidden = [output.hidden for output in outputs]
    head = Members(
      tuple(output.head for output in outputs),
      widths=tuple(x.shape[-1] for x in hidden),
      dtypes=tuple(x.dtype for x in hidden),
      mean_of=self.mean,
    )
    after = None if cache is None else tuple(output.cache for output in outputs)
    return Output(jnp.concatenate(hidden, axis=-1), cast(OutputHead, head), {}, after)

  def init_cache(self, batch_size: int, length: int) -> tuple[Any, ...]:
    """Returns the members' empty caches, with buffers of `length` tokens a row."""
    return tuple(member.init_cache(batch_size, length) for member in self.members)

  def reorder_cache(self, cache: Sequence[Any], parents_BM: Array) -> tuple[Any, ...]:
    """Returns the members' caches of M beams a row; see lm/nn/kv_cache.py."""
    pairs = zip(self.members, cache, strict=True)
    return tuple(member.reorder_cache(own, parents_BM) for member, own in pairs)


def make_ensemble(models: Sequence[nn.Module], mean: Mean = probabilities) -> Ensemble:
  """Returns the ensemble of some models.

  Args:
    models: models of one `vocab_size`; to decode, they need `init_cache` and `reorder_cache`.
    mean: the function that combines their logits: `probabilities`, `logits`, or another one.

  Raises:
    ValueError: there is no model, or they have different vocabularies.
  """
  sizes = sorted({model.vocab_size for model in models})
  if len(sizes) != 1:
    raise ValueError(f'an ensemble needs models of one vocabulary, and these have {sizes}')
  # Copies, because a model that is given twice would have only one set of parameters.
  return Ensemble(tuple(model.clone() for model in models), mean)


def stack_params(params: Sequence[Params]) -> Mapping[str, Params]:
  """Returns the parameters of an ensemble, from those of its members in their order."""
  return {f'members_{i}': own for i, own in enumerate(params)}
