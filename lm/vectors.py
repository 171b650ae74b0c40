"""Word vectors of a model: nearest words, analogies, human similarity, files, and a map.

  python -m lm.vectors nearest --workdir=DIR WORD... [--k=10]
  python -m lm.vectors analogy --workdir=DIR A B C [--k=10] [--score=add|mul]
  python -m lm.vectors similarity --workdir=DIR [--pairs=FILE ...] [--questions=FILE ...]
  python -m lm.vectors export --workdir=DIR --out=FILE [--format=word2vec|word2vec_binary|glove]
  python -m lm.vectors import --workdir=NEW --file=FILE [--format=word2vec|word2vec_binary|glove]
  python -m lm.vectors map --workdir=DIR --out=FILE.html [--words=N | WORD...]

`nearest` prints lines of word, neighbor and cosine, and `analogy` prints words that are to C as B
is to A, with their scores; tabs separate the fields. `similarity` prints one JSON object. It has
Spearman's correlation for pairs (null if undefined, as for one pair), the accuracies of 3CosAdd and
3CosMul for questions, and the coverage of both. `import` makes a workdir from a file, for lm.load
and warm_start.workdir. `map` writes a page of the given words, or of the first N words of the
vocabulary. After --, a word may begin with a dash.
"""

import contextlib
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from lm import cli
from lm.errors import UserError, did_you_mean
from lm.metrics import word_vectors
from lm.text import vector_files
from lm.text.files import expand_path
from lm.text.tokenizers import END, UNKNOWN
from lm.text.vectors import Vectors, analogy, nearest_words, row_of
from lm.workdir import files

_FORMATS = {
  'word2vec': (vector_files.read_word2vec_text, vector_files.write_word2vec_text),
  'word2vec_binary': (vector_files.read_word2vec_binary, vector_files.write_word2vec_binary),
  'glove': (vector_files.read_glove, vector_files.write_glove),
}

flags.DEFINE_string('workdir', None, 'directory of the run; for import, the new one')
cli.define_untrusted_flag()
flags.DEFINE_integer('step', None, 'checkpoint to use; by default the best, or else the newest')
flags.DEFINE_integer('k', 10, 'words to print', lower_bound=1)
flags.DEFINE_enum(
  'score', 'add', list(word_vectors.SCORES), 'of analogies: add for 3CosAdd, mul for 3CosMul'
)
flags.DEFINE_multi_string('pairs', [], 'file of word TAB word TAB score; repeatable')
flags.DEFINE_multi_string('questions', [], 'file of analogies in sections; repeatable')
flags.DEFINE_string('out', None, 'file to write')
flags.DEFINE_string('file', None, 'file to import')
flags.DEFINE_enum('format', 'word2vec', list(_FORMATS), f'of the file: {", ".join(_FORMATS)}')
flags.DEFINE_integer('words', 500, 'first words of the vocabulary, for the map', lower_bound=1)


def main(argv: list[str]) -> None:
  name, *words = cli.parse(argv, positional=True) or ['']
  if name not in _COMMANDS:
    available = ', '.join(_COMMANDS)
    raise UserError(
      f'no subcommand {name!r}{did_you_mean(name, _COMMANDS)}; available: {available}'
    )
  run, takes_words, allowed = _COMMANDS[name]
  if not takes_words:
    cli.refuse_positional(words)
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    if flag.present and flag.name not in ('workdir', *allowed):
      takes = ', '.join(f'--{other}' for other in ('workdir', *allowed))
      raise UserError(f'{name} takes no --{flag.name}; it takes {takes}')
  run(files.workdir(cli.required('workdir', 'runs/word2vec_quickstart')), words)


def _vectors_of(workdir: pathlib.Path) -> tuple[Vectors, Sequence[str]]:
  """Returns the vectors of a run, and a note on the step if that is the default."""
  from lm.evaluation.vectors import of_loaded
  from lm.workdir.load import load

  loaded = load(workdir, flags.FLAGS.step, trusted=not flags.FLAGS.untrusted)
  return of_loaded(loaded), loaded.notes


def _nearest(workdir: pathlib.Path, words: list[str]) -> None:
  if not words:
    raise UserError('nearest needs a word, as in: nearest --workdir=DIR king')
  vectors, notes = _vectors_of(workdir)
  for word in words:
    row_of(vectors, word)  # raises UserError for an unknown word, before the first line
  if len(vectors.words) < 2:
    raise UserError(f'--workdir={workdir}: {words[0]!r:.80} is its only word, without neighbors')
  cli.print_notes(notes)
  for word in words:
    for other, cosine in nearest_words(vectors, word, flags.FLAGS.k):
      print(_shown(word), _shown(other), f'{cosine:.4f}', sep='\t')


def _analogy(workdir: pathlib.Path, words: list[str]) -> None:
  if len(words) != 3:
    raise UserError(
      f'analogy needs three words, as in: analogy --workdir=DIR man king woman; not {len(words)}'
    )
  vectors, notes = _vectors_of(workdir)
  score = word_vectors.SCORES[flags.FLAGS.score]
  a, b, c = words
  found = analogy(vectors, a, b, c, flags.FLAGS.k, score)
  if not found:
    raise UserError(f'--workdir={workdir} has no words besides the given ones')
  cli.print_notes(notes)
  for word, value in found:
    print(_shown(word), f'{value:.4f}', sep='\t')


def _similarity(workdir: pathlib.Path, words: list[str]) -> None:
  if not flags.FLAGS.pairs and not flags.FLAGS.questions:
    raise UserError('similarity needs --pairs=FILE or --questions=FILE')
  with _named('pairs'):
    metrics = [word_vectors.pairs(file) for file in flags.FLAGS.pairs]
  with _named('questions'):
    metrics += [word_vectors.questions(file, sections=True) for file in flags.FLAGS.questions]
  from lm.evaluation.vectors import check_names, scores

  check_names(metrics, '--pairs and --questions: files need distinct names')
  vectors, notes = _vectors_of(workdir)
  found = scores(metrics, vectors)
  cli.print_notes(notes)
  print(cli.json_line(found.values))


def _export(workdir: pathlib.Path, words: list[str]) -> None:
  out = cli.output_file('out', cli.required('out', 'vectors.txt'))
  vectors, notes = _vectors_of(workdir)
  _FORMATS[flags.FLAGS.format][1](out, vectors)
  cli.print_notes(notes)
  print(f'{out}: {_size(vectors)}')


def _import(workdir: pathlib.Path, words: list[str]) -> None:
  file = expand_path(cli.required('file', 'vectors.txt'), '--file')
  files.check_new(workdir)  # before a large file is read
  with _named('file'):
    vectors = _FORMATS[flags.FLAGS.format][0](file)
  from lm.evaluation.vectors import write_run

  write_run(vectors, workdir)
  special = ' and '.join(repr(word) for word in (END, UNKNOWN) if word in vectors.index)
  note = f'; {special} are special tokens, which nearest, map and the others leave out'
  print(f'{workdir}: {_size(vectors)}{note if special else ""}')


def _map(workdir: pathlib.Path, words: list[str]) -> None:
  if words and flags.FLAGS['words'].present:
    raise UserError(f'--words={flags.FLAGS.words}: give a count or words, not both')
  out = cli.output_file('out', cli.required('out', 'map.html'))
  from lm.evaluation.vectors import word_map as map_of_words
  from lm.report import word_map
  from lm.report.page import heading, render
  from lm.workdir import run_data

  vectors, notes = _vectors_of(workdir)
  found = map_of_words(vectors, words or vectors.words[: flags.FLAGS.words])
  page = render(run_data.read_run(workdir), (heading, lambda run: word_map.show(found)))
  cli.write_output('out', out, page.encode('utf-8', errors='backslashreplace'))
  cli.print_notes(notes)
  print(f'{out}: {_count(len(found["words"]), "word")}')


# By name: the function, whether it takes words, and its flags in addition to --workdir.
_Command = tuple[Callable[[pathlib.Path, list[str]], None], bool, tuple[str, ...]]
_COMMANDS: dict[str, _Command] = {
  'nearest': (_nearest, True, ('step', 'untrusted', 'k')),
  'analogy': (_analogy, True, ('step', 'untrusted', 'k', 'score')),
  'similarity': (_similarity, False, ('step', 'untrusted', 'pairs', 'questions')),
  'export': (_export, False, ('step', 'untrusted', 'out', 'format')),
  'import': (_import, False, ('file', 'format')),
  'map': (_map, True, ('step', 'untrusted', 'out', 'words')),
}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
  """Adds the name of a flag to errors within a block, which reads the flag's files."""
  try:
    yield
  except UserError as e:
    raise UserError(f'--{name}: {e}') from e


def _size(vectors: Vectors) -> str:
  words, dimensions = vectors.matrix.shape
  return f'{_count(words, "word")} of {_count(dimensions, "dimension")}'


def _count(count: int, of: str) -> str:
  return f'{count:,} {of}{"s" if count != 1 else ""}'


def _shown(word: str) -> str:
  """Returns a word, with escapes if it has line breaks or control characters."""
  breaks = any(unicodedata.category(c) in ('Cc', 'Zl', 'Zp', 'Cs') for c in word)
  return repr(word) if breaks else word


if __name__ == '__main__':
  cli.run(main, __doc__)
