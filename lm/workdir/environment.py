"""What a run ran on: versions, devices, host and commits, without names of users or hosts."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy', 'tokenizers')


def environment(experiment: str | Path | None = None) -> dict[str, Any]:
  """Describes the machine, the software and the code of this process.

  Args:
    experiment: the experiment's file, to record the state of the checkout it lies in.

  Returns:
    JSON values by name: `date`, `command`, `lm` and `experiment` (commit and whether files
    differ from it; None outside a checkout), `python`, `packages`, `devices`, `host`.
  """
  devices = jax.devices()
  stats = devices[0].memory_stats() or {}
  return {
    'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'command': command_line(sys.orig_argv),
    'lm': checkout(Path(__file__).parent),
    'experiment': None if experiment is None else checkout(Path(experiment).resolve().parent),
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in _PACKAGES},
    'devices': {
      'platform': devices[0].platform,
      'kind': devices[0].device_kind,
      'count': len(devices),
      'memory_bytes': stats.get('bytes_limit'),
      'processes': jax.process_count(),
    },
    'host': {
      'system': f'{platform.system()} {platform.machine()}',
      'cpu': _cpu_model(),
      'cores': _cores(),
      'memory_bytes': os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'),
    },
  }


def write(workdir: Path, experiment: str | Path):
  """Writes workdir/environment.json, from the primary process."""
  if jax.process_index() == 0:
    text = json.dumps(environment(experiment), indent=2, ensure_ascii=False)
    (workdir / 'environment.json').write_text(text + '\n', encoding='utf-8')


def checkout(directory: Path) -> dict[str, Any] | None:
  """Returns the git commit that holds `directory` and whether tracked files differ from it."""
  commit = _git(directory, 'rev-parse', 'HEAD')
  if not commit:
    return None
  return {'commit': commit, 'dirty': bool(_git(directory, 'status', '--porcelain', '-uno'))}


def command_line(arguments: Sequence[str]) -> str:
  """Returns a command to paste, with the home directory, which holds a user's name, as ~."""
  home = os.path.expanduser('~').rstrip('/')
  text = shlex.join([os.path.basename(arguments[0]), *arguments[1:]])
  return text.replace(home + '/', '~/') if home else text


def _git(directory: Path, *arguments: str) -> str | None:
  try:
    done = subprocess.run(
      ['git', '-C', str(directory), *arguments], capture_output=True, text=True, timeout=20
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _cpu_model() -> str:
  info = Path('/proc/cpuinfo')
  if info.exists():
    for text in info.read_text().splitlines():
      if text.startswith('model name'):
        return text.partition(':')[2].strip()
  return platform.processor()
