"""Write a target for every line of stdin, on stdout, with a model trained on a task of texts.

  python -m lm.translate --workdir=DIR [--beam_size=5] [--to=LANGUAGE] < in > out

One line comes out for every line that goes in, in order; an empty line stays empty. The best
checkpoint by the config's checkpoint.best is used, or else the newest. With --n_best=N each line
gives up to N lines 'NUMBER ||| TEXT ||| SCORE'. Several directories (--workdir=A,B), or steps of
one, write as an ensemble. With --mbr=N the text is the one of N drawn ones that is most like the
others, by chrF; with --beam_size, one of the N best of the beam.
"""

import math
import sys

from absl import flags

from lm import cli
from lm.errors import UserError

_POLICIES = ('error', 'truncate', 'split')

flags.DEFINE_string('workdir', None, 'directory of the run; several make an ensemble')
flags.DEFINE_string(
  'step', None, 'checkpoint to use, or several; the best unless given, or else the newest'
)
flags.DEFINE_integer('average', 1, 'take the mean of the parameters of the newest N checkpoints')
flags.DEFINE_integer(
  'beam_size',
  None,
  "hypotheses that run on; 1 for the likeliest token; the config's decode.beam_size unless given",
)
flags.DEFINE_float(
  'length_penalty', None, "alpha of Wu et al. 2016; the config's decode.length_penalty unless given"
)
flags.DEFINE_integer('max_tokens', 0, 'tokens to write at the most; 0 for data.context')
flags.DEFINE_float(
  'max_length_ratio',
  None,
  'tokens of a text for each token of the line, plus 10; 0 for no limit; '
  "the config's decode.max_length_ratio unless given",
)
flags.DEFINE_integer('n_best', 1, 'texts to write for each line')
flags.DEFINE_integer('no_repeat_ngram', 0, 'say no run of so many tokens twice; 0 for no such rule')
flags.DEFINE_float('repetition_penalty', 1.0, 'above 1: of tokens said before, Keskar et al. 2019')
flags.DEFINE_integer('min_tokens', 0, 'tokens to write at the least')
flags.DEFINE_integer('mbr', 0, 'candidates of minimum Bayes risk decoding; 0 for none')
flags.DEFINE_float('temperature', 1.0, 'of the candidates: divides the logits')
flags.DEFINE_integer('top_k', 0, 'of the candidates: draw from the k likeliest tokens; 0 for all')
flags.DEFINE_float(
  'top_p', 1.0, 'of the candidates: from the fewest whose probability reaches this'
)
flags.DEFINE_float(
  'min_p', 0.0, 'of the candidates: from those with this share of the likeliest one'
)
flags.DEFINE_integer('seed', 0, 'of the candidates')
flags.DEFINE_string('prefix', '', 'what every text begins with')
flags.DEFINE_string('to', None, 'language to write, where the model knows several')
flags.DEFINE_string(
  'too_long',
  'error',
  f'what becomes of too long a line: {", ".join(_POLICIES)}; recurrent models read any line unless '
  'told to cut it',
)
flags.DEFINE_integer('batch_size', 64, 'lines at once')
flags.DEFINE_integer('window', 1024, 'lines that are read, sorted by length and written together')


_DRAWING = ('temperature', 'top_k', 'top_p', 'min_p', 'seed')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = cli.required('workdir', 'runs/multi30k')
  _check_flags()
  from lm.decode import logits_processors
  from lm.decode.beam import check_beam_size
  from lm.decode.loop import DecodeConfig
  from lm.decode.sampling import greedy, sampler
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.translate import MBRConfig, Translator, windows
  from lm.metrics.translation import sentence_chrf
  from lm.text.tokenizers import end_id, vocabulary_size

  # Made before the model is loaded, which takes time: what is wrong with a number shows here.
  processors = []
  if args.no_repeat_ngram:
    processors.append(logits_processors.no_repeat_ngram(args.no_repeat_ngram))
  if args.repetition_penalty != 1:
    processors.append(logits_processors.repetition_penalty(args.repetition_penalty))
  drawn = bool(args.mbr) and not args['beam_size'].present
  draw = sampler(args.temperature, args.top_k, args.top_p, args.min_p) if drawn else greedy
  loaded = open_runs(workdir, args.step, args.average)
  most = args.max_tokens or loaded.config.data.context
  _check_room(most, f'data.context={most} of the run')
  end = end_id(loaded.tokenizer)
  processors.extend(logits_processors.ban_unknown_token(loaded.tokenizer))
  if args.min_tokens:
    processors.append(logits_processors.minimum_length(args.min_tokens, end))
  decode = loaded.config.decode
  beam = decode.beam_size if args.beam_size is None else args.beam_size
  if not args.mbr and args.n_best > beam:
    raise UserError(
      f'--n_best={args.n_best} is more than decode.beam_size={beam} of the run; give --beam_size'
    )
  if not drawn:  # before lines are read
    check_beam_size(beam, vocabulary_size(loaded.tokenizer))
  strategy = DecodeConfig(
    end=end,
    max_tokens=most,
    # Who asks for a least length means it, whatever the source.
    max_length_ratio=_given(
      args.max_length_ratio, 0.0 if args.min_tokens else decode.max_length_ratio
    ),
    beam_size=1 if drawn else beam,
    length_penalty=_given(args.length_penalty, decode.length_penalty),
    n_best=1 if drawn else args.mbr or args.n_best,
    sample_fn=draw,
    logits_processors=tuple(processors),
    batch_size=args.batch_size,
  )
  risk = None
  if args.mbr:
    risk = MBRConfig(sentence_chrf(), args.mbr if drawn else 1, args.seed, args.n_best)
  translator = Translator(loaded, strategy, args.to, args.too_long, args.prefix, risk)
  unasked = args.beam_size is None and not drawn
  cli.print_notes([*loaded.notes, *([f'decode.beam_size={beam} of the run'] if unasked else [])])
  number = 0
  for lines in windows(sys.stdin.buffer, args.window):
    for texts in translator(lines, number):
      number += 1
      if args.n_best == 1:
        sys.stdout.write(f'{texts[0][0]}\n')
      else:
        sys.stdout.writelines(f'{number} ||| {text} ||| {score:.4f}\n' for text, score in texts)
    sys.stdout.flush()


def _check_flags() -> None:
  """Raises UserError where a number is out of its range."""
  args = flags.FLAGS
  for name in ('beam_size', 'n_best', 'batch_size', 'window'):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      raise UserError(f'--{name}={getattr(args, name)} is not a positive number')
  if args.max_tokens < 0:
    raise UserError(f'--max_tokens={args.max_tokens} is not 0 or more')
  if args.max_tokens:
    _check_room(args.max_tokens, f'--max_tokens={args.max_tokens}')
  if args.max_length_ratio is not None and not args.max_length_ratio >= 0:
    raise UserError(f'--max_length_ratio={args.max_length_ratio} is not 0 or more')
  if args.length_penalty is not None and not math.isfinite(args.length_penalty):
    raise UserError(f'--length_penalty={args.length_penalty} is not a finite number')
  _check_risk()
  most = 'mbr' if args.mbr else 'beam_size'
  if getattr(args, most) is not None and args.n_best > getattr(args, most):
    raise UserError(f'--n_best={args.n_best} is more than --{most}={getattr(args, most)}')
  if args.too_long not in _POLICIES:
    raise UserError(f'--too_long={args.too_long} is none of {", ".join(_POLICIES)}')


def _check_room(most: int, name: str) -> None:
  """Raises UserError where more tokens are asked for than are written at the most."""
  if flags.FLAGS.min_tokens > most:
    raise UserError(f'--min_tokens={flags.FLAGS.min_tokens} is more than {name}, the most')


def _check_risk() -> None:
  """Raises UserError where --mbr is wrong, or a flag is given that would change nothing."""
  args = flags.FLAGS
  if args.mbr < 0 or args.mbr == 1:
    raise UserError(f'--mbr={args.mbr} is neither 0 nor 2 or more candidates to choose from')
  by_beam = args.mbr and args['beam_size'].present
  if by_beam and args.mbr > args.beam_size:
    raise UserError(
      f'--mbr={args.mbr} is more than --beam_size={args.beam_size}, which finds the candidates'
    )
  drawn = args.mbr and not by_beam
  for name in () if drawn else _DRAWING:
    if args[name].present:
      remedy = 'leave --beam_size out' if by_beam else 'give --mbr=N'
      raise UserError(f'--{name}={args[name].value}: nothing is drawn here; {remedy} to draw')
  if drawn and args['length_penalty'].present:
    raise UserError(
      f'--length_penalty={args.length_penalty} is for beams, and --mbr samples; give --beam_size'
    )
  if not 0 <= args.seed < 2**32:
    raise UserError(f'--seed={args.seed} is not between 0 and {2**32 - 1}')


def _given(value: float | None, otherwise: float) -> float:
  return otherwise if value is None else value


if __name__ == '__main__':
  cli.run(main, __doc__)
