"""Appending to a KV cache against a loop over rows in NumPy."""

import jax
import numpy as np
import pytest

from lm.nn import kv_cache


@pytest.mark.parametrize('platform', ['cpu', 'tpu'])
@pytest.mark.parametrize('T', [1, 3])
def test_new_tokens_are_appended_after_the_cached_ones_of_each_row(platform, T, monkeypatch):
  monkeypatch.setattr(kv_cache, 'platform', lambda: platform)
  rng = np.random.default_rng(0)
  for axes, shape in ((kv_cache.AXES, (4, 2, 9, 3)), (('cache_batch', 'length'), (4, 9))):
    axis, lengths = axes.index('length'), np.array([0, 6, 2, 5])
    buffer = rng.normal(size=shape)
    new = rng.normal(size=[T if i == axis else n for i, n in enumerate(shape)])
    found = jax.jit(kv_cache._append, static_argnums=3)(buffer, new, lengths, axes)
    expected = np.moveaxis(buffer, axis, 1).copy()
    for row, length in enumerate(lengths):
      expected[row, length : length + T] = np.moveaxis(new, axis, 1)[row]
    np.testing.assert_allclose(found, np.moveaxis(expected, 1, axis), rtol=1e-6)
