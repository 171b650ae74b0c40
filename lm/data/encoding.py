"""Examples of a source, prepared and encoded, in this process or in several.

Examples are processed in chunks of fixed size. A preparation step sees the examples of one chunk,
so its results do not depend on the number of processes.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache, features
from lm.data.batches import map_ahead
from lm.errors import UserError
from lm.task import Example, as_example, string_field
from lm.text.files import lone_surrogate
from lm.text.tokenizers import end_id, text_reader, vocabulary_size

# From a text and the offsets (start, end) of its tokens to their marks, as lm.text.words
Marks = Callable[[str, Sequence[tuple[int, int]]], np.ndarray]
CHUNK = 256  # examples that a preparation step sees together
_PIECE = 2**20  # characters; longer documents are tokenized in pieces
_LONGEST = 2**31 - 1  # bytes of a document, as batches hold int32
_BATCH = 2**22  # characters per call of the tokenizer, which bounds its memory
_PATIENCE = 10.0  # seconds of remaining work that justify starting processes
_AHEAD = 2  # chunks in progress per worker


def open_source(path: str, split: str) -> Sequence[dict[str, Any]]:
  """Returns a split of the source that the import path `path` names.

  Raises:
    UserError: the source does not exist, or returns no sequence.
  """
  opened = resolve.call(resolve.resolve(path, 'data.source'), 'data.source', split)
  by_position = hasattr(opened, '__len__') and hasattr(opened, '__getitem__')
  if not by_position or isinstance(opened, str | bytes | Mapping):
    raise UserError(
      f'data.source={path!r} returns a {type(opened).__name__} for split {split!r}; examples are '
      'read by position and more than once: return a list, or an object with __len__ and '
      '__getitem__'
    )
  return opened


def chunks(count: int) -> list[tuple[int, int]]:
  """Returns the bounds (start, stop) of each chunk of `count` examples."""
  return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def prepared_examples(
  source: Sequence[dict[str, Any]], steps: Iterable[str], start: int, stop: int
) -> Iterator[Example]:
  """Yields the results of the preparation steps for the examples from `start` to `stop`.

  Raises:
    UserError: an example is no dict, or a step does not return examples.
  """
  prepared: Iterator[Example] = (as_example(source[i], 'data.source') for i in range(start, stop))
  for i, path in enumerate(steps):
    key = f'data.prepare[{i}]'
    output = resolve.call(resolve.resolve(path, key), key, prepared)
    if not isinstance(output, Iterable) or isinstance(output, str | Mapping):
      raise UserError(
        f'{key}={path!r} returns a {type(output).__name__}; a step takes an iterator of examples '
        'and returns another, as with yield'
      )
    prepared = map(functools.partial(as_example, key=key), output)
  return prepared


def text_of(example: Example, field: str = 'text', key: str = 'data.source') -> str:
  """Returns the text of an example under a field; `key` names its origin in errors.

  Raises:
    UserError: the field has no text, or the text has a lone surrogate.
  """
  text = string_field(example, field, key)
  if defect := lone_surrogate(text):
    raise UserError(f'{key}: {field!r} of an example {defect}')
  return text


# Tokens.


def token_type(tokenizer: tokenizers.Tokenizer) -> type[np.unsignedinteger]:
  """Returns the smallest type that holds every token."""
  return np.uint16 if vocabulary_size(tokenizer) < 2**16 else np.uint32


def text_encoder(
  tokenizer: tokenizers.Tokenizer, words: Marks | None = None
) -> Callable[[Iterable[str]], features.Arrays]:
  """Returns the function from texts to the arrays of their tokens.

  Text that looks like a special token is encoded as text. The arrays are:
    tokens: the documents one after another, each followed by END.
    counts: int64, the number of tokens of each document, including END.
    sizes: int64, the UTF-8 bytes of each document, before the tokenizer normalizes it.
    words: uint8, with `words` alone: above 0 where words begin, and at END.

  Args:
    tokenizer: encodes the texts.
    words: returns the marks of the tokens of a text.
  """
  reader, end, dtype = text_reader(tokenizer), end_id(tokenizer), token_type(tokenizer)
  encode_batch = reader.encode_batch_fast if words is None else reader.encode_batch

  def encode_texts(texts: Iterable[str]) -> features.Arrays:
    tokens, counts, sizes = [np.empty(0, dtype)], [0], [0]
    marks = [np.empty(0, np.uint8)]
    for batch in _batches(texts):
      encodings = encode_batch([piece for piece, _ in batch], add_special_tokens=False)
      for (piece, is_last), encoding in zip(batch, encodings, strict=True):
        tokens.append(np.array(encoding.ids + [end] * is_last, dtype))
        if words is not None:
          marks += [words(piece, encoding.offsets), np.ones(int(is_last), np.uint8)]
        counts[-1] += len(tokens[-1])
        sizes[-1] += len(piece.encode())
        if is_last:
          counts.append(0)
          sizes.append(0)
    arrays = {'counts': np.array(counts[:-1], np.int64), 'sizes': np.array(sizes[:-1], np.int64)}
    if words is not None:
      arrays['words'] = np.concatenate(marks)
    return {'tokens': np.concatenate(tokens)} | arrays

  return encode_texts


def _batches(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
  """Yields lists of pieces of about `_BATCH` characters."""
  batch: list[tuple[str, bool]] = []
  size = 0
  for piece in itertools.chain.from_iterable(map(pieces, texts)):
    batch.append(piece)
    size += len(piece[0])
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def pieces(text: str) -> Iterator[tuple[str, bool]]:
  """Yields pieces of a text, cut at line ends or else before spaces, and whether each is the last.

  A piece has at most `_PIECE` characters, as a tokenizer needs memory of a hundred times its text.
  """
  start = 0
  while len(text) - start > _PIECE:
    stop = start + _PIECE
    cuts = (text.rfind('\n', start, stop) + 1, text.rfind(' ', start, stop), stop)
    cut = next(cut for cut in cuts if cut > start)
    yield text[start:cut], False
    start = cut
  yield text[start:], True


def write_tokens(
  place: pathlib.Path, chunks: Iterable[features.Arrays], dtype: Any
) -> dict[str, Any]:
  """Writes the tokens of documents into a directory; returns entries of meta.json.

  Raises:
    UserError: the bytes of a document exceed int32.
  """
  counts, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  marks = []
  content = hashlib.sha256()
  with (place / 'tokens.bin').open('wb') as f:
    for chunk in chunks:
      if (longest := chunk['sizes'].max(initial=0)) > _LONGEST:
        nth = sum(map(len, counts)) + chunk['sizes'].argmax() + 1
        raise UserError(
          f'data.source: document {nth:,} has {longest:,} bytes; the maximum is {_LONGEST:,}: '
          'divide it into several'
        )
      f.write(chunk['tokens'].data)
      content.update(chunk['tokens'].data)
      counts.append(chunk['counts'])
      sizes.append(chunk['sizes'])
      marks += [chunk['words']] if 'words' in chunk else []
  ends, doc_bytes = np.cumsum(np.concatenate(counts)), np.concatenate(sizes)
  cache.save_array(place / 'ends.npy', ends)
  cache.save_array(place / 'doc_bytes.npy', doc_bytes)
  if marks:
    cache.save_array(place / 'words.npy', np.concatenate(marks))
  return {
    'documents': len(ends),
    'tokens': int(ends[-1]) if len(ends) else 0,
    'bytes': int(doc_bytes.sum()),
    'dtype': np.dtype(dtype).name,
    'content': content.hexdigest(),
  }


# Processes.


class Job(NamedTuple):
  """A split of a source to be prepared and encoded."""

  source: str
  split: str
  steps: tuple[str, ...]
  tokenizer: str  # as JSON
  task: dict[str, Any] | None = None  # keys of a data section that lm.data.features reads
  words: str | None = None  # data.words


def encode(
  job: Job, source: Sequence[dict], workers: int
) -> Generator[features.Arrays, None, None]:
  """Yields the arrays of each chunk, from `text_encoder` or, with a task, from `features.encoder`.

  This process encodes the first chunks alone. If it would need more than `_PATIENCE` seconds for
  the others, `workers` processes take over.

  Args:
    job: the split, and how to encode it.
    source: the source of the job, opened in this process.
    workers: number of processes; 1 for this process alone, 0 for one per core.

  Raises:
    UserError: the source or a step reports a mistake of the user.
    RuntimeError: a worker failed or died.
  """
  work = _chunk_encoder(job, source)
  workers = workers or os.cpu_count() or 1
  bounds = chunks(len(source))
  start = time.monotonic()
  for done, chunk in enumerate(bounds, 1):
    yield work(*chunk)
    left = len(bounds) - done
    if workers > 1 and left > 1 and (time.monotonic() - start) / done * left > _PATIENCE:
      yield from _encode_in_processes(min(workers, left), job, bounds[done:])
      return


def _chunk_encoder(job: Job, source: Sequence[dict]) -> Callable[[int, int], features.Arrays]:
  """Returns the function that tokenizes a chunk in this process."""
  tokenizer = tokenizers.Tokenizer.from_str(job.tokenizer)
  chunk = functools.partial(prepared_examples, source, job.steps)
  if job.task is None:
    words = None if job.words is None else resolve.resolve(job.words, 'data.words')
    encode_texts = text_encoder(tokenizer, words)
    return lambda start, stop: encode_texts(map(text_of, chunk(start, stop)))
  # Steps may remove or multiply examples; their indices then differ from those of the source.
  place = None if job.steps else getattr(source, 'place', None)

  def where(index: int) -> str:
    example = f'example {index} of split {job.split!r}'
    return example if place is None else f'{example} ({place(index)})'

  encode_examples = features.encoder(job.task, tokenizer, where)
  return lambda start, stop: encode_examples(chunk(start, stop), start)


def _encode_in_processes(
  workers: int, job: Job, bounds: Sequence[tuple[int, int]]
) -> Generator[features.Arrays, None, None]:
  spawn = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(workers, spawn, _start_worker, (job,))
  try:
    with _without_main():
      results = map_ahead(pool, _encode_chunk, bounds, _AHEAD * workers)
    yield from results
  except concurrent.futures.BrokenExecutor as e:
    raise RuntimeError(
      'a preparation worker died, often because memory is exhausted; lower data.workers'
    ) from e
  finally:
    pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
  """Prevents the processes that start within the block from importing the main module.

  A script without `if __name__ == '__main__'` would run again in each of them.
  """
  main, sys.modules['__main__'] = sys.modules['__main__'], types.ModuleType('__main__')
  try:
    yield
  finally:
    sys.modules['__main__'] = main


_worker: Callable[[], Callable[[int, int], features.Arrays]]  # of a worker process


def _start_worker(job: Job) -> None:
  global _worker
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the processes are the parallelism
  parent = multiprocessing.parent_process()
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
  # The worker opens the source at its first chunk. Errors of a chunk reach the parent process;
  # errors raised here do not.
  _worker = functools.cache(lambda: _chunk_encoder(job, open_source(job.source, job.split)))


def _end_with(parent: Any) -> None:
  parent.join()
  os._exit(1)


def _encode_chunk(chunk: tuple[int, int]) -> features.Arrays:
  try:
    return _worker()(*chunk)
  except UserError:
    raise
  except Exception:
    raise RuntimeError(f'a preparation worker failed:\n{traceback.format_exc()}') from None
