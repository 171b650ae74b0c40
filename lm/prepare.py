"""Build the tokenizer, the tokens and the packing plans of an experiment before training.

  python -m lm.prepare --config=experiments/NAME.py[:ARG] [--config.key=value ...]

Training does the same if the cache does not have them.

If the config removes duplicates (lm.data.duplicates), the program reports what is removed: a table
on stderr, and a JSON object for each source on stdout. --duplicates=0.8 reports exact duplicates,
near duplicates and overlap with each evaluation set for any config of texts, and prepares nothing.
"""

import sys

from absl import flags

from lm import cli

flags.DEFINE_float(
  'duplicates', None, 'report duplicates of at least this similarity, from above 0 to 1, and stop'
)
flags.register_validator(
  'duplicates', lambda x: x is None or 0 < x <= 1, 'must be above 0 and at most 1'
)


def main(argv: list[str]) -> None:
  config, _ = cli.config(argv)
  cli.parse(argv)
  # Imported after the flags are checked, because these modules take seconds to import.
  from lm.config import validate
  from lm.config.base import without_duplicates
  from lm.data import encoding, pipeline
  from lm.data.duplicates import report_lines
  from lm.progress import show_documents

  def report_duplicates(removed: bool) -> None:
    for name, path in pipeline.training_sources(config.data).items():
      opened = encoding.open_source(path, config.data.train_split)
      if report := getattr(opened, 'report', None):
        key = f'data.mixture.{name}' if name else 'data.source'
        print(cli.json_line({'key': key, 'removed': removed, **report}))
        print(f'{key}:', *report_lines(report), sep='\n', file=sys.stderr)

  validate.validate_config(config)
  report_duplicates(removed=True)
  if flags.FLAGS.duplicates is not None:
    without_duplicates(config, flags.FLAGS.duplicates, cache=config.data.cache)
    report_duplicates(removed=False)
    return
  tokenizer = pipeline.tokenizer(config.data, show_documents)
  print(f'tokenizer: {tokenizer.get_vocab_size()} entries')
  sets = {'train': ('', config.data.train_split, '', config.seed, True)}
  sets |= {
    f'eval.sets.{n}': (s.get('component', ''), s.split, s.source, None, bool(s.get('transforms')))
    for n, s in config.eval.sets.items()
  }
  unit = 'tokens' if config.data.pair_counter is None else 'pairs'
  for name, (of, split, source, seed, transformed) in sets.items():
    mixed = name == 'train' and config.data.mixture
    data = config.data if mixed else pipeline.component(config.data, of)
    rows = pipeline.packed_rows(
      data, split, tokenizer, seed, show_documents, source or None, transformed
    )
    parts = getattr(rows, 'parts', {'': rows}).values()  # of a mixture
    sizes = ' or '.join(dict.fromkeys(str(part.size) for part in parts))
    padding = 1 - rows.tokens / sum(len(part) * part.size for part in parts)
    print(
      f'{name}: {rows.documents} documents, {rows.tokens} {unit}, {len(rows)} rows of {sizes}, '
      f'{padding:.1%} padding'
    )
    if rows.note:
      print(f'{name}: {rows.note}')


if __name__ == '__main__':
  cli.run(main, __doc__)
