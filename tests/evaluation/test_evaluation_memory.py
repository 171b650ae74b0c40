"""Evaluations that do not fit the memory of a host raise before step 1, with the size that fits."""

import re

import flax.linen as nn
import in_process
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, encoder, encoder_decoder, evaluation, gpt2
from lm.data import pipeline
from lm.errors import UserError
from lm.evaluation import host_memory
from lm.evaluation.evaluators import Evaluators
from lm.evaluation.host_memory import Program, check_evaluations, program_bytes
from lm.parallel.mesh import bytes_per_device
from lm.text.tokenizers import vocabulary_size
from lm.training.train_step import abstract_state


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(20)]


def pairs(split):
  return [{'source': f'{n} and {n}', 'target': str(2 * n)} for n in range(256)]


def labeled(split):
  return [{'text': f'{n}', 'label': 'even' if n % 2 == 0 else 'odd'} for n in range(20)]


def config_of(kind, **leaves):
  config = base()
  config.steps, config.batch_size, config.eval.batch_size = 2, 8, 8
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.log.sample_prompts = ()
  sizes = {'depth': 1, 'd_model': 8, 'heads': 2, 'context': 16}
  if kind == 'text':
    config.model = gpt2(**sizes)
    config.data.source = 'test_evaluation_memory:lines'
  with config.unlocked():
    if kind == 'writes':
      config.model = encoder_decoder(**sizes)
      config.data.update({'source': 'test_evaluation_memory:pairs', 'source_len': 16})
      config.data.task = 'lm.tasks.text:text_to_text'
      config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
      metrics, scores = ('lm.metrics.tokens:targets',), ('lm.metrics.translation:chrf',)
    if kind == 'finds':
      config.model = encoder(**sizes)
      config.data.update({'source': 'test_evaluation_memory:labeled', 'labels': ('even', 'odd')})
      config.data.task = 'lm.tasks.text:classification'
      config.data.converter = 'lm.tasks.classification:classifier'
      metrics, scores = (), ('lm.metrics.labels:classification',)
      config.checkpoint.monitor = 'eval/validation/f1'
    if kind != 'text':
      config.eval.sets = {'validation': evaluation('validation', metrics=metrics, scores=scores)}
  config.data.seq_len = 16
  config.update_from_flattened_dict(leaves)
  return config


@pytest.fixture(scope='module')
def programs():
  """Returns the programs of a config's evaluations by the key that says how large they are."""

  def make(kind, **leaves):
    config = config_of(kind, **leaves)
    tokenizer = pipeline.tokenizer(config.data)
    model = components.model(config, vocabulary_size(tokenizer))
    functions = components.build_components(config, vocabulary_size(tokenizer))
    evaluators = Evaluators(config, functions, tokenizer)
    init = components.init_of(model, config.data.seq_len)
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), params)
    return functions, params, list(evaluators.programs(params))

  return make


@pytest.mark.parametrize(
  ('kind', 'keys'),
  [
    ('text', ['eval.batch_size']),
    ('writes', ['eval.batch_size', 'decode.batch_size']),
    ('finds', ['eval.batch_size']),
  ],
)
def test_every_program_of_an_evaluation_grows_with_its_key(kind, keys, programs):
  _, _, found = programs(kind)
  assert [program.key for program in found] == keys
  for program in found:
    small, large = (
      sum(x.size for x in jax.tree.leaves(program.trace(size).in_avals)) for size in (8, 32)
    )
    params = small - (large - small) / 3  # what does not grow
    assert 0 < params < small and (large - params) / (small - params) == pytest.approx(4)


@pytest.mark.parametrize(('kind', 'place'), [('text', 0), ('writes', 1)])
def test_an_evaluation_that_does_not_fit_says_what_would(kind, place, programs, monkeypatch):
  functions, params, found = programs(kind)
  program = found[place]
  needed = program_bytes(program.trace(program.size).lower().compile())
  held = bytes_per_device(params)

  def check(left, state=None):
    monkeypatch.setattr(host_memory, 'available', lambda: left)
    check_evaluations([program], functions, params, state)

  check(needed - held)  # the parameters are in memory already
  key = re.escape(program.key)
  with pytest.raises(UserError, match=rf'^{key}={program.size}: .*validation takes') as error:
    check(needed - held - 1)
  fits = int(re.search(rf'; {key}=(\d+) would fit', str(error.value))[1])
  assert 0 < fits < program.size
  assert program_bytes(program.trace(fits).lower().compile()) < needed
  with pytest.raises(UserError, match=f'no {key} fits'):
    check(100)
  # A run that trains holds its parameters and its optimizer too.
  abstract, _ = abstract_state(functions)
  counted = needed + bytes_per_device(abstract) - held
  check(counted, abstract)
  with pytest.raises(UserError, match='takes'):
    check(counted - 1, abstract)


def test_the_values_of_a_program_bound_its_memory():
  N = 64

  def outer(x):
    def body(carry, row):
      return carry + (row[:, None] * carry[None]).sum(0), carry

    return jax.lax.scan(body, x, jnp.sort(x[:, None] * x[None], axis=0))[1].max()

  traced = jax.jit(outer).trace(jax.ShapeDtypeStruct((N,), jnp.float32))
  found = host_memory._value_bytes(traced.jaxpr.jaxpr)
  assert program_bytes(traced.lower().compile()) < 2 * found < 40 * 4 * N * N


def test_programs_that_fit_by_a_wide_margin_are_not_compiled(programs, monkeypatch):
  functions, params, found = programs('writes')

  class Traced:
    def __init__(self, traced):
      self.jaxpr = traced.jaxpr

  traced = [Program(p.key, p.what, p.size, lambda n, p=p: Traced(p.trace(n))) for p in found]
  monkeypatch.setattr(host_memory, 'available', lambda: 2**33)
  check_evaluations(traced, functions, params)


SOURCE = """
from test_evaluation_memory import config_of

def get_config(arg=''):
  return config_of(arg)
"""


@pytest.mark.parametrize('kind', ['text', 'finds'])
def test_a_huge_evaluation_is_one_line_before_step_1(kind, tmp_path, monkeypatch):
  (tmp_path / 'huge.py').write_text(SOURCE)
  # Its batches fit, and activations of 8 elements for 16 tokens of each row do not.
  workdir, size = tmp_path / 'run', 1_000_000
  monkeypatch.setattr(host_memory, 'available', lambda: 4 * 8 * 16 * size)
  flags = f'--config={tmp_path / "huge.py"}:{kind}', f'--workdir={workdir}'
  result = in_process.run('train', *flags, f'--config.eval.batch_size={size}')
  line = result.stderr.splitlines()[-1]
  assert (result.returncode, result.stdout) == (2, '') and 'Traceback' not in result.stderr
  assert f'eval.batch_size={size}: ' in line and 'GiB' in line and not workdir.exists()


def test_a_huge_batch_of_decoding_is_one_line_before_step_1(tmp_path, monkeypatch):
  (tmp_path / 'huge.py').write_text(SOURCE)
  workdir = tmp_path / 'run'
  given = f'--config={tmp_path / "huge.py"}:writes', f'--workdir={workdir}'
  # Its rows are no more than the prompts, of which a test has few.
  monkeypatch.setattr(host_memory, 'available', lambda: 2**19)
  monkeypatch.setattr(host_memory, 'check_program', lambda *args: None)
  result = in_process.run('train', *given, '--config.decode.batch_size=1000000000')
  assert result.returncode == 2 and not workdir.exists()
  assert 'decode.batch_size=' in result.stderr.splitlines()[-1]
