"""Preparation shared among processes.

A worker is `python -m lm.data.workers`: it takes a job and then chunks on stdin, and answers with
tokens on stdout. Unlike `multiprocessing` it never imports the main module again (so neither jax,
nor a script without a guard), and it ends by itself when its parent is gone and stdin closes.
"""

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import json
import os
import queue
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import tokenizers

from lm.data import features, tokenise
from lm.errors import UserError

_PATIENCE = 10.0  # seconds of work left that are worth starting processes for
_AHEAD = 2  # chunks under way for each worker


Arrays = dict[str, np.ndarray]


class Job(NamedTuple):
  """What is to be tokenised: a split of a source, through preparation steps, by a tokenizer."""

  source: str
  split: str
  steps: tuple[str, ...]
  tokenizer: str  # as JSON
  task: dict[str, Any] | None = None  # what lm.data.features reads of a data section


def encode(job: Job, source: Sequence[dict], workers: int) -> Generator[Arrays, None, None]:
  """Yields the tokens of each chunk of a source in order.

  They are the fields of lm.data.tokenise.Encoded, or, for a task, the arrays of lm.data.features.

  Chunks are done in this process until it is clear that much is left; then by `workers` processes.

  Args:
    job: what to do.
    source: the source of the job, opened in this process.
    workers: how many processes; 1 for this one alone, 0 for one a core.

  Raises:
    UserError: the source or a step says that the user made a mistake.
    RuntimeError: a worker failed or died.
  """
  work = _local(job, source)
  workers = workers or os.cpu_count() or 1
  chunks = tokenise.chunks(len(source))
  start = time.monotonic()
  for done, chunk in enumerate(chunks, 1):
    yield work(*chunk)
    left = len(chunks) - done
    if workers > 1 and left > 1 and (time.monotonic() - start) / done * left > _PATIENCE:
      yield from _encode_by(min(workers, left), job, chunks[done:])
      return


def _local(job: Job, source: Sequence[dict]) -> Callable[[int, int], Arrays]:
  """Returns the function that tokenises a chunk in this process."""
  tokenizer = tokenizers.Tokenizer.from_str(job.tokenizer)
  chunk = functools.partial(tokenise.examples, source, job.steps)
  if job.task is not None:
    # Steps may leave examples out or make several of one.
    place = None if job.steps else getattr(source, 'place', None)

    def where(index: int) -> str:
      example = f'example {index} of split {job.split!r}'
      return example if place is None else f'{example} ({place(index)})'

    encode_examples = features.encoder(job.task, tokenizer, where)
    return lambda start, stop: encode_examples(chunk(start, stop), start)
  encode_texts = tokenise.encoder(tokenizer)
  return lambda start, stop: encode_texts(map(tokenise.text_of, chunk(start, stop)))._asdict()


def _encode_by(
  workers: int, job: Job, chunks: list[tuple[int, int]]
) -> Generator[Arrays, None, None]:
  with contextlib.ExitStack() as stack:
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(workers):
      idle.put(stack.enter_context(_start(job)))
    threads = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
    stack.callback(threads.shutdown, cancel_futures=True)

    def ask(chunk: tuple[int, int]) -> Arrays:
      worker = idle.get()
      try:
        return _ask(worker, chunk)
      finally:
        idle.put(worker)

    rest = iter(chunks)
    first = itertools.islice(rest, _AHEAD * workers)
    pending = collections.deque(threads.submit(ask, chunk) for chunk in first)
    while pending:
      yield pending.popleft().result()
      pending.extend(threads.submit(ask, chunk) for chunk in itertools.islice(rest, 1))


class _Worker(NamedTuple):
  process: subprocess.Popen
  questions: IO[bytes]
  answers: IO[bytes]


@contextlib.contextmanager
def _start(job: Job) -> Iterator[_Worker]:
  environment = os.environ | {
    'PYTHONPATH': os.pathsep.join(sys.path),  # what this process can import, a worker can
    'TOKENIZERS_PARALLELISM': 'false',  # the processes are the parallelism
  }
  command = [sys.executable, '-m', 'lm.data.workers']
  pipe = subprocess.PIPE
  with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
    assert process.stdin and process.stdout
    worker = _Worker(process, process.stdin, process.stdout)
    try:
      _tell(worker, job)
      yield worker
    except BaseException:
      process.kill()
      raise
    finally:
      with contextlib.suppress(BrokenPipeError):
        worker.questions.close()


def _tell(worker: _Worker, message: tuple) -> None:
  with contextlib.suppress(BrokenPipeError):  # a dead worker is noticed when it does not answer
    worker.questions.write(json.dumps(message).encode() + b'\n')
    worker.questions.flush()


def _ask(worker: _Worker, chunk: tuple[int, int]) -> Arrays:
  _tell(worker, chunk)
  line = worker.answers.readline()
  if not line:
    raise RuntimeError(
      f'a preparation worker died with exit code {worker.process.wait()} '
      '(-9 is often the system out of memory: lower data.workers)'
    )
  answer = json.loads(line)
  if 'mistake' in answer:
    raise UserError(answer['mistake'])
  if 'error' in answer:
    raise RuntimeError(f'a preparation worker failed:\n{answer["error"]}')
  return {name: _read(worker.answers, *array) for name, *array in answer['arrays']}


def _read(stream: IO[bytes], dtype: str, length: int) -> np.ndarray:
  return np.frombuffer(stream.read(np.dtype(dtype).itemsize * length), dtype)


def main() -> None:
  """Answers chunks until stdin closes."""
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what a source prints must not get between the answers
  lines = map(json.loads, sys.stdin.buffer)
  work = None
  for message in lines:
    try:
      if work is None:
        job = Job(*message)
        work = _local(job, tokenise.open_source(job.source, job.split))
        continue
      arrays = work(*message)
    except UserError as e:
      _answer(answers, {'mistake': str(e)})
      return
    except Exception:
      _answer(answers, {'error': traceback.format_exc()})
      return
    header = {'arrays': [(name, a.dtype.str, len(a)) for name, a in arrays.items()]}
    _answer(answers, header, *(np.ascontiguousarray(a).data for a in arrays.values()))


def _answer(stream: IO[bytes], header: dict, *data: memoryview) -> None:
  stream.write(json.dumps(header).encode() + b'\n')
  for part in data:
    stream.write(part)
  stream.flush()


if __name__ == '__main__':
  main()
