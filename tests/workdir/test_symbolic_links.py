"""An experiment behind symbolic links trains, resumes and is read back."""

import shutil
import sys

import pytest

from lm.config import resolve
from lm.parallel import host
from lm.training import trainer
from lm.workdir import experiment, load, sources

EXPERIMENT = """
from ml_collections import ConfigDict
from lm.config.base import base
import neighbor_of_links
import package_of_links

def get_config(arg=''):
  config = base()
  config.steps = 2
  config.batch_size = 2
  config.data.source = 'linked_experiment:source'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.data.seq_len = 8
  config.model.update({'context': 8, 'd_model': 8, 'depth': 1, 'heads': 1, 'kv_heads': 1,
                       'head_dim': 8, 'd_mlp': 8})
  config.optim.decay_steps = 2
  config.optim.warmup_steps = 1
  config.eval.sets = ConfigDict({})
  config.log.every = 1
  config.log.sample_tokens = 1
  return config

def source(split):
  return neighbor_of_links.EXAMPLES + package_of_links.EXAMPLES
"""
NEIGHBORS = ['linked_experiment.py', 'neighbor_of_links.py', 'package_of_links/__init__.py']


@pytest.fixture
def folder(tmp_path):
  """A folder with an experiment, a module and a package that it imports."""
  (tmp_path / 'real/package_of_links').mkdir(parents=True)
  (tmp_path / 'real/linked_experiment.py').write_text(EXPERIMENT)
  (tmp_path / 'real/neighbor_of_links.py').write_text("EXAMPLES = [{'text': 'one two three'}]\n")
  (tmp_path / 'real/package_of_links/__init__.py').write_text("EXAMPLES = [{'text': 'four'}]\n")
  path = list(sys.path)
  yield tmp_path / 'real'
  sources.add_to_sys_path(tmp_path)  # forgets the modules of the experiment
  for name in [name for name in sys.modules if name.endswith(('_of_links', 'linked_experiment'))]:
    del sys.modules[name]
  sys.path[:] = path


def link(folder, kind):
  """Returns the path of the experiment after a link to its folder, its file or its package."""
  linked = folder.parent / kind
  if kind == 'folder':
    linked.symlink_to(folder, target_is_directory=True)
    return linked / 'linked_experiment.py'
  linked.mkdir()
  if kind == 'file':
    (linked / 'alias.py').symlink_to(folder / 'linked_experiment.py')
    return linked / 'alias.py'
  for file in folder.glob('*.py'):
    shutil.copy(file, linked)
  (linked / 'package_of_links').symlink_to(folder / 'package_of_links')
  return linked / 'linked_experiment.py'


@pytest.mark.parametrize('kind', ['folder', 'file', 'package'])
def test_an_experiment_behind_links_keeps_its_neighbors(folder, kind):
  path = link(folder, kind)
  experiment.load(str(path))
  expected = {name: (folder / name).read_bytes() for name in NEIGHBORS}
  assert sources.neighbors(path) == expected


def test_an_experiment_behind_links_trains_resumes_and_is_read_back(folder, monkeypatch):
  monkeypatch.setenv('LM_CACHE', str(folder.parent / 'cache'))
  workdir = folder.parent / 'run'
  for until, kind in ((1, 'folder'), (2, 'file')):
    path = str(link(folder, kind))
    trainer.train(experiment.load(path), path, workdir, host.Signals(), until)
  assert not (workdir / 'earlier').exists()  # both starts ran the same code
  copies = sorted(workdir.rglob('source/**/*.py'))
  assert [p.relative_to(workdir / 'source').as_posix() for p in copies] == NEIGHBORS
  sources.add_to_sys_path(folder.parent)  # forgets the modules
  shutil.rmtree(folder)
  (folder.parent / 'alias').symlink_to(workdir)
  loaded = load.load(folder.parent / 'alias')
  with loaded.modules():
    examples = resolve.resolve(loaded.config.data.source, 'data.source')('train')
  assert loaded.step == 2 and [e['text'] for e in examples] == ['one two three', 'four']
