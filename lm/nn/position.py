"""Position schemes, which act on embeddings, on queries and keys, or on attention scores."""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from lm.parallel.mesh import with_logical_partitioning
from lm.types import Array


class Position(NamedTuple):
  """A position scheme as three functions; None where it does not act."""

  # (module, positions_BT, d_model, context) -> (B, T, D) to add to the embeddings; may hold params
  embed: Callable[[nn.Module, Array, int, int], Array] | None = None
  # (x_BTHK, positions_BT) -> x_BTHK, applied to queries and keys alike
  rotate: Callable[[Array, Array], Array] | None = None
  # (module, heads, causal) -> bias(q_positions_BT, k_positions_BS) -> (B, H, T, S) float32; a
  # pytree, because it may hold params
  bias: Callable[[nn.Module, int, bool], Partial] | None = None
  even: str | None = None  # the name of a model size that must be even, such as 'head_dim'


def none() -> Position:
  """No positions: the causal mask alone gives the order."""
  return Position()


def learned(std: float = 0.02, offset: int = 0) -> Position:
  """A learned vector for each position up to the context length (Radford et al. 2019).

  Args:
    std: of the initial values.
    offset: rows of the table before that of position 0, which nothing reads, as in RoBERTa.
  """

  def embed(module: nn.Module, positions_BT: Array, d_model: int, context: int) -> Array:
    init = with_logical_partitioning(nn.initializers.normal(std), None, 'embed')
    table = module.param('position', init, (context + offset, d_model))
    # Not `+ 0`: XLA:CPU would fuse, and round, otherwise.
    return jnp.take(table, positions_BT + offset if offset else positions_BT, axis=0)

  return Position(embed=embed)


def sinusoidal() -> Position:
  """Fixed sines and cosines of geometrically spaced wavelengths (Vaswani et al. 2017, 3.5)."""

  def embed(module: nn.Module, positions_BT: Array, d_model: int, context: int) -> Array:
    return sines(positions_BT, d_model)

  return Position(embed=embed, even='d_model')


def sines(positions_BT: Array, d_model: int) -> Array:
  """Returns the sines and cosines of positions, (B, T, D) float32."""
  angles = positions_BT[..., None] * _frequencies(d_model, 10000.0)[None, None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rope(theta: float = 10000.0, fraction: float = 1.0) -> Position:
  """Rotary positions: pairs (k, k + K/2) of a head turn by position / theta^(2k/K).

  Source: Su et al. 2021 (RoFormer), section 3.2. GPT-NeoX and Llama on Hugging Face pair the halves
  of a head in this way too. With a `fraction` below 1, only the first int(fraction K) elements of a
  head turn, as if they were the head (Black et al. 2022, 2.1.1).
  """
  return _rotary(lambda K: _frequencies(K, theta), fraction=fraction)


def rope_linear(theta: float, factor: float, fraction: float = 1.0) -> Position:
  """`rope` of positions that are divided by `factor` (Chen et al. 2023, position interpolation)."""
  return _rotary(lambda K: _frequencies(K, theta) / factor, fraction=fraction)


def rope_llama3(
  theta: float,
  factor: float,
  low: float,
  high: float,
  original_context: int,
  fraction: float = 1.0,
) -> Position:
  """`rope` of Llama 3.1: low frequencies are divided by `factor`, high ones stay.

  Args:
    theta: as in `rope`.
    factor: of the longer context.
    low: frequencies of wavelengths above original_context / low are divided by `factor`.
    high: frequencies of wavelengths below original_context / high stay; those between the two are
      interpolated.
    original_context: tokens of a row in pretraining.
    fraction: as in `rope`.
  """

  def frequencies(K: int) -> Array:
    f_K = _frequencies(K, theta)
    turns_K = original_context * f_K / (2 * math.pi)
    kept_K = jnp.clip((turns_K - low) / (high - low), 0, 1)
    return kept_K * f_K + (1 - kept_K) * f_K / factor

  return _rotary(frequencies, fraction=fraction)


def rope_yarn(
  theta: float,
  factor: float,
  original_context: int,
  fast: float = 32.0,
  slow: float = 1.0,
  scale: float | None = None,
  fraction: float = 1.0,
) -> Position:
  """`rope` with YaRN (Peng et al. 2023, sections 3.2 to 3.4).

  Args:
    theta: as in `rope`.
    factor: of the longer context.
    original_context: tokens of a row in pretraining.
    fast: frequencies with more than this number of turns over `original_context` stay.
    slow: frequencies with fewer than this number of turns are divided by `factor`; those between
      the two are interpolated.
    scale: multiplies queries and keys; None for 0.1 log(factor) + 1.
    fraction: as in `rope`.
  """

  def frequencies(K: int) -> Array:
    def dimension(turns: float) -> float:
      return K * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), K - 1)
    places_K = jnp.arange(K // 2, dtype=jnp.float32)
    divided_K = jnp.clip((places_K - first) / max(last - first, 0.001), 0, 1)
    f_K = _frequencies(K, theta)
    return divided_K * f_K / factor + (1 - divided_K) * f_K

  scale = 0.1 * math.log(factor) + 1 if scale is None else scale
  return _rotary(frequencies, scale, fraction)


def _rotary(
  frequencies: Callable[[int], Array], scale: float = 1.0, fraction: float = 1.0
) -> Position:
  """Returns the scheme that turns pairs of a head of size K by these (K/2,) frequencies."""

  def rotate(x_BTHK: Array, positions_BT: Array) -> Array:
    K = x_BTHK.shape[-1]
    width = int(fraction * K)
    if width == K:
      return turned(x_BTHK, positions_BT, width)
    # An odd width has a last pair with one element beyond it.
    turning, still = jnp.split(x_BTHK, (width + width % 2,), axis=-1)
    return jnp.concatenate([turned(turning, positions_BT, width), still], axis=-1)

  def turned(x_BTHK: Array, positions_BT: Array, width: int) -> Array:
    angles = positions_BT[..., None] * frequencies(width)[None, None]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    if scale != 1:
      cos, sin = cos * scale, sin * scale
    first, second = jnp.split(x_BTHK.astype(jnp.float32), 2, axis=-1)
    both = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return both.astype(x_BTHK.dtype)

  return Position(rotate=rotate, even='head_dim')


def alibi() -> Position:
  """A penalty on scores: distance times 2^(-8h/H), the slope of head h of H (Press et al. 2022).

  If H is not a power of two, the slopes are those of the next lower power, followed by every other
  slope of the next higher one, as in the paper's code.
  """

  def bias(module: nn.Module, heads: int, causal: bool) -> Partial:
    return Partial(of_distance, jnp.asarray(_alibi_slopes(heads)))

  def of_distance(slopes_H: Array, q_BT: Array, k_BS: Array) -> Array:
    distance = jnp.abs(q_BT[:, :, None] - k_BS[:, None, :]).astype(jnp.float32)
    return -slopes_H[None, :, None, None] * distance[:, None]

  return Position(bias=bias)


def relative(buckets: int = 32, max_distance: int = 128, std: float = 0.02) -> Position:
  """A learned bias on scores by distance, one set for all layers (Raffel et al. 2020, 2.1).

  The first half of the buckets are single distances. The second half grow geometrically up to
  `max_distance`; the last one has all larger distances. Without causality, half of all buckets are
  for keys after the query.
  """

  def bias(module: nn.Module, heads: int, causal: bool) -> Partial:
    init = with_logical_partitioning(nn.initializers.normal(std), None, 'heads')
    table = module.param('relative', init, (buckets, heads))
    count = buckets if causal else buckets // 2

    def of_distance(table: Array, q_BT: Array, k_BS: Array) -> Array:
      back_BTS = q_BT[:, :, None] - k_BS[:, None, :]
      bucket_BTS = _bucket(jnp.maximum(back_BTS, 0) if causal else jnp.abs(back_BTS), count)
      if not causal:
        bucket_BTS += jnp.where(back_BTS < 0, count, 0)
      return jnp.take(table, bucket_BTS, axis=0).transpose(0, 3, 1, 2).astype(jnp.float32)

    return Partial(of_distance, table)

  def _bucket(distance: Array, count: int) -> Array:
    exact = count // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(max_distance / exact)
    far = exact + (ratio * (count - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, count - 1))

  return Position(bias=bias)


def _frequencies(width: int, theta: float) -> Array:
  return theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)


def _alibi_slopes(heads: int) -> list[float]:
  lower = 1 << (heads.bit_length() - 1)
  slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
  between = [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * lower, 2)]
  return slopes + between[: heads - lower]
