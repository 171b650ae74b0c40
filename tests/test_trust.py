"""Workdirs of strangers: nothing of them runs, nothing outside of them is touched, one clear line.

The cases are those of tests/hostile.py.
"""

import ast
import concurrent.futures
import importlib
import json
import os
import pathlib
import pkgutil
import re
import shutil
import sys

import flax.linen as nn
import hostile
import in_process
import jax
import pytest
from ml_collections import ConfigDict

import lm
from lm import cli
from lm.components import init_of, model
from lm.config import resolve, trust
from lm.errors import UserError
from lm.parallel import host
from lm.text import tokenizers
from lm.training import warm_start
from lm.workdir import experiment, files, untrusted

ROOT = pathlib.Path(__file__).parent.parent
CASES = hostile.cases()
FEW = ('path: system', 'link: events.jsonl', 'file: deep config')  # one of each kind


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with a good run and what hostile ones may not change."""
  root = tmp_path_factory.mktemp('trust').resolve()
  hostile.make_run(root)
  hostile.make_victims(root)
  return root


@pytest.fixture
def quick(monkeypatch):
  """Has the tokenizer read without the process that tries it, which takes half a second."""
  monkeypatch.setattr(untrusted.probe, 'check', lambda *args: None)


def check(name, folder, *openers):
  return hostile.check(CASES[name], openers, folder / 'run', folder / 'victims')


def changed(folder, tmp_path, change):
  """Returns a copy of the run with a change."""
  shutil.copytree(folder / 'run', tmp_path / 'run')
  change(tmp_path / 'run', folder / 'victims')
  return tmp_path / 'run'


def test_there_are_enough_cases():
  assert len(CASES) > 80 and len({kind.partition(':')[0] for kind in CASES}) == 9


KINDS = ('path', 'link', 'value', 'file', 'checkpoint', 'all')


@pytest.mark.parametrize('name', [name for name in CASES if name.startswith(KINDS)])
def test_a_hostile_workdir_is_refused_or_does_nothing(name, folder, quick, monkeypatch):
  monkeypatch.setattr(host, 'available_memory', lambda: 2**33)
  check(name, folder, 'load')


def test_the_same_workdir_runs_code_when_it_is_trusted(folder, tmp_path):
  victims = hostile.make_victims(tmp_path)
  shutil.copytree(folder / 'run', tmp_path / 'run')
  hostile.PATHS['source'](tmp_path / 'run', victims)
  with pytest.raises(AttributeError):  # `evil:f` returns no position scheme
    lm.load(tmp_path / 'run')
  assert (victims / 'sentinel').read_text() == 'called'


@pytest.mark.parametrize('name', FEW)
def test_every_program_refuses(name, folder, quick):
  refusals = check(name, folder, *CASES[name].openers)
  assert len(refusals) >= 6


@pytest.mark.slow
@pytest.mark.parametrize('name', [k for k in CASES if not k.startswith(('value', 'unused'))])
def test_no_program_runs_anything(name, folder, monkeypatch):
  """Slow because each of 60 cases is opened by all programs; tests/hostile.py does the others."""
  monkeypatch.setattr(untrusted.probe, 'SECONDS', 5.0)
  if not name.startswith('tokenizer'):
    monkeypatch.setattr(untrusted.probe, 'check', lambda *args: None)
  check(name, folder, *hostile.openers_of(name))


@pytest.mark.parametrize('name', hostile.LINKS)
def test_nothing_is_written_through_a_link(name, folder, tmp_path):
  workdir = changed(folder, tmp_path, hostile.LINKS[name])
  before = hostile.state_of(folder / 'victims')
  with pytest.raises(UserError, match='--workdir=') as caught, files.lock_workdir(workdir):
    pass
  assert '\n' not in str(caught.value)
  assert hostile.state_of(folder / 'victims') == before


@pytest.mark.parametrize('name', ['report.html', 'report.html.PID.tmp'])
def test_a_report_replaces_a_link_and_not_what_it_leads_to(name, folder, tmp_path):
  name = name.replace('PID', str(os.getpid()))
  workdir = changed(folder, tmp_path, hostile.link(name, 'VICTIMS/file'))
  assert in_process.run('report', f'--workdir={workdir}').returncode == 0
  assert (folder / 'victims/file').read_text() == 'precious\n'
  assert not (workdir / 'report.html').is_symlink()


def test_links_that_stay_inside_and_a_link_to_the_workdir_are_accepted(folder, tmp_path):
  workdir = changed(folder, tmp_path, hostile.link('newest', 'checkpoints/0'))
  (tmp_path / 'alias').symlink_to(workdir)
  with files.lock_workdir(tmp_path / 'alias'):
    pass


def test_trust_is_of_a_workdir_and_not_of_the_process(folder, tmp_path, quick):
  step = {'data.task': 'mine_of_trust:task', 'data.converter': 'mine_of_trust:task'}
  workdir = changed(folder, tmp_path, hostile.config(**step))
  (workdir / 'source/mine_of_trust.py').write_text('def task():\n  return 7\n')
  stranger = lm.load(workdir, trusted=False)
  with stranger.modules():
    assert str(workdir / 'source') not in sys.path
  trusted = lm.load(workdir)

  def call(loaded):
    with loaded.modules():
      return resolve.resolve(loaded.config.data.task, 'data.task')()

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    for run in (call, lambda loaded: pool.submit(call, loaded).result()):
      assert run(trusted) == 7
      with pytest.raises(UserError, match=r"^data\.task='mine_of_trust:task': not run"):
        run(stranger)
  with pytest.raises(UserError, match='not run, because the workdir is not trusted'):
    stranger.predict(['a'])


def test_a_warm_start_runs_nothing_of_the_other_run(folder, tmp_path):
  workdir = changed(folder, tmp_path, hostile.several(*hostile.PATHS.values()))
  own = experiment.read_config(folder / 'run')
  shapes = nn.unbox(jax.eval_shape(init_of(model(own, 257), 32), jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
  section = ConfigDict({'workdir': str(workdir), 'step': None, 'rules': ()})
  before = hostile.state_of(folder / 'victims')
  _, taken = warm_start.take(section, lambda paths: {}, abstract, tokenizers.bytes([]))
  assert taken.taken == len(jax.tree.leaves(shapes)) and taken.fresh == ()
  assert hostile.state_of(folder / 'victims') == before


def test_evaluation_needs_data_of_its_caller():
  line = in_process.mistake('evaluate', '--workdir=x', '--untrusted')
  assert '--data=FILE' in line


def test_an_unforeseen_error_of_an_untrusted_workdir_is_one_line(capsys):
  def fails(argv):
    raise KeyError('a\nb')

  assert cli._exit_code(fails, None, ['lm/generate.py', '--untrusted']) == cli.USAGE
  (line,) = capsys.readouterr().err.splitlines()
  assert 'KeyError' in line
  assert cli._exit_code(fails, None, ['lm/generate.py']) == cli.FAILED
  assert 'Traceback' in capsys.readouterr().err


def _listed_files():
  for name in trust.MODULES:
    found = importlib.import_module(name)
    yield found.__file__
    for each in pkgutil.iter_modules(getattr(found, '__path__', ())):
      yield importlib.import_module(f'{name}.{each.name}').__file__


def test_listed_modules_only_compute():
  """No function of a listed module can read or write files, start processes or import by name."""
  harmless = {'lm.text.files': {'lone_surrogate'}}
  wrong = ['os', 'pathlib', 'shutil', 'subprocess', 'tempfile', 'socket', 'urllib', 'importlib']
  wrong += ['pickle', 'etils', 'orbax', 'lm.workdir', 'lm.data.cache', 'lm.data.remote']
  wrong += ['lm.data.sources', 'lm.text.files', 'lm.evaluation', 'lm.bench', 'lm.report']
  names = {'open', 'eval', 'exec', '__import__', 'load', 'fromfile', 'save', 'memmap', 'tofile'}
  names |= {'resolve', 'build_section', 'partial_with', 'import_module'}
  seen = 0
  for file in _listed_files():
    seen += 1
    for node in ast.walk(ast.parse(pathlib.Path(file).read_text())):
      if isinstance(node, ast.Import):
        imported = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        known = harmless.get(str(node.module), set())
        imported = [f'{node.module}.{a.name}' for a in node.names if a.name not in known]
      else:
        imported = []
        if isinstance(node, ast.Call):
          called = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
          assert called not in names, (file, ast.unparse(node))
      for each in imported:
        assert not any(each == w or each.startswith(f'{w}.') for w in wrong), (file, each)
  assert seen > 40


def test_listed_names_exist():
  for name in trust.NAMES:
    assert callable(resolve.resolve(name, name))


def test_models_tasks_and_metrics_of_all_experiments_may_run():
  found = set()
  for file in [*ROOT.glob('lm/**/*.py'), *ROOT.glob('experiments/*.py')]:
    found |= set(
      re.findall(r"'((?:lm|jax|flax|optax)[\w.]*:[A-Za-z]\w*(?:\.\w+)*)['(]", file.read_text())
    )
  absent = ('lm.bench', 'lm.preflight', 'lm.report', 'lm.data.sources', 'lm.text.tokenizers')
  absent += (
    'lm.data.duplicates',
    'lm.evaluation',
    'lm.metrics.word_vectors',
    'lm.training.named_trees',
  )
  wanted = [path for path in found if not path.startswith(absent)]
  assert len(wanted) > 80
  assert [path for path in wanted if not trust.may_run(path)] == []


def test_texts_of_a_config_are_no_paths():
  tree = {'data': {'labels': ['DESC:manner'], 'task': 'x:y'}, 'log': {'sample_prompts': ['Q:a']}}
  found = trust.disarmed(json.loads(json.dumps(tree)))
  assert found == tree | {'data': {'labels': ['DESC:manner'], 'task': resolve.REFUSED + 'x:y'}}
  for text in ('a text: with a colon', 'gs://bucket/run', '^(embedding|x:y)$', 'C:\\data', ''):
    assert trust.may_run(text)
