"""Runs of several processes: start-up, equal results, preemption, and the loss of a process."""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from absl import flags

from lm.errors import UserError
from lm.parallel import mesh, multihost
from lm.parallel.multihost import Settings
from lm.workdir.checkpoints import Checkpoints, Damaged

ROOT = pathlib.Path(__file__).parents[2]
LAUNCHER = ROOT / 'tpu_scripts/local_multiprocess.py'
SOURCE = """
import dataclasses
import jax.numpy as jnp
from ml_collections import ConfigDict
from lm.config.base import base, encoder_decoder
from lm.objectives.supervised import cross_entropy
from lm.task import Task
from lm.config.tasks import translation

def hashed():
  # Adds a hash of every batch that depends on each token of the global batch and its position.
  plain = cross_entropy()

  def loss_sums(apply, params, batch, key):
    x = batch['inputs']
    position = jnp.arange(x.size).reshape(x.shape) % 8191 + 1
    total = (x * position % 8191).sum() % 8191
    return plain.loss_sums(apply, params, batch, key) | {{'hash': total.astype(jnp.float32)}}

  def normalizers(batch):
    return plain.normalizers(batch) | {{'hash': jnp.ones(())}}

  return dataclasses.replace(plain, loss_sums=loss_sums, normalizers=normalizers)

def sums(split):
  start = 0 if split == 'train' else 40
  return [{{'a': n % 7, 'b': n % 9}} for n in range(start, start + 40)]

def addition():
  total = lambda e: str(e['a'] + e['b'])
  return Task(inputs=lambda e: [f"{{e['a']}} + {{e['b']}}"], target=total, reference=total)

def get_config(arg=''):
  config = base()
  config.steps = 9
  config.batch_size = 8
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32, 'vocab_multiple': 8}})
  with config.unlocked():
    config.objective = ConfigDict({{'fn': 'several:hashed'}})
  config.optim.warmup_steps = 2
  config.optim.learning_rate = 0.01
  config.eval.batch_size = 8
  config.eval.every = 3
  config.checkpoint.every = 3
  config.log.every = 1
  config.log.sample_prompts = ('12 times',)
  config.log.sample_tokens = 4
  if arg == 'writing':
    config.model = encoder_decoder(depth=1, d_model=16, heads=2, context=16)
    config.model.init_std = 0.3
    translation(config, 'en', 'validation')
    config.data.source, config.data.task = 'several:sums', 'several:addition'
    config.data.source_len = 16
    config.eval.sets.validation.limit = 10
    config.eval.sets.validation.scores = ('lm.metrics.labels:exact_match',)
    config.checkpoint.monitor = 'eval/validation/exact_match'
    config.decode.update({{'batch_size': 3, 'max_tokens': 6}})
    config.decode.update({{'beam_size': 2, 'length_penalty': 5.0}})
  if arg == 'long':
    config.steps = 10**6
    config.eval.every = config.checkpoint.every = 10**6
    config.log.sample_prompts = ()
  return config
"""


@pytest.fixture
def folder(tmp_path):
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (tmp_path / 'several.py').write_text(SOURCE.format(corpus=str(corpus)))
  return tmp_path


def command(folder, name, *more, arg=''):
  config = f'{folder / "several.py"}{arg and ":" + arg}'
  train = [sys.executable, '-m', 'lm.train', f'--config={config}', f'--workdir={folder / name}']
  return [*train, f'--config.data.cache={folder / "cache"}', *more]


def train_to_end(folder, name, processes, *more, arg=''):
  """Trains to the end in a number of processes; returns the workdir."""
  launch = [sys.executable, str(LAUNCHER), str(processes), '--'] if processes > 1 else []
  run = subprocess.run(
    [*launch, *command(folder, name, *more, arg=arg)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=300,
  )
  assert run.returncode == 0, run.stdout + run.stderr
  return folder / name


def free_port():
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]


def start(folder, name, processes, *more, arg='long'):
  """Starts the processes of a training run without a launcher."""
  port = free_port()
  given = (f'--coordinator=127.0.0.1:{port}', f'--processes={processes}')
  return [
    subprocess.Popen(
      command(folder, name, *given, f'--process={i}', *more, arg=arg),
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
      cwd=ROOT,
    )
    for i in range(processes)
  ]


def rows(workdir, name):
  """Returns a metric by step, from metrics.jsonl."""
  file = workdir / 'metrics.jsonl'
  lines = file.read_text().splitlines() if file.exists() else []
  found = (json.loads(line) for line in lines)
  return {row['step']: row[name] for row in found if name in row}


def wait_for_steps(workdir, steps, running, seconds=180):
  end = time.monotonic() + seconds
  while len(rows(workdir, 'train/loss')) < steps:
    for process in running:
      assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < end, 'nothing happened'
    time.sleep(0.1)


def ends(running, seconds=90):
  """Returns the exit codes and the stderr of all processes."""
  try:
    stderr = [process.communicate(timeout=seconds)[1] for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], stderr


def evaluated(workdir, processes):
  launch = [sys.executable, str(LAUNCHER), str(processes), '--'] if processes > 1 else []
  run = subprocess.run(
    [*launch, sys.executable, '-m', 'lm.evaluate', f'--workdir={workdir}'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  return json.loads(re.search(r'\{.*\}', run.stdout + run.stderr)[0])


# The start.


def parsed(*arguments):
  values = flags.FlagValues()
  multihost.define_flags(values)
  values(['lm.train', *arguments])
  return multihost.settings(values)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('--coordinator=host:1 --process=0', 'coordinator=host:1 .*--processes'),
    ('--coordinator=host:1 --processes=2', 'coordinator=host:1 .*--process=I'),
    ('--coordinator=host --processes=2 --process=0', 'coordinator=host .*HOST:PORT'),
    ('--coordinator=host:99999 --processes=2 --process=0', 'coordinator=host:99999 .*HOST:PORT'),
    ('--coordinator=host:1 --processes=2 --process=2', '--process=2 .*--processes=2'),
    ('--process=1', '--process=1 .*--coordinator'),
    ('--coordinator=host:1 --processes=0 --process=0', '--processes=0'),
    ('--coordinator=host:1 --processes=2 --process=-1', '--process=-1'),
    ('--heartbeat=0', '--heartbeat=0'),
    ('--init_timeout=0', '--init_timeout=0'),
  ],
)
def test_inconsistent_flags_are_refused(arguments, message):
  with pytest.raises((UserError, flags.Error), match=message):
    parsed(*arguments.split())


def test_variables_replace_missing_flags(monkeypatch):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', '10.0.0.1:1234')
  monkeypatch.setenv('JAX_NUM_PROCESSES', '4')
  monkeypatch.setenv('JAX_PROCESS_ID', '3')
  assert parsed() == Settings('10.0.0.1:1234', 4, 3)
  given = parsed('--coordinator=host:1', '--processes=2', '--process=1', '--heartbeat=7')
  assert given == Settings('host:1', 2, 1, heartbeat=7)
  monkeypatch.setenv('JAX_PROCESS_ID', 'three')
  with pytest.raises(UserError, match=r"JAX_PROCESS_ID='three'.*--process"):
    parsed()
  monkeypatch.setenv('JAX_NUM_PROCESSES', '0')
  with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES='0'.*--processes"):
    parsed()


def test_single_process_of_several_is_refused():
  with pytest.raises(UserError, match=r'^1 of 4 processes found: .*--coordinator'):
    multihost.start(Settings(None, 4, None))
  assert multihost.start(Settings(None, 1, None)) is False
  assert multihost.start(Settings('127.0.0.1:1', 1, 0)) is False


@pytest.mark.parametrize(
  ('variables', 'count'),
  [
    ({'SLURM_STEP_NODELIST': 'node[1-4]', 'SLURM_NTASKS': '4'}, 4),
    ({'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:2', 'OMPI_COMM_WORLD_SIZE': '2'}, 2),
    ({'SLURM_NTASKS': '4'}, None),  # a batch script outside srun
  ],
)
def test_the_launcher_gives_the_number_of_processes(monkeypatch, variables, count):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  assert multihost._launched() == count


# A cluster of one process, such as one TPU host. A subprocess, since the test initializes JAX.
def test_single_process_of_a_cluster_keeps_its_sigterm_handler():
  program = f"""
import os, signal, jax
from lm.parallel import multihost
signal.signal(signal.SIGTERM, lambda *_: print('stopped'))
real = jax.distributed.initialize
def initialize(address, *more, **options):  # replaces the detection by JAX
  options['cluster_detection_method'] = 'deactivate'
  real('127.0.0.1:{free_port()}', 1, 0, **options)
jax.distributed.initialize = initialize
print(multihost.start(multihost.Settings()), jax.distributed.is_initialized())
os.kill(os.getpid(), signal.SIGTERM)
"""
  run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
  assert run.stdout.splitlines() == ['False False', 'stopped'], run.stderr


# Two real processes, since they initialize JAX.
def test_values_are_exchanged_by_two_processes(tmp_path):
  program = """
import sys, time
from lm import cli, errors
from lm.parallel import multihost
def main(argv):
  assert multihost.start(multihost.Settings('127.0.0.1:' + argv[1], 2, int(argv[2]), 30))
  index, count = multihost.process_index_and_count()
  large = 'x' * 10**6
  assert multihost.gather({'a': index, 'large': large}) == [
    {'a': 0, 'large': large}, {'a': 1, 'large': large}]
  assert multihost.broadcast_from_primary([index, None]) == [0, None]
  assert (multihost.is_primary(), count) == (index == 0, 2)
  multihost.barrier(30, 'to test')
  if index == 1:
    try:
      multihost.barrier(0.1, 'for an absent process')
    except errors.PeerLost as e:
      print(e, file=sys.stderr)
  else:
    time.sleep(1)
    multihost.barrier(10, 'to end')
cli.run(main, '')
"""
  port = str(free_port())
  running = [
    subprocess.Popen(
      [sys.executable, '-c', program, port, str(i)], stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    for i in range(2)
  ]
  codes, stderr = ends(running, seconds=50)
  assert codes == [0, 0], stderr
  assert (
    'nothing from process 0 within the 0.1 seconds of waiting for an absent process' in stderr[1]
  )


def test_one_process_does_not_wait():
  multihost.barrier(1, 'to see')
  assert multihost.gather({'a': 1}) == [{'a': 1}]
  assert multihost.broadcast_from_primary([1, 2]) == [1, 2]
  assert (
    multihost.process_index_and_count() == (0, 1)
    and multihost.is_primary()
    and not multihost.is_multiprocess()
  )


# More than 5 seconds: real processes wait until their timeout.
def test_missing_process_is_reported_in_one_line(folder):
  given = ('--init_timeout=4', '--processes=2')
  running = [
    subprocess.Popen(
      command(
        folder, 'none', *given, f'--coordinator=127.0.0.1:{free_port()}', f'--process={alone}'
      ),
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    for alone in (0, 1)
  ]
  codes, (first, second) = ends(running)
  assert codes == [134, 134]
  assert re.fullmatch(
    r'processes: not all 2 processes came to --coordinator=\S+ within --init_timeout=4 seconds',
    first.splitlines()[-1],
  )
  assert 'process 1 found no process 0 at --coordinator=' in second.splitlines()[-1]
  assert not (folder / 'none').exists()


# A run of several processes.


@pytest.mark.slow
def test_two_and_four_processes_give_the_losses_of_one(folder):
  one = train_to_end(folder, 'one', 1)
  for processes in (2, 4):
    several = train_to_end(folder, f'of {processes}', processes)
    assert rows(several, 'train/hash') == rows(one, 'train/hash')
    for name in ('train/loss', 'train/gradient_norm', 'eval/validation/loss'):
      assert rows(several, name) == pytest.approx(rows(one, name), rel=1e-5)
    for step in (3, 6, 9):
      sample = f'samples/{step}.txt'
      assert (several / sample).read_text() == (one / sample).read_text()
    events = [json.loads(line) for line in (several / 'events.jsonl').read_text().splitlines()]
    assert [e['event'] for e in events].count('start') == 1  # one process writes
    if processes == 2:
      assert evaluated(several, 2) == pytest.approx(evaluated(several, 1), rel=1e-5)
    environment = json.loads((several / 'environment.json').read_text())
    assert environment['devices']['processes'] == processes


DIGESTS = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from lm.parallel import multihost
from lm.types import TrainState
from lm.workdir.checkpoints import Checkpoints, attempt

process, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
multihost.start(multihost.Settings(f'127.0.0.1:{port}', 2, process))
mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

def state(seed, *specs):
  shardings = [NamedSharding(mesh, spec) for spec in specs]
  make = lambda i, s: jax.jit(lambda: jax.random.normal(jax.random.key(seed + i), (64, 32)),
                              out_shardings=s)()
  params = {name: make(i, s) for i, (name, s) in enumerate(zip('abc', shardings))}
  zero = jax.jit(lambda: jnp.int32(0), out_shardings=NamedSharding(mesh, P()))
  counts = [zero() for _ in range(3)]
  return TrainState(*counts, params, {})

def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)

checkpoints = Checkpoints(folder)
first, specs = state(0, P('x'), P(), P(None, 'x')), (P(), P(None, 'x'), P('x'))
checkpoints.save(1, first, {'best': 1})
checkpoints.save(2, state(9, P('x'), P(), P(None, 'x')), {'best': 2})
checkpoints.wait()
(restored, stopping), reason = attempt(checkpoints.restore, 1, abstract(state(5, *specs)))
assert not reason and stopping == {'best': 1}
for name, x in state(0, *specs).params.items():
  for one, other in zip(x.addressable_shards, restored.params[name].addressable_shards):
    np.testing.assert_array_equal(one.data, other.data)
files = sorted((folder / 'checkpoints/1/params/ocdbt.process_1/d').iterdir())
for start, stop, mask in [(5000, 5001, 64), (0, 64, 255)]:
  multihost.barrier(60, 'for the last restore')
  if process == 0:
    file = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[start:stop] = bytes(byte ^ mask for byte in content[start:stop])
    file.write_bytes(content)
  multihost.barrier(60, 'for the damage')
  restored, reason = attempt(checkpoints.restore_params, 1, abstract(first.params))
  print('damaged', restored, reason, flush=True)
checkpoints.close()
multihost.leave(0)
"""


# More than 5 seconds: real processes.
@pytest.mark.slow
def test_digests_of_two_processes_hold_on_another_mesh_and_show_the_damage_of_one(tmp_path):
  port = str(free_port())
  running = [
    subprocess.Popen(
      [sys.executable, '-c', DIGESTS, str(i), port, str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=os.environ | {'XLA_FLAGS': ''},
    )
    for i in range(2)
  ]
  outputs = [process.communicate(timeout=300) for process in running]
  assert [process.returncode for process in running] == [0, 0], outputs
  # The damaged shard is of process 1, and process 0 knows. The bit is of an array, which a digest
  # shows, or of what the storage decodes. The storage of process 1 alone cannot decode the rest.
  reasons = [re.findall('damaged None (.+)', stdout) for stdout, _ in outputs]
  assert len(reasons[0]) == 2 and reasons[0] == reasons[1], outputs
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {name: jax.ShapeDtypeStruct((64, 32), np.float32, sharding=one) for name in 'abc'}
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    assert checkpoints.restore_subset(2, wanted).keys() == set('abc')
    (tmp_path / 'checkpoints/2/digests/1.json').unlink()
    with pytest.raises(Damaged):
      checkpoints.restore_subset(2, wanted)


@pytest.mark.slow
def test_several_processes_generate_the_texts_of_one(folder):
  def texts(processes, *more):
    name = f'{processes}{"".join(more)[-1:]}'
    workdir = train_to_end(folder, name, processes, *more, arg='writing')
    lines = (workdir / 'predictions/validation-9.jsonl').read_text().splitlines()
    return [json.loads(line)['output'] for line in lines]

  alone = texts(1)
  assert len(alone) == 10 and all(alone)
  assert texts(2) == texts(2, '--config.mesh.fsdp=2') == alone


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(folder):
  one = train_to_end(folder, 'one', 1)
  moved = train_to_end(folder, 'moved', 4, '--until_step=3', '--config.mesh.fsdp=2')
  train_to_end(folder, 'moved', 1, '--until_step=5')
  train_to_end(folder, 'moved', 2)
  assert rows(moved, 'train/hash') == rows(one, 'train/hash')
  assert len(rows(moved, 'train/hash')) == 9
  assert rows(moved, 'train/loss') == pytest.approx(rows(one, 'train/loss'), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('given', [0, 1])
def test_sigterm_to_one_process_saves_the_same_step_on_all(folder, given):
  running = start(folder, 'stopped', 2)
  wait_for_steps(folder / 'stopped', 3, running)
  running[given].send_signal(signal.SIGTERM)
  codes, stderr = ends(running)
  assert codes == [75, 75], stderr
  saved = [re.search(r'SIGTERM: saved step (\d+)', text)[1] for text in stderr]
  assert saved[0] == saved[1]
  steps = [p.name for p in (folder / 'stopped/checkpoints').iterdir() if p.name.isdigit()]
  assert steps == [saved[0]]
  assert max(rows(folder / 'stopped', 'train/loss')) == int(saved[0])


@pytest.mark.slow
@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_ends_the_others(folder, killed):
  running = start(folder, 'killed', 3, '--config.batch_size=12', '--config.eval.batch_size=12')
  wait_for_steps(folder / 'killed', 3, running)
  running[killed].kill()
  began = time.monotonic()
  codes, stderr = ends(running, seconds=60)
  assert time.monotonic() - began < 30  # the heartbeat; the connections are faster
  assert codes.pop(killed) == -signal.SIGKILL
  # The coordination service ends with process 0, so that JAX may end the others first.
  assert set(codes) <= ({134, -signal.SIGABRT} if killed == 0 else {134}), stderr
  del stderr[killed]
  if killed:
    for text in stderr:
      assert f'process {killed} has died or lost its host' in text.splitlines()[-1]


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(folder):
  source = (folder / 'several.py').read_text()
  broken = '\n'.join(
    [
      'def fail(row, rng):',
      '  import os',
      "  if os.environ.get('JAX_PROCESS_ID') == '1':",
      "    raise KeyError('broken')",
      '  return row',
    ]
  )
  (folder / 'several.py').write_text(f'{source}\n{broken}\n')
  run = subprocess.run(
    [sys.executable, str(LAUNCHER), '2', '--']
    + command(folder, 'failed', "--config.data.transforms=('several:fail',)"),
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=120,
  )
  assert run.returncode in (1, 2), run.stderr
  assert 'broken' in run.stderr
  assert re.search(r'\[0\] process 0 of 2 ends: process 1 has ended with code [12]', run.stderr)


@pytest.mark.slow
def test_slurm_is_detected(folder):
  port_of = 65535 - 2**12 + 1
  job = next(j for j in range(os.getpid(), 10**6) if _free(port_of + j % 2**12))
  slurm = {'SLURM_JOB_ID': str(job), 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2'}
  train = command(folder, 'slurm', '--processes=2')
  running = [
    subprocess.Popen(
      train,
      env=os.environ | slurm | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    for i in range(2)
  ]
  codes, stderr = ends(running)
  assert codes == [0, 0], stderr
  assert '2 processes with 2 devices' in stderr[0]
  assert len(rows(folder / 'slurm', 'train/loss')) == 9


@pytest.mark.slow
def test_processes_other_than_those_of_slurm_are_refused(folder):
  slurm = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '1'}
  run = subprocess.run(
    command(folder, 'wrong', '--processes=4'),
    env=os.environ | slurm | {'SLURM_PROCID': '0', 'SLURM_LOCALID': '0'},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert run.returncode == 2
  assert run.stderr.startswith('lm.train: 1 of 4 processes found')


def _free(port):
  try:
    socket.create_server(('127.0.0.1', port)).close()
  except OSError:
    return False
  return True


# The launcher.


@pytest.fixture(scope='module')
def launcher():
  found = importlib.util.spec_from_file_location('local_multiprocess', LAUNCHER)
  module = importlib.util.module_from_spec(found)
  found.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ('codes', 'code'),
  [
    ([0, 0], 0),
    ([75, 75], 75),
    ([134, 1, -6], 1),  # the first error that no other process caused
    ([2, 1], 2),
    ([-9, 134, 134], 137),
    ([0, 134], 134),
    ([-6, -6], 134),
  ],
)
def test_exit_code_is_that_of_the_first_cause(launcher, codes, code):
  assert launcher.cause(codes) == code


def launch(processes, program, *flags):
  return [
    sys.executable,
    str(LAUNCHER),
    *flags,
    str(processes),
    '--',
    sys.executable,
    '-c',
    program,
  ]


def test_launcher_sets_the_index_of_each_process():
  program = (
    'import os; e = os.environ; '
    'print(e["JAX_PROCESS_ID"], e["JAX_NUM_PROCESSES"], e["JAX_COORDINATOR_ADDRESS"])'
  )
  run = subprocess.run(launch(3, program), capture_output=True, text=True)
  assert run.returncode == 0
  lines = sorted(run.stderr.splitlines())
  assert [line.split()[:3] for line in lines] == [[f'[{i}]', str(i), '3'] for i in range(3)]
  assert len({line.split()[3] for line in lines}) == 1


def test_launcher_kills_processes_that_do_not_end(launcher):
  program = (
    'import os, sys, time\n'
    'print(os.getpid(), flush=True)\n'
    'if os.environ["JAX_PROCESS_ID"] == "1": sys.exit(3)\n'
    'time.sleep(600)'
  )
  run = subprocess.run(launch(2, program, '--grace=1'), capture_output=True, text=True, timeout=60)
  assert run.returncode == 3
  assert 'process 1 ended with code 3' in run.stderr and 'process 0 is killed' in run.stderr
  (pid,) = re.findall(r'^\[0\] (\d+)$', run.stderr, re.MULTILINE)
  with pytest.raises(ProcessLookupError):
    os.kill(int(pid), 0)


def test_launcher_tries_again_if_the_port_is_taken(tmp_path):
  program = (
    'import pathlib, sys\n'
    'tried = pathlib.Path(sys.argv[1])\n'
    'if tried.exists(): sys.exit(0)\n'
    'tried.touch()\n'
    'sys.exit("bind: Address already in use")'
  )
  run = subprocess.run(
    [*launch(1, program), str(tmp_path / 'tried')], capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr


def test_arrays_are_gathered_to_a_local_device():
  x = jax.device_put(np.arange(4.0))

  assert mesh.gather_to_local_device({'x': x})['x'].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(('process', 'first'), [(0, True), (1, False)])
def test_process_0_is_primary(monkeypatch, process, first):
  monkeypatch.setattr(multihost, '_group', multihost._Group(process, 2, {}))
  assert (multihost.is_primary(), multihost.process_index_and_count()) == (first, (process, 2))
