"""Word vectors of one text, ours and those of a baseline: speed and quality.

  python -m lm.bench vectors --text=FILE [--model=skip_gram|cbow|glove] [--baseline=gensim|stanford]
      [--pairs=FILE ...] [--seeds=N] [--glove=DIR] [--threads=N] [--json]

Vectors have 100 dimensions, and the minimum count is 5. Word2Vec has window 5, 5 negatives and 5
epochs; GloVe has window 10, x_max 10 and 15 epochs. Each training runs in its own process, in
alternating order. The first figure in seconds is the time of training alone. The time of the entire
command follows in parentheses, with reading, compiling and writing.
"""

import argparse
import gzip
import importlib.metadata
import json
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time
from typing import Any, BinaryIO, NamedTuple

from ml_collections import ConfigDict

from lm.bench.interleaved import OURS, add_common_flags, positive_int, thread_count
from lm.bench.worker import start_worker
from lm.errors import UserError
from lm.metrics.word_vectors import pairs
from lm.text.files import expand_path
from lm.text.vector_files import read_glove, read_word2vec_text, write_word2vec_text
from lm.text.vectors import make_vectors

BASELINES = {'skip_gram': 'gensim', 'cbow': 'gensim', 'glove': 'stanford'}  # by model
LEARNING_RATES = {'skip_gram': 0.025, 'cbow': 0.05}
STANFORD_PROGRAMS = ('vocab_count', 'cooccur', 'shuffle', 'glove')
_SENTENCE = 10_000  # words; Gensim ignores the rest of a longer sentence
_RECORD = 16  # bytes of a pair in Stanford's file of co-occurrences


class Settings(NamedTuple):
  """Hyperparameters of a training, the same for every implementation."""

  text: str  # path of a file of words separated by white space; gzipped if it ends in .gz
  model: str  # skip_gram, cbow or glove
  seed: int
  threads: int
  out: str  # file for the vectors, in the text format of word2vec
  programs: str = ''  # directory of the programs of Stanford's GloVe
  size: int = 100
  min_count: int = 5
  window: int = 5
  negatives: int = 5
  epochs: int = 5
  glove_window: int = 10
  glove_epochs: int = 15
  x_max: float = 10.0


class Result(NamedTuple):
  """Time and amount of a training."""

  seconds: float  # training alone
  counting: float  # counting co-occurrences, for GloVe
  command: float  # from the start until the vectors are on disk, with compilation
  unit: str  # of the amount: words of the text, or pairs
  amount: int  # over all epochs
  version: str  # of the library; for programs without a version, their directory


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of this subcommand."""
  baselines = sorted(set(BASELINES.values()))
  add = parser.add_argument
  add('--text', required=True, metavar='FILE', help='words separated by spaces; may be .gz')
  add('--model', choices=BASELINES, default='skip_gram', metavar='NAME', help=', '.join(BASELINES))
  add(
    '--baseline',
    choices=baselines,
    metavar='NAME',
    help='gensim for skip_gram and cbow, stanford for glove',
  )
  add('--pairs', action='append', default=[], metavar='FILE', help='similarities of word pairs')
  add(
    '--seeds',
    type=positive_int,
    default=1,
    metavar='N',
    help='trainings of each implementation, each with its own seed (default 1)',
  )
  add('--glove', default='', metavar='DIR', help="directory of Stanford's programs")
  add_common_flags(parser)


def main(arguments: argparse.Namespace) -> None:
  """Prints the report, as a table or as JSON.

  Raises:
    UserError: an argument is wrong, or the baseline is not installed.
  """
  threads = thread_count(arguments)
  text = expand_path(arguments.text, '--text')
  if not text.is_file():
    raise UserError(f'--text={text}: there is no such file')
  if arguments.baseline not in (None, BASELINES[arguments.model]):
    raise UserError(
      f'--baseline={arguments.baseline} has no {arguments.model}; take {BASELINES[arguments.model]}'
    )
  metrics = [pairs(file) for file in arguments.pairs]
  names = [name for name in (OURS, arguments.baseline) if name]
  runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
  with tempfile.TemporaryDirectory() as folder:
    out = str(pathlib.Path(folder) / 'vectors')
    for seed in range(arguments.seeds):
      settings = Settings(str(text), arguments.model, seed, threads, out, arguments.glove)
      # The baseline first in the first round, so that a missing one is reported before ours starts.
      for name in names if seed % 2 else reversed(names):
        with start_worker(name, threads) as ask:
          request = {'name': name, **settings._asdict()}
          result = ask(call='lm.bench.vectors:train', arguments=request)
        vectors = read_word2vec_text(out)
        for metric, score, *_ in metrics:
          scores = score(vectors).values
          result |= {f'{metric}/{key}': value for key, value in scores.items()}
        runs[name].append(result)
  report = {'benchmark': 'vectors', 'model': arguments.model, 'threads': threads}
  print(json.dumps(report | {'implementations': runs}) if arguments.json else table(runs))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
  """Returns a line of medians for each implementation, and the ratio of ours to the baseline."""
  lines, rates = [], {}
  for name, results in runs.items():
    rates[name] = [result['amount'] / result['seconds'] for result in results]
    seconds, command, counting = (
      statistics.median(result[key] for result in results)
      for key in ('seconds', 'command', 'counting')
    )
    rate = f'{statistics.median(rates[name]) / 1e6:6.2f} M {results[0]["unit"]}/s'
    line = f'{name:9} {rate}  {seconds:7.1f} s ({command:.1f} s)'
    if counting:
      line += f'  counting {counting:.1f} s'
    for key in (key for key in results[0] if '/' in key):  # scores
      values = [result[key] for result in results]
      line += f'  {key} {statistics.mean(values):.3f}'
      line += f' ({min(values):.3f}-{max(values):.3f})' * (len(values) > 1)
    lines.append(line)
  if len(runs) == 2:
    ratios = [ours / baseline for ours, baseline in zip(*rates.values(), strict=True)]
    spread = f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})'
    lines.append(f'ours / {list(runs)[1]}: {spread} times the speed of training')
  return '\n'.join(lines)


def train(name: str, **settings: Any) -> dict[str, Any]:
  """Returns the Result of an implementation as a dict; runs in its worker.

  Raises:
    UserError: the implementation is not installed.
  """
  implementation = {'ours': ours, 'gensim': gensim, 'stanford': stanford}[name]
  return implementation(Settings(**settings))._asdict()


def ours(settings: Settings) -> Result:
  """Trains with the loop of `lm.train`, in an empty directory with an empty cache."""
  from lm.data import pipeline
  from lm.evaluation.vectors import of_run
  from lm.parallel.host import Never
  from lm.training import trainer

  started = time.perf_counter()
  is_glove = settings.model == 'glove'
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    config = config_of(settings, str(root / 'cache'))
    tokenizer = pipeline.tokenizer(config.data)
    counting = time.perf_counter()
    rows = pipeline.packed_rows(config.data, 'train', tokenizer, config.seed)
    counting = time.perf_counter() - counting
    epochs = settings.glove_epochs if is_glove else settings.epochs
    config.steps = max(1, epochs * len(rows) // config.batch_size)
    config.eval.every = config.checkpoint.every = config.steps
    # At least four calls, since the first one compiles and does not count.
    config.steps_per_call = min(config.steps_per_call, max(1, config.steps // 4))
    config.log.every = config.steps_per_call
    trainer.train(config, '', root / 'run', Never())
    write_word2vec_text(settings.out, of_run(root / 'run'))
    lines = (root / 'run' / 'metrics.jsonl').read_text().splitlines()
  # The first call compiles and has no row. Evaluations and checkpoints do not count.
  step_seconds = [
    m['train/step_seconds'] for m in map(json.loads, lines) if 'train/step_seconds' in m
  ]
  return Result(
    seconds=statistics.mean(step_seconds) * config.steps,
    counting=counting if is_glove else 0.0,
    command=time.perf_counter() - started,
    unit='pairs' if is_glove else 'words',
    amount=epochs * (rows.tokens if is_glove else rows.tokens - rows.documents),
    version=importlib.metadata.version('jax'),
  )


def config_of(settings: Settings, cache: str) -> ConfigDict:
  """Returns the config of the experiments word2vec_text8 and glove_text8 for a text."""
  from lm.config.base import base
  from lm.config.vectors import glove, word2vec, words

  config = base()
  config.seed = settings.seed
  config.data.cache = cache
  config.data.source = f'lm.data.sources:text(files={settings.text!r})'
  words(config, settings.size, settings.min_count)
  if settings.model == 'glove':
    glove(config, rate=0.05, window=settings.glove_window, x_max=settings.x_max)
  else:
    skip_gram = settings.model == 'skip_gram'
    config.batch_size, config.steps_per_call = (8, 500) if skip_gram else (32, 125)
    word2vec(config, settings.model, LEARNING_RATES[settings.model])
    config.objective.output.num_sampled = 4 if skip_gram else 1
    config.objective.window = settings.window
    config.objective.output.negatives = settings.negatives
  return config


def gensim(settings: Settings) -> Result:
  """Trains Word2Vec of Gensim (Rehurek and Sojka 2010) on words in memory, its fastest input."""
  from gensim.models import Word2Vec

  started = time.perf_counter()
  with _opened(settings.text) as file:
    words = file.read().decode().split()
  sentences = [words[i : i + _SENTENCE] for i in range(0, len(words), _SENTENCE)]
  model = Word2Vec(
    vector_size=settings.size,
    window=settings.window,
    min_count=settings.min_count,
    sg=int(settings.model == 'skip_gram'),
    negative=settings.negatives,
    workers=settings.threads,
    seed=settings.seed,
  )
  model.build_vocab(sentences)
  training = time.perf_counter()
  model.train(sentences, total_examples=model.corpus_count, epochs=settings.epochs)
  seconds = time.perf_counter() - training
  model.wv.save_word2vec_format(settings.out)
  command = time.perf_counter() - started
  amount = len(words) * settings.epochs
  return Result(seconds, 0.0, command, 'words', amount, importlib.metadata.version('gensim'))


def stanford(settings: Settings) -> Result:
  """Trains with the four programs of Stanford's GloVe (Pennington et al. 2014).

  Other options have the defaults of the programs, which are those of the paper.

  Raises:
    UserError: a program is missing.
  """
  programs = pathlib.Path(settings.programs).expanduser()
  for name in STANFORD_PROGRAMS:
    if not settings.programs or not (programs / name).is_file():
      raise UserError(
        f'--glove={settings.programs!r}: there is no program {name!r}; '
        "compile Stanford's GloVe, and give --glove the path of its directory `build`"
      )
  started = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    with _opened(settings.text) as file, (root / 'text').open('wb') as out:
      shutil.copyfileobj(file, out)

    def run(name: str, *arguments: object, stdin: str = 'text', stdout: str = 'log') -> float:
      begin = time.perf_counter()
      with (root / stdin).open('rb') as source, (root / stdout).open('wb') as target:
        command = [str(programs / name), *map(str, arguments), '-verbose', '0']
        subprocess.run(command, stdin=source, stdout=target, stderr=subprocess.DEVNULL, check=True)
      return time.perf_counter() - begin

    vocab = root / 'vocab'
    run('vocab_count', '-min-count', settings.min_count, stdout='vocab')
    counting = run(
      'cooccur', '-vocab-file', vocab, '-window-size', settings.glove_window, '-memory', 4.0,
      '-overflow-file', root / 'overflow', stdout='pairs',
    )  # fmt: skip
    found_pairs = (root / 'pairs').stat().st_size // _RECORD
    shuffling = run(
      'shuffle', '-memory', 4.0, '-temp-file', root / 'temp', '-seed', settings.seed + 1,
      stdin='pairs', stdout='shuffled',
    )  # fmt: skip
    seconds = run(
      'glove', '-input-file', root / 'shuffled', '-vocab-file', vocab,
      '-save-file', root / 'vectors',
      '-threads', settings.threads, '-x-max', settings.x_max, '-iter', settings.glove_epochs,
      '-vector-size', settings.size, '-binary', 0, '-seed', settings.seed + 1,
    )  # fmt: skip
    command = time.perf_counter() - started
    vectors = read_glove(root / 'vectors.txt')  # the last vector is that of <unk>
    write_word2vec_text(settings.out, make_vectors(vectors.words[:-1], vectors.matrix[:-1]))
  amount = found_pairs * settings.glove_epochs
  return Result(seconds, counting + shuffling, command, 'pairs', amount, str(programs))


def _opened(path: str) -> gzip.GzipFile | BinaryIO:
  """Opens a text, gzipped or not, for reading bytes."""
  return gzip.open(path) if path.endswith('.gz') else open(path, 'rb')
