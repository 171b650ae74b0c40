"""The output of lm.vectors, and an error of one line for every mistake."""

import json

import in_process
import numpy as np
import pytest

from lm.evaluation.vectors import of_run, write_run
from lm.metrics.word_vectors import accuracy, read_questions
from lm.text import vector_files
from lm.text.vectors import make_vectors, three_cos_mul

# The axes are male, female, royal, and another one.
ROYALS = {
  'man': (1, 0, 0, 0.1),
  'woman': (0, 1, 0, 0.1),
  'king': (1, 0, 1, 0.2),
  'queen': (0, 1, 1, 0.2),
  'c\x9bsi': (0.1, 0.1, -1, 0),
}


def output(*arguments):
  result = in_process.run('vectors', *arguments)
  assert result.returncode == 0, result.stderr
  return result.stdout


def mistake(*arguments):
  """Returns the line of the error."""
  return in_process.mistake('vectors', *arguments)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('vectors') / 'run'
  write_run(make_vectors(ROYALS, list(ROYALS.values())), folder)
  return folder


def test_nearest_prints_words_and_cosines(workdir):
  unit = {word: np.divide(row, np.linalg.norm(row)) for word, row in ROYALS.items()}
  lines = []
  for word in ('king', 'c\x9bsi'):
    cosines = {other: unit[word] @ unit[other] for other in ROYALS if other != word}
    best = sorted(cosines, key=cosines.__getitem__, reverse=True)[:2]
    lines += [f'{word}\t{other}\t{cosines[other]:.4f}\n' for other in best]
  expected = ''.join(lines).replace('c\x9bsi', "'c\\x9bsi'")  # has a control character
  assert output('nearest', f'--workdir={workdir}', 'king', '--k=2', '--', 'c\x9bsi') == expected


def test_analogy_finds_the_queen(workdir):
  arguments = ('man', 'king', 'woman', f'--workdir={workdir}', '--k=1', '--score=mul')
  word, value = output('analogy', *arguments).removesuffix('\n').split('\t')
  unit = {word: np.divide(row, np.linalg.norm(row)) for word, row in ROYALS.items()}
  a, b, c = ((1 + unit['queen'] @ unit[w]) / 2 for w in ('man', 'king', 'woman'))
  assert (word, float(value)) == ('queen', pytest.approx(b * c / (a + 0.001), abs=1e-4))


def test_similarity_of_files(workdir, tmp_path):
  (tmp_path / 'likeness.tsv').write_text(
    'man\tking\t9\nman\tqueen\t5\nman\twoman\t7\nman\tboy\t1\n'
  )
  (tmp_path / 'royal.txt').write_text(': crown\nman king woman queen\nking man queen boy\n')
  files = (f'--pairs={tmp_path}/likeness.tsv', f'--questions={tmp_path}/royal.txt')
  found = json.loads(output('similarity', f'--workdir={workdir}', *files))
  questions = read_questions(tmp_path / 'royal.txt')
  add = accuracy(of_run(workdir), questions).values
  mul = accuracy(of_run(workdir), questions, three_cos_mul).values
  # The ranks are 3 2 1 by cosine and 3 1 2 by people: 1 - 6 * 2 / (3 * 8).
  assert found == {
    'likeness/spearman': pytest.approx(0.5),
    'likeness/coverage': 0.75,
    'royal/add_accuracy': add['accuracy'],
    'royal/mul_accuracy': mul['accuracy'],
    'royal/coverage': 0.5,
    'royal/crown/add_accuracy': add['accuracy'],
    'royal/crown/mul_accuracy': mul['accuracy'],
    'royal/crown/coverage': 0.5,
  }


def test_undefined_values_are_null(workdir, tmp_path):
  (tmp_path / 'one.tsv').write_text('man\tking\t9\n')

  def refuse(name):
    raise AssertionError(f'{name} is no JSON')

  said = output('similarity', f'--workdir={workdir}', f'--pairs={tmp_path}/one.tsv')
  found = json.loads(said, parse_constant=refuse)
  assert found == {'one/spearman': None, 'one/coverage': 1}


def assert_royal(found):
  assert found.words == tuple(ROYALS)
  np.testing.assert_array_equal(found.matrix, np.float32(list(ROYALS.values())))


@pytest.mark.parametrize(
  ('form', 'read'),
  [
    ([], vector_files.read_word2vec_text),
    (['--format=glove'], vector_files.read_glove),
  ],
)
def test_export_writes_a_file_in_each_format(workdir, form, read, tmp_path):
  out = tmp_path / 'out'
  said = output('export', f'--workdir={workdir}', f'--out={out}', *form)
  assert said == f'{out}: 5 words of 4 dimensions\n'
  assert_royal(read(out))


def test_import_makes_a_workdir(tmp_path):
  file, new = tmp_path / 'file', tmp_path / 'new'
  vector_files.write_word2vec_binary(file, make_vectors(ROYALS, list(ROYALS.values())))
  said = output('import', f'--workdir={new}', f'--file={file}', '--format=word2vec_binary')
  assert said == f'{new}: 5 words of 4 dimensions\n'
  assert_royal(of_run(new))


def test_a_moved_workdir_can_be_evaluated(tmp_path):
  write_run(make_vectors(ROYALS, list(ROYALS.values())), tmp_path / 'here')
  (tmp_path / 'here').rename(tmp_path / 'there')
  result = in_process.run('evaluate', f'--workdir={tmp_path}/there')
  assert result.returncode == 0, result.stderr
  lengths = np.linalg.norm(list(ROYALS.values()), axis=1)
  assert json.loads(result.stdout) == {
    'step': 0,
    'eval/vectors/mean_length': pytest.approx(lengths.mean()),
  }


def test_a_map_has_the_first_words_or_the_given_words(workdir, tmp_path):
  out = tmp_path / 'map.html'
  assert output('map', f'--workdir={workdir}', f'--out={out}', '--words=3') == f'{out}: 3 words\n'
  page = out.read_text()
  assert page.startswith('<!doctype html>') and '3 words along' in page
  assert '>king<' in page and '>queen<' not in page
  output('map', f'--workdir={workdir}', f'--out={out}', 'queen', 'man')
  assert '>king<' not in out.read_text() and '>queen<' in out.read_text()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], "no subcommand ''; available: nearest, analogy, similarity, export, import, map"),
    (['nearst', 'king'], "no subcommand 'nearst' (did you mean 'nearest'"),
    (['nearest', 'king'], '--workdir is required'),
    (['nearest', '--workdir={run}'], 'nearest needs a word'),
    (['nearest', '--workdir={run}', 'king', '--k=0'], '--k=0 must be a positive integer'),
    (['nearest', '--workdir={run}', 'king', '--score=mul'], 'nearest takes no --score; it takes'),
    (['nearest', '--workdir={run}', 'king', '--q=1'], 'unknown flag --q'),
    (['analogy', '--workdir={run}', 'man', 'king'], 'analogy needs three words'),
    (['analogy', '--workdir={run}', 'a', 'b', 'c', '--score=mull'], "(did you mean 'mul'?)"),
    (['similarity', '--workdir={run}'], 'similarity needs --pairs=FILE or --questions=FILE'),
    (['similarity', '--workdir={run}', '--pairs={tmp}/none'], 'none cannot be read: No such file'),
    (['similarity', '--workdir={run}', '--pairs={tmp}/bad'], "bad, line 2: 'a b' is not 3 fields"),
    (
      ['similarity', '--workdir={run}', '--pairs={tmp}/good', '--pairs={tmp}/good'],
      "files need distinct names; two are called 'good'",
    ),
    (['export', '--workdir={run}'], '--out is required'),
    (['export', '--workdir={run}', '--out={tmp}'], 'is a directory; give the name of a file'),
    (['export', '--workdir={run}', '--out={tmp}/no/x'], 'no/x: there is no such directory'),
    (['export', '--workdir={run}', '--out={tmp}/x', '--format=glov'], "(did you mean 'glove'?)"),
    (['export', '--workdir={run}', '--out={tmp}/x', 'king'], "unexpected argument 'king'"),
    (['map', '--workdir={run}', '--out={tmp}/x', '--words=0'], '--words=0 must be a positive'),
    (['map', '--workdir={run}', '--out={tmp}/x', '--words=2', 'man'], 'a count or words, not'),
    (['import', '--workdir={tmp}/new'], '--file is required'),
  ],
)
def test_wrong_usage_is_an_error_of_one_line(workdir, arguments, message, tmp_path):
  (tmp_path / 'bad').write_text('a\tb\t1\na b\n')
  (tmp_path / 'good').write_text('a\tb\t1\n')
  before = sorted(tmp_path.iterdir())
  line = mistake(*(a.format(run=workdir, tmp=tmp_path) for a in arguments))
  assert line.startswith('lm.vectors: ') and message in line
  assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['nearest', 'kin'], "'kin' is not among the 5 words (did you mean 'king'?)"),
    (['map', '--out={tmp}/x', 'kin'], "'kin' is not among the 5 words"),
    (['similarity', '--pairs={tmp}/absent'], 'absent: similarity: metric on an empty set'),
  ],
)
def test_unknown_words_are_an_error_of_one_line(workdir, arguments, message, tmp_path):
  (tmp_path / 'absent').write_text('a\tb\t1\n')
  given = [a.format(tmp=tmp_path) for a in arguments]
  assert message in mistake(*given, f'--workdir={workdir}')
  assert [path.name for path in tmp_path.iterdir()] == ['absent']


@pytest.mark.parametrize(
  ('content', 'form', 'message'),
  [
    (b'2 2\na 1 2\nb 1', 'word2vec', 'truncated'),
    (b'2 2\na 1 2\nb 1 nan\n', 'word2vec', "line 3: value 2 of 'b' is nan"),
    (b'a 1 2\nb 1 2\n', 'word2vec', "line 1: 'a 1 2\\n' is no header"),
    (b'2 2\na 1 2\nb 1 2\n', 'glove', 'line 1: a header, which files of GloVe lack'),
    (b'a 1 2\n\xff 1 2\n', 'glove', 'line 2: '),
    (b'2 2\na \0\0\0\0\0\0\0\0b \0\0', 'word2vec_binary', 'truncated'),
  ],
)
def test_a_wrong_file_makes_no_workdir(content, form, message, tmp_path):
  (tmp_path / 'file').write_bytes(content)
  line = mistake(
    'import', f'--workdir={tmp_path}/new', f'--file={tmp_path}/file', f'--format={form}'
  )
  assert message in line
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_import_refuses_a_workdir_that_is_not_empty(workdir, tmp_path):
  (tmp_path / 'file').write_text('a 1 2\n')
  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  line = mistake('import', f'--workdir={workdir}', f'--file={tmp_path}/file', '--format=glove')
  assert 'is not empty; give the name of a new directory' in line
  assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


def test_a_workdir_without_a_run_is_an_error_of_one_line(tmp_path):
  assert 'no run there' in mistake('nearest', f'--workdir={tmp_path}', 'king')
