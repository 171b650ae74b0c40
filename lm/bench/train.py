"""Our train step and a peer's in turns: milliseconds, ratio, share of the matrix-product rate.

  python -m lm.bench train [--peer=transformers] [--json] [--rounds=N] [--shape=NAME ...]

Same sizes, precision and number of threads; each code in a process of its own, one device.
"""

import argparse
import json
import os
import pathlib

from lm.bench import Parser
from lm.bench.steps import summary, turns
from lm.bench.steps.shape import DEFAULTS, SHAPES
from lm.errors import UserError, did_you_mean

OURS = 'ours'
# Each, and whether it is one of recurrent shapes.
PEERS = {'transformers': False, 'torch': True}


def parser() -> Parser:
  """Returns the parser of this subcommand."""
  made = Parser('train', __doc__)
  made.add_argument('--peer', default='', metavar='NAME', help=f'one of {", ".join(PEERS)}')
  made.add_argument('--json', action='store_true', help='print one JSON object and nothing else')
  made.add_argument('--rounds', type=int, default=9, metavar='N', help='turns of each (default 9)')
  made.add_argument(
    '--shape',
    action='append',
    metavar='NAME',
    help=f"one of {', '.join(SHAPES)}; may be repeated (default: the device's)",
  )
  made.add_argument('--threads', type=int, metavar='N', help='CPU cores used (default: all)')
  return made


def main(arguments: argparse.Namespace) -> None:
  """Prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the peer is not installed.
  """
  threads = _check(arguments)
  with turns.started([OURS], threads) as (ours,):
    device = ours({'device': True})
  platform = device['platform']
  if arguments.peer and platform == 'tpu':
    raise UserError('--peer: no peer runs on a TPU; leave it out to measure our step alone')
  if platform == 'cpu':
    device['name'] = _processor() or device['name']
  names = [OURS] + ([arguments.peer] if arguments.peer else [])
  report = {
    'benchmark': 'train',
    'device': device,
    'threads': threads,
    'precision': 'float32 parameters and optimizer, products as each shape says',
    'shapes': [
      summary.of_shape(
        name, SHAPES[name], turns.measure(names, SHAPES[name], arguments.rounds, threads)
      )
      for name in arguments.shape or DEFAULTS[platform]
    ],
  }
  print(json.dumps(report) if arguments.json else summary.table(report))


def _check(arguments: argparse.Namespace) -> int:
  """Returns the number of threads after checking the arguments."""
  if arguments.rounds < 1:
    raise UserError(f'--rounds={arguments.rounds} is not a positive number')
  if arguments.peer and arguments.peer not in PEERS:
    raise UserError(
      f'--peer={arguments.peer!r} is no peer{did_you_mean(arguments.peer, PEERS)}; '
      f'there is {", ".join(PEERS)}'
    )
  for name in arguments.shape or ():
    if name not in SHAPES:
      raise UserError(
        f'--shape={name!r} is no shape{did_you_mean(name, SHAPES)}; there is {", ".join(SHAPES)}'
      )
    if arguments.peer and PEERS[arguments.peer] != bool(SHAPES[name].d_hidden):
      peer = next(peer for peer, other in PEERS.items() if other != PEERS[arguments.peer])
      raise UserError(f'--shape={name}: the peer of it is --peer={peer}, not {arguments.peer}')
  if arguments.peer and PEERS[arguments.peer] and not arguments.shape:
    raise UserError(f'--peer={arguments.peer} needs a shape of LSTM layers, --shape=article')
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
  threads = cores if arguments.threads is None else arguments.threads
  if not 1 <= threads <= cores:
    raise UserError(f'--threads={threads}: this process may run on 1 to {cores} cores')
  return threads


def _processor() -> str:
  # jax calls every processor 'cpu'.
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.is_file() else []
  return next((x.split(':', 1)[1].strip() for x in lines if x.startswith('model name')), '')
