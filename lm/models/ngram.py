"""An n-gram language model: a trie of counted n-grams that a row walks along.

A node is an n-gram, and its children are the tokens that followed it. Nodes are numbered by length,
and then in the order of their tokens, so that the children of a node are neighbors. Node 0 is the
empty context, and node 1 + i is token i. `lm.objectives.ngram` counts the tables.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lm.errors import check_range
from lm.nn.recurrent import forward_resets
from lm.types import Array, Batch, EmbeddingTable, Output, OutputHead

LARGEST = 2**24  # nodes that float32 numbers exactly, as an ensemble joins hidden states of models
_CHILDREN = 256  # children of each position that are read together


class Tables(NamedTuple):
  """The nodes of a trie of M n-grams; unused rows come last.

  Attributes:
    token: (M,) int32, the last token of each node.
    first: (M + 1,) int32; the children of node i are those from first[i] to first[i + 1].
    added: (M,) the probability of the last token after the others, without that of shorter
      contexts: the discounted count by the total of the context.
    backoff: (M,) the weight of shorter contexts after this node; 1 for a node without children.
    unigram: (V,) the probability of each token after the empty context.
  """

  token: Any
  first: Any
  added: Any
  backoff: Any
  unigram: Any


class Ngram(nn.Module):
  """An interpolated n-gram model: `(batch, cache) -> Output`.

  The hidden states are node ids (B, T, N): the nodes of the last 0, 1, ..., N - 1 tokens, or -1
  where they did not occur. The cache has those of the last token.
  """

  vocab_size: int
  context: int  # longest row in training; the model can read longer rows
  order: int = 5  # N
  size: int = 2**20  # M, the nodes that the tables hold

  continues_prompts = True
  reads_on = True

  def __post_init__(self) -> None:
    """Checks the sizes.

    Raises:
      UserError: one is out of its range.
    """
    super().__post_init__()
    check_range('model.order', self.order, 2, 16)
    check_range('model.size', self.size, 1, LARGEST)

  @nn.compact
  def __call__(self, batch: Batch, cache: Any = None) -> Output:
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    tables = Tables(
      self.param('token', zeros, (self.size,), jnp.int32),
      self.param('first', zeros, (self.size + 1,), jnp.int32),
      self.param('added', zeros, (self.size,)),
      self.param('backoff', ones, (self.size,)),
      self.param('unigram', nn.initializers.constant(1 / self.vocab_size), (self.vocab_size,)),
    )
    nodes_BN = (cache or self.init_cache(len(batch['inputs']), 0))['nodes']
    nothing_BN = self.init_cache(len(nodes_BN), 0)['nodes']

    def step(nodes_BN: Array, x: Any) -> tuple[Array, Array]:
      token_B, reset_B, padding_B = x
      before_BN = jnp.where(reset_B[:, None], nothing_BN, nodes_BN)
      longer_BN = _child(tables, before_BN[:, :-1], token_B[:, None], self.vocab_size)
      after_BN = jnp.concatenate([nothing_BN[:, :1], longer_BN], axis=1)
      after_BN = jnp.where(padding_B[:, None], nodes_BN, after_BN)
      return after_BN, after_BN

    resets = forward_resets(batch['segments'], batch['positions'])
    xs = tuple(x.swapaxes(0, 1) for x in (batch['inputs'], *resets))
    nodes_BN, nodes_TBN = jax.lax.scan(step, nodes_BN, xs)
    head = cast(OutputHead, BackoffHead(tables))
    return Output(nodes_TBN.swapaxes(0, 1), head, {}, cache and {'nodes': nodes_BN})

  def init_cache(self, batch_size: int, length: int) -> dict[str, Array]:
    """Returns the nodes of empty rows; `length` has no effect."""
    nodes_N = jnp.where(jnp.arange(self.order) == 0, 0, -1)
    return {'nodes': jnp.tile(nodes_N, (batch_size, 1))}

  def reorder_cache(self, cache: Mapping[str, Array], parents_BM: Array) -> dict[str, Array]:
    """Returns a cache of M beams a row, where beam m continues beam `parents_BM[b, m]`."""
    nodes_BMN = cache['nodes'].reshape(len(parents_BM), -1, self.order)
    picked = jnp.take_along_axis(nodes_BMN, parents_BM[:, :, None], axis=1)
    return {'nodes': picked.reshape(-1, self.order)}


def _child(tables: Tables, nodes: Array, tokens: Array, vocab_size: int) -> Array:
  """Returns the child of each node by a token, -1 where there is none; by binary search."""
  low, stop = _children(tables, nodes)

  def halve(_: int, range_: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = range_
    middle = (low + high) // 2
    less = (tables.token[middle] < tokens) & (low < high)
    return jnp.where(less, middle + 1, low), jnp.where(less, high, middle)

  low, _ = jax.lax.fori_loop(0, vocab_size.bit_length(), halve, (low, stop))
  found = (low < stop) & (tables.token[low] == tokens)
  return jnp.where(found, low, -1)


def _children(tables: Tables, nodes: Array) -> tuple[Array, Array]:
  """Returns the first child of each node, and the one after its last."""
  ends = tables.first[nodes], tables.first[nodes + 1]
  return tuple(jnp.where(nodes < 0, 0, end) for end in ends)  # type: ignore[return-value]


def _add_children(tables: Tables, nodes_BT: Array, p_BTV: Array) -> Array:
  """Returns p with `added` of each child of a node at its token; some children at a time."""
  (B, T, V), (first_BT, stop_BT) = p_BTV.shape, _children(tables, nodes_BT)
  rows, columns = jnp.arange(B)[:, None, None], jnp.arange(T)[None, :, None]

  def some(carry: tuple[Array, Array]) -> tuple[Array, Array]:
    done, p_BTV = carry
    child_BTC = first_BT[..., None] + done + jnp.arange(_CHILDREN)[None, None]
    token_BTC = jnp.where(child_BTC < stop_BT[..., None], tables.token[child_BTC], V)
    p_BTV = p_BTV.at[rows, columns, token_BTC].add(tables.added[child_BTC], mode='drop')
    return done + _CHILDREN, p_BTV

  most = jnp.max(stop_BT - first_BT)
  start = (jnp.zeros((), jnp.int32), p_BTV)
  return jax.lax.while_loop(lambda carry: carry[0] < most, some, start)[1]


class BackoffHead(flax.struct.PyTreeNode):
  """The map from node ids (B, T, N) to logits, the logarithms of interpolated probabilities."""

  tables: Tables

  table = EmbeddingTable(None)

  @property
  def vocab_size(self) -> int:
    """The count of logits per position, none of which is padding."""
    return self.tables.unigram.shape[0]

  padded_vocab_size = vocab_size

  def __call__(self, nodes_BTN: Array) -> Array:
    """Returns the (B, T, V) float32 logits.

    From the shortest context to the longest: p <- backoff(context) p + added(context, token).
    """
    tables, (B, T, N) = self.tables, nodes_BTN.shape
    p_BTV = jnp.broadcast_to(tables.unigram, (B, T, self.vocab_size))
    for n in range(1, N):
      nodes_BT = nodes_BTN[:, :, n]
      p_BTV *= jnp.where(nodes_BT < 0, 1, tables.backoff[nodes_BT])[..., None]
      p_BTV = _add_children(tables, nodes_BT, p_BTV)
    return jnp.log(p_BTV)

  def mean(self, logits_BTV: Array) -> Array:
    """Returns the mean of the logits, (B, T)."""
    return logits_BTV.mean(-1)
