"""The benchmark of word vectors: figures by hand, our training end to end, wrong arguments."""

import gzip

import numpy as np
import pytest

from lm.bench import vectors
from lm.bench.__main__ import main
from lm.bench.vectors import Settings
from lm.errors import UserError
from lm.text.vector_files import read_word2vec_text


@pytest.fixture
def text(tmp_path):
  """A text in which words of two groups alternate in stretches of 100."""
  rng = np.random.default_rng(0)
  words = [f'{kind}{rng.integers(20)}' for kind in 'ab' * 40 for _ in range(100)]
  file = tmp_path / 'text.gz'
  with gzip.open(file, 'wt') as f:
    f.write(' '.join(words))
  return file


def run(seconds, score, command=9.0):
  return {
    'seconds': seconds,
    'counting': 0.0,
    'command': command,
    'unit': 'words',
    'amount': 4_000_000,
    'version': '1',
    'pairs/spearman': score,
  }


def test_table_has_medians_means_and_ratios_within_a_run():
  # Our rates are 2, 4 and 1 M a second, the baseline's 1, 4 and 2: ratios 2, 1 and 0.5.
  mine = [run(2.0, 0.3), run(1.0, 0.1), run(4.0, 0.2)]
  other = [run(4.0, 0.5), run(1.0, 0.5), run(2.0, 0.5)]
  first, second, ratio = vectors.table({'ours': mine, 'gensim': other}).splitlines()
  assert first.split()[:2] == ['ours', '2.00']
  assert 'pairs/spearman 0.200 (0.100-0.300)' in first
  assert second.split()[:2] == ['gensim', '2.00']
  assert 'ours / gensim: 1.00 (0.50-2.00) times' in ratio


@pytest.mark.parametrize('model', ['skip_gram', 'glove'])
def test_our_training_follows_the_settings(model, text, tmp_path):
  out = tmp_path / 'vectors'
  settings = Settings(str(text), model, 0, 1, str(out), size=8, epochs=2, glove_epochs=8)
  found = vectors.ours(settings)
  made = read_word2vec_text(out)
  assert len(made.words) == 40 and made.matrix.shape == (40, 8)
  assert 0 < found.seconds < found.command
  if model == 'skip_gram':
    assert (found.unit, found.amount) == ('words', 2 * 8000)
  else:
    assert found.unit == 'pairs' and found.counting > 0


def test_missing_program_of_stanford_is_a_user_error(text, tmp_path):
  settings = Settings(str(text), 'glove', 0, 1, 'out', programs=str(tmp_path))
  with pytest.raises(UserError, match="there is no program 'vocab_count'"):
    vectors.train('stanford', **settings._asdict())


def test_gensim_learns_the_same_words(text, tmp_path):
  pytest.importorskip('gensim')
  settings = Settings(str(text), 'cbow', 0, 1, str(tmp_path / 'vectors'), size=8, epochs=1)
  found = vectors.gensim(settings)
  assert read_word2vec_text(settings.out).matrix.shape == (40, 8)
  assert (found.unit, found.amount) == ('words', 8000)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'the following arguments are required: --text'),
    (['--text=nowhere'], '--text=nowhere: there is no such file'),
    (['--text=TEXT', '--model=skipgram'], "'skip_gram'"),
    (['--text=TEXT', '--model=glove', '--baseline=gensim'], 'has no glove; take stanford'),
    (['--text=TEXT', '--seeds=0'], '0 is not a positive integer'),
    (['--text=TEXT', '--threads=0'], '--threads'),
    (['--text=TEXT', '--pairs=nowhere'], 'nowhere'),
  ],
)
def test_wrong_arguments_are_one_line(arguments, message, text):
  with pytest.raises(UserError) as raised:
    main(['bench', 'vectors', *(a.replace('TEXT', str(text)) for a in arguments)])
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)
