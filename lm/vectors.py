"""Word vectors of a model: what lies near what, against people's judgement, in files, on a map.

  python -m lm.vectors nearest --workdir=DIR WORD... [--k=10]
  python -m lm.vectors analogy --workdir=DIR A B C [--k=10] [--score=add|mul]
  python -m lm.vectors similarity --workdir=DIR [--pairs=FILE ...] [--questions=FILE ...]
  python -m lm.vectors export --workdir=DIR --out=FILE [--format=word2vec|word2vec_binary|glove]
  python -m lm.vectors import --workdir=NEW --file=FILE [--format=word2vec|word2vec_binary|glove]
  python -m lm.vectors map --workdir=DIR --out=FILE.html [--words=N | WORD...]

`nearest` writes lines of word, neighbour and cosine, `analogy` words that are to C as B is to A,
with their scores; tabs are between. `similarity` writes one JSON object, of shares: of pairs
Spearman's correlation (null where it has none, as of one pair), of questions the accuracies of
3CosAdd and 3CosMul, of both the coverage.
`import` makes a workdir of a file for lm.load and init.workdir to read. `map` writes a page of the
words given, or of the N first ones of the vocabulary. After -- a word may begin with a dash.
"""

import contextlib
import pathlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from absl import flags

from lm import cli
from lm.errors import UserError, did_you_mean
from lm.text.files import expand_path
from lm.workdir import files

if TYPE_CHECKING:
  from lm.text.vectors import Vectors

_FORMATS = ('word2vec', 'word2vec_binary', 'glove')
_SCORES = ('add', 'mul')

flags.DEFINE_string('workdir', None, 'directory of the run; of import, the new one')
flags.DEFINE_integer('step', None, 'checkpoint to use; the best unless given, or else the newest')
flags.DEFINE_integer('k', 10, 'words to write')
flags.DEFINE_string('score', 'add', 'of analogies: add for 3CosAdd, mul for 3CosMul')
flags.DEFINE_multi_string('pairs', [], 'file of word TAB word TAB score; may come again')
flags.DEFINE_multi_string('questions', [], 'file of analogies in sections; may come again')
flags.DEFINE_string('out', None, 'file to write')
flags.DEFINE_string('file', None, 'file to import')
flags.DEFINE_string('format', 'word2vec', f'of the file: {", ".join(_FORMATS)}')
flags.DEFINE_integer('words', 500, 'words on the map, the first ones of the vocabulary')


def main(argv: list[str]) -> None:
  name, *words = cli.parse(argv, positional=True) or ['']
  if name not in _COMMANDS:
    known = ', '.join(_COMMANDS)
    raise UserError(f'no subcommand {name!r}{did_you_mean(name, _COMMANDS)}; there is {known}')
  run, taken = _COMMANDS[name]
  for flag in flags.FLAGS.get_flags_for_module(__name__):
    if flag.present and flag.name not in ('workdir', *taken):
      takes = ', '.join(f'--{other}' for other in ('workdir', *taken))
      raise UserError(f'{name} takes no --{flag.name}; it takes {takes}')
  run(files.workdir(cli.required('workdir', 'runs/word2vec_quickstart')), words)


def _vectors_of(workdir: pathlib.Path) -> tuple['Vectors', Sequence[str]]:
  """Returns the vectors of a run, and notes that say of which step, where none is named."""
  from lm.evaluation.vectors import of_loaded
  from lm.workdir.load import load

  loaded = load(workdir, flags.FLAGS.step)
  return of_loaded(loaded), loaded.notes


def _nearest(workdir: pathlib.Path, words: list[str]) -> None:
  if not words:
    raise UserError('nearest needs a word, as in: nearest --workdir=DIR king')
  _check_k()
  from lm.text.vectors import nearest_words, row_of

  vectors, notes = _vectors_of(workdir)
  for word in words:
    row_of(vectors, word)  # all are looked up before anything is written
  if len(vectors.words) < 2:
    raise UserError(f'--workdir={workdir}: {words[0]!r:.80} is its only word; nothing is near it')
  cli.print_notes(notes)
  for word in words:
    for other, cosine in nearest_words(vectors, word, flags.FLAGS.k):
      print(_shown(word), _shown(other), f'{cosine:.4f}', sep='\t')


def _analogy(workdir: pathlib.Path, words: list[str]) -> None:
  if len(words) != 3:
    raise UserError(
      f'analogy needs three words, as in: analogy --workdir=DIR man king woman; not {len(words)}'
    )
  _check_k()
  _check_choice('score', _SCORES)
  from lm.metrics.word_vectors import SCORES
  from lm.text.vectors import analogy

  vectors, notes = _vectors_of(workdir)
  score = SCORES[flags.FLAGS.score]
  a, b, c = words
  found = analogy(vectors, a, b, c, flags.FLAGS.k, score)
  if not found:
    raise UserError(f'--workdir={workdir} has no words but those given; none is left to answer')
  cli.print_notes(notes)
  for word, value in found:
    print(_shown(word), f'{value:.4f}', sep='\t')


def _similarity(workdir: pathlib.Path, words: list[str]) -> None:
  _check_no_words(words)
  if not flags.FLAGS.pairs and not flags.FLAGS.questions:
    raise UserError('similarity needs --pairs=FILE or --questions=FILE')
  from lm.metrics.word_vectors import pairs, questions

  with _named('pairs'):
    metrics = [pairs(file) for file in flags.FLAGS.pairs]
  with _named('questions'):
    metrics += [questions(file, sections=True) for file in flags.FLAGS.questions]
  from lm.evaluation.vectors import check_names, scores

  check_names(metrics, '--pairs and --questions: files need names of their own')
  vectors, notes = _vectors_of(workdir)
  found = scores(metrics, vectors)
  cli.print_notes(notes)
  print(cli.json_line(found.values))


def _export(workdir: pathlib.Path, words: list[str]) -> None:
  _check_no_words(words)
  _check_choice('format', _FORMATS)
  out = _out('vectors.txt')
  from lm.text import vector_files

  write = {
    'word2vec': vector_files.write_word2vec_text,
    'word2vec_binary': vector_files.write_word2vec_binary,
    'glove': vector_files.write_glove,
  }[flags.FLAGS.format]
  vectors, notes = _vectors_of(workdir)
  write(out, vectors)
  cli.print_notes(notes)
  print(f'{out}: {_size(vectors)}')


def _import(workdir: pathlib.Path, words: list[str]) -> None:
  _check_no_words(words)
  _check_choice('format', _FORMATS)
  file = expand_path(cli.required('file', 'vectors.txt'), '--file')
  from lm.text import vector_files
  from lm.workdir.files import check_new

  check_new(workdir)  # before a large file is read
  read = {
    'word2vec': vector_files.read_word2vec_text,
    'word2vec_binary': vector_files.read_word2vec_binary,
    'glove': vector_files.read_glove,
  }[flags.FLAGS.format]
  with _named('file'):
    vectors = read(file)
  from lm.evaluation.vectors import write_run
  from lm.text.tokenizers import END, UNKNOWN

  write_run(vectors, workdir)
  out = [word for word in (END, UNKNOWN) if word in vectors.index]
  but = (
    f'; {" and ".join(map(repr, out))} of them: no word, left out by nearest, map and the others'
  )
  print(f'{workdir}: {_size(vectors)}{but if out else ""}')


def _map(workdir: pathlib.Path, words: list[str]) -> None:
  if words and flags.FLAGS['words'].present:
    raise UserError(f'--words={flags.FLAGS.words}: give a number or words, not both')
  if flags.FLAGS.words < 1:
    raise UserError(f'--words={flags.FLAGS.words} is not a positive number')
  out = _out('map.html')
  from lm.evaluation.vectors import word_map as map_of_words
  from lm.report import word_map
  from lm.report.page import heading, render
  from lm.workdir import run_data

  vectors, notes = _vectors_of(workdir)
  found = map_of_words(vectors, words or vectors.words[: flags.FLAGS.words])
  page = render(run_data.read_run(workdir), (heading, lambda run: word_map.show(found)))
  try:
    files.replace(out, page.encode('utf-8', errors='backslashreplace'))
  except OSError as e:
    raise UserError(f'--out={out} cannot be written: {e.strerror}') from e
  cli.print_notes(notes)
  print(f'{out}: {_count(len(found["words"]), "word")}')


# Each with the flags that it takes beside --workdir.
_COMMANDS: dict[str, tuple[Callable[[pathlib.Path, list[str]], None], tuple[str, ...]]] = {
  'nearest': (_nearest, ('step', 'k')),
  'analogy': (_analogy, ('step', 'k', 'score')),
  'similarity': (_similarity, ('step', 'pairs', 'questions')),
  'export': (_export, ('step', 'out', 'format')),
  'import': (_import, ('file', 'format')),
  'map': (_map, ('step', 'out', 'words')),
}


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
  """Names the flag in what is wrong with the files that it gives."""
  try:
    yield
  except UserError as e:
    raise UserError(f'--{name}: {e}') from e


def _check_k() -> None:
  if flags.FLAGS.k < 1:
    raise UserError(f'--k={flags.FLAGS.k} is not a positive number')


def _check_choice(name: str, known: tuple[str, ...]) -> None:
  value = str(flags.FLAGS[name].value)
  if value not in known:
    raise UserError(f'--{name}={value} is none of {", ".join(known)}{did_you_mean(value, known)}')


def _check_no_words(words: list[str]) -> None:
  if words:
    raise UserError(f'unexpected argument {words[0]!r}; flags are written --name=value')


def _out(example: str) -> pathlib.Path:
  """Returns the file to write, once it could be one."""
  out = expand_path(cli.required('out', example), '--out')
  if out.is_dir():
    raise UserError(f'--out={out} is a directory; give the name of a file')
  if not out.absolute().parent.is_dir():
    raise UserError(f'--out={out}: there is no such directory')
  return out


def _size(vectors) -> str:
  words, numbers = vectors.matrix.shape
  return f'{_count(words, "word")} of {_count(numbers, "number")}'


def _count(count: int, of: str) -> str:
  return f'{count:,} {of}{"s" if count != 1 else ""}'


def _shown(word: str) -> str:
  """Returns a word; as Python writes it where it would break a line or steer a terminal."""
  breaks = any(unicodedata.category(c) in ('Cc', 'Zl', 'Zp', 'Cs') for c in word)
  return repr(word) if breaks else word


if __name__ == '__main__':
  cli.run(main, __doc__)
