"""Descriptions of devices that are not there: enough to lay arrays out over them."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from lm.errors import UserError
from lm.preflight.chips import Chip, Slice


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh asks of a device, of one that nobody compiles for.

  No NamedTuple, which NumPy would take for a row of an array of devices.
  """

  id: int
  platform: str
  device_kind: str
  process_index: int
  slice_index: int  # of its node


def devices(slice_: Slice) -> Sequence[Any]:
  """Returns descriptions of the chips of a slice, or of the processors of nodes.

  Raises:
    UserError: they are of TPUs, and libtpu is not installed, or knows no such slice.
  """
  chip = slice_.chip
  if isinstance(chip, Chip):
    return _tpus(chip, slice_)
  jax.config.update('jax_platforms', 'cpu')  # else jax begins with whatever this machine has
  each = slice_.chips // slice_.slices
  return [Device(i, chip.platform, chip.name, i // each, i // each) for i in range(slice_.chips)]


def environment(slice_: Slice) -> dict[str, str]:
  """Returns what is to be set before jax begins, so that libtpu asks no machine what it is."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_ACCELERATOR_TYPE': slice_.accelerator,
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_WORKER_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # no chip is used, so that none is locked
  }


def _tpus(chip: Chip, slice_: Slice) -> list[jax.Device]:
  if importlib.util.find_spec('libtpu') is None:
    raise UserError("lm.preflight needs libtpu, the TPU's compiler: pip install -e '.[tpu]'")
  os.environ.update(environment(slice_))
  jax.config.update('jax_platforms', 'cpu')  # else jax looks for the chips that libtpu is for
  options: dict[str, Any] = {'num_slices': slice_.slices} if slice_.slices > 1 else {}
  if chip.name == 'v4':
    options['chip_config_name'] = 'megacore'  # both cores of a chip as one device
  try:
    described = topologies.get_topology_desc(
      platform='tpu', topology_name=slice_.topology, **options
    )
  except Exception as e:  # of several kinds, each with a trace as its message
    raise UserError(
      f'--topology={slice_.topology}: libtpu knows no such slice ({str(e).splitlines()[0][:200]})'
    ) from e
  return list(described.devices)
