"""Measurements, each a subcommand of `python -m lm.bench`, and what they have in common."""

import argparse
from typing import NoReturn

from lm.errors import UserError


class Parser(argparse.ArgumentParser):
  """An argument parser whose complaints are a UserError of one line."""

  def __init__(self, name: str, doc: str) -> None:
    """Takes the subcommand's name and its module's docstring, which --help prints first."""
    super().__init__(
      prog=f'python -m lm.bench {name}',
      description=doc,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{self.prog.split()[-1]}: {message}')
