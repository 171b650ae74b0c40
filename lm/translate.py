"""Generate a target for every line of stdin, on stdout, with a model of a text-to-text task.

  python -m lm.translate --workdir=DIR [--beam_size=5] [--target_lang=LANGUAGE] < in > out

Each input line has one output line, in order; an empty line stays empty. The default checkpoint is
the best by the config's checkpoint.monitor, or else the newest. With --n_best=N each line has up
to N lines 'NUMBER ||| TEXT ||| SCORE'. Several directories (--workdir=A,B), or steps of one, form
an ensemble. --mbr=N chooses the candidate most similar to the others by chrF: among N samples, or,
with --beam_size, among the N best hypotheses of the beam.
"""

import sys

from absl import flags

from lm import cli
from lm.errors import UserError

cli.define_run_flags()
cli.define_beam_flags()
flags.DEFINE_integer(
  'max_tokens', 0, 'maximum length of a text in tokens; 0 for data.seq_len', lower_bound=0
)
flags.DEFINE_float(
  'max_length_ratio',
  None,
  'maximum tokens of a text per token of the line, plus 10; 0 for no limit; '
  'by default decode.max_length_ratio of the run',
)
flags.register_validator(
  'max_length_ratio', lambda ratio: ratio is None or ratio >= 0, 'must be 0 or more'
)
flags.DEFINE_integer('n_best', 1, 'texts per line', lower_bound=1)
flags.DEFINE_integer('no_repeat_ngram', 0, 'repeat no n-gram of this length; 0 for no such rule')
flags.DEFINE_float('repetition_penalty', 1.0, 'above 1: penalty of Keskar et al. 2019')
flags.DEFINE_integer('min_tokens', 0, 'minimum length of a text in tokens', lower_bound=0)
flags.DEFINE_integer('mbr', 0, 'candidates of minimum Bayes risk decoding; 0 for none')
cli.define_sampling_flags(temperature=1.0)
flags.DEFINE_string('prefix', '', 'beginning of every text')
flags.DEFINE_string('target_lang', None, 'target language, for a multilingual model')
flags.DEFINE_enum(
  'too_long',
  'error',
  ('error', 'truncate', 'split'),
  'policy for lines above the context: error, truncate or split; error does not apply to recurrent '
  'models, which read lines of any length',
)
flags.DEFINE_integer('batch_size', 64, 'lines per batch', lower_bound=1)
flags.DEFINE_integer('window', 1024, 'lines that are sorted by length together', lower_bound=1)


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = cli.required('workdir', 'runs/multi30k')
  samples = bool(args.mbr) and not args['beam_size'].present
  _check_flags(samples)
  from lm.decode import sampling
  from lm.decode.beam import check_beam_size
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.predict import decode_config
  from lm.evaluation.translate import MBRConfig, Translator, windows
  from lm.metrics.translation import sentence_chrf
  from lm.text.tokenizers import end_id, vocabulary_size

  # Built before the model is loaded, so that their errors show without delay.
  processors = []
  if args.no_repeat_ngram:
    processors.append(sampling.no_repeat_ngram(args.no_repeat_ngram))
  if args.repetition_penalty != 1:
    processors.append(sampling.repetition_penalty(args.repetition_penalty))
  sampler = sampling.sampler(args.temperature, args.top_k, args.top_p, args.min_p)
  loaded = open_runs(
    workdir, args.step, args.average_checkpoints, trusted=not args.untrusted, mean=args.mean
  )
  context = loaded.config.data.seq_len
  if args.min_tokens:
    _check_min_tokens(args.max_tokens or context, f'data.seq_len={context} of the run')
    processors.append(sampling.minimum_length(args.min_tokens, end_id(loaded.tokenizer)))
    # The minimum length holds for short sources too.
    loaded.config.decode.max_length_ratio = 0.0
  keys = ('beam_size', 'length_penalty', 'max_length_ratio', 'max_tokens', 'batch_size')
  given = {key: args[key].value for key in keys if args[key].value is not None}
  section = cli.set_decoding(loaded.config.decode)
  section.update(given)
  decode = decode_config(section, loaded.tokenizer, context)
  if not args.mbr and args.n_best > decode.beam_size:
    raise UserError(
      f'--n_best={args.n_best} is more than decode.beam_size={decode.beam_size} of the run; give '
      '--beam_size'
    )
  notes = list(loaded.notes)
  if samples:
    decode = decode._replace(beam_size=1)
    if section.sampler is None:
      decode = decode._replace(sample_fn=sampler)
  else:
    check_beam_size(decode.beam_size, vocabulary_size(loaded.tokenizer))  # before lines are read
    decode = decode._replace(n_best=args.mbr or args.n_best)
    if args.beam_size is None and not args.sampler:
      notes.append(f'decode.beam_size={decode.beam_size} of the run')
  decode = decode._replace(logits_processors=(*processors, *decode.logits_processors))
  samples |= decode.beam_size == 1 and section.sampler is not None
  if args['seed'].present and not samples:
    raise UserError(f'--seed={args.seed} has no effect without sampling; give --mbr or --sampler')
  mbr = None
  if args.mbr or samples:
    count = max(args.mbr, 1) if samples else 1
    mbr = MBRConfig(sentence_chrf(), count, args.seed, args.n_best)
  translator = Translator(loaded, decode, args.target_lang, args.too_long, args.prefix, mbr)
  cli.print_notes(notes)
  index = 0
  for lines in windows(sys.stdin.buffer, args.window):
    for texts in translator(lines, index):
      index += 1
      if args.n_best == 1:
        sys.stdout.write(f'{texts[0][0]}\n')
      else:
        sys.stdout.writelines(f'{index} ||| {text} ||| {score:.4f}\n' for text, score in texts)
    sys.stdout.flush()


def _check_flags(samples: bool) -> None:
  """Raises UserError if two flags contradict each other, or one has no effect.

  Args:
    samples: whether the candidates of --mbr are samples.
  """
  args = flags.FLAGS
  if args.max_tokens:
    _check_min_tokens(args.max_tokens, f'--max_tokens={args.max_tokens}')
  if args.mbr < 0 or args.mbr == 1:
    raise UserError(f'--mbr={args.mbr} must be 0, or 2 candidates or more')
  if args.mbr and not samples and args.mbr > args.beam_size:
    raise UserError(
      f'--mbr={args.mbr} is more than --beam_size={args.beam_size}, which finds the candidates'
    )
  if samples and args['length_penalty'].present:
    raise UserError(
      f'--length_penalty={args.length_penalty} has no effect, because --mbr draws '
      'samples; give --beam_size'
    )
  if not samples:
    remedy = 'omit --beam_size' if args.mbr else 'give --mbr=N'
    for name in ('temperature', 'top_k', 'top_p', 'min_p'):
      if args[name].present:
        raise UserError(f'--{name}={args[name].value} has no effect without sampling; {remedy}')
  if args.sampler and (args.beam_size or 1) > 1:
    raise UserError(f'--sampler={args.sampler} has no effect with --beam_size={args.beam_size}')
  limit = 'mbr' if args.mbr else 'beam_size'
  if args[limit].value is not None and args.n_best > args[limit].value:
    raise UserError(f'--n_best={args.n_best} is more than --{limit}={args[limit].value}')


def _check_min_tokens(limit: int, name: str) -> None:
  if flags.FLAGS.min_tokens > limit:
    raise UserError(f'--min_tokens={flags.FLAGS.min_tokens} is more than {name}')


if __name__ == '__main__':
  cli.run(main, __doc__)
