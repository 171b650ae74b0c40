"""The process on its host: huge pages, XLA flags, and the cache of compiled programs.

jax is imported inside functions: programs load it only after their flags are right.
"""

import hashlib
import importlib.metadata
import importlib.util
import mmap
import os
import pathlib
import platform
import re
import sys
from collections.abc import MutableMapping

# XLA on a CPU asks malloc for its temporaries at every step, and the kernel hands them out page
# by page: with pages of 2 MB a step takes up to a fifth less (experiments/LOG.md).
LARGE_PAGES = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}


def enable_huge_pages() -> None:
  """Starts this program again with large pages, unless its environment speaks of glibc already.

  The process keeps its number, arguments and streams. To be called before anything is done or
  imported that takes time. Other systems than Linux stay as they are.
  """
  if sys.platform == 'linux' and not LARGE_PAGES.keys() & os.environ.keys():
    os.environ.update(LARGE_PAGES)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


# Variable -> the package whose compiler reads it.
COMPILERS = {'XLA_FLAGS': 'jaxlib', 'LIBTPU_INIT_ARGS': 'libtpu'}

_FLAG = re.compile(r"""--(?P<name>[^\s='"]+)(?:=(?:"[^"]*"|'[^']*'|\S*))?""")


def drop_unknown(environ: MutableMapping[str, str]) -> list[str]:
  """Takes flags that the installed compiler does not know out of the variables; names them.

  To be called before jax is imported, which reads the variables once: afterwards it does nothing.

  Returns:
    One line for each flag.
  """
  if 'jaxlib' in sys.modules:
    return []
  lines = []
  for variable, package in COMPILERS.items():
    value = environ.get(variable, '').strip()
    library = _library(package) if value.startswith('--') else None  # else it names a file
    if library is None:
      continue
    given = list(_FLAG.finditer(value))
    missing = unknown([match['name'] for match in given], library)
    if missing:
      environ[variable] = ' '.join(match[0] for match in given if match['name'] not in missing)
    version = importlib.metadata.version(package)
    lines += [f'{variable}: {package} {version} knows no --{name}; left out' for name in missing]
  return lines


def unknown(names: list[str], library: pathlib.Path) -> list[str]:
  """Returns the flags whose names are not among the strings of a shared library."""
  with library.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    # A name is a string of its own, which ends in 0. libtpu takes --noNAME as well.
    spellings = {name: {name, name.removeprefix('no')} for name in names}
    return [
      name
      for name, either in spellings.items()
      if all(content.find(spelling.encode() + b'\0') < 0 for spelling in either)
    ]


def _library(package: str) -> pathlib.Path | None:
  """Returns the largest shared library of a package, None where it is not installed."""
  found = importlib.util.find_spec(package)
  if found is None or found.origin is None:
    return None
  libraries = list(pathlib.Path(found.origin).parent.rglob('*.so'))
  return max(libraries, key=lambda path: path.stat().st_size, default=None)


def enable_compilation_cache(folder: pathlib.Path) -> None:
  """Sets the folder of JAX's persistent compilation cache, unless one is set already.

  Resumed runs, evaluation and sampling then start without compiling again.
  """
  import jax

  if jax.config.jax_compilation_cache_dir is not None:
    return
  place = folder / f'xla-{_host()}'
  jax.config.update('jax_compilation_cache_dir', str(place))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _host() -> str:
  # Programs for a CPU hold its instructions, and home directories are shared between machines.
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
  flags = next((x for x in lines if x.startswith(('flags', 'Features'))), lines[0])
  return hashlib.sha256(f'{os.uname().machine} {flags}'.encode()).hexdigest()[:12]
