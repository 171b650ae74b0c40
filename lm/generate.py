"""Continue a prompt with a trained model, streaming to stdout.

  python -m lm.generate --workdir=DIR --prompt=TEXT [--max_tokens=N] [--temperature=X] ...

With --num_samples=N, N samples are printed one after another, each preceded by the prompt. Several
directories (--workdir=A,B), or steps of one, form an ensemble.
"""

import sys

from absl import flags

from lm import cli
from lm.errors import UserError

cli.define_run_flags()
flags.DEFINE_string('prompt', None, 'text to continue; may be empty')
flags.DEFINE_integer('max_tokens', 200, 'maximum count of new tokens', lower_bound=1)
cli.define_sampling_flags(temperature=0.8)
flags.DEFINE_integer('num_samples', 1, 'count of continuations', lower_bound=1)


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = cli.required('workdir', 'runs/quickstart')
  if args.prompt is None:
    raise UserError("--prompt is required, for example --prompt='The '")
  from lm.decode.sampling import sampler
  from lm.decode.stream import stream_text
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.predict import decode_config
  from lm.models.embeddings import Embeddings

  sample_fn = sampler(args.temperature, args.top_k, args.top_p, args.min_p)
  loaded = open_runs(
    workdir, args.step, args.average_checkpoints, trusted=not args.untrusted, mean=args.mean
  )
  if not getattr(loaded.model, 'continues_prompts', False):
    has_vectors = isinstance(loaded.model, Embeddings)
    program = 'lm.vectors shows its words' if has_vectors else 'lm.translate generates targets'
    raise UserError(
      f'--workdir={workdir}: model.fn={loaded.config.model.fn!r} continues no prompt; {program}'
    )
  decode = cli.set_decoding(loaded.config.decode)
  config = decode_config(decode, loaded.tokenizer, 0)._replace(max_tokens=args.max_tokens)
  if decode.sampler is None:
    config = config._replace(sample_fn=sample_fn)
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
      decode.start,
      report=lambda note: print(f'lm.generate: {note}', file=sys.stderr),
    )
    first = next(pieces, ('',))  # raises an error of the prompt before any output
    if not sample:
      cli.print_notes(loaded.notes)
    print(args.prompt + first[0], end='')
    for (piece,) in pieces:
      print(piece, end='', flush=True)
    print()


if __name__ == '__main__':
  cli.run(main, __doc__)
