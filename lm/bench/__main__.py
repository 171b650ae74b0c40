"""Benchmarks of this code, alone or against a baseline of another library.

  python -m lm.bench train [--baseline=transformers|torch] [--json] ...
  python -m lm.bench decode [--baseline=transformers] [--json] ...
  python -m lm.bench vectors --text=FILE [--baseline=gensim|stanford] [--json] ...

Baselines need the extra `baselines`. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import sys
from typing import NoReturn

from lm import cli
from lm.bench import decode, train, vectors
from lm.errors import UserError

COMMANDS = {'train': train, 'decode': decode, 'vectors': vectors}


class Parser(argparse.ArgumentParser):
  """An argument parser that raises UserError, one line, where argparse would print its usage."""

  def __init__(self, **options) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    super().__init__(formatter_class=formatter, allow_abbrev=False, **options)

  def error(self, message: str) -> NoReturn:
    raise UserError(message)


def main(argv: list[str]) -> None:
  """Runs the subcommand `argv[1]` with the arguments that follow it."""
  parser = Parser(prog='python -m lm.bench', description=__doc__)
  commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
  for name, module in COMMANDS.items():
    summary = str(module.__doc__).partition('\n')[0]
    module.add_flags(commands.add_parser(name, help=summary, description=module.__doc__))
  arguments = parser.parse_args(argv[1:])
  COMMANDS[arguments.command].main(arguments)


if __name__ == '__main__':
  sys.argv[0] = 'bench'  # messages begin with this name
  cli.run(main, None)
