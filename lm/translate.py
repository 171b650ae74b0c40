"""Write a target for every line of stdin, on stdout, with a model trained on a task of texts.

  python -m lm.translate --workdir=DIR [--beam=5] [--to=LANGUAGE] < in > out

One line comes out for every line that goes in, in order; an empty line stays empty. The best
checkpoint is used, by the config's checkpoint.best. With --n_best=N each line gives up to N lines
'NUMBER ||| TEXT ||| SCORE'.
"""

import pathlib
import sys

from absl import flags

from lm.errors import UserError
from lm.run import cli

_POLICIES = ('error', 'truncate', 'split')

flags.DEFINE_string('workdir', None, 'directory of the run')
flags.DEFINE_integer('step', None, 'checkpoint to use; the best one unless given')
flags.DEFINE_integer('beam', 5, 'hypotheses that run on; 1 takes the likeliest token each time')
flags.DEFINE_float(
  'length_penalty', None, "alpha of Wu et al. 2016; the config's decode.length_penalty unless given"
)
flags.DEFINE_integer('max_tokens', 0, 'tokens to write at the most; 0 for data.context')
flags.DEFINE_float(
  'max_ratio',
  None,
  "nor more than 10 and so many for each token of the line; the config's decode.max_ratio unless "
  'given, 0 for no such rule',
)
flags.DEFINE_integer('n_best', 1, 'texts to write for each line')
flags.DEFINE_integer('no_repeat_ngram', 0, 'say no run of so many tokens twice; 0 for no such rule')
flags.DEFINE_float('repetition_penalty', 1.0, 'above 1: of tokens said before, Keskar et al. 2019')
flags.DEFINE_integer('min_tokens', 0, 'tokens to write at the least')
flags.DEFINE_string('prefix', '', 'what every text begins with')
flags.DEFINE_string('to', None, 'language to write, where the model knows several')
flags.DEFINE_string('too_long', 'error', f'what becomes of too long a line: {", ".join(_POLICIES)}')
flags.DEFINE_integer('batch_size', 64, 'lines at once')
flags.DEFINE_integer('window', 1024, 'lines that are read, sorted by length and written together')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = pathlib.Path(cli.required('workdir', 'runs/multi30k'))
  for name in ('beam', 'n_best', 'batch_size', 'window'):
    if getattr(args, name) < 1:
      raise UserError(f'--{name}={getattr(args, name)} is not a positive number')
  if args.max_tokens < 0:
    raise UserError(f'--max_tokens={args.max_tokens} is not 0 or more')
  if args.max_ratio is not None and not args.max_ratio >= 0:
    raise UserError(f'--max_ratio={args.max_ratio} is not 0 or more')
  if args.n_best > args.beam:
    raise UserError(f'--n_best={args.n_best} is more than --beam={args.beam}')
  if args.too_long not in _POLICIES:
    raise UserError(f'--too_long={args.too_long} is none of {", ".join(_POLICIES)}')
  from lm.decode import constraints
  from lm.decode.write import Strategy
  from lm.run.load import best_step, load
  from lm.run.translate import Translator, windows
  from lm.text.tokenizers import end_id

  # Made before the model is loaded, which takes time: what is wrong with a number shows here.
  adjust = []
  if args.no_repeat_ngram:
    adjust.append(constraints.no_repeat_ngram(args.no_repeat_ngram))
  if args.repetition_penalty != 1:
    adjust.append(constraints.repetition_penalty(args.repetition_penalty))
  loaded = load(workdir, best_step(workdir) if args.step is None else args.step)
  end = end_id(loaded.tokenizer)
  if args.min_tokens:
    adjust.append(constraints.minimum_length(args.min_tokens, end))
  decode = loaded.config.decode
  strategy = Strategy(
    end=end,
    max_tokens=args.max_tokens or loaded.config.data.context,
    # Who asks for a least length means it, whatever the source.
    max_ratio=_given(args.max_ratio, 0.0 if args.min_tokens else decode.max_ratio),
    beam=args.beam,
    length_penalty=_given(args.length_penalty, decode.length_penalty),
    n_best=args.n_best,
    adjust=tuple(adjust),
    batch_size=args.batch_size,
  )
  translator = Translator(loaded, strategy, args.to, args.too_long, args.prefix)
  number = 0
  for lines in windows(sys.stdin.buffer, args.window):
    for texts in translator(lines, number):
      number += 1
      if args.n_best == 1:
        sys.stdout.write(f'{texts[0][0]}\n')
      else:
        sys.stdout.writelines(f'{number} ||| {text} ||| {score:.4f}\n' for text, score in texts)
    sys.stdout.flush()


def _given(value: float | None, otherwise: float) -> float:
  return otherwise if value is None else value


if __name__ == '__main__':
  cli.run(main, __doc__)
