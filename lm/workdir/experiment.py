"""An experiment: a config file, the names it can import, and the record of it in a workdir."""

import contextlib
import hashlib
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import resolve, validate
from lm.config.base import link_defaults
from lm.data import fingerprints
from lm.errors import UserError, did_you_mean, first_line
from lm.workdir import files, sources

# What may differ between a workdir and the command that resumes it: none of it changes what is
# learned from a step, but `steps` and `stop`, which say how far the run goes.
MAY_DIFFER = (
  'mesh',
  'log',
  'checkpoint',
  'eval',
  'decode',
  'stop',
  'steps',
  'optim.steps',
  'data.cache',
  'data.workers',
  'dispatch',
  'nonfinite_limit',
  'allow_zero',
)
# What may differ besides where a run is asked to go on with other training data.
NEW_DATA = ('data.source', 'data.train', 'data.prepare')


# What source/ says of the checkout of lm itself, and how git is asked for it.
_COMMIT = {'commit.txt': ('rev-parse', 'HEAD'), 'uncommitted.diff': ('diff', 'HEAD')}


def load(path_and_arg: str) -> ConfigDict:
  """Returns the config of 'FILE.py[:ARG]', or of a workdir's 'config.json'.

  The folder of the file is put on the import path, so that the config may name functions of the
  file itself ('my_file:my_function') and of its neighbours.

  Raises:
    UserError: the file is missing, does not load, or knows no such argument.
  """
  path, _, arg = path_and_arg.partition(':')
  file = pathlib.Path(path)
  if not file.is_file():
    known = sorted(map(str, file.parent.glob('*.py'))) if file.parent.is_dir() else []
    near = '' if file.is_dir() else did_you_mean(str(file), known)
    more = f' and {len(known) - 20} more' if len(known) > 20 else ''
    listed = f'; there are {", ".join(known[:20])}{more}' if known else ''
    a_folder = ' (it is a folder)' if file.is_dir() else ''
    raise UserError(f'--config={path}: no such file{a_folder}{near or listed}')
  sources.use_folder(sources.folder_of(file))
  if file.suffix == '.json':
    return link_defaults(_read_config(file, f'--config={path}'))
  module = _import(file)
  if not hasattr(module, 'get_config'):
    raise UserError(f'--config={path}: the file defines no get_config(arg)')
  key = f'--config={path_and_arg}'
  with _told(key, file):
    config = resolve.call(module.get_config, key, *([arg] if arg else []))
  if not isinstance(config, ConfigDict):
    raise UserError(f'{key}: get_config returns {type(config).__name__}, not a ConfigDict')
  validate.check_structure(config, key)
  return config.lock()


def to_json(config: ConfigDict) -> str:
  """Returns the config as indented JSON with its references resolved."""
  return json.dumps(json.loads(config.to_json()), indent=2, ensure_ascii=False) + '\n'


def from_json(text: str) -> ConfigDict:
  """Returns the config of `to_json`; what was empty takes a value of any type.

  Raises:
    ValueError: the text is no object of JSON.
  """

  def revive(value: Any) -> Any:
    if isinstance(value, dict):
      return ConfigDict({k: revive(v) for k, v in value.items()})
    if isinstance(value, list):
      return tuple(revive(v) for v in value)
    return placeholder(object) if value is None else value

  tree = json.loads(text)
  if not isinstance(tree, dict):
    raise ValueError(f'it holds {type(tree).__name__}, not an object')
  return revive(tree).lock()


def write_run_config(
  config: ConfigDict,
  path_and_arg: str,
  tokenizer: tokenizers.Tokenizer,
  workdir: pathlib.Path,
  content: str,
  new_data: bool = False,
) -> list[str]:
  """Writes config.json, source/, tokenizer.json and data.json; checks those of an older workdir.

  A resume replaces the config and the sources where they differ, so that the record is that of the
  newest start. What they were before stays in earlier/1, earlier/2 and so on.

  Args:
    config: the whole configuration.
    path_and_arg: the file it came from.
    tokenizer: that of the data.
    workdir: the record of the run.
    content: a digest of the training data.
    new_data: whether the training data may be other than that of the workdir, whose record is then
      of the new one; data.json keeps a list of those before.

  Returns:
    Warnings about code and training data that have changed since the last start.

  Raises:
    UserError: the workdir was made by another config, tokenizer or training data.
  """
  saved = workdir / 'config.json'
  code = _code(pathlib.Path(path_and_arg.partition(':')[0]))
  if not saved.exists():
    _write_source(workdir / 'source', code)
    tokenizer.save(str(workdir / 'tokenizer.json'))
    _write_data(workdir, config, content, [])
    # The config is written last and at once: a workdir with a config.json is complete.
    files.replace(saved, to_json(config).encode())
    return []
  check_same(open_workdir(workdir), config, workdir, new_data)
  if open_tokenizer(workdir).to_str() != tokenizer.to_str():
    raise UserError(
      f'--workdir={workdir} was made with another tokenizer than data.tokenizer gives now '
      '(another corpus or version of it); take another workdir'
    )
  known = _known_data(workdir)
  other_data = known['train'] != content
  if other_data and not new_data:
    raise UserError(
      f'--workdir={workdir} was made with other training data than data.source='
      f'{config.data.source!r} gives now (another version of it); take another workdir, or go on '
      'with the new data by --new_data'
    )
  kept = _read_source(workdir / 'source')
  changed = sorted(name for name in kept.keys() | code.keys() if kept.get(name) != code.get(name))
  if changed or saved.read_bytes() != to_json(config).encode():
    _set_aside(workdir)
    _write_source(workdir / 'source', code)
    files.replace(saved, to_json(config).encode())
  warnings = []
  if other_data:
    _write_data(workdir, config, content, [*known.pop('before', []), known])
    warnings = [f'the training data is other than before (data.source={config.data.source!r})']
  names = ['the checkout of lm' if name in _COMMIT else name for name in changed]
  return warnings + [
    f'{name} has changed since the last start of {workdir}; the run continues with the new code'
    for name in dict.fromkeys(names)
  ]


def _code(config_file: pathlib.Path) -> dict[str, bytes]:
  """Returns what source/ holds: the experiment, its neighbors, files that they name, the commit."""
  code = sources.neighbors(config_file)
  folder = sources.folder_of(config_file)
  beside = {}
  # Without what its steps read, the workdir could not prepare the same data again.
  for name in code:
    for relative, file in fingerprints.files_beside(folder / name).items():
      beside[(pathlib.PurePath(name).parent / relative).as_posix()] = file.read_bytes()
  return beside | code | _commit()


def _set_aside(workdir: pathlib.Path) -> None:
  """Keeps a copy of the config and the sources of the last start in earlier/N."""
  earlier = workdir / 'earlier'
  number = 1 + sum(1 for _ in earlier.glob('*/config.json'))
  shutil.rmtree(earlier / str(number), ignore_errors=True)  # of a process that was killed here
  (earlier / str(number)).mkdir(parents=True)
  if (workdir / 'source').is_dir():
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(workdir / 'source', earlier / str(number) / 'source', ignore=ignored)
  shutil.copy(workdir / 'config.json', earlier / str(number) / 'config.json')


def _read_source(folder: pathlib.Path) -> dict[str, bytes]:
  found = (p for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts)
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _write_source(folder: pathlib.Path, code: Mapping[str, bytes]) -> None:
  """Makes the sources of a workdir these files and no others."""
  for name in _read_source(folder).keys() - code.keys():
    (folder / name).unlink()
  # Python compares sizes and whole seconds only when it takes compiled files for current ones.
  shutil.rmtree(folder / '__pycache__', ignore_errors=True)
  for name, content in code.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.replace(folder / name, content)


def _write_data(
  workdir: pathlib.Path, config: ConfigDict, content: str, before: list[dict[str, Any]]
) -> None:
  """Writes what the training data is, and what it was before, at once."""
  data = {'train': content, 'source': config.data.source, 'split': config.data.train}
  text = json.dumps(data | ({'before': before} if before else {})) + '\n'
  files.replace(workdir / 'data.json', text.encode())


def digest(config: ConfigDict, tokenizer: tokenizers.Tokenizer, content: str) -> str:
  """Returns a digest of what all processes of a run must have in common.

  Args:
    config: the whole configuration; where it caches and how many workers it has are left out.
    tokenizer: that of the run.
    content: what the training data says of itself.
  """
  leaves = _flatten(json.loads(to_json(config)))
  own = ('data.cache', 'data.workers')
  common = sorted((key, repr(value)) for key, value in leaves.items() if key not in own)
  text = json.dumps([common, tokenizer.to_str(), content])
  return hashlib.sha256(text.encode()).hexdigest()


def check_same(
  saved: ConfigDict, config: ConfigDict, workdir: pathlib.Path, new_data: bool = False
) -> None:
  """Raises UserError when a config asks for another run than the workdir holds.

  Args:
    saved: the config of the workdir.
    config: that of the run.
    workdir: for the message.
    new_data: whether the run goes on with other training data.
  """
  old, new = _flatten(json.loads(to_json(saved))), _flatten(json.loads(to_json(config)))
  for key in sorted(old.keys() | new.keys()):
    free = any(key == k or key.startswith(k + '.') for k in MAY_DIFFER)
    free |= new_data and key in NEW_DATA
    if not free and old.get(key) != new.get(key):
      raise UserError(
        f'--workdir={workdir} was made with {key}={old.get(key)!r}, not {new.get(key)!r}; '
        'take another workdir, or the old value'
        + ', or go on with new data by --new_data'
        * (key in NEW_DATA)
      )


def open_workdir(workdir: pathlib.Path) -> ConfigDict:
  """Returns the config of a workdir; lm.workdir.sources makes the code that it names importable.

  Raises:
    UserError: there is no run, or its config is damaged or has another form.
  """
  saved = workdir / 'config.json'
  if not saved.is_file():
    raise UserError(f'--workdir={workdir}: no run there (config.json is missing)')
  return _read_config(saved, f'--workdir={workdir}: config.json')


def _read_config(file: pathlib.Path, name: str) -> ConfigDict:
  """Returns the config of a file, which errors call `name`."""
  try:
    config = from_json(file.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f'{name} is damaged: {first_line(e)}') from e
  validate.check_structure(config, name)
  return config


def data_content(workdir: pathlib.Path) -> str:
  """Returns the digest of the training data that a workdir keeps."""
  return _known_data(workdir)['train']


def _known_data(workdir: pathlib.Path) -> dict[str, Any]:
  try:
    known = json.loads((workdir / 'data.json').read_text())
    return {**known, 'train': known['train']}
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f'--workdir={workdir}: data.json is missing or damaged: {e}') from e


def open_tokenizer(workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """Returns the tokenizer a workdir keeps."""
  file = workdir / 'tokenizer.json'
  try:
    return tokenizers.Tokenizer.from_file(str(file))
  except Exception as e:  # the library raises nothing more precise
    raise UserError(f'--workdir={workdir}: tokenizer.json is missing or damaged: {e}') from e


def _import(file: pathlib.Path):
  found = importlib.util.spec_from_file_location(file.stem, file)
  if found is None or found.loader is None:
    raise UserError(f'--config={file}: not a Python file')
  module = importlib.util.module_from_spec(found)
  known = sys.modules.get(file.stem)
  if known is not None and not sources.is_in(known, file.parent.resolve()):
    raise UserError(f'--config={file}: a module named {file.stem!r} is loaded; rename the file')
  # Under its own name, so that 'file:function' in the config is this very module.
  sys.modules[file.stem] = module
  with _told(f'--config={file}', file):
    found.loader.exec_module(module)
  return module


@contextlib.contextmanager
def _told(key: str, file: pathlib.Path) -> Iterator[None]:
  """Tells what goes wrong in a config's file in one line, with the line of the file."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == file.resolve()]
    where = f' at line {lines[-1]}' if lines else ''
    raise UserError(
      f'{key}: the file fails{where}: {" ".join(f"{type(e).__name__}: {e}".split())}'
    ) from e


def _commit() -> dict[str, bytes]:
  """Returns the commit and the uncommitted change of the code that runs, when git knows them."""
  here = pathlib.Path(__file__).parent
  found = {}
  for name, arguments in _COMMIT.items():
    try:
      command = ['git', '-C', str(here), *arguments]
      found[name] = subprocess.run(command, capture_output=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
      continue
  return {name: content for name, content in found.items() if content}


def _flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name, sub in tree.items() for k, v in _flatten(sub, f'{prefix}{name}.').items()}
