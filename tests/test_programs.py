"""The output of the programs, and an error of one line for every mistake."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from in_process import mistake, run

import lm
from lm.parallel.host import Never
from lm.training import trainer
from lm.workdir import experiment

ROOT = pathlib.Path(__file__).parent.parent
QUICKSTART = str(ROOT / 'experiments/quickstart.py')
FOUR_DEVICES = '--xla_force_host_platform_device_count=4'


def process(*command, **environment):
  """Returns the result of a separate Python process."""
  return subprocess.run(
    [sys.executable, *map(str, command)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | environment,
  )


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, small_library):
  """A run of two steps of the quickstart's smoke test."""
  folder = tmp_path_factory.mktemp('programs') / 'run'
  path = f'{QUICKSTART}:smoke'
  config = experiment.load(path)
  config.steps = 2
  trainer.train(config, path, folder, Never())
  return folder


# More than 5 seconds: the first test of the file trains and evaluates the smoke.
def test_evaluate_prints_the_metrics_of_training(workdir):
  result = run('evaluate', f'--workdir={workdir}')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  logged = next(row for row in map(json.loads, lines) if 'eval/validation/loss' in row)
  assert found == pytest.approx(logged, rel=1e-6)


def test_evaluate_scores_minimal_pairs(workdir, tmp_path):
  rows = ['uid\tterm\tgood\tbad', 'u\tt\tThe é\tThe', 'u\tt\ta b\tb a', 'v\ts\tof\tThe of']
  (tmp_path / 'a.tsv').write_text('\n'.join(rows))
  arguments = [f'--workdir={workdir}', f'--pairs={tmp_path}']
  out = tmp_path / 'out.jsonl'
  result = run('evaluate', *arguments, '--pairs_per_uid=1', f'--predictions={out}')
  assert result.returncode == 0, result.stderr
  found, lines = json.loads(result.stdout), list(map(json.loads, out.read_text().splitlines()))
  assert (found['step'], found['pairs'], found['pairs_per_uid']) == (2, 2, 1)
  assert [line['good'] for line in lines] == ['The é', 'of']
  assert found['accuracy'] == sum(line['credit'] for line in lines) / 2
  assert all((line['good_nats'] > line['bad_nats']) == (line['credit'] == 1) for line in lines)
  assert set(found['terms']) == {'s', 't'} and set(found['uids']) == {'u', 'v'}
  assert 'has no effect with --pairs' in mistake('evaluate', *arguments, '--beam_size=2')
  line = mistake('evaluate', f'--workdir={workdir}', '--source_mask=x')
  assert line.endswith('--source_mask=x has no effect without --pairs')
  (tmp_path / 'a.tsv').write_text('uid\tgood\tbad\nu\ta\tb')
  assert "a.tsv, line 2: no text under 'term'" in mistake('evaluate', *arguments)


# More than 5 seconds: one of three programs is a separate process.
def test_generate_prints_only_the_prompt_and_the_samples(workdir):
  arguments = [f'--workdir={workdir}', '--prompt=The é', '--max_tokens=5', '--num_samples=2']
  first = process('-m', 'lm.generate', *arguments, '--seed=3')
  assert first.returncode == 0, first.stderr
  again = run('generate', *arguments, '--seed=3')
  assert first.stdout == again.stdout
  assert first.stdout.startswith('The é') and first.stdout.count('The é') == 2
  other = run('generate', *arguments, '--seed=4').stdout
  assert not {*first.stdout.split('The é')[1:]} & {*other.split('The é')[1:]}


def test_generate_takes_a_sampler_and_logits_processors_by_path(workdir):
  token = experiment.read_tokenizer(workdir).encode('e').ids[0]
  paths = [
    '--sampler=lm.decode.sampling:sampler(top_k=1)',
    f'--logits_processor=lm.decode.sampling:allowed_tokens(ids=({token},))',
  ]
  arguments = [f'--workdir={workdir}', '--prompt=The ', '--max_tokens=3', *paths]
  assert run('generate', *arguments).stdout == 'The eee\n'
  line = mistake('generate', *arguments, '--temperature=1')
  assert '--temperature=1.0 has no effect with --sampler=' in line
  line = mistake('generate', *arguments, '--mean=lm.models.ensemble:logits')
  assert '--mean=lm.models.ensemble:logits needs an ensemble' in line


def test_the_text_of_a_special_token_in_a_prompt_is_plain_text(workdir):
  # As a special token, '<|end|>' would be one token and hide the text before it.
  tokenizer = lm.load(workdir).tokenizer
  limit = experiment.read_config(workdir).model.context
  tokenizer.encode_special_tokens = True
  fits = '<|end|>' * ((limit - 1) // len(tokenizer.encode('<|end|>').ids))
  assert run('generate', f'--workdir={workdir}', f'--prompt={fits}').returncode == 0
  tokens = 1 + len(tokenizer.encode(too_long := '<|end|>' * limit).ids)
  line = mistake('generate', f'--workdir={workdir}', f'--prompt={too_long}')
  assert f'--prompt has {tokens} tokens and the model reads {limit}' in line


def test_prepare_prints_documents_tokens_and_rows(tmp_path, monkeypatch):
  monkeypatch.setenv('LM_CACHE', str(tmp_path / 'cache'))
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('one line\n' * 200)
  line = mistake(
    'prepare',
    f'--config={QUICKSTART}:smoke',
    f"--config.data.source=lm.data.sources:text(files='{corpus}', validation=0.1)",
    '--config.data.tokenizer.fn=lm.text.tokenizers:bytes',
  )
  # `bytes` takes no argument `vocab_size`, which the base config gives.
  assert 'takes no argument' in line
  config = tmp_path / 'mine.py'
  config.write_text(f"""
from ml_collections import ConfigDict
from lm.config.base import base, smoke
from lm.parallel.host import Never

def get_config(arg=''):
  config = smoke(base())
  config.data.source = "lm.data.sources:text(files='{corpus}', validation=0.1)"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  return config
""")
  result = run('prepare', f'--config={config}')
  assert result.returncode == 0, result.stderr
  tokenizer, train, validation = result.stdout.splitlines()
  assert tokenizer == 'tokenizer: 257 entries'
  assert train.startswith('train: 1 documents, 1621 tokens, 51 rows of 32, 0.7% padding')
  assert validation.startswith('eval.sets.validation: 1 documents, 181 tokens,')
  result = run('prepare', f'--config={config}', '--duplicates=0.9')
  assert result.returncode == 0, result.stderr
  report = json.loads(result.stdout)
  assert (report['key'], report['removed'], report['near']) == ('data.source', False, 0.9)
  assert (report['documents'], report['exact_duplicates'], report['near_duplicates']) == (1, 0, 0)
  assert report['overlap']['validation']['documents'] == 1, 'each line has the same words'


def test_prepare_counts_the_padding_of_each_part_of_a_mixture(tmp_path):
  for name, line in (('a', 'one line\n'), ('b', 'another line, of other text\n')):
    (tmp_path / f'{name}.txt').write_text(line * 50)
  config = tmp_path / 'mixed.py'
  config.write_text(f"""
from ml_collections import ConfigDict
from lm.config.base import base, mixture, smoke

def get_config(arg=''):
  config = smoke(base())
  config.data.source = ''
  text = "lm.data.sources:text(files='{tmp_path}/NAME.txt', validation=0.1)"
  mixture(config, {{name: text.replace('NAME', name) for name in 'ab'}})
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  return config
""")
  result = run('prepare', f'--config={config}')
  assert result.returncode == 0, result.stderr
  _, train, shares, *sets = result.stdout.splitlines()
  # 45 of 50 lines of 9 and 28 bytes, and an end token each, in rows of 32.
  assert train.startswith('train: 2 documents, 1667 tokens, 53 rows of 32, 1.7% padding'), train
  assert shares.startswith('train: rows of a ')
  assert [line.partition(':')[0] for line in sets] == ['eval.sets.a', 'eval.sets.b']


def text(file):
  return f"--config.data.source=lm.data.sources:text(files='{file}', validation=0.1)"


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([text('nowhere.txt')], "'nowhere.txt': no such file"),
    ([text('{tmp}/empty.txt')], 'empty'),
    ([text('{tmp}/binary.txt')], 'NUL at byte'),
    ([text('{tmp}/latin.txt')], 'is not UTF-8 at byte'),
    (["--config.data.source=lm.data.sources:tfds(name='lm1c')"], "tfds has no builder 'lm1c'"),
    (
      ['--config.objective.fn=lm.objectives.supervised:cross_entrop'],
      "has no function 'cross_entrop'",
    ),
    (
      ['--config.model.position=lm.nn.position:rope(thet=3.0)'],
      "takes no argument 'thet' (did you mean 'theta'?)",
    ),
    (['--config.model.vocab_size=99'], 'model.vocab_size=99, but the tokenizer has 512'),
    (['--config.data.seq_len=64'], 'data.seq_len=64 is longer than model.context=32'),
  ],
)
def test_a_mistake_is_an_error_of_one_line_and_leaves_no_run(
  arguments, message, tmp_path, small_library
):
  (tmp_path / 'empty.txt').write_text('')
  (tmp_path / 'binary.txt').write_bytes(b'text\0' * 100)
  (tmp_path / 'latin.txt').write_bytes('caf\xe9 '.encode('latin-1') * 100)
  workdir = tmp_path / 'run'
  given = [a.replace('{tmp}', str(tmp_path)) for a in arguments]
  line = mistake('train', f'--config={QUICKSTART}:smoke', f'--workdir={workdir}', *given)
  assert message in line
  assert not (workdir / 'config.json').exists() and not (workdir / 'checkpoints').exists()


def test_a_mesh_that_does_not_fit_is_an_error_of_one_line_and_leaves_no_run(tmp_path):
  # A separate process has four devices, so that a mesh can fail to divide over them.
  flags = f'{os.environ.get("XLA_FLAGS", "")} {FOUR_DEVICES}'
  source = text(ROOT / 'README.md')
  command = ['train', f'--config={QUICKSTART}:smoke', f'--workdir={tmp_path / "run"}', source]
  found = process('-m', f'lm.{command[0]}', *command[1:], '--config.mesh.data=3', XLA_FLAGS=flags)
  assert (found.returncode, found.stdout) == (2, '')
  *_, line = found.stderr.splitlines()  # after the lines of the preparation
  assert 'does not divide over 4 cpu device(s)' in line
  more = (
    ['--config.mesh.data=4', '--config.batch_size=6'],
    ['--config.mesh.tensor=4', '--config.model.heads=2', '--config.model.kv_heads=2'],
  )
  code = 'import sys; sys.path.insert(0, "tests"); from in_process import run\n'
  for given in more:
    code += f'code, _, said = run(*{[*command, *given]!r})\n'
    code += 'print(code, said.splitlines()[-1])\n'
  found = process('-c', code, XLA_FLAGS=flags)
  assert found.returncode == 0, found.stderr
  rows, heads = found.stdout.splitlines()
  assert rows.startswith('2 ') and heads.startswith('2 ')
  assert 'batch_size' in rows and 'of size 2 is not divisible by mesh.tensor=4' in heads
  assert not (tmp_path / 'run').exists()


def test_a_wrong_workdir_is_an_error_of_one_line(workdir, tmp_path):
  assert 'no run there' in mistake('evaluate', f'--workdir={tmp_path}')
  assert '--step=7' in mistake('evaluate', f'--workdir={workdir}', '--step=7')
  other = ('train', f'--config={QUICKSTART}:smoke', f'--workdir={workdir}')
  assert 'was made with seed=0, not 1' in mistake(*other, '--config.seed=1')
