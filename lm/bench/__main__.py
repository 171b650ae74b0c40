"""Benchmarks of this code, alone or against a baseline of another library.

  python -m lm.bench train [--baseline=transformers|torch] [--json] ...
  python -m lm.bench decode [--baseline=transformers] [--json] ...
  python -m lm.bench corruption --config=FILE:ARG [--json] ...
  python -m lm.bench finetune --config=FILE:ARG [--baseline=transformers] [--json] ...
  python -m lm.bench vectors --text=FILE [--baseline=gensim|stanford] [--json] ...

Baselines need the extra `baselines`. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import functools
import sys
from typing import Any

from lm import cli
from lm.bench import corruption, finetune, interleaved, vectors
from lm.parallel import host

# Subcommand -> its description, the function that adds its flags, and the function that runs it.
COMMANDS = {
  name: (
    benchmark.description,
    functools.partial(interleaved.add_flags, benchmark),
    functools.partial(interleaved.run, benchmark),
  )
  for name, benchmark in interleaved.BENCHMARKS.items()
} | {
  module.__name__.rpartition('.')[2]: (str(module.__doc__), module.add_flags, module.main)
  for module in (corruption, finetune, vectors)
}


def main(argv: list[str]) -> None:
  """Runs the subcommand `argv[1]` with the arguments that follow it."""
  options: dict[str, Any] = {
    'formatter_class': argparse.RawDescriptionHelpFormatter,
    'allow_abbrev': False,
  }
  parser = cli.Parser(prog='python -m lm.bench', description=__doc__, **options)
  commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
  for name, (description, add_flags, run) in COMMANDS.items():
    summary = description.partition('\n')[0]
    command = commands.add_parser(name, help=summary, description=description, **options)
    add_flags(command)
    command.set_defaults(run=run)
  arguments = parser.parse_args(argv[1:])
  arguments.run(arguments)


if __name__ == '__main__':
  host.enable_huge_pages()  # as lm.train does
  sys.argv[0] = 'bench'  # messages begin with this name
  cli.run(main, None)
