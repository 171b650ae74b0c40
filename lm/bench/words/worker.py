"""The process of one code: `python -m lm.bench.words.worker CODE WORK`, which answers in JSON."""

import json
import sys

from lm.bench.words import Work
from lm.config import resolve
from lm.errors import UserError


def main(name: str, work: str) -> None:
  """Prints what a code says of its work, or what the user is to mend."""
  try:
    train = resolve.resolve(f'lm.bench.words.{name}:train', '--peer')
    answer = train(Work(**json.loads(work)))._asdict()
  except UserError as e:
    answer = {'error': str(e)}
    if isinstance(e.__cause__, ModuleNotFoundError):
      answer = {'error': f"--peer={name}: {e.__cause__}; pip install -e '.[peers]'"}
  print(json.dumps(answer))


if __name__ == '__main__':
  main(*sys.argv[1:])
