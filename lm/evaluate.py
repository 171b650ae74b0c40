"""Evaluate a trained model: one JSON object of metrics on stdout.

python -m lm.evaluate --workdir=DIR [--step=N]
"""

import json
import pathlib

from absl import flags

from lm.errors import UserError
from lm.run import cli

flags.DEFINE_string('workdir', None, 'directory of the run')
flags.DEFINE_integer('step', None, 'checkpoint to evaluate; the newest one unless given')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  workdir = pathlib.Path(cli.required('workdir', 'runs/quickstart'))
  import jax

  from lm.data import prepare
  from lm.run import build
  from lm.run.evaluators import Evaluators
  from lm.run.load import load

  loaded = load(workdir, flags.FLAGS.step)
  functions = build.functions(loaded.config, loaded.tokenizer.get_vocab_size(), jax.devices()[:1])
  prepared = prepare.tokenizer(loaded.config.data, prepare.show_progress)
  if prepared.to_str() != loaded.tokenizer.to_str():
    raise UserError(
      f'--workdir={workdir} was trained with another tokenizer than data.tokenizer gives now '
      '(another corpus or version of it)'
    )
  means = Evaluators(loaded.config, functions, loaded.tokenizer).means(loaded.params)
  print(json.dumps({'step': loaded.step} | means))


if __name__ == '__main__':
  cli.run(main, __doc__)
