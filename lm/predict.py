"""Predict for every row of a file or of stdin: one JSON object per row, in order.

  python -m lm.predict --workdir=DIR < in.jsonl > out.jsonl
  python -m lm.predict --workdir=DIR --input=reviews.tsv --output=out.jsonl --top_k=3

Rows are JSON objects with the fields of the run's task, TSV with a header, or lines of text;
--format names it where the suffix of a file does not, and stdin is jsonl. Output rows have a label
with probabilities, labels, a value, tags with offsets, an answer, generated text, or the fillers of
masks; with --embed, an embedding. --top_k limits labels and fillers; for generation it is a
sampling flag, as are --temperature, --top_p, --min_p and --seed. Several directories
(--workdir=A,B), or steps of one, form an ensemble.

Memory does not grow with the input. --output appears only if every row succeeds; stdout has the
rows before a mistake.
"""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from lm import cli
from lm.errors import UserError

if TYPE_CHECKING:
  from lm.data.sources.rows import Row
  from lm.evaluation.trained_model import TrainedModel

cli.define_run_flags()
flags.DEFINE_string('input', None, 'file of rows; stdin by default')
flags.DEFINE_string('output', None, 'file for the predictions; stdout by default')
flags.DEFINE_enum('format', None, ('jsonl', 'tsv', 'text'), 'format of the rows')
flags.DEFINE_enum(
  'too_long',
  'error',
  ('error', 'truncate', 'windows'),
  'policy for rows above the context; windows averages the outputs of several',
)
flags.DEFINE_integer('batch_size', 32, 'packed rows, or prompts, per batch', lower_bound=1)
flags.DEFINE_integer('window', 1024, 'rows of the input that are packed together', lower_bound=1)
flags.DEFINE_bool('embed', False, 'return an embedding of each row')
flags.DEFINE_string('pooling', 'lm.nn.pooling:mean', 'import path of the pooling of --embed')
flags.DEFINE_bool('normalize', False, 'divide embeddings by their length')
flags.DEFINE_string(
  'calibration', None, 'temperature of labels, or a labeled file on which to fit it'
)
flags.DEFINE_integer('max_tokens', None, 'maximum count of generated tokens', lower_bound=1)
cli.define_sampling_flags(temperature=0.0)

_SAMPLING = ('temperature', 'top_p', 'min_p', 'seed')
_PATHS = ('sampler', 'logits_processor')
_OF_EMBEDDINGS = ('pooling', 'normalize')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  args = flags.FLAGS
  workdir = cli.required('workdir', 'runs/sst2')
  out = None if args.output is None else cli.output_file('output', args.output)
  from lm.data.sources.rows import file_rows, format_of, read_rows
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.trained_model import as_trained_model
  from lm.text.files import expand_path, read_lines, write_atomic

  source, form = None, args.format or 'jsonl'
  if args.input is not None:
    source = expand_path(args.input, '--input')
    if not source.is_file():
      raise UserError(f'--input={source}: no such file')
    form = args.format or format_of(source, '--format')
  trusted = not args.untrusted
  model = as_trained_model(
    open_runs(workdir, args.step, args.average_checkpoints, None, trusted, args.mean)
  )
  decode = cli.set_decoding(model.config.decode)
  answer = 'embedding' if args.embed else model.answer
  _check_flags(answer, sampled=bool(args.temperature or decode.sampler))
  predict = _asker(model, answer)
  field = model.field if form == 'text' else ''
  if source is None:
    rows = read_rows(read_lines(sys.stdin.buffer, 'stdin', 2**28), 'stdin', form, field)
  else:
    rows = file_rows(source, '--input', form, field)
  lines = _lines(rows, predict, args.window)
  first = next(lines)  # raises an error of the first rows before any output
  cli.print_notes([*model.notes, *model.prepare_notes])
  lines = itertools.chain([first], lines)
  if out is not None:
    try:
      write_atomic(out, lines)
    except OSError as e:
      raise UserError(f'--output={out} cannot be written: {e.strerror or e}') from e
    return
  for line in lines:
    sys.stdout.write(line.decode())
  sys.stdout.flush()


def _lines(
  rows: 'Iterator[Row]', predict: Callable[..., list[dict[str, Any]]], window: int
) -> Iterator[bytes]:
  """Yields a JSON line for each row."""
  first = 0
  for chunk in iter(lambda: list(itertools.islice(rows, window)), []):
    places, fields = zip(*chunk, strict=True)
    for found in predict(fields, places.__getitem__, first):
      yield cli.json_line(found).encode() + b'\n'
    first += len(chunk)


def _asker(model: 'TrainedModel', answer: str) -> Callable[..., list[dict[str, Any]]]:
  """Returns the function from rows, their places and the index of the first to predictions."""
  from lm.config import resolve

  args = flags.FLAGS
  how: dict[str, Any] = {'too_long': args.too_long, 'batch_size': args.batch_size}
  if answer == 'embedding':
    pooling = resolve.resolve(args.pooling, '--pooling')

    def embed(rows, place, first):
      vectors = model.embed(rows, pooling=pooling, normalize=args.normalize, place=place, **how)
      return [{'embedding': vector} for vector in vectors.tolist()]

    return embed
  if answer == 'text':
    sampled: dict[str, Any] = {name: args[name].value for name in (*_SAMPLING, 'top_k')}

    def generate(rows, place, first):
      texts = model.generate(rows, args.max_tokens, **sampled, **how, place=place, first=first)
      return [{'text': text} for text in texts]

    return generate
  temperature = 1.0 if args.calibration is None else _temperature(model, args.calibration)

  def predict(rows, place, first):
    return model.predict(rows, top_k=args.top_k, temperature=temperature, place=place, **how)

  return predict


def _temperature(model: 'TrainedModel', given: str) -> float:
  """Returns the temperature of --calibration: a number, or what fits the rows of a file."""
  try:
    return float(given)
  except ValueError:
    pass
  from lm.data.sources.rows import file_rows, format_of
  from lm.text.files import expand_path

  path = expand_path(given, '--calibration')
  if not path.is_file():
    raise UserError(f'--calibration={given} is neither a number nor a file')
  rows = list(file_rows(path, '--calibration', format_of(path, 'it another'), 'text'))
  temperature = model.calibrate(
    [row.fields for row in rows], place=lambda i: rows[i].place, too_long=flags.FLAGS.too_long
  )
  cli.print_notes([f'temperature {temperature:.4g}, fitted on {len(rows)} rows of {path}'])
  return temperature


def _check_flags(answer: str, sampled: bool) -> None:
  """Raises UserError for a flag that has no effect on such answers, sampled or not."""
  args = flags.FLAGS
  of_answer = {
    'embedding': _OF_EMBEDDINGS,
    'text': (*_SAMPLING, *_PATHS, 'top_k', 'max_tokens'),
    'label': ('top_k', 'calibration'),
    'labels': ('top_k',),
    'masks': ('top_k',),
  }
  every = {name for names in of_answer.values() for name in names}
  for name in sorted(every - {*of_answer.get(answer, ())}):
    if args[name].present:
      raise UserError(f'--{name}={args[name].value} has no effect: the answers are {answer!r}')
  for name in ('top_k', 'top_p', 'min_p', 'seed'):
    if answer == 'text' and args[name].present and not sampled:
      raise UserError(f'--{name}={args[name].value} has no effect without --temperature above 0')


if __name__ == '__main__':
  cli.run(main, __doc__)
