"""Measure this code, and others beside it.

  python -m lm.bench train [--peer=transformers] [--json]

A subcommand is a module of this package with `parser()` and `main(arguments)`; what it takes is
told by `python -m lm.bench NAME --help`. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import pathlib
import sys
from collections.abc import Callable

from lm.bench import Parser
from lm.config import resolve
from lm.errors import UserError, did_you_mean
from lm.run import cli


def main(argv: list[str]) -> int | None:
  """Runs the subcommand that argv[1] names with the arguments after it."""
  parser, run = subcommand(argv[1] if len(argv) > 1 else '')
  return run(parser.parse_args(argv[2:]))


def subcommand(name: str) -> tuple[Parser, Callable[..., int | None]]:
  """Returns the parser and the `main` of a subcommand.

  Raises:
    UserError: there is none of that name.
  """
  names = subcommands()
  if name not in names:
    raise UserError(
      f'no subcommand {name!r}{did_you_mean(name, names)}; there is {", ".join(names)}'
    )
  parser = resolve.resolve(f'lm.bench.{name}:parser', 'subcommand')
  return parser(), resolve.resolve(f'lm.bench.{name}:main', 'subcommand')


def subcommands() -> list[str]:
  """Returns the names of the modules beside this one."""
  files = pathlib.Path(__file__).parent.glob('*.py')
  return sorted(file.stem for file in files if not file.stem.startswith('_'))


if __name__ == '__main__':
  sys.argv[0] = 'bench'  # the name that messages begin with
  if {'-h', '--help'} & set(sys.argv):
    named = sys.argv[1] in subcommands()
    print(subcommand(sys.argv[1])[0].format_help() if named else __doc__.strip())
  else:
    cli.run(main, __doc__)
