import getpass
import json
import os
import pathlib
import platform
import socket
import subprocess
import sys

import jax
import pytest
import tokenizers
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import base as configs
from lm.data import pipeline
from lm.errors import UserError
from lm.workdir import experiment, sources

SET = configs.evaluation('').to_dict()

SOURCE = """
from lm.config.base import base, select_variant
from {neighbor} import FACTOR

def get_config(arg=''):
  config = base()
  config.batch_size = 3 * FACTOR
  return select_variant(config, arg, twice=lambda c: c)

def source(split):
  return [split]
"""


@pytest.fixture
def folder(tmp_path):
  """A folder with an experiment and the neighbor that it imports."""
  (tmp_path / 'my_neighbor.py').write_text('FACTOR = 4\n')
  (tmp_path / 'my_experiment.py').write_text(SOURCE.format(neighbor='my_neighbor'))
  yield tmp_path
  sources.add_to_sys_path(tmp_path.parent)  # forgets the modules of this one


def _tokenizer(*words):
  table = {word: i for i, word in enumerate(words)}
  return tokenizers.Tokenizer(tokenizers.models.WordLevel(table, unk_token=words[0]))


def _leaves(config):
  return experiment.flatten(json.loads(config.to_json()))


def test_every_leaf_survives_the_round_trip():
  config = configs.base()
  with config.unlocked():
    config.extra = {'text': 'ü', 'list': (1, (2.5, 'x')), 'nested': {'empty': placeholder(int)}}
  text = experiment.to_json(config)
  back = experiment.from_json(text)
  assert _leaves(back) == _leaves(config)
  assert experiment.to_json(back) == text and 'ü' in text
  # Tuples stay tuples, references have values, and empty leaves accept values.
  assert back.extra.list == (1, (2.5, 'x'))
  assert back.optim.decay_steps == back.steps == 1000
  assert back.model.vocab_size is None
  back.model.vocab_size = 7
  with pytest.raises(AttributeError):
    back.unknown = 1


def test_an_experiment_is_loaded_with_its_neighbors(folder):
  config = experiment.load(f'{folder}/my_experiment.py:twice')
  assert config.batch_size == 12 and config.is_locked
  # The config can name functions of its own file.
  from lm.config import resolve

  assert resolve.resolve('my_experiment:source', 'data.source')('train') == ['train']


def test_the_modules_of_another_experiment_replace_earlier_ones(folder, tmp_path_factory):
  experiment.load(f'{folder}/my_experiment.py')
  other = tmp_path_factory.mktemp('other')
  (other / 'my_neighbor.py').write_text('FACTOR = 5\n')
  (other / 'my_experiment.py').write_text(SOURCE.format(neighbor='my_neighbor'))
  assert experiment.load(f'{other}/my_experiment.py').batch_size == 15
  sources.add_to_sys_path(folder)
  assert 'my_neighbor' not in sys.modules and str(other) not in sys.path


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('missing.py', None, r'missing\.py: no such file \(did you mean .*my_experiment\.py'),
    ('empty.py', '', r'the file defines no get_config\(arg\)'),
    ('syntax.py', 'def f(:', r'the file fails: SyntaxError'),
    ('absent.py', 'import no_such_module_here', r"ModuleNotFoundError: No module named 'no_such_m"),
    (
      'wrong.py',
      'from lm.config.base import base\n\nbase().modle.depth = 3\n',
      r'at line 3: .*modle',
    ),
    ('none.py', 'def get_config(arg=""):\n  pass', r'get_config returns NoneType, not'),
    ('fixed.py:x', 'def get_config():\n  pass', r'fixed\.py:x: fixed:get_config: too many'),
    (
      'my_experiment.py:twise',
      None,
      r"no argument 'twise' \(did you mean 'twice'\?\); available: :",
    ),
    ('json.py', 'def get_config(arg=""):\n  pass', r"a module named 'json' is loaded; rename"),
    ('text.txt', 'def get_config(arg=""):\n  pass', r'text\.txt: not a Python file'),
  ],
)
def test_a_config_file_with_a_fault_is_an_error_of_one_line(name, text, message, folder):
  if text is not None:
    (folder / name.partition(':')[0]).write_text(text)
  with pytest.raises(UserError, match=message) as error:
    experiment.load(f'{folder}/{name}')
  assert '\n' not in str(error.value)


def _changed(**leaves):
  config = configs.base()
  for path, value in leaves.items():
    *sections, leaf = path.split('__')
    node = config
    for section in sections:
      node = node[section]
    node[leaf] = value
  return config


@pytest.mark.parametrize(
  'leaves',
  [
    {'steps': 7},
    {'mesh__data': 4, 'mesh__tensor': 2},
    {'log__every': 1, 'log__sample_prompts': ('x', 'y')},
    {'checkpoint__keep_last': 9, 'eval__every': 5},
    {'data__workers': 3, 'data__cache': 'elsewhere', 'max_consecutive_nonfinite': 2},
  ],
)
def test_keys_that_do_not_change_the_step_may_differ(leaves, tmp_path):
  saved = experiment.from_json(experiment.to_json(configs.base()))
  experiment.check_same(saved, _changed(**leaves), tmp_path)


@pytest.mark.parametrize(
  ('leaves', 'message'),
  [
    ({'seed': 1}, 'made with seed=0, not 1'),
    ({'batch_size': 32}, 'made with batch_size=16, not 32'),
    ({'model__depth': 5}, 'made with model.depth=4, not 5'),
    ({'model__logit_soft_cap': 5.0}, 'made with model.logit_soft_cap=None, not 5.0'),
    ({'data__tokenizer__vocab_size': 64}, 'made with data.tokenizer.vocab_size=2048, not 64'),
    ({'optim__learning_rate': 1.0}, 'made with optim.learning_rate=0.001, not 1.0'),
    ({'data__seq_len': 64}, 'made with data.seq_len=128, not 64'),
  ],
)
def test_keys_that_change_the_step_are_refused_by_name(leaves, message, tmp_path):
  with pytest.raises(UserError) as error:
    experiment.check_same(configs.base(), _changed(**leaves), tmp_path)
  assert message in str(error.value) and f'--workdir={tmp_path}' in str(error.value)


# The key 'logit' does not belong to the section 'log', which may differ.
@pytest.mark.parametrize('extra', [{'objective': {'gamma': 2.0}}, {'logit': 3}])
def test_a_leaf_of_only_one_config_is_a_difference(extra, tmp_path):
  more = ConfigDict(configs.base().to_dict())
  more.update(extra)
  for pair in ((configs.base(), more), (more, configs.base())):
    with pytest.raises(UserError, match=r'made with (objective\.gamma|logit)='):
      experiment.check_same(*pair, tmp_path)


def test_a_workdir_keeps_the_config_the_sources_and_the_tokenizer(folder):
  path, workdir = f'{folder}/my_experiment.py', folder / 'run'
  config, tokenizer = experiment.load(path), _tokenizer('a', 'b')
  assert experiment.write_run_config(config, path, tokenizer, workdir, 'abc') == []
  assert _leaves(experiment.read_config(workdir)) == _leaves(config)
  assert experiment.read_tokenizer(workdir).to_str() == tokenizer.to_str()
  for name in ('my_experiment.py', 'my_neighbor.py'):
    assert (workdir / 'source' / name).read_text() == (folder / name).read_text()
  # config.json of the workdir is a config file too.
  assert experiment.load(str(workdir / 'config.json')).batch_size == 12


def test_a_resume_warns_of_changed_sources(folder):
  path, workdir = f'{folder}/my_experiment.py', folder / 'run'
  experiment.write_run_config(experiment.load(path), path, _tokenizer('a', 'b'), workdir, 'abc')
  assert (
    experiment.write_run_config(experiment.load(path), path, _tokenizer('a', 'b'), workdir, 'abc')
    == []
  )
  (folder / 'my_neighbor.py').write_text('FACTOR = 2 * 2\n')
  (warning,) = experiment.write_run_config(
    experiment.load(path), path, _tokenizer('a', 'b'), workdir, 'abc'
  )
  assert 'my_neighbor.py has changed' in warning
  # source/ describes the newest start; earlier/ keeps the previous version.
  assert (workdir / 'source/my_neighbor.py').read_text() == 'FACTOR = 2 * 2\n'
  assert (workdir / 'earlier/1/source/my_neighbor.py').read_text() == 'FACTOR = 4\n'


def test_a_workdir_of_another_run_is_refused(folder):
  path, workdir = f'{folder}/my_experiment.py', folder / 'run'
  config = experiment.load(path)
  experiment.write_run_config(config, path, _tokenizer('a', 'b'), workdir, 'abc')
  with pytest.raises(UserError, match='was made with another tokenizer'):
    experiment.write_run_config(config, path, _tokenizer('a', 'c'), workdir, 'abc')
  with pytest.raises(UserError, match='was made with other training data'):
    experiment.write_run_config(config, path, _tokenizer('a', 'b'), workdir, 'abd')
  config.seed = 5
  with pytest.raises(UserError, match='was made with seed=0, not 5'):
    experiment.write_run_config(config, path, _tokenizer('a', 'b'), workdir, 'abc')


def test_a_folder_without_a_run_is_an_error_of_one_line(tmp_path):
  with pytest.raises(UserError, match=r'no run there \(config\.json is missing\)'):
    experiment.read_config(tmp_path)


def test_a_resume_archives_the_config_of_the_last_start(folder):
  path, workdir = f'{folder}/my_experiment.py', folder / 'run'
  config, tokenizer = experiment.load(path), _tokenizer('a', 'b')
  experiment.write_run_config(config, path, tokenizer, workdir, 'abc')
  config.steps, config.eval.sets.validation.split = 2000, 'train'
  assert experiment.write_run_config(config, path, tokenizer, workdir, 'abc') == []
  now = experiment.read_config(workdir)
  assert (now.steps, now.eval.sets.validation.split) == (2000, 'train')
  before = json.loads((workdir / 'earlier/1/config.json').read_text())
  assert (before['steps'], before['eval']['sets']['validation']['split']) == (1000, 'validation')
  # A start without a change adds no earlier version.
  experiment.write_run_config(config, path, tokenizer, workdir, 'abc')
  assert [p.name for p in (workdir / 'earlier').iterdir()] == ['1']
  config.steps = 3000
  experiment.write_run_config(config, path, tokenizer, workdir, 'abc')
  assert json.loads((workdir / 'earlier/2/config.json').read_text())['steps'] == 2000


def test_a_module_that_is_no_longer_imported_is_removed_from_source(folder):
  path, workdir = f'{folder}/my_experiment.py', folder / 'run'
  experiment.write_run_config(experiment.load(path), path, _tokenizer('a', 'b'), workdir, 'abc')
  text = SOURCE.format(neighbor='my_neighbor').replace('from my_neighbor import FACTOR', '')
  (folder / 'my_experiment.py').write_text(text.replace('FACTOR', '4'))
  sources.add_to_sys_path(folder.parent)
  changed = experiment.write_run_config(
    experiment.load(path), path, _tokenizer('a', 'b'), workdir, 'abc'
  )
  assert len(changed) == 2
  assert [p.name for p in (workdir / 'source').glob('*.py')] == ['my_experiment.py']


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: [c], 'config.json is damaged|not a section'),
    (lambda c: c | {'data': 3}, 'data is 3, not a section with keys'),
    (
      lambda c: {k: v for k, v in c.items() if k != 'early_stopping'},
      "has no key 'early_stopping'",
    ),
    (lambda c: c | {'steps': 'many'}, "steps='many' is not of type int"),
    (lambda c: c | {'model': {'fn': 'x:y'}}, "no key 'model.vocab_size'"),
    (lambda c: c | {'eval': c['eval'] | {'sets': {'a': {}}}}, "no key 'eval.sets.a"),
    (
      lambda c: c | {'eval': c['eval'] | {'sets': {'a': SET | {'component': {}}}}},
      'eval.sets.a.component',
    ),
  ],
)
def test_a_config_of_another_structure_is_an_error_of_one_line(change, message, tmp_path):
  saved = json.loads(experiment.to_json(configs.base()))
  (tmp_path / 'config.json').write_text(json.dumps(change(saved)))
  with pytest.raises(UserError, match=message) as error:
    experiment.read_config(tmp_path)
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_workdir_of_an_older_version_is_read(tmp_path):
  saved = json.loads(experiment.to_json(configs.base()))
  for name in ('callbacks', 'models', 'view'):
    del saved[name]
  del saved['data']['mixture'], saved['decode']['forbidden'], saved['decode']['sampler']
  del saved['data']['tokenizer_alpha']
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  assert _leaves(experiment.read_config(tmp_path)) == _leaves(configs.base())
  del saved['eval']['sets']['validation']['component']
  (tmp_path / 'config.json').write_text(json.dumps(saved))
  read = experiment.read_config(tmp_path)
  of_set = read.eval.sets.validation.get('component', '')
  assert pipeline.component(read.data, of_set)['source'] == read.data.source
  with pytest.raises(UserError, match="'other'"):
    pipeline.component(read.data, 'other')


@pytest.mark.parametrize('content', [b'', b'\xff\xfe', b'{"a": ', b'[' * 100_000, b'null', b'7'])
def test_a_damaged_config_is_an_error_of_one_line(content, tmp_path):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(UserError, match=r'config\.json') as error:
    experiment.read_config(tmp_path)
  assert '\n' not in str(error.value)


def test_the_environment_is_json_without_the_names_of_user_and_host(monkeypatch, tmp_path):
  monkeypatch.setattr(sys, 'orig_argv', ['/opt/python', '-m', 'lm.train', f'--workdir={tmp_path}'])
  found = experiment.environment(pathlib.Path(__file__))
  text = json.dumps(found)
  assert found['python'] == platform.python_version()
  assert found['packages']['jax'] == jax.__version__
  assert found['devices']['count'] == jax.device_count()
  assert found['devices']['kind'] == jax.devices()[0].device_kind
  assert found['host']['memory_bytes'] > 2**28
  assert found['command'].startswith('python -m lm.train')
  assert socket.gethostname() not in text
  if getpass.getuser() not in ('root', 'runner') and getpass.getuser() not in str(tmp_path):
    assert getpass.getuser() not in text


def test_a_checkout_is_dirty_once_a_tracked_file_changes(tmp_path):
  git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=a@b']
  assert experiment.checkout(tmp_path) is None
  subprocess.run([*git, 'init', '-q'], check=True)
  (tmp_path / 'a.py').write_text('1')
  subprocess.run([*git, 'add', 'a.py'], check=True)
  subprocess.run([*git, 'commit', '-qm', 'a'], check=True)
  head = subprocess.run([*git, 'rev-parse', 'HEAD'], check=True, capture_output=True, text=True)
  assert experiment.checkout(tmp_path) == {'commit': head.stdout.strip(), 'dirty': False}
  (tmp_path / 'a.py').write_text('2')
  assert experiment.checkout(tmp_path) == {'commit': head.stdout.strip(), 'dirty': True}


def test_the_command_can_be_pasted_and_hides_the_home_directory():
  home = os.path.expanduser('~')
  line = experiment.command_line(
    [f'{home}/venv/bin/python', '-m', 'lm.train', f'--workdir={home}/a b']
  )
  assert line == "python -m lm.train '--workdir=~/a b'"


@pytest.mark.parametrize(
  ('path_and_arg', 'name'),
  [
    ('experiments/sst2.py', 'sst2'),
    ('sst2.py:smoke', 'sst2:smoke'),
    ('experiments/finetune.py:sst2,runs/minilm', 'finetune:sst2,runs/minilm'),
  ],
)
def test_the_name_of_an_experiment_has_its_argument(path_and_arg, name):
  assert experiment.name_of(path_and_arg) == name


@pytest.mark.parametrize('row', [3, {'x': 'int32'}, {'x': ['int33', 2]}, {'x': ['int8', -1]}])
def test_a_damaged_row_is_one_line(row, tmp_path):
  (tmp_path / 'data.json').write_text(json.dumps({'train': 'abc', 'row': {'x': ['uint8', 4, 2]}}))
  assert experiment.read_row(tmp_path) == {'x': ['uint8', 4, 2]}
  (tmp_path / 'data.json').write_text(json.dumps({'train': 'abc', 'row': row}))
  with pytest.raises(UserError, match=r'data\.json is damaged: row='):
    experiment.read_row(tmp_path)
