import jax
import numpy as np
import pytest

from lm.errors import UserError
from lm.nn import attention
from lm.nn.attention import dot_product
from lm.types import Mask

B, T, H, G, K = 2, 256, 4, 2, 64


def inputs(seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=(B, T, n, K)).astype(np.float32) for n in (H, G, G, H)]


def mask_of(causal=True, window=None, lengths=None):
  positions, segments = np.arange(T)[None].repeat(B, 0), None
  if lengths:
    segments = np.repeat(np.arange(len(lengths)) + 1, lengths)[None].repeat(B, 0)
    segments[segments == len(lengths)] = 0  # the last is padding
    positions = np.concatenate([np.arange(n) for n in lengths])[None].repeat(B, 0)
  return Mask(positions, positions, segments, segments, causal=causal, window=window, ordered=True)


MASKS = {
  'causal': mask_of(),
  'window': mask_of(window=37),
  'packed': mask_of(lengths=(100, 3, 90, 63)),
  'packed, both ways': mask_of(causal=False, lengths=(130, 126)),
}


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_splash_equals_dot_product_with_gradients(mask):
  *qkv, probe = inputs()

  @jax.jit
  def outputs(qkv, probe, mask):
    def of(attend):
      value, back = jax.vjp(lambda *qkv: attend(*qkv, mask), *qkv)
      return value, back(probe)

    return of(lambda *args: attention.splash(*args, interpret=True)), of(dot_product)

  found, expected = outputs(qkv, probe, mask)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, expected)


def test_splash_raises_for_unsupported_inputs_and_fused_falls_back(monkeypatch):
  q, k, v, _ = inputs()
  short = jax.tree.map(lambda x: x[:, :100], mask_of())
  with pytest.raises(UserError, match=r'a multiple of 128 tokens.* these have 100'):
    attention.splash(q[:, :100], k[:, :100], v[:, :100], short)
  loose = mask_of().replace(ordered=False)
  assert not attention.splash_supported(T, loose) and attention.splash_supported(T, mask_of())
  monkeypatch.setattr(attention, 'platform', lambda: 'tpu')
  both = jax.jit(lambda *args: (attention.fused(*args), dot_product(*args)))
  np.testing.assert_allclose(*both(q, k, v, loose), atol=1e-6)
  with pytest.raises(ValueError, match='interpret'):  # on a CPU, with the choice of a TPU
    attention.fused(q, k, v, mask_of())
  half = jax.tree.map(lambda x: x[:, :128], (q, k, v, mask_of()))
  np.testing.assert_allclose(*both(*half), atol=1e-6)  # no kernel for rows of one block of lanes
