from typing import NamedTuple

import numpy as np
import pytest

from lm.errors import UserError
from lm.parallel.hardware import peak_flops
from lm.preflight import bound, chips, here
from lm.preflight.bound import Work
from lm.preflight.processors import GPUS

AXES = ('data', 'fsdp', 'tensor')


class Device(NamedTuple):
  slice_index: int


class FakeMesh:
  """What `exchanges` asks of a mesh: devices of nodes of 8, numbered along its last axis first."""

  axis_names = AXES

  def __init__(self, *shape):
    self.shape = dict(zip(AXES, shape, strict=True))
    self.devices = np.empty(shape, object)
    for i in range(self.devices.size):
      self.devices.flat[i] = Device(i // 8)


H100 = GPUS['h100']


@pytest.mark.parametrize(
  ('shape', 'sent', 'links', 'network'),
  [
    # A ring within a node: all goes over links.
    ((1, 8, 1), {'fsdp': 450e9, 'data': 0.0}, 1.0, 0.0),
    # Two nodes side by side along data, so that each GPU has a partner: no link, its own network.
    ((2, 8, 1), {'data': 50e9}, 0.0, 1.0),
    # A ring of 16 over 2 nodes: 15 / 16 of 16 GB are sent by each GPU; half of them, 8 GB, come
    # into a node, through the network of its 8 GPUs together.
    ((1, 16, 1), {'fsdp': 15e9}, 15 / 450, 8 / (8 * 50)),
    ((2, 1, 8), {'tensor': 45e9, 'data': 5e9}, 0.1, 0.1),
    ((1, 1, 1), {'fsdp': 0.0}, 0.0, 0.0),
  ],
)
def test_exchanges_by_hand(shape, sent, links, network):
  assert bound.exchanges(sent, FakeMesh(*shape), H100) == pytest.approx((links, network))


def test_the_slowest_of_the_passes_counts_and_the_optimizer_comes_after():
  slice_ = chips.parse('h100:8', 2)
  peak = 16 * H100.flops
  work = Work({2: peak, 4: peak / 2}, 3.35e12, {}, 6.7e11, {'fsdp': 450e9})
  found = bound.bound(work, FakeMesh(2, 8, 1), slice_, peak, 22_000)
  # A second of bfloat16, and one of float32, whose products take twice as long.
  assert (found.products, found.memory, found.links, found.network) == (2.0, 1.0, 1.0, 0.0)
  assert found.update == pytest.approx(0.2)
  assert found.step == pytest.approx(2.2)
  assert (found.tokens, found.utilisation) == pytest.approx((10_000, 1 / 2.2))
  assert found.alone == pytest.approx(4.2)
  slower = work._replace(memory=4 * 3.35e12, update_products={4: peak / 2})
  assert bound.bound(slower, FakeMesh(2, 8, 1), slice_, peak, 1).step == pytest.approx(5.0)


def test_nodes_by_their_names():
  slice_ = chips.parse('h100:8', 4)
  assert (slice_.chips, slice_.topology, str(slice_)) == (32, 'h100:8', '4 x h100:8')
  assert chips.parse('gb200:72').chips == 72


def test_rates_of_gpus_are_of_the_table_of_peaks():
  for name, gpu in GPUS.items():
    kind = name.split('-')[0].upper()
    assert gpu.flops == peak_flops(f'NVIDIA {kind}')
    assert gpu.flops32 == gpu.flops / 2
    assert gpu.link > gpu.network and gpu.room < gpu.memory
  # What the driver leaves is a little less than the GiB that are sold.
  assert 0.9 < GPUS['h100'].memory / (80 * 2**30) < 1


@pytest.mark.parametrize(
  ('topology', 'slices', 'message'),
  [
    ('h10:8', 1, "there is no chip 'h10' .did you mean 'h100'"),
    ('h100', 1, 'a node of h100 has 1 to 8 GPUs, as in h100:8'),
    ('h100:8x4', 1, '--slices=N counts nodes'),
    ('h100:16', 1, 'a node of h100 has 1 to 8 GPUs'),
    ('h100:0', 1, 'a node of h100 has 1 to 8 GPUs'),
    ('h100:8', 0, '--slices=0 is not a positive number'),
  ],
)
def test_wrong_nodes_are_told(topology, slices, message):
  with pytest.raises(UserError, match=message):
    chips.parse(topology, slices)


@pytest.mark.parametrize(('topology', 'slices'), [('cpu', 1), ('cpu:2', 1), ('cpu:1', 2)])
def test_this_machine_is_one_device(topology, slices):
  assert here.asked(topology) and not here.asked('h100:8')
  with pytest.raises(UserError, match='this machine is one device, cpu:1'):
    here.measured(topology, slices)
