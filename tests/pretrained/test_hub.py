"""Checkpoints by name, from a server on this machine."""

import hashlib
import http.server
import json
import pathlib
import shutil
import sys
import threading

import in_process
import pytest

constants = pytest.importorskip('huggingface_hub.constants')

LLAMA = pathlib.Path(__file__).parent / 'checkpoints' / 'llama'
COMMIT = '0123456789abcdef0123456789abcdef01234567'


@pytest.fixture
def repository(tmp_path):
  """A folder with the files of tiny/llama on the server."""
  folder = pathlib.Path(shutil.copytree(LLAMA, tmp_path / 'repository'))
  (folder / 'onnx').mkdir()
  for name in ('pytorch_model.bin', 'README.md', 'onnx/model.onnx', 'onnx/model.safetensors'):
    (folder / name).write_bytes(b'not to be downloaded')
  return folder


@pytest.fixture
def served(repository, tmp_path, monkeypatch):
  """Serves the repository; returns the names of the files that were asked for."""
  asked = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, status, content, **headers):
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name.replace('_', '-'), value)
      self.send_header('Content-Length', str(len(content)))
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(content)

    def do_GET(self):
      path = self.path.partition('?')[0]
      if path in (f'/api/models/tiny/llama{at}' for at in ('', *revisions)):
        names = sorted(p.relative_to(repository).as_posix() for p in repository.rglob('*.*'))
        info = {'id': 'tiny/llama', 'sha': COMMIT, 'siblings': [{'rfilename': n} for n in names]}
        self.reply(200, json.dumps(info).encode())
      elif path.startswith(f'/tiny/llama/resolve/{COMMIT}/'):
        name = path.partition(f'{COMMIT}/')[2]
        asked.append(name)
        content = (repository / name).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self.reply(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
      else:
        missing = 'Revision' if path.startswith('/api/models/tiny/llama/') else 'Repo'
        self.reply(404, b'', X_Error_Code=f'{missing}NotFound')

    do_HEAD = do_GET

    def log_message(self, *_):
      pass

  revisions = ('/revision/main', '/revision/v1', f'/revision/{COMMIT}')
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.01,))
  thread.start()
  # The package reads HF_ENDPOINT and HF_HOME when it is imported.
  address = f'http://127.0.0.1:{server.server_port}'
  monkeypatch.setattr(constants, 'ENDPOINT', address)
  template = address + '/{repo_id}/resolve/{revision}/{filename}'
  monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
  yield asked
  server.shutdown()
  server.server_close()
  thread.join()


def convert(tmp_path, *arguments):
  return in_process.run('convert', 'from_hf', *arguments, f'--workdir={tmp_path / "run"}')


@pytest.mark.parametrize('flags', [(), ('--revision=v1',)])
def test_a_name_brings_the_files_that_are_read_and_no_others(flags, served, tmp_path):
  result = convert(tmp_path, 'tiny/llama', *flags)
  assert result.returncode == 0 and f'of commit {COMMIT}' in result.stdout, result.stderr
  names = {'config.json', 'generation_config.json', 'tokenizer.json', 'model.safetensors'}
  assert set(served) == names
  kept = tmp_path / 'run' / 'pretrained'
  for name in names - {'model.safetensors'}:
    assert (kept / name).read_bytes() == (LLAMA / name).read_bytes()


def refused(result, tmp_path):
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
  assert not (tmp_path / 'run').exists()
  return result.stderr


def test_a_repository_of_pickles_is_refused(repository, served, tmp_path):
  (repository / 'model.safetensors').unlink()
  line = refused(convert(tmp_path, 'tiny/llama'), tmp_path)
  assert 'tiny/llama has only pytorch_model.bin, a pickle, which can run any code' in line
  assert not served


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('tiny/lama',), 'tiny/lama is no folder, and cannot be downloaded: RepositoryNotFoundError'),
    (('tiny/llama', '--revision=v2'), '--revision=v2 is no folder, and cannot be downloaded: Rev'),
    ((str(LLAMA), '--revision=v1'), 'is no OWNER/NAME of a hub'),
  ],
)
def test_unknown_names_and_revisions_are_refused(arguments, message, served, tmp_path):
  assert message in refused(convert(tmp_path, *arguments), tmp_path)


def test_a_missing_package_is_named_with_its_command(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  line = refused(convert(tmp_path, 'tiny/llama'), tmp_path)
  assert 'tiny/llama: no such folder' in line and 'pip install -e ".[hub]"' in line


def test_a_folder_needs_neither_network_nor_package(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  assert convert(tmp_path, str(LLAMA)).returncode == 0
