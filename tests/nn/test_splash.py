import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.nn import attention, splash
from lm.nn.attention import dot_product
from lm.types import Mask

B, T, H, G, K = 2, 256, 4, 2, 64


def inputs(seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  shapes = [(B, T, n, K) for n in (H, G, G, H)]
  return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def mask_of(causal=True, window=None, lengths=None):
  positions, segments = np.arange(T)[None].repeat(B, 0), None
  if lengths:
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None].repeat(B, 0)
    segments[segments == len(lengths)] = 0  # the last is padding
    positions = np.concatenate([np.arange(n) for n in lengths])[None].repeat(B, 0)
    segments = jnp.asarray(segments)
  positions = jnp.asarray(positions)
  return Mask(positions, positions, segments, segments, causal=causal, window=window, ordered=True)


MASKS = {
  'causal': mask_of(),
  'window': mask_of(window=37),
  'packed': mask_of(lengths=(100, 3, 90, 63)),
  'packed, both ways': mask_of(causal=False, lengths=(130, 126)),
}


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_the_kernel_gives_the_plain_form_and_its_gradients(mask):
  *qkv, probe = inputs()

  def outputs(attend):
    value, back = jax.vjp(lambda *qkv: attend(*qkv, mask), *qkv)
    return value, back(probe)

  found = outputs(lambda *args: splash.splash(*args, interpret=True))
  expected = outputs(dot_product)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, expected)


def test_what_it_cannot_do_is_told_and_fused_does_it_otherwise(monkeypatch):
  q, k, v, _ = inputs()
  short = jax.tree.map(lambda x: x[:, :100], mask_of())
  with pytest.raises(ValueError, match=r'a multiple of 128 tokens .* these have 100'):
    splash.splash(q[:, :100], k[:, :100], v[:, :100], short)
  loose = mask_of().replace(ordered=False)
  assert not splash.can(T, loose) and splash.can(T, mask_of())
  monkeypatch.setattr(attention, 'platform', lambda: 'tpu')
  np.testing.assert_allclose(
    attention.fused(q, k, v, loose), dot_product(q, k, v, loose), atol=1e-6
  )
  with pytest.raises(ValueError, match='interpret'):  # of a CPU, by what it would do on a TPU
    attention.fused(q, k, v, mask_of())
