"""Meshes of one or of fake devices, and the sharding rules on abstract meshes."""

import dataclasses
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from lm.errors import UserError
from lm.parallel import mesh
from lm.parallel.collectives import torus_dims

EIGHT = AbstractMesh((2, 2, 2), mesh.AXES)


def _boxed(*axes, shape):
  return nn.Partitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names=axes)


def test_size_minus_one_takes_the_remaining_devices():
  made = mesh.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1}, jax.devices()[:1])
  assert dict(made.shape) == {'data': 1, 'fsdp': 1, 'tensor': 1}
  assert dict(mesh.make_mesh({'tensor': -1}, jax.devices()[:1]).shape)['tensor'] == 1


@pytest.mark.parametrize(
  ('sizes', 'message'),
  [
    ({'tensr': 1}, "mesh.tensr: unknown mesh axis (did you mean 'tensor'?)"),
    ({'data': 3}, "mesh={'data': 3, 'fsdp': 1, 'tensor': 1} does not divide over 1 cpu device"),
    ({'data': -1, 'fsdp': -1}, 'one of them may be -1'),
    ({'data': -1, 'tensor': 2}, 'does not divide over 1 cpu device'),
    ({'data': 0}, 'sizes must be positive'),
    ({'data': -2}, 'sizes must be positive'),
  ],
)
def test_wrong_sizes_are_refused(sizes, message):
  with pytest.raises(UserError) as error:
    mesh.make_mesh(sizes, jax.devices()[:1])
  assert message in str(error.value)


@dataclasses.dataclass(frozen=True)
class Chip:
  id: int
  slice_index: int
  platform: str = 'cpu'
  process_index: int = 0
  device_kind: str = 'fake'


@pytest.mark.parametrize(
  ('sizes', 'along'),
  [
    ({'data': 2, 'fsdp': 4}, 'data'),
    ({'data': -1, 'fsdp': 2, 'tensor': 2}, 'data'),
    ({'data': 1, 'fsdp': 8}, 'fsdp'),
  ],
)
def test_slices_extend_along_data_or_else_fsdp(sizes, along, monkeypatch):
  monkeypatch.setattr(mesh, 'Mesh', lambda devices, axes, axis_types: devices)
  chips = [Chip(i, i // 4) for i in range(8)]
  found = mesh.make_mesh(sizes, chips)
  slices = np.array([[[d.slice_index for d in row] for row in rows] for rows in found])
  axis = mesh.AXES.index(along)
  halves = np.split(slices, 2, axis)
  assert (halves[0] == 0).all() and (halves[1] == 1).all()


@dataclasses.dataclass(frozen=True)
class Tpu(Chip):
  platform: str = 'tpu'
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0


def _torus(slices, *dims):
  coords = [(s, *c) for s in range(slices) for c in np.ndindex(dims)]
  # libtpu lists devices with the first dimension as the fastest.
  coords.sort(key=lambda x: (x[0], *reversed(x[1:])))
  return [Tpu(i, s, 'tpu', 0, 'TPU v5 lite', tuple(c)) for i, (s, *c) in enumerate(coords)]


@pytest.mark.parametrize(
  ('slices', 'torus', 'sizes', 'axis', 'dims'),
  [
    (1, (4, 4, 1), {'fsdp': 16}, 'fsdp', (4, 4)),
    (1, (4, 4, 4), {'fsdp': 64}, 'fsdp', (4, 4, 4)),
    (1, (2, 4, 1), {'data': 8}, 'data', (2, 4)),
    (2, (4, 4, 1), {'data': 2, 'fsdp': 16}, 'fsdp', (4, 4)),
    # Several slices count as one dimension.
    (2, (4, 4, 1), {'fsdp': 32}, 'fsdp', (32,)),
  ],
)
def test_mesh_axis_extends_over_dimensions_of_the_torus(
  slices, torus, sizes, axis, dims, monkeypatch
):
  made = {}
  monkeypatch.setattr(
    mesh, 'Mesh', lambda devices, axes, axis_types: made.setdefault('devices', devices)
  )
  chips = _torus(slices, *torus)
  mesh.make_mesh({'data': 1, 'fsdp': 1, **sizes}, chips)
  shape = dict(zip(mesh.AXES, made['devices'].shape, strict=True))
  found = SimpleNamespace(devices=made['devices'], axis_names=mesh.AXES, shape=shape)
  assert torus_dims(found, axis) == dims


def test_devices_in_another_order_are_one_dimension():
  ring = [(0, 0), (0, 1), (1, 1), (1, 0)]
  devices = np.array([Tpu(i, 0, coords=(*c, 0)) for i, c in enumerate(ring)]).reshape(1, 4, 1)
  found = SimpleNamespace(devices=devices, axis_names=mesh.AXES, shape={'fsdp': 4})
  assert torus_dims(found, 'fsdp') == (4,)


def test_axes_that_do_not_divide_over_slices_are_refused():
  with pytest.raises(
    UserError, match=r'does not divide over 2 slices: mesh\.data must be a multiple'
  ):
    mesh.make_mesh({'tensor': 8, 'data': 1, 'fsdp': 1}, [Chip(i, i // 4) for i in range(8)])
  with pytest.raises(UserError, match=r'does not divide over 2 slices'):
    mesh.make_mesh({'tensor': 32}, _torus(2, 4, 4, 1))


def test_rules_are_overridden_by_name():
  rules = mesh.logical_axis_rules({'embed': '', 'mlp': 'tensor,fsdp'})
  assert rules['embed'] == () and rules['mlp'] == ('tensor', 'fsdp')
  assert rules['vocab'] == mesh.RULES['vocab']
  assert mesh.RULES['embed'] == ('fsdp',)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'embd': 'fsdp'}, "mesh.rules.embd: unknown logical axis (did you mean 'embed'"),
    ({'embed': 'fdsp'}, "mesh.rules.embed='fdsp': unknown mesh axis 'fdsp'"),
  ],
)
def test_wrong_rules_are_refused(overrides, message):
  with pytest.raises(UserError) as error:
    mesh.logical_axis_rules(overrides)
  assert message in str(error.value)


def test_logical_axes_follow_the_rules():
  assert mesh.logical_to_spec(('vocab', 'embed'), mesh.RULES) == PartitionSpec('tensor', 'fsdp')
  assert mesh.logical_to_spec(('batch', 'time', None), mesh.RULES) == PartitionSpec(
    ('data', 'fsdp'), None, None
  )


def test_mesh_axis_shards_one_axis_of_an_array():
  assert mesh.logical_to_spec(('mlp', 'heads'), mesh.RULES) == PartitionSpec('tensor', None)
  assert mesh.logical_to_spec(('batch', 'embed'), mesh.RULES) == PartitionSpec(
    ('data', 'fsdp'), None
  )
  assert mesh.logical_to_spec(('embed', 'batch'), mesh.RULES) == PartitionSpec('fsdp', 'data')


def test_boxed_leaves_follow_the_rules_and_plain_leaves_are_replicated():
  tree = {'table': _boxed('vocab', 'embed', shape=(6, 4)), 'count': jnp.zeros(())}
  found = mesh.shardings(tree, EIGHT, mesh.RULES)
  assert found['table'].spec == PartitionSpec('tensor', 'fsdp')
  assert found['count'].spec == PartitionSpec()


def test_error_names_an_axis_that_does_not_divide():
  tree = {'mlp': {'kernel': _boxed('embed', 'mlp', shape=(4, 7))}}
  with pytest.raises(UserError) as error:
    mesh.shardings(tree, EIGHT, mesh.RULES)
  for part in ("['mlp']['kernel']", "axis 'mlp'", 'size 7', 'mesh.tensor=2'):
    assert part in str(error.value)


def test_error_names_the_key_of_a_batch_that_does_not_divide():
  mesh.check_batch(8, EIGHT, mesh.RULES)
  with pytest.raises(UserError) as error:
    mesh.check_batch(6, EIGHT, mesh.RULES, 'eval.batch_size')
  for part in ('eval.batch_size', 'size 6', 'mesh.data=2 * mesh.fsdp=2'):
    assert part in str(error.value)


def test_constraints_vanish_on_one_device_and_outside_a_mesh():
  x = jnp.ones((2, 3))
  one = mesh.make_mesh({'data': 1}, jax.devices()[:1])

  def traced():
    return str(
      jax.make_jaxpr(lambda x: mesh.with_logical_constraint(x, 'batch', 'activation_embed'))(x)
    )

  assert 'sharding_constraint' not in traced()
  with mesh.set_mesh(one, mesh.RULES):
    assert 'sharding_constraint' not in traced()


def test_one_process_holds_all_rows_of_the_batch():
  one = mesh.make_mesh({'data': 1}, jax.devices()[:1])
  sharding = mesh.batch_sharding(one, mesh.RULES)
  np.testing.assert_array_equal(mesh.local_rows(6, sharding), np.arange(6))
  batch = {'inputs': np.arange(12, dtype=np.int32).reshape(6, 2)}
  placed = mesh.make_global_batch(batch, sharding)
  np.testing.assert_array_equal(placed['inputs'], batch['inputs'])
  assert placed['inputs'].sharding.is_equivalent_to(sharding, 2)
