"""One code in a process of its own, which works when it is asked to and is idle otherwise.

Requests and answers are lines of JSON. Answers have `error` where something went wrong, with
`user` saying whether it is the user's to mend.
"""

import dataclasses
import json
import os
import sys
import time
import traceback
from typing import Any, TextIO

from lm.bench.steps.shape import Shape, Subject
from lm.config import resolve
from lm.errors import UserError


def serve(code: str, requests: TextIO, answers: TextIO) -> None:
  """Answers requests until there are no more.

  `{"device": true}` tells the device, `{"build": shape}` makes a shape ready, and
  `{"step": n}` and `{"product": n}` tell the seconds that one of n in a row took, and the
  processor time of all n and of one more before them: while a code waits for its turn the system
  takes its free memory away, and the first step pays for getting it back. Training does not wait.
  """
  subject: Subject | None = None

  def answer(request: dict[str, Any]) -> dict[str, Any]:
    nonlocal subject
    module = f'lm.bench.steps.{code}'
    if 'device' in request:
      return resolve.resolve(f'{module}:device', code)()
    if 'build' in request:
      subject = resolve.resolve(f'{module}:build', code)(Shape(**request['build']))
      # The first step compiles; what it costs is not what is measured.
      first_step = _seconds(subject.step, 1)
      subject.product(1)
      facts = {name: getattr(subject, name) for name in ('product_flops', 'step_flops', 'versions')}
      return facts | {'first_step_seconds': first_step}
    assert subject is not None
    ((kind, times),) = request.items()
    used = time.process_time()
    run = getattr(subject, kind)
    run(1)
    seconds = _seconds(run, times)
    used = time.process_time() - used
    return {'seconds': seconds, 'cpu_seconds': used, 'peak_bytes': subject.peak_bytes()}

  for line in requests:
    try:
      result = answer(json.loads(line))
    except UserError as e:
      result = {'error': str(e), 'user': True}
    except Exception:
      result = {'error': traceback.format_exc(), 'user': False}
    print(json.dumps(result), file=answers, flush=True)


def request_build(shape: Shape) -> dict[str, Any]:
  """Returns the request that makes `shape` ready."""
  return {'build': dataclasses.asdict(shape)}


def _seconds(run, times: int) -> float:
  start = time.perf_counter()
  run(times)
  return (time.perf_counter() - start) / times


if __name__ == '__main__':
  name, threads = sys.argv[1], int(sys.argv[2])
  if hasattr(os, 'sched_setaffinity'):
    # Both libraries take the cores they may run on for the number of their threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  pipe = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not get between the answers
  serve(name, sys.stdin, pipe)
