"""A Transformer so small that everything about it is worked out by hand, on GPUs without any."""

import json
import pathlib

import in_process
import pytest

from lm import cli
from lm.config.base import base, llama
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.preflight import arithmetic, chips, report, search

ROOT = pathlib.Path(__file__).parents[2]
V, D, N, H, K, F, T, B = 32, 8, 2, 2, 4, 16, 16, 8
MATRICES = N * (4 * D * H * K + 3 * D * F)
SCALES = (2 * N + 1) * D


def tiny(**mesh):
  config = base()
  config.model = llama(depth=N, d_model=D, heads=H, kv_heads=H, d_mlp=F, context=T)
  config.model.dtype = 'bfloat16'
  config.data.tokenizer.vocab_size = V
  config.batch_size = config.eval.batch_size = B
  config.data.context = T
  config.mesh.update(mesh)
  return config


def test_memory_by_hand():
  found = arithmetic.check(tiny(data=1, fsdp=8), chips.parse('h100:8'))
  memory = found.step.memory
  # Matrices and both tables are split over all, scales are whole, of four bytes each.
  parameters = 4 * ((MATRICES + 2 * V * D) / 8 + SCALES)
  assert memory.parameters == parameters
  assert memory.optimizer == pytest.approx(2 * parameters, abs=16)  # and a few counters
  # The logits of a row and their gradient, the whole table in two bytes, its gradient in four.
  logits, table = 2 * T * V * 4, V * D * (2 + 4)
  assert logits + table > parameters
  assert memory.temporaries == logits + table
  assert memory.program is None
  assert memory.total == sum(memory[:4])
  assert found.fits and found.room == pytest.approx(0.97 * 81_559 * 2**20)


def test_in_parts_gradients_are_added_up_beside():
  config = tiny(data=1, fsdp=2)
  config.model.d_mlp = 512
  once = arithmetic.check(config, chips.parse('h100:2')).step.memory
  config.microbatches = 4
  parts = arithmetic.check(config, chips.parse('h100:2')).step.memory
  assert once.temporaries == once.parameters
  assert parts.temporaries == 2 * once.parameters
  assert parts.activations < 0.3 * once.activations


def test_a_layer_that_is_computed_again_is_held_meanwhile():
  config, slice_ = tiny(data=1, fsdp=2), chips.parse('h100:2')
  config.model.d_mlp = 512
  kept = arithmetic.check(config, slice_).step.memory
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  again = arithmetic.check(config, slice_).step.memory
  assert again.activations < 0.2 * kept.activations
  assert again.temporaries == again.parameters + kept.activations // N


def test_products_and_traffic_by_hand():
  config = tiny(data=1, fsdp=8)
  chip = chips.GPUS['h100']
  found = arithmetic.check(config, chips.parse('h100:8'))
  step, bound = found.step, found.estimate
  matrices = 6 * B * T * (MATRICES + V * D)
  # With segments all scores are found: two products forward, and five backward.
  attention = 7 * N * 2 * B * H * T * T * K
  assert matrices + attention <= bound.products * 8 * chip.flops
  assert bound.products * 8 * chip.flops32 <= matrices + attention
  # Gradients twice, all else read and written.
  held = 2 * step.memory.parameters + 2 * (step.memory.parameters + step.memory.optimizer)
  assert bound.update == pytest.approx(held / chip.bandwidth)
  # Weights of two bytes and what is kept, both twice, and gradients once.
  weights = 2 * (MATRICES + V * D + SCALES)
  passed = 2 * (weights + step.memory.activations) + step.memory.parameters
  assert bound.memory == pytest.approx(passed / chip.bandwidth)
  assert bound.links == pytest.approx(found.least['fsdp'] / chip.link)
  assert bound.step == max(bound[:4]) + bound.update


def test_the_mesh_is_of_gpus_and_attention_is_left_as_the_config_says_elsewhere():
  config = tiny(data=1, fsdp=8)
  found = arithmetic.check(config, chips.parse('h100:8'))
  functions = found.step.functions
  with meshes.set_mesh(functions.mesh, functions.rules):
    assert meshes.platform() == 'gpu'
  assert config.model.attention_fn == 'lm.nn.attention:fused'
  assert arithmetic.traceable(config).model.attention_fn == 'lm.preflight.kernel:fused'
  config.model.attention_fn = 'lm.nn.attention:blockwise'
  assert arithmetic.traceable(config).model.attention_fn == 'lm.nn.attention:blockwise'


def test_nodes_lie_along_data():
  config = tiny(data=2, fsdp=4)
  found = arithmetic.check(config, chips.parse('h100:4', 2))
  assert found.estimate.network > 0 and found.estimate.links > 0
  mesh = found.step.functions.mesh
  assert {d.slice_index for d in mesh.devices[0].flat} == {0}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda c: c.model.update({'dtype': 'float32', 'attention_fn': 'lm.nn.attention:cudnn'}),
      "model.attention_fn.*set model.dtype='bfloat16'",
    ),
    (lambda c: c.mesh.update({'fsdp': 1, 'tensor': 8}), 'does not divide by mesh.tensor=8'),
    (lambda c: c.mesh.update({'fsdp': 3}), 'does not divide over 8 gpu device'),
    (lambda c: c.update({'batch_size': 12}), 'batch_size of size 12 does not divide'),
  ],
)
def test_what_a_gpu_refuses_is_refused(change, message):
  config = tiny(data=1, fsdp=8)
  change(config)
  with pytest.raises(UserError, match=message):
    arithmetic.check(config, chips.parse('h100:8'))


# More than 5 seconds: twelve train steps are traced.
def test_a_search_compiles_nothing_and_ranks():
  config, told = tiny(), []
  slice_ = chips.parse('l4:1')
  found = search.search(config, slice_, 3, told.append)
  assert len(found) == 3 and all(one.fits for one in found)
  assert [one.tokens for one in found] == sorted((one.tokens for one in found), reverse=True)
  assert told[-1] == '6 choices divide, 6 of them fit'
  assert '--config.batch_size=16' in found[0].flags
  text = report.ranking(found, slice_)
  assert found[0].flags in text and 'no compiler was asked' in text
  config.microbatches = 2  # in one part it fits, so that two are not asked about
  assert all('microbatches=1' in one.flags for one in search.search(config, slice_, 9, told.append))
  assert told[-1] == '6 choices divide, 6 of them fit'


def test_candidates_may_lie_across_nodes():
  def of(across):
    found = search.candidates(base(), 4, 2, across)
    return {(x['mesh.data'], x['mesh.fsdp'], x['mesh.tensor']) for x in found}

  assert of(False) == {(2, 2, 1), (4, 1, 1), (2, 1, 2)}
  assert of(True) == of(False) | {(1, 4, 1), (1, 2, 2)}


def test_the_report_says_that_no_compiler_was_asked():
  slice_ = chips.parse('h100:8')
  found = arithmetic.check(tiny(data=1, fsdp=8), slice_)
  text = report.table(found, slice_, 'tiny.py', 2.0)
  assert 'no compiler was asked' in text and 'a bound: no step is faster' in text
  values = json.loads(report.to_json(found, slice_, 'tiny.py', 2.0))
  assert values['by'] == 'arithmetic' and values['memory']['program'] is None
  assert values['bound']['step'] == found.estimate.step
  assert values['usd_per_billion_tokens'] == pytest.approx(
    2 * 8 * 1e9 / 3600 / found.estimate.tokens
  )
  assert not {'estimate', 'sent', 'compile_seconds'} & set(values)


def test_what_does_not_fit_is_refused_with_what_does():
  # The state of 2.4 billion parameters: one device has room for half of it.
  config = (f'--config={ROOT}/experiments/quickstart.py', '--config.model.depth=3')
  sizes = ('--config.model.d_model=8192', '--config.mesh.data=2')
  done = in_process.run('preflight', *config, *sizes, '--topology=l4:2')
  assert done.returncode == cli.USAGE
  assert 'DOES NOT FIT' in done.stdout and 'no compiler was asked' in done.stdout
  assert 'by arithmetic this fits: --config.' in done.stderr


def test_a_program_to_write_is_refused():
  done = in_process.run(
    'preflight',
    f'--config={ROOT}/experiments/quickstart.py',
    '--topology=h100:1',
    '--hlo=program.txt',
  )
  assert (done.returncode, done.stdout) == (cli.USAGE, '')
  assert done.stderr == 'lm.preflight: --hlo: for h100 no program is compiled; leave it out\n'
