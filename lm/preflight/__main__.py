"""Estimate the memory, communication and time of a job on TPUs or GPUs, without any of them.

  python -m lm.preflight --config=experiments/NAME.py --topology=v5e:4x4 [--slices=N] [--json]
  python -m lm.preflight --config=experiments/NAME.py --topology=h100:8 [--slices=N] [--json]

For TPUs the TPU compiler compiles the train step, on any machine (extra `tpu`; a minute or more on
two cores). The report has the memory of a chip by category, the collectives, fully replicated
arrays, and an estimated step time. For nodes of GPUs, and for this machine as --topology=cpu:1,
nothing is compiled. Memory is estimated, and the time is a roofline bound: no real step is faster.
--price=USD (of a chip per hour) adds the cost of a billion tokens. --search ranks other meshes,
batch sizes and remat policies. --decode also compiles a decoding step for `decode.batch_size` rows
on the same mesh. Its KV cache holds `decode.max_tokens` tokens, or `data.seq_len` if that is 0.
Exit codes: 0 the job fits, 1 failed, 2 it does not fit, or wrong usage.
"""

import json
import sys

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.text.files import expand_path

if __name__ == '__main__':
  sys.argv[0] = 'preflight'  # prefix of messages, and module name of the flags

flags.DEFINE_string(
  'topology', None, 'a slice of TPUs, such as v5e:4x4, or a node of GPUs, such as h100:8'
)
flags.DEFINE_integer('slices', 1, 'number of slices or nodes, connected by a network')
flags.DEFINE_float('price', 0.0, 'US dollars of a chip per hour', lower_bound=0)
flags.DEFINE_bool('search', False, 'rank meshes, batch sizes and remat policies that fit')
flags.DEFINE_bool('decode', False, 'also compile a decoding step')
flags.DEFINE_integer(
  'most',
  8,
  'number of --search candidates to compile for TPUs, or to print for GPUs',
  lower_bound=1,
)
flags.DEFINE_string('hlo', None, 'file for the HLO of a program compiled for TPUs')
flags.DEFINE_bool('json', False, 'print one JSON object and nothing else')


def main(argv: list[str]) -> int | None:
  config, path = cli.config(argv)
  cli.parse(argv)
  args = flags.FLAGS
  name = cli.required('topology', 'v5e:4x4')
  file = expand_path(args.hlo, '--hlo') if args.hlo else None
  if file is not None and not file.absolute().parent.is_dir():
    raise UserError(f'--hlo={args.hlo}: there is no such directory')
  if args.search and args.decode:
    raise UserError('--decode is for one mesh, and --search tries several: leave one of them out')
  from lm.parallel.chips import GIB
  from lm.preflight import analytic, decode, report, search, topology, train_step

  slice_ = topology.parse(name, args.slices)
  compiles = slice_.chip.platform == 'tpu'
  for flag in ('hlo', 'decode'):
    if args[flag].value and not compiles:
      raise UserError(f'--{flag}: nothing is compiled for {slice_.chip.name}; leave the flag out')
  if config.models and (not compiles or args.search or args.decode):
    raise UserError(
      'models: GPUs, --search and --decode need a config with one model; give --topology of a TPU'
    )
  if args.search:
    found = search.search(
      config, slice_, args.most, lambda line: print(line, file=sys.stderr, flush=True)
    )
    values = {'topology': name, 'candidates': [candidate._asdict() for candidate in found]}
    print(json.dumps(values) if args.json else '\n'.join(report.ranking(found, slice_)))
    return cli.OK if found[0].fits else cli.USAGE
  if args.decode:
    decode.check_config(config)
  try:
    result = (train_step if compiles else analytic).check(config, slice_)
  except train_step.DoesNotFit as e:
    raise UserError(f'--topology={name}: {e}; {search.closest_fitting(config, slice_)}') from e
  decoding = decode.check(config, slice_, result.step) if args.decode else None
  if file is not None:
    file.write_text(result.program)
  values = report.summary(result, slice_, path, args.price, decoding)
  print(json.dumps(values) if args.json else '\n'.join(report.lines(values)))
  if not result.fits:
    raise UserError(
      f'--topology={name}: {result.needed / GIB:.1f} GiB do not fit; '
      f'{search.closest_fitting(config, slice_)}'
    )
  if decoding is not None and decoding.needed > result.capacity:
    raise UserError(
      f'--topology={name}: --decode needs {decoding.needed / GIB:.1f} GiB '
      f'of {result.capacity / GIB:.1f}; lower decode.batch_size={config.decode.batch_size} or '
      'decode.max_tokens, or shard parameters and heads over more chips (mesh.fsdp, mesh.tensor)'
    )
  return cli.OK


if __name__ == '__main__':
  cli.run(main, __doc__)
