"""A workdir names its training data; a run goes on with other data where it is asked to."""

import json

import pytest

from lm.config import base as configs
from lm.data import fingerprints
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir import experiment, sources

PATH = 'experiments/quickstart.py'


def config_of(source='lm.data.sources:python_docs', **changes):
  config = configs.base()
  config.data.source = source
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture
def workdir(tmp_path):
  """The record of a run on the content 'abc'."""
  assert experiment.write_run_config(config_of(), PATH, tokenizers.bytes([]), tmp_path, 'abc') == []
  return tmp_path


def record(workdir, config, content, **asked):
  return experiment.write_run_config(config, PATH, tokenizers.bytes([]), workdir, content, **asked)


def files(workdir):
  return {p.name: p.read_bytes() for p in workdir.iterdir() if p.is_file()}


def test_a_workdir_names_its_data(workdir):
  data = json.loads((workdir / 'data.json').read_text())
  expected = {'train': 'abc', 'source': 'lm.data.sources:python_docs', 'split': 'train'}
  assert data == expected


@pytest.mark.parametrize(
  ('config', 'content', 'message'),
  [
    (config_of(), 'abd', 'other training data than .* or resume with the new data by --new_data'),
    (
      config_of('my:source'),
      'abd',
      "data.source=.*python_docs', not 'my:source'; .* by --new_data",
    ),
    (config_of(**{'data.prepare': ('my:step',)}), 'abd', r'data\.prepare=.* by --new_data'),
  ],
)
def test_other_data_is_refused_and_how_to_ask_is_said(workdir, config, content, message):
  before = files(workdir)
  with pytest.raises(UserError, match=message):
    record(workdir, config, content)
  assert files(workdir) == before
  (warning,) = record(workdir, config, content, new_data=True)
  assert 'the training data has changed' in warning


def test_the_record_is_of_the_new_data_and_keeps_the_old_ones(workdir):
  new = config_of('my:source')
  record(workdir, new, 'abd', new_data=True)
  assert experiment.read_config(workdir).data.source == 'my:source'
  assert experiment.read_data(workdir)['train'] == 'abd'
  # From now on these are the data of the run, and those before are others.
  assert record(workdir, new, 'abd') == []
  with pytest.raises(UserError, match='--new_data'):
    record(workdir, config_of(), 'abc')
  record(workdir, config_of('my:third'), 'abe', new_data=True)
  before = json.loads((workdir / 'data.json').read_text())['before']
  assert [data['train'] for data in before] == ['abc', 'abd']
  assert [data['source'] for data in before] == ['lm.data.sources:python_docs', 'my:source']


@pytest.mark.parametrize('changes', [{'seed': 1}, {'data.seq_len': 64}, {'model.depth': 2}])
def test_nothing_else_may_differ(workdir, changes):
  with pytest.raises(UserError, match=f'made with {next(iter(changes))}=') as e:
    record(workdir, config_of(**changes), 'abd', new_data=True)
  assert '--new_data' not in str(e.value)


def test_the_same_data_is_no_new_data(workdir):
  before = files(workdir)
  assert record(workdir, config_of(), 'abc', new_data=True) == []
  assert files(workdir) == before


def test_a_workdir_of_before_names_its_data_too(workdir):
  (workdir / 'data.json').write_text('{"train": "abc"}')
  assert record(workdir, config_of(), 'abc') == []
  record(workdir, config_of(), 'abd', new_data=True)
  assert json.loads((workdir / 'data.json').read_text())['before'] == [{'train': 'abc'}]


def test_a_workdir_keeps_the_files_that_its_sources_name(tmp_path, monkeypatch):
  folder = tmp_path / 'experiments'
  (folder / 'lists').mkdir(parents=True)
  (folder / 'keeps_files.py').write_text(
    "import pathlib\nSTOP = pathlib.Path(__file__).with_name('stop.txt')\n"
    "MORE = ('lists/a.txt', 'absent.txt', '../outside.txt', 'lists')\n"
    "def get_config(arg=''):\n  from lm.config.base import base\n  return base()\n"
    'def step(examples): return examples\n'
  )
  for name in ('stop.txt', 'lists/a.txt', '../outside.txt', 'other.txt'):
    (folder / name).write_text(name)
  path = f'{folder}/keeps_files.py'
  config = experiment.load(path)
  before = fingerprints.of_values('keeps_files:step')
  experiment.write_run_config(config, path, tokenizers.bytes([]), tmp_path / 'run', 'abc')
  kept = {str(p.relative_to(tmp_path / 'run/source')) for p in (tmp_path / 'run').rglob('*.txt')}
  assert kept - {'commit.txt'} == {'stop.txt', 'lists/a.txt'}
  # What is prepared is found again from the workdir.
  with sources.workdir_modules(tmp_path / 'run/source'):
    found = fingerprints.of_values('keeps_files:step')
  del before['file ../outside.txt']
  assert found == before
  sources.add_to_sys_path(tmp_path)
