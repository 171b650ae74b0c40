"""The arguments of cuDNN's kernel for a mask, with XLA's implementation instead of the kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.components import init_of
from lm.models.transformer import Decoder, Encoder, EncoderDecoder
from lm.nn import attention
from lm.nn.attention import cudnn, cudnn_mask, dot_product
from lm.types import Mask

T = 8
ONE = np.array([[1] * 8, [1] * 5 + [0] * 3])  # one segment per row, and padding
MANY = np.array([[1] * 3 + [2] * 5, [1] * 2 + [2] * 4 + [0] * 2])


def _mask(segments, **fields):
  positions = [
    [row[:t].count(row[t]) if row[t] else 0 for t in range(T)] for row in segments.tolist()
  ]
  positions, segments = jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32)
  fields = {'ordered': True} | fields
  return Mask(positions, positions, segments, segments, **fields)


BOTH = {'causal': False}
PREFIX = {
  'k_prefix': jnp.broadcast_to(jnp.arange(T) < 2, (2, T)).astype(jnp.int32),
  'ordered': False,
}
# Mask, and the arguments of the kernel: an array, causality by index, lengths, a window.
CASES = {
  'one segment': (_mask(ONE, packed=False), (False, True, False, None)),
  'one segment, window': (_mask(ONE, packed=False, window=3), (False, True, False, (2, 0))),
  'one segment, both ways': (_mask(ONE, packed=False, **BOTH), (False, False, True, None)),
  'one segment, both ways, window': (
    _mask(ONE, packed=False, window=3, **BOTH),
    (True, False, False, None),
  ),
  'several segments': (_mask(MANY), (True, True, False, None)),
  'several segments, window': (_mask(MANY, window=2), (True, True, False, None)),
  'several segments, both ways': (_mask(MANY, **BOTH), (True, False, False, None)),
  'prefix': (_mask(ONE, packed=False, **PREFIX), (True, False, False, None)),
  'memory': (
    Mask(
      jnp.zeros((2, T), jnp.int32),
      jnp.zeros((2, T), jnp.int32),
      jnp.ones((2, T), jnp.int32),
      jnp.asarray(ONE, jnp.int32),
      causal=False,
      packed=False,
    ),
    (False, False, True, None),
  ),
}


@pytest.fixture
def on_cpu(monkeypatch):
  """The function `cudnn`, with XLA instead of the kernel, in float32."""
  plain = jax.nn.dot_product_attention

  def attend(*args, implementation, **given):
    assert implementation == 'cudnn'
    return plain(*args, **given, implementation='xla')

  monkeypatch.setattr(jax.nn, 'dot_product_attention', attend)
  monkeypatch.setattr(attention, '_HALF', (jnp.float32,))
  monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
  return cudnn


@pytest.mark.parametrize(('mask', 'given'), CASES.values(), ids=CASES)
def test_the_kernel_gets_an_array_only_where_no_argument_expresses_the_mask(mask, given):
  found = cudnn_mask(mask)
  there = (found.mask is not None, found.is_causal, found.key_value_seq_lengths is not None)
  assert (*there, found.local_window_size) == given


@pytest.mark.parametrize(('mask', 'given'), CASES.values(), ids=CASES)
def test_cudnn_arguments_give_the_values_and_gradients_of_dot_product(mask, given, on_cpu):
  rng = np.random.default_rng(0)
  shapes = ((2, T, 4, 6), (2, T, 2, 6), (2, T, 2, 6))
  qkv = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
  # The outputs of padding have no effect.
  real_BT11 = (np.asarray(mask.q_segments) > 0)[:, :, None, None]
  cotangent = jnp.asarray(rng.normal(size=shapes[0]) * real_BT11, jnp.float32)

  def values(attend):
    found, back = jax.vjp(lambda *qkv: attend(*qkv, mask), *qkv)
    return found * real_BT11, back(cotangent)

  for ours, plain in zip(
    jax.tree.leaves(values(on_cpu)), jax.tree.leaves(values(dot_product)), strict=True
  ):
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


def test_rows_of_nothing_but_padding_are_finite(on_cpu):
  qkv = [jnp.ones((2, T, 2, 4))] * 3
  for fields in ({}, BOTH):
    mask = _mask(np.zeros((2, T), int), packed=False, **fields)
    assert jnp.isfinite(on_cpu(*qkv, mask)).all()


def test_unpacked_rows_have_no_mask_array():
  for fields in ({}, {'window': 3}, BOTH):
    program = str(jax.make_jaxpr(lambda m: cudnn_mask(m)[0::2])(_mask(ONE, packed=False, **fields)))
    assert f'{T},{T}' not in program


@pytest.mark.parametrize(('examples', 'packed'), [(None, True), (2, True), (1, False)])
@pytest.mark.parametrize('kind', [Decoder, Encoder, EncoderDecoder])
def test_models_set_whether_rows_are_packed(kind, examples, packed):
  """Rows of tasks have `examples` (B, P); rows of running text are always packed."""
  seen = set()

  def attend(q_BTHK, k_BSGK, v_BSGK, mask):
    seen.add(mask.packed)
    return dot_product(q_BTHK, k_BSGK, v_BSGK, mask)

  sizes = {'d_model': 8, 'heads': 2, 'kv_heads': 2, 'head_dim': 4, 'd_mlp': 8}
  model = kind(vocab_size=11, context=T, depth=1, attention_fn=attend, **sizes)
  params = jax.eval_shape(init_of(model, T), jax.random.key(0))
  along = ('inputs', 'segments', 'positions')
  rows = jax.ShapeDtypeStruct((2, T), jnp.int32)
  batch = dict.fromkeys((*along, 'source', 'source_segments', 'source_positions'), rows)
  if examples is not None:
    batch['examples'] = jax.ShapeDtypeStruct((2, examples), jnp.int32)
  seen.clear()
  jax.eval_shape(model.apply, {'params': params}, batch)
  assert seen == {packed}
