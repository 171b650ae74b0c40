"""Word vectors read from parameters and workdirs, and written to workdirs."""

import numpy as np
import pytest
import tokenizers

import lm
from lm import components
from lm.config.base import base
from lm.errors import UserError
from lm.evaluation.vectors import of_params, of_run, write_run
from lm.report.page import write_report
from lm.text import tokenizers as ours
from lm.text import vector_files
from lm.text.vectors import make_vectors
from lm.training import warm_start
from lm.training.train_step import abstract_state


def drawn(words=('the', 'cat', 'sat', 'on', 'mats'), size=4, seed=0):
  return make_vectors(words, np.random.default_rng(seed).normal(size=(len(words), size)))


def assert_same(found, vectors):
  assert found.words == vectors.words
  np.testing.assert_array_equal(found.matrix, vectors.matrix)


def test_specials_and_padding_are_no_words():
  tokenizer = ours.with_special_tokens(ours.words(['b b b a a c'], min_count=2), ['<|mask|>'])
  assert tokenizer.get_vocab() == {'<|end|>': 0, '<unk>': 1, 'b': 2, 'a': 3, '<|mask|>': 4}
  table = np.arange(16.0).reshape(8, 2)
  found = of_params({'embedding': table, 'head': table}, tokenizer)
  assert found.words == ('b', 'a')
  assert found.matrix.tolist() == [[4, 5], [6, 7]]


def test_parameters_without_vectors_raise():
  tokenizer = ours.words(['a a'])
  with pytest.raises(UserError, match='of the parameters head, norm none is `embedding`'):
    of_params({'head': np.zeros(3), 'norm': np.zeros(3)}, tokenizer)
  with pytest.raises(UserError, match=r"the vector of 'a' has nan"):
    of_params({'embedding': np.full((3, 2), np.nan)}, tokenizer)


def test_vectors_go_into_a_workdir_and_come_out(tmp_path):
  vectors = drawn(['the', 'New_York', "don't", '北京', 'a\x85b', '</s>'])
  write_run(vectors, tmp_path / 'deep/run')
  assert_same(of_run(tmp_path / 'deep/run'), vectors)
  assert_same(of_run(tmp_path / 'deep/run', 0), vectors)
  assert [path.name for path in (tmp_path / 'deep').iterdir()] == ['run']
  loaded = lm.load(tmp_path / 'deep/run')
  ids = loaded.tokenizer.encode('the 北京 unheard').ids
  assert ids == [2, 5, 1]
  output = loaded.apply(loaded.params, {'inputs': np.array([ids])})
  expected = np.stack([vectors.matrix[0], vectors.matrix[3], np.zeros(4)])
  np.testing.assert_array_equal(output.hidden[0], expected)
  page = write_report(tmp_path / 'deep/run').read_text()
  assert 'Step 0. 6 words along' in page and '>New_York<' in page


def test_vectors_of_special_tokens_are_kept(tmp_path):
  vectors = drawn(['one', '<unk>', 'two'])
  write_run(vectors, tmp_path)  # an empty directory is as good as none
  table = lm.load(tmp_path).params['embedding']
  np.testing.assert_array_equal(table, [np.zeros(4), *vectors.matrix[[1, 0, 2]]])
  assert of_run(tmp_path).words == ('one', 'two')


def test_a_run_starts_from_a_workdir_of_vectors(tmp_path):
  vectors = drawn()
  write_run(vectors, tmp_path / 'given')
  config = base()
  config.model = lm.workdir.experiment.read_config(tmp_path / 'given').model
  config.warm_start.workdir = str(tmp_path / 'given')
  file = tmp_path / 'given/tokenizer.json'
  tokenizer = ours.existing([], file=str(file))
  assert tokenizer.to_str() == tokenizers.Tokenizer.from_file(str(file)).to_str()
  functions = components.build_components(config, tokenizer.get_vocab_size())
  abstract, _ = abstract_state(functions)
  state, taken = warm_start.initial_state(config, functions, tokenizer, abstract)
  assert (taken.taken, taken.fresh, taken.unread) == (2, (), ())
  assert_same(of_params(state.params, tokenizer), vectors)


@pytest.mark.parametrize('content', ['file', 'folder'])
def test_an_occupied_path_is_left_alone(content, tmp_path):
  workdir = tmp_path / 'run'
  if content == 'folder':
    workdir.mkdir()
    (workdir / 'mine').write_text('kept')
  else:
    workdir.write_text('kept')
  with pytest.raises(UserError, match=r'run is (not empty|a file); give the name of a new dir'):
    write_run(drawn(), workdir)
  assert sorted(path.name for path in tmp_path.rglob('*')) in (['run'], ['mine', 'run'])


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
  def fail(*arguments):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr('lm.workdir.run_data.write_newest', fail)
  with pytest.raises(UserError, match='run cannot be written: No space left on device'):
    write_run(drawn(), tmp_path / 'run')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('read', 'write', 'options'),
  [
    (vector_files.read_word2vec_text, vector_files.write_word2vec_text, {}),
    (vector_files.read_word2vec_binary, vector_files.write_word2vec_binary, {'binary': True}),
    (vector_files.read_glove, vector_files.write_glove, {'no_header': True}),
  ],
)
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # files left open
def test_gensim_and_a_workdir(read, write, options, tmp_path):
  models = pytest.importorskip('gensim.models')
  vectors = drawn()
  theirs = models.KeyedVectors(4)
  theirs.add_vectors(list(vectors.words), vectors.matrix)
  saving = {'write_header': False} if 'no_header' in options else options
  theirs.save_word2vec_format(str(tmp_path / 'theirs'), **saving)
  write_run(read(tmp_path / 'theirs'), tmp_path / 'run')
  write(tmp_path / 'ours', of_run(tmp_path / 'run'))
  again = models.KeyedVectors.load_word2vec_format(str(tmp_path / 'ours'), **options)
  assert again.index_to_key == list(vectors.words)
  np.testing.assert_array_equal(again.vectors, vectors.matrix)
