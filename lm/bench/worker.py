"""A worker: the process of one implementation, which runs it on request and is idle otherwise.

With a process for each implementation, peak memory is measured separately. While an implementation
waits for its turn, its thread pool sleeps. Requests and answers are lines of JSON.
"""

import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from lm.config import resolve
from lm.errors import UserError
from lm.parallel.host import LARGE_PAGES

# Rows and columns of the matrices whose matmul gives the FLOP/s of a device.
MATMUL_SIZE = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}
# float32 elements of the buffer that gives the memory bandwidth: 512 MiB, more than caches hold.
BUFFER_SIZE = 1 << 27


@dataclasses.dataclass(frozen=True)
class Shape:
  """Sizes of a language model without dropout and of its batch, for training or decoding.

  The model is a GPT-2 (Radford et al. 2019) with tied embeddings. With `d_hidden` it has LSTM
  layers of that width and an output layer of its own.
  """

  depth: int
  d_model: int
  heads: int
  vocab_size: int
  context: int  # tokens of a row in training; in decoding, positions of the model
  batch_size: int
  dtype: str  # of activations and matmuls; parameters and optimizer state are float32
  d_hidden: int = 0
  prompt: int = 0  # tokens of each prompt, in decoding
  max_tokens: int = 0  # new tokens of each row, in decoding

  def __str__(self) -> str:
    decoding = f'prompt {self.prompt}, {self.max_tokens} new tokens'
    return (
      f'{self.depth} layers, width {self.d_model}, V {self.vocab_size}, B {self.batch_size}, '
      f'{decoding if self.max_tokens else f"T {self.context}"}, {self.dtype}'
    )

  @property
  def steps(self) -> int:
    """Steps of one call: the new tokens of a row, or one train step."""
    return self.max_tokens or 1

  @property
  def tokens(self) -> int:
    """Tokens of one step, over all rows."""
    return self.batch_size * (1 if self.max_tokens else self.context)


class Limit(NamedTuple):
  """An operation that runs at the limit of the device: a large matmul, or a pass over memory."""

  run: Callable[[int], None]  # runs it N times and returns when all are done
  amount: float  # FLOPs or bytes of one run


def _process_peak() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Candidate(NamedTuple):
  """An implementation of a shape's work, ready to run on one device."""

  run: Callable[[int], None]  # makes N calls and returns when all are done
  limit: Callable[[], Limit]  # allocates its arrays when called, after `peak_bytes` is read
  versions: dict[str, str]
  amount: float | None = None  # FLOPs or bytes that a call needs; only ours sets it
  peak_bytes: Callable[[], int] = _process_peak  # of the device; of the process on a CPU


class Training(NamedTuple):
  """A training from a fixed start to its last step."""

  run: Callable[[int], None]  # makes the next N steps and returns when all are done
  steps: int  # of the entire training
  examples: float  # of a step, on average
  scores: Callable[[], dict[str, float]]  # of the parameters as they are
  versions: dict[str, str]


@contextlib.contextmanager
def start_worker(name: str, threads: int) -> Iterator[Callable[..., dict[str, Any]]]:
  """Starts a worker process, and yields the function that sends it a request of `serve`.

  The function returns the answer. It raises UserError where the user can fix the cause, such as a
  missing package, and RuntimeError with the stack trace after any other failure.

  Args:
    name: of the implementation, for messages.
    threads: cores that the process may run on.
  """
  # JAX would take most of a GPU's memory at start-up. All use huge pages, as our training does.
  environment = LARGE_PAGES | os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
  with (
    tempfile.TemporaryFile('w+') as errors,
    subprocess.Popen(
      [sys.executable, '-m', 'lm.bench.worker', str(threads)],
      bufsize=0,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=errors,
      env=environment,
    ) as process,
  ):

    def ask(**request: Any) -> dict[str, Any]:
      assert process.stdin is not None and process.stdout is not None
      with contextlib.suppress(BrokenPipeError):  # a dead process gives no answer either
        process.stdin.write(json.dumps(request).encode() + b'\n')
      line = process.stdout.readline()
      if not line:
        errors.seek(0)
        raise RuntimeError(f'{name} has ended:\n{errors.read()[-4000:]}')
      answer = json.loads(line)
      if 'error' not in answer:
        return answer
      raise UserError(answer['error']) if answer['user'] else RuntimeError(answer['error'])

    yield ask


def serve(requests: Iterable[str]) -> Iterator[str]:
  """Yields the answer to each request.

  - `{"call": PATH, "arguments": {...}}`: the result of the function of this import path.
  - `{"build": PATH, "shape": {...}, "platform": NAME}`: builds a Candidate by the function of this
    import path; the answer describes it.
  - `{"train": PATH, "arguments": {...}}`: builds a Training; the answer describes it.
  - `{"scores": true}`: the scores of the Training.
  - `{"kind": "run" or "limit", "times": N}`: the mean seconds of N consecutive runs, and the CPU
    seconds of all.

  After a failure an answer has `error`; its `user` says whether the user can fix the cause.
  """
  runs: dict[str, Callable[[int], None]] = {}
  training: Training | None = None
  for line in requests:
    try:
      request = json.loads(line)
      if 'call' in request:
        answer = resolve.resolve(request['call'], '--baseline')(**request['arguments'])
      elif 'build' in request:
        build = resolve.resolve(request['build'], '--baseline')
        runs, answer = _prepare(build(Shape(**request['shape']), request['platform']))
      elif 'train' in request:
        training = resolve.resolve(request['train'], '--baseline')(**request['arguments'])
        runs = {'run': training.run}
        answer = {k: getattr(training, k) for k in ('steps', 'examples', 'versions')}
      elif 'scores' in request and training is not None:
        answer = training.scores()
      else:
        answer = _time(runs[request['kind']], request['times'])
    except (UserError, ModuleNotFoundError) as e:
      missing = isinstance(e.__cause__ or e, ModuleNotFoundError)
      remedy = "; pip install -e '.[baselines]'" if missing else ''
      answer = {'error': f'{e}{remedy}', 'user': True}
    except Exception:
      answer = {'error': traceback.format_exc(), 'user': False}
    yield json.dumps(answer)


def _prepare(candidate: Candidate) -> tuple[dict[str, Callable[[int], None]], dict[str, Any]]:
  """Compiles; returns the functions to time, by kind, and a description of the candidate."""
  started = time.perf_counter()
  candidate.run(1)  # compiles
  first_seconds = time.perf_counter() - started
  candidate.run(1)
  description = {
    'versions': candidate.versions,
    'first_seconds': first_seconds,
    'amount': candidate.amount,
    'peak_bytes': candidate.peak_bytes(),
  }
  limit = candidate.limit()
  limit.run(1)
  runs = {'run': candidate.run, 'limit': limit.run}
  return runs, description | {'limit_amount': limit.amount}


def _time(run: Callable[[int], None], times: int) -> dict[str, float]:
  """Returns the mean seconds of a run, and the CPU seconds of all runs together.

  One more run comes first and is not timed. While a process waits for its turn, the system takes
  back its free memory, and the first run afterwards is slower. Real training does not wait.
  """
  used = time.process_time()
  run(1)
  started = time.perf_counter()
  run(times)
  seconds = (time.perf_counter() - started) / times
  return {'seconds': seconds, 'cpu_seconds': time.process_time() - used}


if __name__ == '__main__':
  if hasattr(os, 'sched_setaffinity'):
    # JAX and torch start as many threads as there are cores that they may run on.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[1])])
  pipe = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # output of libraries must not mix with the answers
  for answer in serve(sys.stdin):
    print(answer, file=pipe, flush=True)
