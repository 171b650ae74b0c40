"""Preparation: from a config's data section to a tokenizer, and to rows of tokens.

Three artefacts lie in the cache, each named by what shaped it: the tokenizer, the tokens of a
split, and the packing plan of those tokens.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lm import spec
from lm.data import cache, tokenise, workers
from lm.data.progress import Progress, quiet, show_progress
from lm.data.rows import Rows
from lm.errors import UserError

__all__ = ['rows', 'show_progress', 'tokenizer']

FORMAT = 1  # raised whenever the same inputs would be prepared differently


def tokenizer(data: Mapping[str, Any], progress: Progress | None = None) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a config, trained on the training split or found in the cache.

  Args:
    data: the config's data section.
    progress: told how many documents of how many have been read; None for silence.

  Raises:
    UserError: the section is wrong, or the corpus is.
  """
  train = spec.section(data['tokenizer'], 'data.tokenizer')
  source = tokenise.open_source(data['source'], data['train'])
  leaves = {key: _with_file(value) for key, value in data['tokenizer'].items()}
  shaped_by = _corpus(data, data['source'], data['train'], source)
  shaped_by |= {'tokenizer': leaves, 'tokenizer code': _code([leaves['fn']])}

  def build(place: pathlib.Path) -> dict[str, Any]:
    texts = _Texts(source, tuple(data['prepare']), progress or quiet)
    if not any(texts):
      raise UserError(f'data.source={data["source"]!r}: split {data["train"]!r} has no text')
    trained = spec.call(train, 'data.tokenizer', texts)
    (place / 'tokenizer.json').write_text(trained.to_str(), 'utf-8')
    return {'vocab_size': trained.get_vocab_size(), 'shaped_by': shaped_by}

  name = f'tokenizer-{cache.digest(shaped_by)}'
  place, _ = cache.artefact(cache.directory(data['cache']), name, build)
  return tokenizers.Tokenizer.from_file(str(place / 'tokenizer.json'))


def rows(
  data: Mapping[str, Any],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int,
  progress: Progress | None = None,
  source: str | None = None,
) -> Rows:
  """Returns a split as rows of tokens, prepared or found in the cache.

  Args:
    data: the config's data section.
    split: which split of the source.
    tokenizer: turns its text into tokens.
    seed: orders the documents before they are packed into rows.
    progress: told how many documents of how many are done; None for silence.
    source: import path of a source other than the config's, as for an evaluation set.

  Raises:
    UserError: the section is wrong, or the corpus is.
  """
  if data['context'] < 1:
    raise UserError(f'data.context={data["context"]}: a row has at least one token')
  pack = spec.resolve(data['pack'], 'data.pack')
  root = cache.directory(data['cache'])
  tokens_place, meta = _tokens(data, source or data['source'], split, tokenizer, progress or quiet)
  shaped_by = {
    'format': FORMAT,
    'tokens': tokens_place.name,
    'pack': data['pack'],
    'code': _code([data['pack']]),
    'context': data['context'],
    'seed': seed,
  }

  def build(place: pathlib.Path) -> dict[str, Any]:
    ends = np.load(tokens_place / 'ends.npy', mmap_mode='r')
    plan = spec.call(pack, 'data.pack', ends, data['context'], seed)
    for field, values in plan._asdict().items():
      cache.save_array(place / f'{field}.npy', values)
    return {'rows': len(plan.row_ends), 'shaped_by': shaped_by}

  plan_place, _ = cache.artefact(root, f'plan-{cache.digest(shaped_by)}', build)
  return Rows(tokens_place, plan_place, data['context'], meta)


def _tokens(
  data: Mapping[str, Any],
  source_path: str,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  progress: Progress,
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of the tokens of a split, and its meta.json."""
  source = tokenise.open_source(source_path, split)
  job = workers.Job(source_path, split, tuple(data['prepare']), tokenizer.to_str())
  shaped_by = _corpus(data, source_path, split, source)
  shaped_by['tokenizer'] = hashlib.sha256(job.tokenizer.encode()).hexdigest()

  def build(place: pathlib.Path) -> dict[str, Any]:
    counts, sizes, done = [], [], 0
    stream = contextlib.closing(workers.encode(job, source, data['workers']))
    with (place / 'tokens.bin').open('wb') as f, stream as chunks:
      for encoded in chunks:
        f.write(encoded.tokens.data)
        counts.append(encoded.counts)
        sizes.append(encoded.sizes)
        done = min(done + tokenise.CHUNK, len(source))
        progress(done, len(source), f'preparing {split!r}')
    if not sum(map(np.sum, sizes)):
      raise UserError(f'data.source={source_path!r}: split {split!r} has no text')
    ends, doc_bytes = np.cumsum(np.concatenate(counts)), np.concatenate(sizes)
    cache.save_array(place / 'ends.npy', ends)
    cache.save_array(place / 'doc_bytes.npy', doc_bytes)
    return {
      'documents': len(ends),
      'tokens': int(ends[-1]),
      'bytes': int(doc_bytes.sum()),
      'dtype': np.dtype(tokenise.token_type(tokenizer)).name,
      'shaped_by': shaped_by,
    }

  name = f'tokens-{cache.digest(shaped_by)}'
  return cache.artefact(cache.directory(data['cache']), name, build)


class _Texts:
  """The texts a tokenizer is trained on; every iteration starts afresh."""

  def __init__(self, source: Sequence[dict], steps: tuple[str, ...], progress: Progress):
    self._source = source
    self._steps = steps
    self._progress = progress

  def __iter__(self) -> Iterator[str]:
    total = len(self._source)
    for start, stop in tokenise.chunks(total):
      for example in tokenise.examples(self._source, self._steps, start, stop):
        yield tokenise.text_of(example)
      self._progress(stop, total, 'training the tokenizer')


def _corpus(
  data: Mapping[str, Any], source_path: str, split: str, source: Sequence[dict]
) -> dict[str, Any]:
  """Returns what shapes the text of a split."""
  steps = list(data['prepare'])
  for i, step in enumerate(steps):
    spec.resolve(step, f'data.prepare[{i}]')
  return {
    'format': FORMAT,
    'tokenizers': tokenizers.__version__,
    'source': source_path,
    'split': split,
    'fingerprint': getattr(source, 'fingerprint', None) or _content(source),
    'prepare': steps,
    'code': _code([source_path, *steps]),
  }


def _content(source: Sequence[dict]) -> str:
  """Returns a digest of all examples, for a source that does not say what it holds."""
  digest = hashlib.sha256()
  for i in range(len(source)):
    for key, value in sorted(source[i].items()):
      # The text of a long array is cut short.
      data = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
      digest.update(f'{i} {key} {len(data)} '.encode() + data)
  return digest.hexdigest()


def _code(paths: list[str]) -> dict[str, str]:
  """Returns digests of the modules outside this package that resolved import paths name.

  What lies in this package is covered by FORMAT.
  """
  modules = {path.partition(':')[0] for path in paths}
  return {m: _module_digest(m) for m in sorted(modules) if m.partition('.')[0] != 'lm'}


def _module_digest(module: str) -> str:
  file = pathlib.Path(getattr(sys.modules[module], '__file__', None) or '')
  return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ''


def _with_file(value: Any) -> Any:
  """Returns a leaf, with a digest of the content if it names a file, such as a tokenizer.json."""
  if isinstance(value, str):
    path = pathlib.Path(os.path.expandvars(value)).expanduser()
    if path.is_file():
      return [value, hashlib.sha256(path.read_bytes()).hexdigest()]
  return value
