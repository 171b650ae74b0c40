"""Ensembles of models as one model (Hansen and Salamon 1990).

The members share a vocabulary; their architectures and sizes may differ. An ensemble serves
wherever a model does: its hidden states are the concatenated ones of its members, and its output
head splits them again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead, Params

# mean(logits_MBTV) -> logits_BTV, of M members
Mean = Callable[[Array], Array]


def probabilities(logits_MBTV: Array) -> Array:
  """Returns the log of the mean of the members' probabilities, a mixture.

  A token that is impossible for one member stays possible, which suits members with different
  strengths.
  """
  log_p_MBTV = jax.nn.log_softmax(logits_MBTV, axis=-1)
  return jax.nn.logsumexp(log_p_MBTV, axis=0) - jnp.log(logits_MBTV.shape[0])


def logits(logits_MBTV: Array) -> Array:
  """Returns the mean of the members' logits.

  Its softmax is the normalized geometric mean of the members' probabilities (product of experts):
  each member can veto a token. It also suits outputs that are no distribution over V, such as
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
    """The number of logits per position over all members."""
    return sum(member.padded_vocab_size for member in self.members)

  def __call__(self, hidden_BTD: Array) -> Array:
    """Returns the (B, T, V) float32 logits of the ensemble, or of a single member its own."""
    logits, start = [], 0
    for member, width, dtype in zip(self.members, self.widths, self.dtypes, strict=True):
      own_BTD = hidden_BTD[..., start : start + width].astype(dtype)
      logits.append(member(own_BTD))
      start += width
    if len(logits) == 1:
      return logits[0]
    # Tables may be padded to different sizes.
    real = [x[..., : m.vocab_size or None] for x, m in zip(logits, self.members, strict=True)]
    return self.mean_of(jnp.stack(real))

  def mean(self, logits_BTV: Array) -> Array:
    """Returns the mean of the logits of the real entries, (B, T)."""
    return self.members[0].mean(logits_BTV) if len(self.members) == 1 else logits_BTV.mean(-1)


class Ensemble(nn.Module):
  """Models of one vocabulary as one model: `(batch, cache) -> Output`; make it with `together`.

  Parameters are {'members_0': those of the first, ...}; a cache is the tuple of the members' own.
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
  def reads_on(self) -> bool:
    return all(member.reads_on for member in self.members)

  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    caches = [None] * len(self.members) if cache is None else cache
    outputs = [member(batch, own) for member, own in zip(self.members, caches, strict=True)]
    hidden = [output.hidden for output in outputs]
    unembed = Members(
      tuple(output.head for output in outputs),
      widths=tuple(x.shape[-1] for x in hidden),
      dtypes=tuple(x.dtype for x in hidden),
      mean_of=self.mean,
    )
    after = None if cache is None else tuple(output.cache for output in outputs)
    # What the layers' own losses are is of no use where nothing is learned.
    return Output(jnp.concatenate(hidden, axis=-1), cast(OutputHead, unembed), {}, after)

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
    models: any with one `vocab_size`; those that decode have `init_cache` and `reorder_cache`.
    mean: how their logits become those of all: `probabilities`, `logits`, or another function.

  Raises:
    ValueError: there is no model, or they have different vocabularies.
  """
  sizes = sorted({model.vocab_size for model in models})
  if len(sizes) != 1:
    raise ValueError(f'an ensemble needs models of one vocabulary, and these have {sizes}')
  # Copies, for one model that is given twice would have one place for its parameters.
  return Ensemble(tuple(model.clone() for model in models), mean)


def stack_params(params: Sequence[Params]) -> Mapping[str, Params]:
  """Returns the parameters of an ensemble, from those of its members in their order."""
  return {f'members_{i}': own for i, own in enumerate(params)}
