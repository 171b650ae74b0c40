"""The process: huge pages, XLA flags, the compilation cache, and signals that stop it.

jax is imported inside functions: programs load it only after their flags are checked.
"""

import hashlib
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib
import platform
import re
import signal
import sys
from collections.abc import MutableMapping
from typing import Protocol

from lm.errors import Preempted

# XLA allocates its CPU temporaries by malloc in every step. With huge pages of 2 MB there are fewer
# page faults, and a step takes up to a fifth less time (experiments/LOG.md).
LARGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def enable_huge_pages() -> None:
  """Restarts this program with huge pages on Linux, unless GLIBC_TUNABLES is set.

  The process keeps its id, arguments and streams. Call it before slow imports.
  """
  if sys.platform == 'linux' and not LARGE_PAGES.keys() & os.environ.keys():
    os.environ.update(LARGE_PAGES)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


# Variable -> the package with the compiler that reads it.
COMPILERS = {'XLA_FLAGS': 'jaxlib', 'LIBTPU_INIT_ARGS': 'libtpu'}

_FLAG = re.compile(r"""--(?P<name>[^\s='"]+)(?:=(?:"[^"]*"|'[^']*'|\S*))?""")


def drop_unknown(environ: MutableMapping[str, str]) -> list[str]:
  """Removes from XLA_FLAGS and LIBTPU_INIT_ARGS the flags that the installed compilers do not know.

  Call it before jax is imported, since the import reads the variables. Later calls do nothing.

  Returns:
    A warning for each removed flag.
  """
  if 'jaxlib' in sys.modules:
    return []
  lines = []
  for variable, package in COMPILERS.items():
    value = environ.get(variable, '').strip()
    library = _library(package) if value.startswith('--') else None  # else a file of flags
    if library is None:
      continue
    given = list(_FLAG.finditer(value))
    missing = unknown([match['name'] for match in given], library)
    if missing:
      environ[variable] = ' '.join(match[0] for match in given if match['name'] not in missing)
    version = importlib.metadata.version(package)
    lines += [
      f'{variable}: {package} {version} does not know --{name}; ignored' for name in missing
    ]
  return lines


def unknown(names: list[str], library: pathlib.Path) -> list[str]:
  """Returns the names of flags that do not occur as strings in a shared library."""
  with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    # Names are null-terminated. libtpu also accepts --noNAME.
    spellings = {name: {name, name.removeprefix('no')} for name in names}
    return [
      name
      for name, either in spellings.items()
      if all(content.find(spelling.encode() + b'\0') < 0 for spelling in either)
    ]


def _library(package: str) -> pathlib.Path | None:
  """Returns the largest shared library of a package; None if it is not installed."""
  found = importlib.util.find_spec(package)
  if found is None or found.origin is None:
    return None
  libraries = list(pathlib.Path(found.origin).parent.rglob('*.so'))
  return max(libraries, key=lambda path: path.stat().st_size, default=None)


def enable_compilation_cache(folder: pathlib.Path) -> None:
  """Sets the directory of JAX's persistent compilation cache, unless one is set already.

  Resumed runs, evaluations and generation then start without compilation.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
    return
  jax.config.update('jax_compilation_cache_dir', str(folder / f'xla-{_host()}'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _host() -> str:
  # Compiled programs depend on the instruction set; home directories may be shared by machines.
  flags = _cpu_info('flags', 'Features') or platform.processor()
  return hashlib.sha256(f'{os.uname().machine} {flags}'.encode()).hexdigest()[:12]


def cpu_name() -> str:
  """Returns the name of the processor, as the system reports it."""
  return _cpu_info('model name').partition(':')[2].strip() or platform.processor()


def _cpu_info(*fields: str) -> str:
  """Returns the first line of /proc/cpuinfo with one of these fields; '' if there is none."""
  file = pathlib.Path('/proc/cpuinfo')
  lines = file.read_text().splitlines() if file.is_file() else []
  return next((line for line in lines if line.startswith(fields)), '')


def available_memory(root: pathlib.Path = pathlib.Path('/')) -> int | None:
  """Returns the bytes that this process may still allocate, None if the system does not report it.

  The limit is the free memory of the machine, or that of the process's control groups, if less.
  """
  try:
    lines = (root / 'proc/meminfo').read_text().splitlines()
    free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith('MemAvailable:'))
  except (OSError, StopIteration, ValueError, IndexError):
    return None
  return min([free, *_available_in_groups(root)])


def _available_in_groups(root: pathlib.Path) -> list[int]:
  """Returns the bytes that each limited control group (cgroup) of this process has left."""
  try:
    group = (root / 'proc/self/cgroup').read_text().splitlines()[-1].rpartition(':')[2].strip('/')
  except (OSError, IndexError):
    group = ''
  folder, found = root / 'sys/fs/cgroup' / group, []
  parents = [each for each in folder.parents if each.is_relative_to(root / 'sys/fs')]
  for each in (folder, *parents, root / 'sys/fs/cgroup/memory'):
    for names in ('max', 'current'), ('limit_in_bytes', 'usage_in_bytes'):  # cgroup v2, v1
      try:
        most, taken = (int((each / f'memory.{name}').read_text()) for name in names)
        stat = (each / 'memory.stat').read_text().splitlines()
        # The kernel reclaims these pages of files on demand.
        cached = sum(int(x.split()[1]) for x in stat if x.startswith('inactive_file '))
      except (OSError, ValueError, IndexError):  # no such file, or no limit ('max')
        continue
      found.append(max(0, most - taken + cached))
  return found


def available_cores() -> int:
  """Returns the number of CPU cores that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


class Stop(Protocol):
  """A source of stop requests. The trainer reads `signal` after every dispatch of steps."""

  @property
  def signal(self) -> str | None:
    """The signal that asks for the stop, such as 'SIGTERM'; None without a request."""

  def begin(self) -> None:
    """Marks the first step; after it the trainer saves the state before it stops."""


class Never:
  """No stop requests, as in a notebook or a test."""

  signal = None

  def begin(self) -> None:
    pass


class Signals:
  """Stop requests by SIGTERM or SIGINT to this process.

  Before `begin` there is no state to save, and a signal raises Preempted immediately.
  """

  def __init__(self) -> None:
    self.signal: str | None = None
    self._begun = False
    for each in (signal.SIGTERM, signal.SIGINT):
      signal.signal(each, self._handle)

  def _handle(self, signum: int, frame) -> None:
    del frame
    if self.signal is not None:  # a second signal does not wait for the state to be saved
      raise KeyboardInterrupt
    self.signal = signal.Signals(signum).name
    if not self._begun:
      raise Preempted(f'{self.signal}: stopped before the first step, with no state to save')

  def begin(self) -> None:
    """Marks the first step: from now on a signal lets the trainer save the state and then stop."""
    self._begun = True


class PreemptionService:
  """Stop requests by SIGTERM to any process of the run, from JAX's preemption service.

  All processes read `signal` after each dispatch of steps, and get the same value.
  """

  def __init__(self) -> None:
    self._dispatches = 0

  def begin(self) -> None:
    pass

  @property
  def signal(self) -> str | None:
    from jax.experimental import multihost_utils

    # The service stops all processes at the largest count that any has reported, plus 1. Counts of
    # steps may skip that number, since a dispatch runs several; counts of dispatches cannot.
    self._dispatches += 1
    reached = multihost_utils.reached_preemption_sync_point(self._dispatches)
    return 'SIGTERM' if reached else None
