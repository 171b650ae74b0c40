"""Say what a job needs on TPUs or GPUs before one is paid for: does it fit, how fast is it?

  python -m lm.preflight --config=experiments/NAME.py --topology=v5e:4x4 [--slices=N] [--json]
  python -m lm.preflight --config=experiments/NAME.py --topology=h100:8 [--slices=N] [--json]

For TPUs it compiles the train step by the TPU's own compiler, on any machine (extra `tpu`; a minute
or more on two cores), and tells the memory of a chip by kind, what chips send each other, what all
of them hold whole, and an estimate of the time of a step. For nodes of GPUs it asks no compiler:
memory is reckoned, and the time is a bound by arithmetic that no step goes below; so with cpu:1,
this machine. --price=USD (of a chip for an hour) adds what a billion tokens cost, --search tries
other meshes, batches and ways to remember.
--decode compiles beside the step what writes a token for each of `decode.batch_size` rows, on the
same mesh, with room for `decode.max_tokens` (or data.context) tokens. --json prints one object.
Exit codes: 0 it fits, 1 failed, 2 it does not fit, or wrong usage.
"""

import sys

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.text.files import expand

if __name__ == '__main__':
  sys.argv[0] = 'preflight'  # the name that messages begin with, and that its flags go by

flags.DEFINE_string(
  'topology', None, 'a slice of TPUs, such as v5e:4x4, or a node of GPUs, such as h100:8'
)
flags.DEFINE_integer('slices', 1, 'how many slices, or nodes, joined by the network')
flags.DEFINE_float('price', 0.0, 'US dollars of a chip for an hour')
flags.DEFINE_bool('search', False, 'try meshes, batches and remat, and rank those that fit')
flags.DEFINE_bool('decode', False, 'compile also what writes a token of each row')
flags.DEFINE_integer('most', 8, 'how many of them to compile, or to show')
flags.DEFINE_string('hlo', None, 'file to write the text of the program to, of a TPU')
flags.DEFINE_bool('json', False, 'print one JSON object and nothing else')


def main(argv: list[str]) -> int | None:
  config, path = cli.config(argv)
  cli.parse(argv)
  args = flags.FLAGS
  from lm.preflight import chips

  topology = cli.required('topology', 'v5e:4x4')
  if not args.price >= 0:
    raise UserError(f'--price={args.price} is not 0 or more')
  hlo = expand(args.hlo, '--hlo') if args.hlo else None
  if hlo is not None and not hlo.absolute().parent.is_dir():
    raise UserError(f'--hlo={args.hlo}: there is no such directory')
  if args.most < 1:
    raise UserError(f'--most={args.most} is not a positive number')
  if args.search and args.decode:
    raise UserError('--decode is of one mesh, and --search tries several: leave one of them out')
  from lm.preflight import arithmetic, check, here, program, report, search

  find = here.measured if here.asked(topology) else chips.parse
  slice_ = find(topology, args.slices)
  compiles = isinstance(slice_.chip, chips.Chip)
  for flag in ('hlo', 'decode'):
    if args[flag].value and not compiles:
      raise UserError(f'--{flag}: for {slice_.chip.name} no program is compiled; leave it out')
  if args.search:
    found = search.search(config, slice_, args.most, report.progress)
    print(report.ranking_json(found, slice_) if args.json else report.ranking(found, slice_))
    return cli.OK if found and found[0].fits else cli.USAGE
  try:
    if compiles:
      checked = check.check(config, slice_, args.decode)
    else:
      checked = arithmetic.check(config, slice_)
  except program.NoRoom as e:
    raise UserError(f'--topology={slice_.topology}: {e}; {search.nearest(config, slice_)}') from e
  if hlo is not None and checked.compiled:
    hlo.write_text(checked.compiled.program.text)
  if args.json:
    print(report.to_json(checked, slice_, path, args.price))
  else:
    print(report.table(checked, slice_, path, args.price))
  if not checked.fits:
    memory = f'{checked.step.memory.total / chips.GIB:.1f} GiB do not fit'
    raise UserError(f'--topology={slice_.topology}: {memory}; {search.nearest(config, slice_)}')
  if not checked.decoding_fits:
    raise UserError(
      f'--topology={slice_.topology}: --decode needs {checked.decoding_needs / chips.GIB:.1f} GiB '
      f'of {checked.room / chips.GIB:.1f}; lower decode.batch_size={config.decode.batch_size} or '
      'decode.max_tokens, or split parameters and heads over more chips (mesh.fsdp, mesh.tensor)'
    )
  return cli.OK


if __name__ == '__main__':
  cli.run(main, __doc__)
