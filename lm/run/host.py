"""What a process leaves on its host for the next one: compiled programs."""

import hashlib
import os
import pathlib
import platform

import jax

from lm.data import cache


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
