"""What a process asks of its host: to keep compiled programs, and memory once it was given."""

import ctypes
import hashlib
import os
import pathlib
import platform

import jax

from lm.data import cache

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_memory() -> None:
  """Keeps freed memory in the process, where arrays live in it (on CPUs, with glibc).

  A step's temporary arrays are one large block that is freed after it; given back to the
  system, its pages are zeroed and mapped anew in every step, up to a fifth of the step's time.
  """
  if jax.default_backend() != 'cpu' or platform.libc_ver()[0] != 'glibc':
    return
  libc = ctypes.CDLL(None)
  settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
  for name, value in (*settings, (_M_TOP_PAD, 1 << 26)):
    libc.mallopt(name, value)


def keep_compiled(cache_directory: str) -> None:
  """Makes jax keep compiled programs in the cache directory, unless it was told where already.

  Resuming, evaluating and sampling then start without compiling again.

  Args:
    cache_directory: as `data.cache` of a config.
  """
  if jax.config.jax_compilation_cache_dir is not None:
    return
  place = cache.directory(cache_directory) / f'xla-{_host()}'
  jax.config.update('jax_compilation_cache_dir', str(place))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


def _host() -> str:
  # Programs for a CPU hold its instructions, and home directories are shared between machines.
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else [platform.processor()]
  flags = next((x for x in lines if x.startswith(('flags', 'Features'))), lines[0])
  return hashlib.sha256(f'{os.uname().machine} {flags}'.encode()).hexdigest()[:12]
