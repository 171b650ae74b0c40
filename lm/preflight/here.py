"""This machine as one processor, its rates measured: to hold the arithmetic against real steps."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.preflight.chips import Slice
from lm.preflight.processors import Processor

NAME = 'cpu'
_SIZE = 2048  # of the matrices that are multiplied
_COPIED = 1 << 25  # numbers of four bytes, more than caches hold
_TIMES = 10


def asked(topology: str) -> bool:
  """Returns whether a --topology is this machine."""
  return topology.partition(':')[0] == NAME


def measured(topology: str, slices: int) -> Slice:
  """Returns this machine's processor for '--topology=cpu:1', whose rates take some seconds to find.

  Raises:
    UserError: it is asked for more than one of them.
  """
  if topology != f'{NAME}:1' or slices != 1:
    raise UserError(
      f'--topology={topology} --slices={slices}: this machine is one device, cpu:1 and one slice'
    )
  jax.config.update('jax_platforms', 'cpu')
  matrix = jnp.ones((_SIZE, _SIZE), jnp.float32)
  flops = 2 * _SIZE**3 / _seconds(jax.jit(jnp.matmul), matrix, matrix)
  # In place, for new pages would take longer than what is written to them.
  increase = jax.jit(lambda x: jax.lax.fori_loop(0, _TIMES, lambda i, x: x + 1, x))
  vector = jnp.ones(_COPIED, jnp.float32)
  bandwidth = 2 * vector.nbytes / (_seconds(increase, vector) / _TIMES)
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  return Slice(Processor(NAME, 'cpu', flops, flops, memory, bandwidth, 0.0, 0.0, 1), (1,))


def _seconds(function: Callable[..., Any], *arguments: jax.Array) -> float:
  """Returns the shortest time that a function takes, the first time left out."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(_TIMES):
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - started)
  return min(times)
