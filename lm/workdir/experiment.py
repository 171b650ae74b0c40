"""The config file of an experiment, and the record of a run in its workdir.

The record is config.json, source/ (the code), tokenizer.json, data.json and environment.json.
"""

import contextlib
import datetime
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import tokenizers
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config import resolve, validate
from lm.config.base import base, link_defaults
from lm.data import fingerprints
from lm.errors import UserError, did_you_mean, first_line
from lm.parallel import host
from lm.workdir import files, sources

# Keys that may differ between a workdir and the command that resumes it. None of them changes a
# training step; `steps` and `early_stopping` change the length of the run.
MAY_DIFFER = (
  'mesh',
  'log',
  'checkpoint',
  'eval',
  'decode',
  'early_stopping',
  'steps',
  'optim.decay_steps',
  'data.cache',
  'data.workers',
  'steps_per_call',
  'max_consecutive_nonfinite',
  'allow_zero',
  'callbacks',
  'report',
)
# Further keys that may differ if the run resumes with --new_data.
NEW_DATA = (
  'data.source',
  'data.mixture',
  'data.words',
  'data.mix',
  'data.train_split',
  'data.prepare',
)
# Keys that config.json of older versions lacks: it gets the values of `base()`, which keep the run.
_LATER = (
  'callbacks',
  'data.mix',
  'data.mixture',
  'data.tokenizer_alpha',
  'data.words',
  'decode.forbidden',
  'decode.logits_processors',
  'decode.sampler',
  'decode.start',
  'models',
  'view',
)
_LARGEST = 2**24  # bytes of a config.json
_LARGEST_TOKENIZER = 2**29
_FROZEN = 'frozen.json'
# Files of source/ about the git checkout of lm, with the arguments of git that print them.
_COMMIT = {'commit.txt': ('rev-parse', 'HEAD'), 'uncommitted.diff': ('diff', 'HEAD')}


def name_of(path_and_arg: str) -> str:
  """Returns the name of an experiment: 'finetune:sst2,runs/x' of 'DIR/finetune.py:sst2,runs/x'."""
  path, colon, arg = path_and_arg.partition(':')
  return pathlib.Path(path).name.removesuffix('.py') + colon + arg


def load(path_and_arg: str) -> ConfigDict:
  """Returns the config of 'FILE.py[:ARG]', or of a workdir's 'config.json'.

  The folder of the file is put on the import path, so that the config may name functions of the
  file itself ('my_file:my_function') and of its neighbors. A symbolic link to a file is followed,
  as Python does for scripts: the name and the folder are those of the target.

  Raises:
    UserError: the file is missing, does not load, or does not accept the argument.
  """
  path, _, arg = path_and_arg.partition(':')
  file = pathlib.Path(path)
  if not file.is_file():
    known = sorted(map(str, file.parent.glob('*.py')))
    hint = ' (it is a folder)' if file.is_dir() else did_you_mean(str(file), known)
    if known and (file.is_dir() or not hint):
      more = f' and {len(known) - 20} more' if len(known) > 20 else ''
      hint += f'; available: {", ".join(known[:20])}{more}'
    raise UserError(f'--config={path}: no such file{hint}')
  file = file.resolve() if file.is_symlink() else file
  sources.add_to_sys_path(sources.modules_folder(file))
  if file.suffix == '.json':
    return link_defaults(_read_config(file, f'--config={path}'))
  module = _import(file)
  if not hasattr(module, 'get_config'):
    raise UserError(f'--config={path}: the file defines no get_config(arg)')
  key = f'--config={path_and_arg}'
  with _one_line_error(key, file):
    config = resolve.call(module.get_config, key, *([arg] if arg else []))
  if not isinstance(config, ConfigDict):
    raise UserError(f'{key}: get_config returns {type(config).__name__}, not a ConfigDict')
  validate.check_structure(config, key)
  return config.lock()


def to_json(config: ConfigDict) -> str:
  """Returns the config as indented JSON with its references resolved."""
  return json.dumps(json.loads(config.to_json()), indent=2, ensure_ascii=False) + '\n'


def from_json(text: str) -> ConfigDict:
  """Returns the locked config of a text by `to_json`; leaves that are null accept any type.

  Raises:
    ValueError: the text is not a JSON object.
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
  row: Mapping[str, Any] | None = None,
) -> list[str]:
  """Writes config.json, source/, tokenizer.json and data.json, or compares existing ones.

  A resumed run compares the files with its own config, code, tokenizer and data. If the config or
  the code differs in an allowed way, the old version moves to earlier/N and the new one replaces
  it. The files thus describe the newest start.

  Args:
    config: the full config.
    path_and_arg: the file of the config, 'FILE.py[:ARG]'.
    tokenizer: the tokenizer of the data.
    workdir: the run's directory.
    content: a digest of the training data.
    new_data: whether the training data may differ from that of the workdir. data.json then also
      lists the previous data.
    row: the dtype and the shape of each field of a row, from which `lm.load` initializes.

  Returns:
    Warnings about code and training data that have changed since the last start.

  Raises:
    UserError: the config, the tokenizer or the training data differs from that of the workdir.
  """
  saved = workdir / 'config.json'
  code = _code(pathlib.Path(path_and_arg.partition(':')[0]))
  if not saved.exists():
    _write_source(workdir / 'source', code)
    tokenizer.save(str(workdir / 'tokenizer.json'))
    _write_data(workdir, config, content, row, [])
    # config.json is written last and atomically, so that its presence means a complete record.
    files.replace(saved, to_json(config).encode())
    return []
  check_same(read_config(workdir), config, workdir, new_data)
  if read_tokenizer(workdir).to_str() != tokenizer.to_str():
    raise UserError(
      f'--workdir={workdir} was made with another tokenizer than data.tokenizer gives now '
      '(the corpus or its version differs); take another workdir'
    )
  known = read_data(workdir)
  other_data = known['train'] != content
  if other_data and not new_data:
    raise UserError(
      f'--workdir={workdir} was made with other training data than {_sources(config)} gives now '
      '(its content has changed); take another workdir, or resume with the new data by --new_data'
    )
  kept = _read_source(workdir / 'source')
  changed = sorted(name for name in kept.keys() | code.keys() if kept.get(name) != code.get(name))
  if changed or saved.read_bytes() != to_json(config).encode():
    _archive(workdir, kept)
    _write_source(workdir / 'source', code)
    files.replace(saved, to_json(config).encode())
  warnings = []
  if other_data:
    _write_data(workdir, config, content, row, [*known.pop('before', []), known])
    warnings = [f'the training data has changed ({_sources(config)})']
  names = ['the checkout of lm' if name in _COMMIT else name for name in changed]
  return warnings + [
    f'{name} has changed since the last start of {workdir}; the run continues with the new code'
    for name in dict.fromkeys(names)
  ]


def _code(config_file: pathlib.Path) -> dict[str, bytes]:
  """Returns the content of source/: the code, files that the code names, and the git commit."""
  code = sources.neighbors(config_file)
  folder = sources.modules_folder(config_file)
  # The code may name files in its own folder, which functions of `data.prepare` read.
  named = {
    (pathlib.PurePath(name).parent / relative).as_posix(): file.read_bytes()
    for name in code
    for relative, file in fingerprints.files_beside(folder / name).items()
  }
  commit = {name: _git(pathlib.Path(__file__).parent, *args) for name, args in _COMMIT.items()}
  return named | code | {name: content for name, content in commit.items() if content}


def _archive(workdir: pathlib.Path, code: Mapping[str, bytes]) -> None:
  """Writes the config and the code of the last start to earlier/N."""
  count = sum(1 for _ in workdir.glob('earlier/*/config.json'))
  target = workdir / 'earlier' / str(count + 1)
  shutil.rmtree(target, ignore_errors=True)  # an incomplete copy by a killed process
  target.mkdir(parents=True)
  _write_source(target / 'source', code)
  shutil.copy(workdir / 'config.json', target)


def _read_source(folder: pathlib.Path) -> dict[str, bytes]:
  found = (p for p in folder.rglob('*') if p.is_file() and '__pycache__' not in p.parts)
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _write_source(folder: pathlib.Path, code: Mapping[str, bytes]) -> None:
  """Writes the files of source/ and removes all others."""
  for name in _read_source(folder).keys() - code.keys():
    (folder / name).unlink()
  # Python takes a .pyc file as current if the source has the same size and modification time, in
  # full seconds. A replaced source could have both.
  shutil.rmtree(folder / '__pycache__', ignore_errors=True)
  for name, content in code.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.replace(folder / name, content)


def _write_data(
  workdir: pathlib.Path,
  config: ConfigDict,
  content: str,
  row: Mapping[str, Any] | None,
  before: list[dict[str, Any]],
) -> None:
  """Writes data.json: the training data, the fields of a row, and the previous data in `before`."""
  sources = config.data.mixture.to_dict() or config.data.source
  data = {'train': content, 'source': sources, 'split': config.data.train_split}
  more = {'row': row, 'before': before}
  text = json.dumps(data | {key: value for key, value in more.items() if value}) + '\n'
  files.replace(workdir / 'data.json', text.encode())


def _sources(config: ConfigDict) -> str:
  """Returns the training data of a config, for messages."""
  names = ', '.join(sorted(config.data.mixture))
  return f'data.mixture, of {names},' if names else f'data.source={config.data.source!r}'


def run_digest(config: ConfigDict, tokenizer: tokenizers.Tokenizer, content: str) -> str:
  """Returns a digest that must be equal in all processes of a run.

  Args:
    config: the full config; `data.cache` and `data.workers` do not enter the digest.
    tokenizer: the tokenizer of the run.
    content: the digest of the training data.
  """
  leaves = flatten(json.loads(to_json(config))).items()
  own = ('data.cache', 'data.workers')
  common = sorted((key, repr(value)) for key, value in leaves if key not in own)
  text = json.dumps([common, tokenizer.to_str(), content])
  return hashlib.sha256(text.encode()).hexdigest()


def check_same(
  saved: ConfigDict, config: ConfigDict, workdir: pathlib.Path, new_data: bool = False
) -> None:
  """Raises UserError if a config cannot resume the run of a workdir.

  Args:
    saved: the config of the workdir.
    config: the config that resumes.
    workdir: the run's directory, for the message.
    new_data: whether the training data may differ.
  """
  old, new = (flatten(json.loads(to_json(c))) for c in (saved, config))
  for key in sorted(old.keys() | new.keys()):
    of_data = _is_of(key, NEW_DATA)
    if _is_of(key, MAY_DIFFER) or (new_data and of_data):
      continue
    if old.get(key) != new.get(key):
      raise UserError(
        f'--workdir={workdir} was made with {key}={old.get(key)!r}, not {new.get(key)!r}; '
        'take another workdir, or the old value'
        + ', or resume with new data by --new_data'
        * of_data
      )


def _is_of(key: str, sections: Sequence[str]) -> bool:
  """Returns whether a dotted key is one of `sections`, or inside one."""
  return any(key == section or key.startswith(section + '.') for section in sections)


def read_config(workdir: pathlib.Path, change: Callable[[str], str] = str) -> ConfigDict:
  """Returns the config of a workdir.

  To import the functions that the config names, call `lm.workdir.sources.import_source` first.

  Args:
    workdir: the run's directory.
    change: maps the text of config.json to that of the config.

  Raises:
    UserError: config.json is missing, damaged, or has another structure.
  """
  saved = workdir / 'config.json'
  if not saved.is_file():
    raise UserError(f'--workdir={workdir}: no run there (config.json is missing)')
  return _read_config(saved, f'--workdir={workdir}: config.json', change)


def _read_config(file: pathlib.Path, name: str, change: Callable[[str], str] = str) -> ConfigDict:
  """Returns the config of a JSON file; `name` is the file's name in errors."""
  if (size := file.stat().st_size) > _LARGEST:
    raise UserError(f'{name} has {size:,} bytes, and at most {_LARGEST:,} are read')
  try:
    config = from_json(change(file.read_text('utf-8')))
  except UserError as e:
    raise UserError(f'{name}: {e}') from e
  except Exception as e:  # ConfigDict raises many types, such as for the name of a key
    raise UserError(f'{name} is damaged: {first_line(e)}') from e
  defaults = base()
  with config.unlocked():
    for key in _LATER:
      section, _, last = key.rpartition('.')
      holder = config.get(section) if section else config
      if isinstance(holder, ConfigDict) and last not in holder:
        holder[last] = (defaults[section] if section else defaults)[last]
  validate.check_structure(config, name)
  return config


def read_data(workdir: pathlib.Path) -> dict[str, Any]:
  """Returns the content of data.json; its `train` is the digest of the training data.

  Raises:
    UserError: the file is missing or damaged.
  """
  try:
    known = json.loads((workdir / 'data.json').read_text())
    return {**known, 'train': known['train']}
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f'--workdir={workdir}: data.json is missing or damaged: {e}') from e


def write_frozen(workdir: pathlib.Path, digests: Mapping[str, str]) -> None:
  """Writes frozen.json at the first start: digests of checkpoints that later starts read again."""
  if digests and not (workdir / _FROZEN).is_file():
    files.replace(workdir / _FROZEN, (json.dumps(dict(digests), indent=2) + '\n').encode())


def read_frozen(workdir: pathlib.Path) -> dict[str, str]:
  """Returns the content of frozen.json; {} for a missing file.

  Raises:
    UserError: the file is damaged.
  """
  try:
    found = json.loads((workdir / _FROZEN).read_text('utf-8'))
  except FileNotFoundError:
    return {}
  except ValueError as e:
    raise UserError(f'--workdir={workdir}: {_FROZEN} is damaged: {e}') from e
  if not isinstance(found, dict):
    raise UserError(f'--workdir={workdir}: {_FROZEN} is damaged: it is no object')
  return found


def read_row(workdir: pathlib.Path) -> dict[str, list[Any]]:
  """Returns the dtype and the shape of each field of a row of the training data; {} if unknown.

  Raises:
    UserError: data.json is missing or damaged.
  """
  row = read_data(workdir).get('row', {})
  try:
    sizes = [(np.dtype(dtype).itemsize, *shape) for dtype, *shape in row.values()]
  except (AttributeError, TypeError, ValueError):
    sizes = [('',)]
  if not all(isinstance(size, int) and size > 0 for shape in sizes for size in shape):
    raise UserError(f'--workdir={workdir}: data.json is damaged: row={row!r:.60}')
  return row


def read_tokenizer(workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a workdir.

  Raises:
    UserError: tokenizer.json is missing, damaged or too large.
  """
  file = workdir / 'tokenizer.json'
  if file.is_file() and (size := file.stat().st_size) > _LARGEST_TOKENIZER:
    raise UserError(f'{file} has {size:,} bytes, and at most {_LARGEST_TOKENIZER:,} are read')
  try:
    return tokenizers.Tokenizer.from_file(str(file))
  except Exception as e:  # the library raises nothing more precise
    raise UserError(f'--workdir={workdir}: tokenizer.json is missing or damaged: {e}') from e


def _import(file: pathlib.Path) -> ModuleType:
  """Executes a Python file as the module of its name."""
  found = importlib.util.spec_from_file_location(file.stem, file)
  if found is None or found.loader is None:
    raise UserError(f'--config={file}: not a Python file')
  module = importlib.util.module_from_spec(found)
  known = sys.modules.get(file.stem)
  if known is not None and not sources.path_in(file.parent.resolve(), known):
    raise UserError(f'--config={file}: a module named {file.stem!r} is loaded; rename the file')
  # 'FILE:FUNCTION' in the config then means this module, and not a second copy of it.
  sys.modules[file.stem] = module
  with _one_line_error(f'--config={file}', file):
    found.loader.exec_module(module)
  return module


@contextlib.contextmanager
def _one_line_error(key: str, file: pathlib.Path) -> Iterator[None]:
  """Converts an error in a config file to a UserError with the count of the failing line."""
  try:
    yield
  except UserError:
    raise
  except Exception as e:
    frames = traceback.extract_tb(e.__traceback__)
    lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == file.resolve()]
    where = f' at line {lines[-1]}' if lines else ''
    message = ' '.join(f'{type(e).__name__}: {e}'.split())
    raise UserError(f'{key}: the file fails{where}: {message}') from e


def write_environment(workdir: pathlib.Path, experiment: pathlib.Path) -> None:
  """Writes workdir/environment.json; see `environment`."""
  text = json.dumps(environment(experiment), indent=2, ensure_ascii=False)
  (workdir / 'environment.json').write_text(text + '\n', encoding='utf-8')


def environment(experiment: pathlib.Path) -> dict[str, Any]:
  """Returns the machine, the software and the code of this process, without user or host names.

  Args:
    experiment: the experiment's file, whose checkout is described.

  Returns:
    JSON values by name: `date`, `command`, `lm` and `experiment` (see `checkout`), `python`,
    `packages`, `devices`, `host`.
  """
  import jax  # only here, because programs check their flags before this slow import

  devices = jax.devices()
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': command_line(sys.orig_argv),
    'lm': checkout(pathlib.Path(__file__).parent),
    'experiment': checkout(experiment.resolve().parent),
    'python': platform.python_version(),
    'packages': sources.versions(),
    'devices': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'count': len(devices),
      'memory_bytes': (devices[0].memory_stats() or {}).get('bytes_limit'),
      'processes': jax.process_count(),
    },
    'host': {
      'system': f'{platform.system()} {platform.machine()}',
      'cpu': host.cpu_name(),
      'cores': host.available_cores(),
      'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
    },
  }


def checkout(directory: pathlib.Path) -> dict[str, Any] | None:
  """Returns the git commit of a directory and whether tracked files differ; None outside git."""
  commit = _git(directory, 'rev-parse', 'HEAD').decode().strip()
  dirty = bool(_git(directory, 'status', '--porcelain', '-uno'))
  return {'commit': commit, 'dirty': dirty} if commit else None


def command_line(arguments: Sequence[str]) -> str:
  """Returns a shell command with ~ for the home directory, whose name identifies the user."""
  home = os.path.expanduser('~').rstrip('/')
  text = shlex.join([os.path.basename(arguments[0]), *arguments[1:]])
  return text.replace(home + '/', '~/') if home else text


def _git(directory: pathlib.Path, *arguments: str) -> bytes:
  """Returns the output of a git command; b'' if it fails."""
  try:
    command = ['git', '-C', str(directory), *arguments]
    return subprocess.run(command, capture_output=True, timeout=20, check=True).stdout
  except (OSError, subprocess.SubprocessError):
    return b''


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns the leaves of nested dicts by dotted key."""
  if not isinstance(tree, dict):
    return {prefix[:-1]: tree}
  return {k: v for name, sub in tree.items() for k, v in flatten(sub, f'{prefix}{name}.').items()}
