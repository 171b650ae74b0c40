"""Schedules: `(peak, steps, warmup, final) -> (step -> rate)`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.errors import UserError

Schedule = Callable[[jax.Array], jax.Array]


def constant(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then `peak` for good."""
  del steps, final
  return _after_warmup(peak, warmup, lambda step: jnp.full_like(step, peak))


def cosine(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then half a cosine from `peak` to `final * peak` at `steps`."""

  def decay(step):
    done = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
    return peak * (final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

  return _after_warmup(peak, warmup, decay)


def linear(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup, then a line from `peak` to `final * peak` at `steps`."""

  def decay(step):
    done = jnp.clip((step - warmup) / max(1, steps - warmup), 0, 1)
    return peak * (1 - (1 - final) * done)

  return _after_warmup(peak, warmup, decay)


def inverse_sqrt(peak: float, steps: int, warmup: int, final: float) -> Schedule:
  """Linear warmup to `peak`, then peak * sqrt(warmup / step) (Vaswani et al. 2017, eq. 3)."""
  del steps, final
  if warmup < 1:
    raise UserError(f'optim.warmup={warmup}: the inverse square root needs at least 1')
  return _after_warmup(peak, warmup, lambda step: peak * jnp.sqrt(warmup / jnp.maximum(step, 1)))


def warmup_stable_decay(
  peak: float, steps: int, warmup: int, final: float, decay: float = 0.2
) -> Schedule:
  """Linear warmup, `peak`, and over the last `decay` of the steps a line to `final * peak`.

  Hu et al. 2024 (MiniCPM), section 4.
  """
  start = steps * (1 - decay)

  def stable(step):
    done = jnp.clip((step - start) / max(1.0, steps - start), 0, 1)
    return peak * (1 - (1 - final) * done)

  return _after_warmup(peak, warmup, stable)


def _after_warmup(peak: float, warmup: int, then: Schedule) -> Schedule:
  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rising = peak * (step + 1) / max(1, warmup)
    return jnp.where(step < warmup, rising, then(step))

  return schedule
