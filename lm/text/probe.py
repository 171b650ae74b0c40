"""Tests in a separate process whether an existing tokenizer works.

If the regular expression of a pre-tokenizer backtracks, the library `tokenizers` blocks for minutes
or hours, and the call cannot be interrupted. If the expression exceeds the limit of its engine, the
library prints a trace and raises a BaseException. A child process can be killed, and its output
stays hidden.

`python -m lm.text.probe FILE` encodes the texts of stdin, a JSON list. It prints the index
of each text before encoding it, and the message of an error as a JSON string.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable

import tokenizers

from lm.errors import UserError

SECONDS = 60.0  # a tokenizer.json of 20 MB loads in 2 s
_CHARACTERS = 2**20  # characters of the corpus that are tested
# Characters of one kind. Backtracking takes about _RUN**2 steps, within the limit of the engine.
_RUN = 1000
_KINDS = ('a', 'A', '0', ' ', '\n', '-', "'", '\u4e2d', 'a ')
# Expressions backtrack in a long run of one kind of character, if a different character follows.
RUNS = tuple(kind * _RUN + last for kind in _KINDS for last in '!x')


def check(file: str, texts: Iterable[str], name: str, seconds: float = SECONDS) -> None:
  """Tests a tokenizer.json on long runs of one kind of character and on the first texts.

  Args:
    file: the path of the tokenizer.json.
    texts: the corpus.
    name: of the file, in errors.
    seconds: the time limit.

  Raises:
    UserError: it is not a tokenizer, it fails, or it exceeds the time limit.
  """
  tried, size = [*RUNS], 0
  for text in texts:
    tried.append(text)
    size += len(text)
    if size >= _CHARACTERS:
      break
  try:
    done = subprocess.run(
      [sys.executable, '-m', 'lm.text.probe', file],
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
      input=json.dumps(tried).encode(),
      capture_output=True,
      timeout=seconds,
    )
  except subprocess.TimeoutExpired as e:
    lines = (e.stdout or b'').splitlines()
    where = f'a text such as {tried[int(lines[-1])]!r:.40}' if lines else 'loading'
    raise UserError(
      f'{name}: {where} takes more than {seconds:g} s; does its regular expression backtrack?'
    ) from e
  if done.returncode:
    *before, last = done.stdout.decode().splitlines() or ['"it ends without output"']
    if not before:
      raise UserError(f'{name} is no tokenizer.json: {json.loads(last)}')
    raise UserError(
      f'{name}: it fails on a text such as {tried[int(before[-1])]!r:.40}: {json.loads(last)}'
    )


def main(argv: list[str]) -> int:
  """Encodes the texts of stdin with the tokenizer.json in `argv`; returns 1 after an error."""
  try:
    tokenizer = tokenizers.Tokenizer.from_file(argv[1])
    for index, text in enumerate(json.load(sys.stdin)):
      print(index, flush=True)
      tokenizer.encode(text, add_special_tokens=False)
  except BaseException as e:  # the library panics if its engine gives up
    print(json.dumps(' '.join(str(e).split())[:200]), flush=True)
    return 1
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv))
