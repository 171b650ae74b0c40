"""What shapes an artefact of the cache: names, digests of content and of code."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import module_code
from lm.data.examples import checked

FORMAT = 9  # raised whenever the same inputs would be prepared differently


def corpus(
  data: Mapping[str, Any], source_path: str, split: str, source: Sequence[dict]
) -> dict[str, Any]:
  """Returns what shapes the text of a split."""
  steps = list(data['prepare'])
  for i, step in enumerate(steps):
    resolve.resolve(step, f'data.prepare[{i}]')
  return {
    'format': FORMAT,
    'tokenizers': tokenizers.__version__,
    'libraries': _versions() if steps else {},
    'source': source_path,
    'split': split,
    'fingerprint': getattr(source, 'fingerprint', None) or _content(source),
    'prepare': steps,
    'code': module_code.of_paths([source_path]) | module_code.of_values(steps),
  }


def _versions() -> dict[str, str]:
  """Returns the versions of the libraries that lm.data.preprocess works with, where installed."""
  names = ('opencc-python-reimplemented', 'regex', 'rjieba', 'stopwordsiso')
  return {name: d.version for name in names for d in metadata.distributions(name=name)}


def _content(source: Sequence[dict]) -> str:
  """Returns a digest of all examples, for a source that does not say what it holds."""
  digest = hashlib.sha256()
  for i in range(len(source)):
    for key, value in sorted(checked(source[i], 'data.source').items()):
      # The text of a long array is cut short.
      data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
      digest.update(f'{i} {key} {len(data)} '.encode() + data)
  return digest.hexdigest()
