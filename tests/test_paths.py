"""The files that run in a training step and for a token, and the modules that imports reach.

The section "Follow one batch, follow one token" of CONTRIBUTING.md lists the files that a newcomer
reads. Its two lists equal what a profiler sees, and the imports of the default path stay few.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from test_layers_of_imports import MODULES, _imports

ROOT = pathlib.Path(__file__).parent.parent

# Runs training and then generation with a profiler that records the files of `lm` whose functions
# are called: while call 1 traces the compiled function of the program, from call N to the next one,
# and in the threads that make batches. Call 1 shows the files whose code the device runs, and
# call N the loop around it.
TRACE = r"""
import os, pathlib, runpy, sys, threading
import jax
from absl import flags
import lm.decode.stream
import lm.training.trainer

source = str(pathlib.Path('lm').resolve()) + os.sep
seen = set()

class Done(BaseException):
  pass

def profile(frame, event, arg):
  thread = threading.current_thread().name
  if event == 'call' and thread.startswith(('MainThread', 'batches')):
    if frame.f_code.co_filename.startswith(source):
      seen.add(frame.f_code.co_filename.removeprefix(source))

def recorded(function, steady):
  calls = 0
  def call(*args, **kwargs):
    nonlocal calls
    calls += 1
    if calls == 1:
      jax.clear_caches()
    if calls == steady + 1:
      sys.setprofile(None)
      raise Done
    sys.setprofile(profile if calls in (1, steady) else None)
    try:
      return function(*args, **kwargs)
    finally:
      sys.setprofile(profile if calls == steady else None)
  call.trace = function.trace
  return call

def run(program, *arguments):
  seen.clear()
  flags.FLAGS.__init__()
  sys.argv = ['', *arguments]
  try:
    runpy.run_module(f'lm.{program}', run_name='__main__', alter_sys=True)
    raise SystemExit(f'lm.{program} ended early')
  except Done:
    print('\nfiles', program, *sorted(seen), flush=True)

threading.setprofile(profile)
make = lm.training.trainer.make_train_steps
lm.training.trainer.make_train_steps = lambda *args: recorded(make(*args), 6)
lm.decode.stream._continue = recorded(lm.decode.stream._continue, 3)
train, generate = (part.split('|') for part in sys.argv[1:])
run('train', *train)
run('generate', *generate)
os._exit(0)  # threads are still recorded, and need names that the end of Python removes
"""


def _listed(heading: str) -> list[str]:
  """Returns the files that a list of CONTRIBUTING.md names, in order."""
  section = (ROOT / 'CONTRIBUTING.md').read_text().partition(f'\n### {heading}\n')[2]
  return re.findall(r'^\d+\. `lm/(\S+)`', section.partition('\n#')[0], re.M)


@pytest.fixture(scope='module')
def traced(tmp_path_factory) -> dict[str, list[str]]:
  """Returns the files of a steady step of `quickstart:smoke`, and of a steady token of its run."""
  workdir = f'--workdir={tmp_path_factory.mktemp("paths") / "run"}'
  source = f"lm.data.sources:text(files='{ROOT / 'README.md'}', validation=0.1)"
  train = ['--config=experiments/quickstart.py:smoke', workdir, f'--config.data.source={source}']
  train += ['--config.checkpoint.every=4', '--config.eval.every=100', '--config.log.every=1']
  generate = [workdir, '--prompt=the ', '--max_tokens=100', '--temperature=1']
  done = subprocess.run(
    [sys.executable, '-c', TRACE, '|'.join(train), '|'.join(generate)],
    env=os.environ | {'GLIBC_TUNABLES': '', 'PYTHONPATH': str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  lines = [line.split() for line in done.stdout.splitlines() if line.startswith('files ')]
  return {program: files for _, program, *files in lines}


def test_files_of_a_training_step_are_those_listed(traced):
  assert sorted(_listed('One batch')) == traced['train']
  assert len(traced['train']) <= 18


def test_files_of_a_token_are_those_listed(traced):
  assert sorted(_listed('One token')) == traced['generate']
  assert len(traced['generate']) <= 12


def closure(module: str) -> set[str]:
  """Returns the modules of `lm` that a module imports, anywhere in its source and in theirs."""
  reached, waiting = set(), [module]
  while waiting:
    name = waiting.pop()
    if name in MODULES and name not in reached:
      reached.add(name)
      parents = name.split('.')[:-1]
      waiting += ['.'.join(parents[: n + 1]) for n in range(len(parents))]
      if name != 'lm':  # its `load` is for notebooks, and imports when it is called
        waiting += _imports(MODULES[name].read_text())
  return reached


@pytest.mark.parametrize(('module', 'most'), [('lm.train', 51), ('lm.nn.layers', 12)])
def test_few_modules_are_reached_by_imports(module, most):
  reached = closure(module)
  assert len(reached) <= most, sorted(reached)
