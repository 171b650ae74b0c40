"""Word vectors of ours and of a peer on one text: speed, ratio, and what the vectors are worth.

  python -m lm.bench vectors --text=FILE [--model=skip_gram|cbow|glove] [--peer=gensim|stanford]
      [--pairs=FILE ...] [--seeds=N] [--glove=DIR] [--threads=N] [--json]

Size 100, minimum count 5; Word2Vec has window 5, 5 negatives, 5 epochs; GloVe window 10, x_max 10,
15 epochs. Each code in a process of its own, one after another, in changing order. Seconds are of
training alone, and in brackets those of the whole command, with reading, compiling and writing.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any

from lm.bench import Parser
from lm.bench.words import Work
from lm.errors import UserError, did_you_mean
from lm.metrics.word_vectors import pairs
from lm.run.memory import LARGE_PAGES
from lm.text.files import expand_path
from lm.text.vector_files import read_word2vec_text

MODELS = {'skip_gram': 'gensim', 'cbow': 'gensim', 'glove': 'stanford'}  # with who else has it
OURS = 'ours'


def parser() -> Parser:
  """Returns the parser of this subcommand."""
  made = Parser('vectors', __doc__)
  made.add_argument('--text', required=True, metavar='FILE', help='words between spaces; or .gz')
  made.add_argument('--model', default='skip_gram', metavar='NAME', help=', '.join(MODELS))
  made.add_argument('--peer', default='', metavar='NAME', help='gensim for word2vec, stanford')
  made.add_argument('--pairs', action='append', default=[], metavar='FILE', help='similarities')
  made.add_argument('--seeds', type=int, default=1, metavar='N', help='runs of each (default 1)')
  made.add_argument('--glove', default='', metavar='DIR', help="where Stanford's programs are")
  made.add_argument('--threads', type=int, metavar='N', help='CPU cores used (default: all)')
  made.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
  return made


def main(arguments: argparse.Namespace) -> None:
  """Prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the peer is not installed.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
  threads = _check(arguments, len(cores) or os.cpu_count() or 1)
  metrics = [pairs(file) for file in arguments.pairs]
  names = [OURS] + ([arguments.peer] if arguments.peer else [])
  runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    for seed in range(arguments.seeds):
      # The peer first, the first time: who lacks it learns of it before ours has begun.
      for name in names if seed % 2 else reversed(names):
        out = str(pathlib.Path(folder) / 'vectors')
        work = Work(arguments.text, arguments.model, seed, threads, out, arguments.glove)
        found = _train(name, work, cores[:threads])
        vectors = read_word2vec_text(out)
        for metric, score, *_ in metrics:
          scores = score(vectors).values
          found |= {f'{metric}/{key}': value for key, value in scores.items()}
        runs[name].append(found)
  report = {'benchmark': 'vectors', 'model': arguments.model, 'threads': threads, 'codes': runs}
  print(json.dumps(report) if arguments.json else table(runs))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
  """Returns a line for each code, of medians over the runs, and our ratios to the other."""
  lines = []
  for name, all_of in runs.items():
    rate = statistics.median(run['amount'] / run['seconds'] for run in all_of)
    middle = {key: statistics.median(run[key] for run in all_of) for key in _numbers(all_of)}
    line = f'{name:9} {rate / 1e6:6.2f} M {all_of[0]["unit"]}/s  {middle["seconds"]:7.1f} s'
    line += f' ({middle["command"]:.1f} s)'
    if middle['counting']:
      line += f'  counting {middle["counting"]:.1f} s'
    for key in middle:
      if '/' in key:
        values = [run[key] for run in all_of]
        line += f'  {key} {statistics.mean(values):.3f}'
        line += f' ({min(values):.3f}-{max(values):.3f})' * (len(values) > 1)
    lines.append(line)
  if len(runs) == 2:
    ours, peer = ([run['amount'] / run['seconds'] for run in all_of] for all_of in runs.values())
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    spread = f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'
    lines.append(f'ours / {list(runs)[1]}: {spread} times the speed of training')
  return '\n'.join(lines)


def _numbers(all_of: list[dict[str, Any]]) -> list[str]:
  return [key for key, value in all_of[0].items() if isinstance(value, int | float)]


def _train(name: str, work: Work, cores: list[int]) -> dict[str, Any]:
  """Returns what the process of a code says, which may run on these cores alone."""
  environment = LARGE_PAGES | os.environ if name == OURS else dict(os.environ)
  done = subprocess.run(
    [sys.executable, '-m', 'lm.bench.words.worker', name, json.dumps(work._asdict())],
    capture_output=True,
    text=True,
    env=environment,
    preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
  )
  if done.returncode:
    raise RuntimeError(f'{name} has failed:\n{done.stderr[-4000:]}')
  answer = json.loads(done.stdout.splitlines()[-1])
  if 'error' in answer:
    raise UserError(answer['error'])
  return answer


def _check(arguments: argparse.Namespace, cores: int) -> int:
  """Returns the number of threads after checking the arguments."""
  arguments.text = str(expand_path(arguments.text, '--text'))
  if not pathlib.Path(arguments.text).is_file():
    raise UserError(f'--text={arguments.text}: there is no such file')
  if arguments.model not in MODELS:
    raise UserError(
      f'--model={arguments.model!r}{did_you_mean(arguments.model, MODELS)}'
      f'; available: {", ".join(MODELS)}'
    )
  if arguments.peer not in ('', MODELS[arguments.model]):
    raise UserError(
      f'--peer={arguments.peer!r} has no {arguments.model}; take {MODELS[arguments.model]}'
    )
  if arguments.seeds < 1:
    raise UserError(f'--seeds={arguments.seeds} is not a positive number')
  threads = cores if arguments.threads is None else arguments.threads
  if not 1 <= threads <= cores:
    raise UserError(f'--threads={threads}: this process may run on 1 to {cores} cores')
  return threads
