"""Continue a prompt with a trained model, streaming to stdout.

  python -m lm.generate --workdir=DIR --prompt=TEXT [--max_tokens=N] [--temperature=X] ...

With --num_samples the samples follow each other, each after the prompt. Several directories
(--workdir=A,B), or steps of one, form an ensemble.
"""

import sys

from absl import flags

from lm import cli
from lm.errors import UserError

flags.DEFINE_string('workdir', None, 'directory of the run; several form an ensemble')
flags.DEFINE_string(
  'step', None, 'checkpoint to use, or several; by default the best, or else the newest'
)
flags.DEFINE_integer('average', 1, 'average the parameters of the newest N checkpoints')
flags.DEFINE_string('prompt', None, 'text to continue; may be empty')
flags.DEFINE_integer('max_tokens', 200, 'maximum number of new tokens')
flags.DEFINE_float('temperature', 0.8, 'divides the logits; 0 for greedy decoding')
flags.DEFINE_integer('top_k', 0, 'sample from the k most probable tokens; 0 for all')
flags.DEFINE_float('top_p', 1.0, 'sample from the fewest tokens with this probability in sum')
flags.DEFINE_float('min_p', 0.0, 'sample from tokens with this share of the highest probability')
flags.DEFINE_integer('seed', 0, 'the same seed gives the same texts, another one others')
flags.DEFINE_integer('num_samples', 1, 'number of continuations')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = cli.required('workdir', 'runs/quickstart')
  if args.prompt is None:
    raise UserError("--prompt is required, for example --prompt='The '")
  for name in ('max_tokens', 'num_samples'):
    if getattr(args, name) < 1:
      raise UserError(f'--{name}={getattr(args, name)} is not a positive number')
  if not 0 <= args.seed < 2**32:
    raise UserError(f'--seed={args.seed} is not between 0 and {2**32 - 1}')
  from lm.decode.logits_processors import ban_unknown_token
  from lm.decode.loop import DecodeConfig
  from lm.decode.sampling import sampler
  from lm.decode.stream import prompt_encoder, stream_text
  from lm.evaluation.ensembles import open_runs
  from lm.models.embeddings import Embeddings
  from lm.text.tokenizers import end_id

  sample_fn = sampler(args.temperature, args.top_k, args.top_p, args.min_p)
  loaded = open_runs(workdir, args.step, args.average)
  if not loaded.model.continues_prompts:
    of_words = isinstance(loaded.model, Embeddings)
    remedy = 'its words are for lm.vectors'
    raise UserError(
      f'--workdir={workdir}: model.fn={loaded.config.model.fn!r} continues no prompt; '
      + (remedy if of_words else 'for a model that writes targets take lm.translate')
    )
  encode = prompt_encoder(loaded.tokenizer)
  config = DecodeConfig(
    end_id(loaded.tokenizer),
    args.max_tokens,
    sample_fn=sample_fn,
    logits_processors=ban_unknown_token(loaded.tokenizer),
  )
  for sample in range(args.num_samples):
    pieces = stream_text(
      loaded.model,
      loaded.apply,
      loaded.params,
      loaded.tokenizer,
      [args.prompt],
      config,
      [sample],
      args.seed,
      encode,
      report=lambda note: print(f'lm.generate: {note}', file=sys.stderr),
    )
    first = next(pieces, ('',))  # what is wrong with the prompt shows here, before any output
    if not sample:
      cli.print_notes(loaded.notes)
    sys.stdout.write(args.prompt + first[0])
    for (piece,) in pieces:
      sys.stdout.write(piece)
      sys.stdout.flush()
    sys.stdout.write('\n')


if __name__ == '__main__':
  cli.run(main, __doc__)
