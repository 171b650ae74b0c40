"""Build the tokenizer, tokens and packing plans of an experiment ahead of time.

  python -m lm.prepare --config=experiments/NAME.py[:ARG] [--config.key=value ...]

Training does the same when it finds them missing.
"""

from lm import cli


def main(argv: list[str]) -> None:
  config, _ = cli.config(argv)
  cli.parse(argv)
  from lm.config import validate
  from lm.data import prepare
  from lm.data.rows import FeatureRows

  validate.validate_config(config)
  tokenizer = prepare.tokenizer(config.data, prepare.show_progress)
  print(f'tokenizer: {tokenizer.get_vocab_size()} entries')
  sets = {'train': (config.data.train, '', config.seed, True)}
  sets |= {
    f'eval.sets.{name}': (s.split, s.source, None, bool(s.get('transforms')))
    for name, s in config.eval.sets.items()
  }
  unit = 'tokens' if config.data.count is None else 'pairs'
  for name, (split, source, seed, transformed) in sets.items():
    rows = prepare.rows(
      config.data, split, tokenizer, seed, prepare.show_progress, source or None, transformed
    )
    print(
      f'{name}: {rows.documents} documents, {rows.tokens} {unit}, '
      f'{len(rows)} rows of {rows.size}, {1 - rows.tokens / len(rows) / rows.size:.1%} padding'
    )
    if isinstance(rows, FeatureRows) and rows.note:
      print(f'{name}: {rows.note}')


if __name__ == '__main__':
  cli.run(main, __doc__)
