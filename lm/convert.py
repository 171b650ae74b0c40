"""Convert between Hugging Face's checkpoints and workdirs.

  python -m lm.convert from_hf DIR|OWNER/NAME|FILE.gguf --workdir=OUT [--revision=R]
                               [--add_tokens=A,B]
  python -m lm.convert to_hf --workdir=DIR --out=OUT [--step=N] [--untrusted]

`from_hf` reads a folder that save_pretrained wrote (config.json, safetensors, tokenizer.json), or
downloads one. The result is an ordinary workdir: all programs work on it, and `warm_start.workdir`
fine-tunes it. `--add_tokens` enlarges the vocabulary; the new rows are the mean of the others.
`to_hf` writes a folder that from_pretrained loads, for imported runs and for those trained here.
Neither torch nor transformers is needed.
"""

import pathlib

from lm import cli


def main(argv: list[str]) -> None:
  parser = cli.Parser(allow_abbrev=False)
  commands = parser.add_subparsers(dest='command', metavar='from_hf|to_hf', required=True)
  importing = commands.add_parser('from_hf', help='a checkpoint becomes a workdir')
  importing.add_argument('source', type=pathlib.Path)
  importing.add_argument('--workdir', type=pathlib.Path, required=True)
  importing.add_argument('--revision')
  importing.add_argument('--add_tokens', type=lambda text: text.split(','), default=[])
  exporting = commands.add_parser('to_hf', help='a workdir becomes a checkpoint')
  exporting.add_argument('--workdir', type=pathlib.Path, required=True)
  exporting.add_argument('--out', type=pathlib.Path, required=True)
  exporting.add_argument('--step', type=int)
  exporting.add_argument('--untrusted', action='store_true', help='run no code of the workdir')
  args = parser.parse_args(argv[1:])
  from lm.pretrained import checkpoint

  if args.command == 'from_hf':
    print(checkpoint.import_checkpoint(args.source, args.workdir, args.revision, args.add_tokens))
  else:
    print(checkpoint.export_run(args.workdir, args.out, args.step, not args.untrusted))


if __name__ == '__main__':
  cli.run(main, __doc__)
