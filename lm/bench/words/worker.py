"""The process of one code: `python -m lm.bench.words.worker CODE WORK`, which answers in JSON."""

import importlib
import json
import sys

from lm.bench.words import Work
from lm.errors import UserError


def main(name: str, work: str) -> None:
  """Prints what a code says of its work, or what the user is to mend."""
  try:
    code = importlib.import_module(f'lm.bench.words.{name}')
    answer = code.train(Work(**json.loads(work)))._asdict()
  except ModuleNotFoundError as e:
    answer = {'error': f"--peer={name}: {e.name} is not installed; pip install -e '.[peers]'"}
  except UserError as e:
    answer = {'error': str(e)}
  print(json.dumps(answer))


if __name__ == '__main__':
  main(*sys.argv[1:])
