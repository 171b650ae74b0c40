import pytest

from lm.errors import UserError
from lm.preflight.topology import parse


def test_names_of_slices_and_nodes():
  slice_ = parse('v5p:4x4x4', 2)
  assert (slice_.chips, slice_.accelerator, slice_.topology) == (128, 'v5p-128', 'v5p:4x4x4')
  assert parse('v5e:4x4').accelerator == 'v5litepod-16'
  nodes = parse('h100:8', 4)
  assert (nodes.chips, nodes.topology) == (32, 'h100:8')
  assert parse('gb200:72').chips == 72


@pytest.mark.parametrize(
  ('topology', 'slices', 'message'),
  [
    ('v5:4x4', 1, "unknown chip 'v5' .did you mean"),
    ('v5e', 1, 'v5e needs 2 size.*v5e:4x4'),
    ('v5e:4x4x4', 1, 'v5e needs 2 size'),
    ('v5p:4x4', 1, 'v5p needs 3 size.*v5p:4x4x4'),
    ('v5e:4xx', 1, 'needs 2 size'),
    ('v5e:0x4', 1, 'needs 2 size'),
    ('v5e:4x4', 0, '--slices=0 is not'),
    ('h10:8', 1, "unknown chip 'h10' .did you mean 'h100'"),
    ('h100', 1, 'h100 needs 1 size.*4'),
    ('h100:8x4', 1, 'h100 needs 1 size'),
    ('h100:16', 1, 'a node of h100 has at most 8 GPUs; --slices=N'),
    ('h100:0', 1, 'h100 needs 1 size'),
    ('h100:8', 0, '--slices=0 is not'),
    ('cpu', 1, 'this machine is one device, cpu:1'),
    ('cpu:2', 1, 'this machine is one device, cpu:1'),
    ('cpu:1', 2, 'this machine is one device, cpu:1'),
  ],
)
def test_wrong_topologies_raise(topology, slices, message):
  with pytest.raises(UserError, match=message):
    parse(topology, slices)
