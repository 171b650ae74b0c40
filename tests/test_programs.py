"""The programs as a user meets them: processes, their output, and one line for every mistake."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import lm
from lm.run import experiment, loop
from lm.run.cli import NoStop

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = str(ROOT / 'experiments/quickstart.py')


def run(program, *arguments, **environment):
  command = [sys.executable, '-m', f'lm.{program}', *map(str, arguments)]
  return subprocess.run(
    command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment
  )


def mistake(result):
  """Returns the one line of a wrong usage."""
  assert (result.returncode, result.stdout) == (2, ''), result
  (line,) = result.stderr.splitlines()
  return line


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of the quickstart's smoke, two steps long."""
  folder = tmp_path_factory.mktemp('programs') / 'run'
  path = f'{QUICKSTART}:smoke'
  config = experiment.load(path)
  config.steps = 2
  loop.train(config, path, folder, NoStop())
  return folder


def test_evaluate_prints_what_training_found(workdir):
  result = run('evaluate', f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  logged = next(row for row in map(json.loads, lines) if 'eval/validation/loss' in row)
  assert found == pytest.approx(logged, rel=1e-6)


def test_generate_streams_the_prompt_and_the_samples_and_nothing_else(workdir):
  arguments = [f'--workdir={workdir}', '--prompt=The é', '--max_tokens=5', '--num_samples=2']
  first, again = (run('generate', *arguments, '--seed=3') for _ in range(2))
  assert first.returncode == 0, first.stderr
  assert first.stdout == again.stdout
  assert first.stdout.startswith('The é') and first.stdout.count('The é') == 2
  assert first.stdout != run('generate', *arguments, '--seed=4').stdout


def test_a_prompt_holds_no_special_tokens(workdir):
  # Read as the end of text, '<|end|>' would leave the model alone with what comes after it.
  tokenizer = lm.load(workdir).tokenizer
  limit = experiment.open_workdir(workdir).model.context
  tokenizer.encode_special_tokens = True
  fits = '<|end|>' * ((limit - 1) // len(tokenizer.encode('<|end|>').ids))
  assert run('generate', f'--workdir={workdir}', f'--prompt={fits}').returncode == 0
  tokens = 1 + len(tokenizer.encode(too_long := '<|end|>' * limit).ids)
  line = mistake(run('generate', f'--workdir={workdir}', f'--prompt={too_long}'))
  assert f'--prompt has {tokens} tokens and the model reads {limit}' in line


def test_prepare_tells_what_there_is(tmp_path):
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('one line\n' * 200)
  result = run(
    'prepare',
    f'--config={QUICKSTART}:smoke',
    f"--config.data.source=lm.data.sources:text(files='{corpus}', validation=0.1)",
    '--config.data.tokenizer.fn=lm.text.tokenizers:bytes',
    LM_CACHE=str(tmp_path / 'cache'),
  )
  # The base tokenizer's leaf `vocab_size` is none that `bytes` takes.
  assert 'takes no argument' in mistake(result)
  config = tmp_path / 'mine.py'
  config.write_text(f"""
from ml_collections import ConfigDict
from lm.config import base, smoke
from lm.run.cli import NoStop

def get_config(arg=''):
  config = smoke(base())
  config.data.source = "lm.data.sources:text(files='{corpus}', validation=0.1)"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  return config
""")
  result = run('prepare', f'--config={config}', LM_CACHE=str(tmp_path / 'cache'))
  assert result.returncode == 0, result.stderr
  tokenizer, train, validation = result.stdout.splitlines()
  assert tokenizer == 'tokenizer: 257 entries'
  assert train.startswith('train: 1 documents, 1621 tokens, 51 rows of 32, 0.7% padding')
  assert validation.startswith('eval.sets.validation: 1 documents, 181 tokens,')


def text(file):
  return f"--config.data.source=lm.data.sources:text(files='{file}', validation=0.1)"


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([text('nowhere.txt')], "'nowhere.txt': no such file"),
    ([text('{tmp}/empty.txt')], 'empty'),
    ([text('{tmp}/binary.txt')], 'NUL at byte'),
    ([text('{tmp}/latin.txt')], 'is not UTF-8 at byte'),
    (["--config.data.source=lm.data.sources:tfds(name='lm1c')"], "tfds knows no builder 'lm1c'"),
    (['--config.objective.fn=lm.objectives.spans:span'], "has no function 'span'"),
    (
      ['--config.model.position=lm.nn.position:rope(thet=3.0)'],
      "takes no argument 'thet' (did you mean 'theta'?)",
    ),
    (['--config.model.vocab_size=9999'], 'model.vocab_size=9999, but the tokenizer has 512'),
    (['--config.data.context=64'], 'data.context=64 is longer than model.context=32'),
    (['--config.mesh.data=3'], 'does not divide over 4 cpu device(s)'),
    (['--config.mesh.data=4', '--config.batch_size=6'], 'batch_size'),
    (
      ['--config.mesh.tensor=4', '--config.model.heads=2', '--config.model.kv_heads=2'],
      'of size 2 does not divide by mesh.tensor=4',
    ),
  ],
)
def test_a_mistake_is_one_line_and_leaves_no_run(arguments, message, tmp_path):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'binary.txt').write_bytes(b'text\0' * 100)
  (tmp_path / 'latin.txt').write_bytes('caf\xe9 '.encode('latin-1') * 100)
  workdir = tmp_path / 'run'
  given = [a.replace('{tmp}', str(tmp_path)) for a in arguments]
  # Four devices, to have a mesh that can be wrong.
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
  result = run(
    'train', f'--config={QUICKSTART}:smoke', f'--workdir={workdir}', *given, XLA_FLAGS=flags
  )
  assert message in mistake(result)
  assert not (workdir / 'config.json').exists() and not (workdir / 'checkpoints').exists()


def test_mistakes_about_a_workdir(workdir, tmp_path):
  assert 'no run there' in mistake(run('evaluate', f'--workdir={tmp_path}'))
  assert '--step=7' in mistake(run('evaluate', f'--workdir={workdir}', '--step=7'))
  other = ('train', f'--config={QUICKSTART}:smoke', f'--workdir={workdir}')
  assert 'was made with seed=0, not 1' in mistake(run(*other, '--config.seed=1'))
