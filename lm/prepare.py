"""Build the tokenizer, the tokens and the packing plans of an experiment before training.

  python -m lm.prepare --config=experiments/NAME.py[:ARG] [--config.key=value ...]

Training does the same if the cache does not have them.
"""

from lm import cli


def main(argv: list[str]) -> None:
  config, _ = cli.config(argv)
  cli.parse(argv)
  # Imported after the flags are checked, because these modules take seconds to import.
  from lm.config import validate
  from lm.data import pipeline
  from lm.progress import show_documents

  validate.validate_config(config)
  tokenizer = pipeline.tokenizer(config.data, show_documents)
  print(f'tokenizer: {tokenizer.get_vocab_size()} entries')
  sets = {'train': ('', config.data.train_split, '', config.seed, True)}
  sets |= {
    f'eval.sets.{n}': (s.get('component', ''), s.split, s.source, None, bool(s.get('transforms')))
    for n, s in config.eval.sets.items()
  }
  unit = 'tokens' if config.data.pair_counter is None else 'pairs'
  for name, (of, split, source, seed, transformed) in sets.items():
    data = pipeline.component(config.data, of)
    rows = pipeline.packed_rows(
      data, split, tokenizer, seed, show_documents, source or None, transformed
    )
    print(
      f'{name}: {rows.documents} documents, {rows.tokens} {unit}, '
      f'{len(rows)} rows of {rows.size}, {1 - rows.tokens / len(rows) / rows.size:.1%} padding'
    )
    if note := getattr(rows, 'note', ''):
      print(f'{name}: {note}')


if __name__ == '__main__':
  cli.run(main, __doc__)
