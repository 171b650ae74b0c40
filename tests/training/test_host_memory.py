"""Batches and steps that a host has no room for are refused before anything is made of them."""

import re
import sys

import in_process
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import cli, components
from lm.data import pipeline
from lm.errors import UserError
from lm.evaluation import host_memory
from lm.parallel import mesh as meshes
from lm.training.train_step import abstract_state, check_step, init_train_state, make_train_steps

SOURCE = """
from ml_collections import ConfigDict
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 4
  config.batch_size = 8
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2}})
  config.log.sample_prompts = ()
  return config
"""


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('memory')
  (folder / 'corpus.txt').write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (folder / 'roomy.py').write_text(SOURCE.format(corpus=str(folder / 'corpus.txt')))
  return folder / 'roomy.py'


@pytest.fixture(scope='module')
def parts(file):
  """Makes what a check needs of a config with some overrides."""

  def make(**changes):
    argv = ['x', f'--config={file}', *(f'--config.{k}={v}' for k, v in changes.items())]
    config, _ = cli.config(argv)
    tokenizer = pipeline.tokenizer(config.data)
    functions = components.build_components(config, tokenizer.get_vocab_size())
    rows = pipeline.packed_rows(config.data, config.data.train_split, tokenizer, config.seed)
    return config, functions, rows

  return make


def traces_of(config, functions, rows):
  abstract, _ = abstract_state(functions)
  train_steps = make_train_steps(functions, config.seed, config.microbatches, abstract)
  row = rows.batch(np.arange(1))

  def trace(size):
    shapes = {k: jax.ShapeDtypeStruct((1, size, *x.shape[1:]), x.dtype) for k, x in row.items()}
    return check_step(train_steps, functions, abstract, shapes)

  return train_steps, abstract, trace


def test_a_batch_that_no_host_holds_is_one_line(file, tmp_path):
  workdir = tmp_path / 'run'
  flags = f'--config={file}', f'--workdir={workdir}', '--config.batch_size=10000000000'
  result = in_process.run('train', *flags)
  line = result.stderr.splitlines()[-1]
  assert (result.returncode, result.stdout) == (2, '') and 'Traceback' not in result.stderr
  assert 'batch_size=10000000000' in line and 'GiB' in line and not workdir.exists()
  fits = int(re.search(r'batch_size=(\d+) would fit', line)[1])
  # A row of 16 tokens has at least four fields of int32, and the host less than 1 TiB.
  assert 0 < fits < 2**40 / (16 * 4 * 4)


def test_batches_are_counted_with_those_made_ahead(parts, monkeypatch):
  config, functions, rows = parts(steps=3, batch_size=8)
  row = sum(x.nbytes for x in rows.batch(np.arange(1)).values())
  monkeypatch.setattr(host_memory, 'available', lambda: 3 * 8 * row)
  host_memory.check_batches(config, functions, rows, ())
  monkeypatch.setattr(host_memory, 'available', lambda: 3 * 8 * row - 1)
  with pytest.raises(UserError, match=r'^batch_size=8: .*; batch_size=7 would fit,'):
    host_memory.check_batches(config, functions, rows, ())
  config, functions, rows = parts(steps=1, **{'eval.batch_size': 64})
  with pytest.raises(UserError, match=r'^eval\.batch_size=64: '):
    host_memory.check_batches(config, functions, rows, ())


def test_a_program_that_does_not_fit_says_what_would(parts, monkeypatch):
  config, functions, rows = parts(batch_size=64, microbatches=2)
  abstract, _ = abstract_state(functions)
  N = 2**16

  def trace(size):
    # Twice as much a row in large batches: what fits is not in proportion.
    width = N if size > 32 else N // 2
    return jax.jit(jnp.cumsum).trace(jax.ShapeDtypeStruct((size * width,), jnp.float32))

  def check(left):
    monkeypatch.setattr(host_memory, 'available', lambda: left)
    host_memory.check_program(trace, config, functions, abstract, rows, ())

  check(2**30)
  left = 4 * N * 20  # for the arguments of 40 of the smaller rows, or of 20 of them with results
  with pytest.raises(UserError, match=r'^batch_size=64: a step takes') as error:
    check(left)
  fits = int(re.search(r'batch_size=(\d+) would fit', str(error.value))[1])
  assert fits % 2 == 0 and 2 * 4 * (N // 2) * fits <= left < 20 * 4 * (N // 2) * fits
  with pytest.raises(UserError, match='no batch_size fits'):
    check(2**16)


def test_the_first_step_takes_the_program_of_the_check(parts, monkeypatch):
  config, functions, rows = parts()
  train_steps, abstract, trace = traces_of(config, functions, rows)
  monkeypatch.setattr(host_memory, '_fits_surely', lambda *args: False)
  host_memory.check_program(trace, config, functions, abstract, rows, ())
  state, _ = init_train_state(functions, jax.random.key(0))
  stacked = meshes.batch_sharding(functions.mesh, functions.rules, stacked=True)
  batch = {k: x[None] for k, x in rows.batch(np.arange(8)).items()}
  batch = jax.device_put(batch, stacked)
  compiled = []

  def listen(event, seconds, **kwargs):
    if 'backend_compile' in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    train_steps(state, batch)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled


def test_a_program_holds_its_arguments_results_and_temporaries():
  N = 512

  def outer(x):
    return jnp.cumsum(jnp.sort(x[:, None] * x[None], axis=0), axis=0).max()

  compiled = jax.jit(outer).lower(jax.ShapeDtypeStruct((N,), jnp.float32)).compile()
  found = host_memory.program_bytes(compiled)
  assert 4 * N * N < found < 5 * 4 * N * N


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    ({}, 1000),
    ({'sys/fs/cgroup/memory.max': 'max', 'sys/fs/cgroup/memory.current': '7'}, 1000),
    ({'sys/fs/cgroup/memory.max': '900', 'sys/fs/cgroup/memory.current': '500'}, 450),
    ({'sys/fs/cgroup/a/b/memory.max': '300', 'sys/fs/cgroup/a/b/memory.current': '600'}, 0),
    ({'sys/fs/cgroup/a/memory.max': '300', 'sys/fs/cgroup/a/memory.current': '100'}, 250),
    (
      {
        'sys/fs/cgroup/memory/memory.limit_in_bytes': '800',
        'sys/fs/cgroup/memory/memory.usage_in_bytes': '300',
      },
      550,
    ),
  ],
)
def test_what_is_available_is_the_least_of_machine_and_groups(tmp_path, files, expected):
  (tmp_path / 'proc/self').mkdir(parents=True)
  (tmp_path / 'proc/meminfo').write_text('MemTotal: 9 kB\nMemAvailable: 1000 kB\n')
  (tmp_path / 'proc/self/cgroup').write_text('0::/a/b\n')
  for name, value in files.items():
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(str(int(value) * 1024) if value.isdigit() else value)
    (place.parent / 'memory.stat').write_text(f'anon 5\ninactive_file {50 * 1024}\n')
  assert host_memory.available(tmp_path) == expected * 1024


@pytest.mark.skipif(sys.platform != 'linux', reason='where /proc says it')
def test_this_machine_says_what_is_available():
  assert 2**20 < host_memory.available() < 2**46


def test_a_system_that_does_not_say_is_left_alone(tmp_path, parts, monkeypatch):
  assert host_memory.available(tmp_path) is None
  monkeypatch.setattr(host_memory, 'available', lambda: None)
  host_memory.check_batches(*parts(batch_size=2**30), ())
