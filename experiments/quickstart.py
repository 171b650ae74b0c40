"""A small GPT-2 on the English documentation inside every Python.

  python -m lm.train --config=experiments/quickstart.py --workdir=runs/quickstart

Needs no network. Two CPU cores: under 3 minutes.
"""

from lm.config import base, choose, smoke


def get_config(arg=''):
  return choose(base(), arg, smoke=smoke)
