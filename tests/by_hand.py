"""What the tests of the article do by hand, in float64."""

import numpy as np


def random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


def softmax(z):
  shares = np.exp(z - z.max(axis=-1, keepdims=True))
  return shares / shares.sum(axis=-1, keepdims=True)


def differences(fn, x, step=1e-6):
  """The gradient of a scalar function of a float64 array, by central differences."""
  found = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    nudge = np.zeros_like(x)
    nudge[i] = step
    found[i] = (fn(x + nudge) - fn(x - nudge)) / (2 * step)
  return found


def equal(x, y):
  np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
