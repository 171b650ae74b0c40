"""XLA flags of the environment, checked against the compiler that is installed.

jaxlib aborts the process at a flag that it does not know. Flags come and go between versions, and
files of them (tpu_scripts/xla_flags) outlive the version that they were written for.
"""

import importlib.metadata
import importlib.util
import mmap
import pathlib
import re
import sys
from collections.abc import MutableMapping

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
