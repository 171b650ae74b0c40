"""What shapes an artefact of the cache: names, digests of content and of code."""

import hashlib
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import tokenizers

from lm import spec

FORMAT = 7  # raised whenever the same inputs would be prepared differently


def corpus(
  data: Mapping[str, Any], source_path: str, split: str, source: Sequence[dict]
) -> dict[str, Any]:
  """Returns what shapes the text of a split."""
  steps = list(data['prepare'])
  for i, step in enumerate(steps):
    spec.resolve(step, f'data.prepare[{i}]')
  return {
    'format': FORMAT,
    'tokenizers': tokenizers.__version__,
    'libraries': _versions() if steps else {},
    'source': source_path,
    'split': split,
    'fingerprint': getattr(source, 'fingerprint', None) or _content(source),
    'prepare': steps,
    'code': code([source_path, *steps]),
  }


def _versions() -> dict[str, str]:
  """Returns the versions of the libraries that lm.data.preprocess works with, where installed."""
  names = ('opencc-python-reimplemented', 'regex', 'rjieba', 'stopwordsiso')
  return {name: d.version for name in names for d in metadata.distributions(name=name)}


def _content(source: Sequence[dict]) -> str:
  """Returns a digest of all examples, for a source that does not say what it holds."""
  digest = hashlib.sha256()
  for i in range(len(source)):
    for key, value in sorted(source[i].items()):
      # The text of a long array is cut short.
      data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
      digest.update(f'{i} {key} {len(data)} '.encode() + data)
  return digest.hexdigest()


def code(paths: list[str]) -> dict[str, str]:
  """Returns digests of the modules outside this package that resolved import paths name.

  What lies in this package is covered by FORMAT.
  """
  for path in paths:  # those of a run that was opened need not be imported yet
    spec.resolve(path, 'data')
  modules = {path.partition(':')[0] for path in paths}
  return {m: _module_digest(m) for m in sorted(modules) if m.partition('.')[0] != 'lm'}


def _module_digest(module: str) -> str:
  file = pathlib.Path(getattr(sys.modules[module], '__file__', None) or '')
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ''


def with_file(value: Any) -> Any:
  """Returns a leaf, with a digest of the content if it names a file, such as a tokenizer.json."""
  if isinstance(value, str):
    path = pathlib.Path(os.path.expandvars(value)).expanduser()
    if path.is_file():
      return [value, hashlib.sha256(path.read_bytes()).hexdigest()]
  return value
