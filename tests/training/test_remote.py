"""Workdirs and caches in a bucket, which here is a local folder behind the name gs://."""

import json
import os
import sys

import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from test_trainer import FILE, SOURCE, metrics, run

from lm.data import cache, remote
from lm.errors import UserError
from lm.training import trainer
from lm.workdir import checkpoints, files, load, run_data


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """Returns the folder that gs:// stands for."""
  root = tmp_path / 'bucket'
  root.mkdir()

  class Bucket(DirFileSystem):
    protocol = 'gs'
    cachable = False

    def __init__(self, **kwargs):
      super().__init__(path=str(root), fs=LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
      return path.removeprefix('gs://').rstrip('/')

  monkeypatch.setitem(sys.modules['fsspec.registry']._registry, 'gs', Bucket)
  monkeypatch.setenv('LM_CACHE', str(tmp_path / 'here'))
  monkeypatch.setenv('HOME', str(tmp_path))
  # Orbax has a client of its own for buckets, which knows no fake ones.
  local = checkpoints.epath.Path(root)
  monkeypatch.setattr(
    checkpoints,
    'checkpoints_folder',
    lambda workdir: (
      (local / remote.remote_url(workdir).removeprefix('gs://')).joinpath('checkpoints')
      if remote.remote_url(workdir)
      else checkpoints.epath.Path(workdir.absolute()) / 'checkpoints'
    ),
  )
  return root


@pytest.fixture
def folder(tmp_path):
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  (tmp_path / FILE).write_text(SOURCE.format(corpus=str(corpus)))
  return tmp_path


def away(name='gs://b/run'):
  return files.workdir(name)


def forget():
  """Stands for another machine: nothing is known, nothing is there."""
  remote._known.clear()


def test_local_names_stay_as_they_are(tmp_path):
  assert files.workdir(str(tmp_path)) == tmp_path
  assert remote.remote_url(tmp_path) is None
  remote.push(tmp_path)
  remote.fetch(tmp_path)
  assert list(tmp_path.iterdir()) == []


def test_the_mark_of_a_mirror_sends_no_other_folder_to_a_bucket(bucket, tmp_path):
  (tmp_path / '.remote').write_text('gs://b/stolen')
  (tmp_path / 'metrics.jsonl').write_text('{}')
  assert remote.remote_url(tmp_path) is None
  remote.push(tmp_path)
  assert list(bucket.iterdir()) == []


def test_objects_whose_names_lead_out_of_the_mirror_are_refused(bucket, tmp_path, monkeypatch):
  here = away()

  class Listing:
    def find(self, path, detail):
      return {f'{path}/../../victim': {'size': 1}}

    def get_file(self, path, local):
      raise AssertionError(local)

  monkeypatch.setattr(remote, '_filesystem', lambda url: (Listing(), 'b/run'))
  with pytest.raises(UserError, match='victim leads out of its folder'):
    remote.fetch(here)


def test_a_copy_gives_and_takes_what_changes(bucket, tmp_path, monkeypatch):
  here = away()
  (here / 'samples').mkdir()
  (here / 'samples/1.txt').write_text('one')
  (here / 'lines').write_text('a\n')
  (here / 'checkpoints').mkdir()
  (here / 'checkpoints/x').write_text('never through the copy')
  remote.push(here)
  assert {p.name for p in (bucket / 'b/run').rglob('*') if p.is_file()} == {'1.txt', 'lines'}
  with (here / 'lines').open('a') as file:
    file.write('b\n')
  (here / 'samples/1.txt').unlink()
  remote.push(here)
  assert (bucket / 'b/run/lines').read_text() == 'a\nb\n'
  assert not (bucket / 'b/run/samples/1.txt').exists()
  forget()
  monkeypatch.setenv('LM_CACHE', str(tmp_path / 'there'))
  there = away()
  assert there != here and (there / 'lines').read_text() == 'a\nb\n'
  assert not (there / 'checkpoints').exists()


def test_a_bucket_that_cannot_be_reached_is_one_line(bucket, monkeypatch):
  here = away()
  (here / 'lines').write_text('a')

  def refuse(url):
    raise OSError('Forbidden:\n  no right to write')

  monkeypatch.setattr(remote, '_filesystem', refuse)
  with pytest.raises(
    UserError, match=r'--workdir=gs://b/run cannot be reached: OSError: Forbidden'
  ):
    remote.push(here)
  monkeypatch.setattr(remote, '_filesystem', lambda url: __import__('nothing_like_gcsfs'))
  with pytest.raises(UserError, match=r'--workdir=gs://b/run needs gcsfs'):
    remote.fetch(here)


def test_an_artefact_is_built_once_for_all_machines(bucket, tmp_path, monkeypatch):
  built = []

  def build(place):
    built.append(place)
    (place / 'data').write_bytes(b'whole')
    return {'answer': 42}

  for home in ('first', 'second', 'second'):
    monkeypatch.setenv('HOME', str(tmp_path / home))
    folder = cache.directory('gs://b/cache')
    place, meta = cache.get_or_build(folder, 'thing', build)
    assert (place / 'data').read_bytes() == b'whole' and meta['answer'] == 42
    forget()
  assert len(built) == 1
  assert os.listdir(bucket / 'b/cache') == ['thing']


@pytest.mark.slow
def test_a_run_in_a_bucket_goes_on_on_another_machine(bucket, folder, tmp_path, monkeypatch):
  whole = run(folder, 'whole')
  run(folder, away(), until_step=5)
  assert {'config.json', 'metrics.jsonl', 'report.html'} <= set(os.listdir(bucket / 'b/run'))
  assert not (away() / 'checkpoints').exists()
  forget()
  monkeypatch.setenv('LM_CACHE', str(tmp_path / 'elsewhere'))
  run(folder, away())
  assert metrics(away()) == metrics(whole)
  assert metrics(bucket / 'b/run') == metrics(whole)
  lines = (bucket / 'b/run/events.jsonl').read_text().splitlines()
  assert [json.loads(x)['event'] for x in lines].count('start') == 2
  assert load.load('gs://b/run').step == 8
  assert run_data.status(run_data.read_run(away())) == 'done'


def test_a_broken_network_costs_the_copy_and_not_the_run(bucket, folder, monkeypatch, capsys):
  here = away()
  monkeypatch.setattr(remote, '_filesystem', lambda *_: (_ for _ in ()).throw(OSError('no route')))
  trainer.push_workdir(here)
  assert f'the workdir is only in {here} for now' in capsys.readouterr().err
