"""Preflight without a compiler: figures of a tiny Transformer on GPUs, computed by hand."""

import pathlib
from types import SimpleNamespace
from typing import NamedTuple

import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lm import cli
from lm.config.base import base, llama
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.parallel.chips import BY_NAME
from lm.preflight import analytic, report, search
from lm.preflight.analytic import cudnn, matmul_flops
from lm.preflight.topology import parse
from lm.types import Mask

ROOT = pathlib.Path(__file__).parents[2]
AXES = ('data', 'fsdp', 'tensor')
H100 = BY_NAME['h100']
V, D, N, H, K, F, T, B = 32, 8, 2, 2, 4, 16, 16, 8
MATRICES = N * (4 * D * H * K + 3 * D * F)
SCALES = (2 * N + 1) * D


def tiny(**mesh):
  config = base()
  config.model = llama(depth=N, d_model=D, heads=H, kv_heads=H, d_mlp=F, context=T)
  config.model.dtype = 'bfloat16'
  config.data.tokenizer.vocab_size = V
  config.batch_size = config.eval.batch_size = B
  config.data.seq_len = T
  config.mesh.update(mesh)
  return config


def test_memory_equals_figures_by_hand():
  found = analytic.check(tiny(data=1, fsdp=8), parse('h100:8'))
  memory = found.memory
  # Matrices and both tables are sharded over all GPUs, scales are replicated; all are float32.
  parameters = 4 * ((MATRICES + 2 * V * D) / 8 + SCALES)
  assert memory['parameters'] == parameters
  assert memory['optimizer'] == pytest.approx(2 * parameters, abs=16)  # and a few counters
  # The logits of a row and their gradient; the full table in bfloat16, its gradient in float32.
  logits, table = 2 * T * V * 4, V * D * (2 + 4)
  assert logits + table > parameters
  assert memory['temporaries'] == logits + table
  assert found.needed == sum(memory.values())
  assert found.fits and found.capacity == pytest.approx(0.97 * 81_559 * 2**20)


def test_gradient_accumulation_holds_a_second_gradient():
  config = tiny(data=1, fsdp=2)
  config.model.d_mlp = 512
  once = analytic.check(config, parse('h100:2')).memory
  config.microbatches = 4
  accumulated = analytic.check(config, parse('h100:2')).memory
  assert once['temporaries'] == once['parameters']
  assert accumulated['temporaries'] == 2 * once['parameters']
  assert accumulated['activations'] < 0.3 * once['activations']


def test_remat_holds_the_activations_of_one_layer():
  config, slice_ = tiny(data=1, fsdp=2), parse('h100:2')
  config.model.d_mlp = 512
  saved = analytic.check(config, slice_).memory
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  remat = analytic.check(config, slice_).memory
  assert remat['activations'] < 0.2 * saved['activations']
  assert remat['temporaries'] == remat['parameters'] + saved['activations'] // N


def test_time_equals_figures_by_hand():
  found = analytic.check(tiny(data=1, fsdp=8), parse('h100:8'))
  memory, parts = found.memory, found.timing.parts
  matrices = 6 * B * T * (MATRICES + V * D)
  # With segments all scores are computed: two matmuls forward, and five backward.
  attention = 7 * N * 2 * B * H * T * T * K
  assert matrices + attention <= parts['matmuls'] * 8 * H100.flops
  assert parts['matmuls'] * 8 * H100.float32_flops <= matrices + attention
  # The optimizer loads gradients twice, and loads and stores all else.
  update = 2 * memory['parameters'] + 2 * (memory['parameters'] + memory['optimizer'])
  assert parts['optimizer'] == pytest.approx(update / H100.bandwidth)
  # bfloat16 weights and activations count twice, gradients once.
  weights = 2 * (MATRICES + V * D + SCALES)
  passes = 2 * (weights + memory['activations']) + memory['parameters']
  assert parts['memory'] == pytest.approx(passes / H100.bandwidth)
  assert parts['links'] == pytest.approx(found.lower_bound['fsdp'] / H100.link)
  passes = max(value for name, value in parts.items() if name != 'optimizer')
  assert found.timing.step == passes + parts['optimizer']


class FakeMesh:
  """Devices of nodes of 8, numbered along the last axis first."""

  axis_names = AXES

  def __init__(self, *shape):
    self.shape = dict(zip(AXES, shape, strict=True))
    self.devices = np.empty(shape, object)
    for i in range(self.devices.size):
      self.devices.flat[i] = SimpleNamespace(slice_index=i // 8)


@pytest.mark.parametrize(
  ('shape', 'sent', 'links', 'network'),
  [
    # A ring within a node uses links only.
    ((1, 8, 1), {'fsdp': 450e9, 'data': 0.0}, 1.0, 0.0),
    # Each GPU of two nodes has one partner along data: no link, but all of its network share.
    ((2, 8, 1), {'data': 50e9}, 0.0, 1.0),
    # A ring of 16 over 2 nodes: each GPU sends 15 / 16 of 16 GB. Half of them, 8 GB, enter a node
    # through the network of its 8 GPUs together.
    ((1, 16, 1), {'fsdp': 15e9}, 15 / 450, 8 / (8 * 50)),
    ((2, 1, 8), {'tensor': 45e9, 'data': 5e9}, 0.1, 0.1),
    ((1, 1, 1), {'fsdp': 0.0}, 0.0, 0.0),
  ],
)
def test_transfers_equal_figures_by_hand(shape, sent, links, network):
  found = analytic.transfer_seconds(sent, FakeMesh(*shape), H100)
  assert found == pytest.approx((links, network))


class FakeStep(NamedTuple):
  model_flops: float
  tokens: int


def test_bound_is_the_slowest_part_of_the_passes_plus_the_optimizer():
  peak = 16 * H100.flops
  work = {
    # A second of bfloat16 matmuls, and a second of float32 ones, which take twice as long.
    'matmuls': {2: peak, 4: peak / 2},
    'memory': 3.35e12,
    'update_matmuls': {},
    'update_memory': 6.7e11,
    'sent': {'fsdp': 450e9},
  }

  def bound(**changes):
    step = FakeStep(peak, 22_000)
    return analytic.roofline_bound(parse('h100:8', 2), FakeMesh(2, 8, 1), step, **(work | changes))

  found = bound()
  assert list(found.parts.values()) == pytest.approx([2.0, 1.0, 1.0, 0.0, 0.2])
  assert (found.step, found.tokens, found.mfu) == pytest.approx((2.2, 10_000, 1 / 2.2))
  assert bound(memory=4 * 3.35e12, update_matmuls={4: peak / 2}).step == pytest.approx(5.0)


def test_attention_that_needs_a_gpu_is_replaced_by_a_stub():
  config = tiny(data=1, fsdp=8)
  functions = analytic.check(config, parse('h100:8')).step.functions
  with meshes.set_mesh(functions.mesh, functions.rules):
    assert meshes.platform() == 'gpu'
  assert config.model.attention_fn == 'lm.nn.attention:fused'
  assert analytic.traceable(config).model.attention_fn == 'lm.preflight.analytic:fused'
  config.model.attention_fn = 'lm.nn.attention:blockwise'
  assert analytic.traceable(config).model.attention_fn == 'lm.nn.attention:blockwise'


def test_nodes_divide_the_data_axis():
  found = analytic.check(tiny(data=2, fsdp=4), parse('h100:4', 2))
  assert found.timing.parts['network'] > 0 and found.timing.parts['links'] > 0
  mesh = found.step.functions.mesh
  assert {d.slice_index for d in mesh.devices[0].flat} == {0}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda c: c.model.update({'dtype': 'float32', 'attention_fn': 'lm.nn.attention:cudnn'}),
      "model.attention_fn.*set model.dtype='bfloat16'",
    ),
    (lambda c: c.mesh.update({'fsdp': 1, 'tensor': 8}), 'mesh.tensor=8'),
    (lambda c: c.mesh.update({'fsdp': 3}), 'does not divide over 8 gpu device'),
    (lambda c: c.update({'batch_size': 12}), 'batch_size of size 12 is not divisible'),
  ],
)
def test_configs_that_do_not_run_on_these_gpus_raise(change, message):
  config = tiny(data=1, fsdp=8)
  change(config)
  with pytest.raises(UserError, match=message):
    analytic.check(config, parse('h100:8'))


# More than 5 seconds: twelve train steps are traced.
def test_search_ranks_without_compiling():
  config, logged = tiny(), []
  slice_ = parse('l4:1')
  found = search.search(config, slice_, 3, logged.append)
  assert len(found) == 3 and all(one.fits for one in found)
  assert [one.tokens for one in found] == sorted((one.tokens for one in found), reverse=True)
  assert logged[-1] == '6 candidates, 6 fit'
  assert '--config.batch_size=16' in found[0].flags
  lines = list(report.ranking(found, slice_))
  assert 'not compiled' in lines[0] and found[0].flags in lines[1]
  config.microbatches = 2  # without accumulation it fits, so that two microbatches are not tried
  again = search.search(config, slice_, 9, logged.append)
  assert len(again) == 6 and all('microbatches=1' in one.flags for one in again)


def test_fsdp_axis_of_candidates_may_span_nodes():
  def of(across):
    found = search.candidates(base(), 4, 2, across)
    return {(x['mesh.data'], x['mesh.fsdp'], x['mesh.tensor']) for x in found}

  assert of(False) == {(2, 2, 1), (4, 1, 1), (2, 1, 2)}
  assert of(True) == of(False) | {(1, 4, 1), (1, 2, 2)}


def test_report_without_compiler_calls_the_time_a_lower_bound():
  slice_ = parse('h100:8')
  found = analytic.check(tiny(data=1, fsdp=8), slice_)
  values = report.summary(found, slice_, 'tiny.py', 2.0)
  text = '\n'.join(report.lines(values))
  assert 'lower bound of the time, not compiled' in text and 'at most tokens/s' in text
  assert values['collectives'] is None and values['compile_seconds'] is None
  assert values['timing']['step'] == found.timing.step
  paid = 2 * 8 * 1e9 / 3600 / found.timing.tokens
  assert values['timing']['usd_per_billion_tokens'] == pytest.approx(paid)


def test_config_that_does_not_fit_exits_with_2_and_a_config_that_fits():
  # The state of 2.4 billion parameters needs two devices.
  config = (f'--config={ROOT}/experiments/quickstart.py', '--config.model.depth=3')
  sizes = ('--config.model.d_model=8192', '--config.mesh.data=2')
  done = in_process.run('preflight', *config, *sizes, '--topology=l4:2')
  assert done.returncode == cli.USAGE
  assert 'DOES NOT FIT' in done.stdout
  assert 'GiB do not fit; this fits by estimate: --config.' in done.stderr


def test_flag_hlo_needs_a_tpu():
  config = f'--config={ROOT}/experiments/quickstart.py'
  line = in_process.mistake('preflight', config, '--topology=h100:1', '--hlo=program.txt')
  assert line.startswith('lm.preflight: --hlo') and 'h100' in line


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def test_matmul_and_its_gradients_count_as_three_matmuls():
  def loss(w, x):
    return jnp.sum(jnp.sin(x @ w))

  w, x = array(5, 7), array(3, 5)
  assert matmul_flops(loss, w, x) == {4: 2 * 3 * 5 * 7}
  assert matmul_flops(jax.grad(loss, argnums=(0, 1)), w, x) == {4: 3 * 2 * 3 * 5 * 7}


def test_flops_are_summed_by_the_size_of_the_wider_operand():
  def two(a, b):
    mixed = jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())))
    return a @ a, mixed

  found = matmul_flops(two, array(4, 4, dtype=jnp.bfloat16), array(4, 4))
  assert found == {2: 128, 4: 128}


def test_recomputed_matmuls_count_again():
  def loss(x, remat):
    def body(x, _):
      return jnp.sin(x @ x), None

    return jnp.sum(jax.lax.scan(jax.checkpoint(body) if remat else body, x, length=3)[0])

  one = 2 * 8**3
  x = array(8, 8)
  assert matmul_flops(lambda x: loss(x, False), x) == {4: 3 * one}
  assert matmul_flops(jax.grad(lambda x: loss(x, False)), x) == {4: 9 * one}
  assert matmul_flops(jax.grad(lambda x: loss(x, True)), x) == {4: 12 * one}


def test_conditional_counts_with_its_most_expensive_branch():
  def either(x):
    return jax.lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x @ x, x)

  assert matmul_flops(either, array(8, 8)) == {4: 2 * 2 * 8**3}


def test_shard_map_counts_for_all_devices():
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'tensor'))
  spec = PartitionSpec('data')
  local = jax.shard_map(
    lambda x, w: x @ w, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
  )
  assert matmul_flops(local, array(4, 8), array(8, 2)) == {4: 2 * 4 * 8 * 2}


def test_convolution_counts_its_kernel_for_each_output():
  def conv(x, k):
    return jax.lax.conv_general_dilated(x, k, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC'))

  found = matmul_flops(conv, array(2, 10, 3), array(5, 3, 7))
  assert found == {4: 2 * (2 * 10 * 7) * (5 * 3)}


R, HEADS, GROUPS, SIZE = 2, 4, 2, 8  # of attention
Q = array(R, T, HEADS, SIZE, dtype=jnp.bfloat16)
KEYS = array(R, T, GROUPS, SIZE, dtype=jnp.bfloat16)


def mask(segments=False, window=None):
  positions = jnp.broadcast_to(jnp.arange(T), (R, T))
  kinds = (jnp.ones_like(positions),) * 2 if segments else (None, None)
  return Mask(positions, positions, *kinds, window=window, ordered=True)


@pytest.mark.parametrize(
  ('known', 'visible'), [(mask(), T // 2), (mask(segments=True), T // 2), (mask(window=4), 4)]
)
def test_cudnn_stub_has_two_matmuls_forward_and_five_backward(known, visible):
  one = 2 * R * HEADS * T * visible * SIZE

  def loss(q, k, v):
    return jnp.sum(cudnn(q, k, v, known).astype(jnp.float32))

  gradient = jax.grad(loss, argnums=(0, 1, 2))
  assert matmul_flops(loss, Q, KEYS, KEYS) == {2: 2 * one}
  assert matmul_flops(gradient, Q, KEYS, KEYS) == {2: 7 * one}
  found = jax.eval_shape(gradient, Q, KEYS, KEYS)
  assert [x.shape for x in found] == [Q.shape, KEYS.shape, KEYS.shape]


@pytest.mark.parametrize('segments', [False, True])
def test_cudnn_stub_has_the_residuals_of_the_kernel(segments):
  def residuals(q, k, v):
    return jax.vjp(lambda q, k, v: cudnn(q, k, v, mask(segments)), q, k, v)[1]

  found = jax.tree.leaves(jax.eval_shape(residuals, Q, KEYS, KEYS))
  # Queries, output, keys and values, a float32 per query and head, and the mask as a bias.
  bias = 2 * R * T * T if segments else 0
  inputs = 2 * (2 * R * T * HEADS * SIZE + 2 * R * T * GROUPS * SIZE)
  assert sum(x.size * x.dtype.itemsize for x in found) == inputs + 4 * R * T * HEADS + bias
