"""Tokens per character, word and byte, counted by hand."""

import pytest

from lm.config import base as configs
from lm.evaluation import fertility as module
from lm.evaluation.fertility import fertility, rates
from lm.report.page import fertility as table
from lm.text import tokenizers
from lm.workdir import run_data


def test_the_counts_are_those_of_the_texts(monkeypatch):
  texts = ['héllo world', '中国']  # 12 and 6 bytes; 2 words and 1
  assert rates(tokenizers.bytes([]), texts) == {
    'characters': 13,
    'tokens per character': pytest.approx(18 / 13),
    'bytes per token': 1.0,
    'tokens per word': 6.0,
  }
  found = rates(tokenizers.characters(['helo world']), texts)
  assert found['tokens per character'] == 1.0
  assert found['unknown tokens'] == pytest.approx(3 / 13)
  monkeypatch.setattr(module, '_CHARACTERS', 20)
  endless = iter(lambda: 'words ' * 2, None)
  assert rates(tokenizers.words(['words']), endless)['tokens per word'] == 1.0


def test_each_set_has_a_row_in_the_report(tmp_path, corpus_file):
  config = configs.base()
  with config.unlocked():
    de = configs.component(corpus_file('Haus'))
    pair = corpus_file('source\ttarget\nab\tcdef', columns={'source': 'source', 'target': 'target'})
    task = {'task': 'lm.tasks.text:text_to_text', 'converter': 'lm.tasks.seq2seq:encoder_decoder'}
    config.data.mixture = {'de': de, 'pairs': configs.component(pair, **task)}
    config.eval.sets = {n: configs.evaluation('train', component=n) for n in config.data.mixture}
  evaluator = fertility(config, None, tokenizers.bytes([]))
  assert '6 characters, 1 tokens per character' in evaluator.notes['fertility of pairs']
  for name, content in evaluator.run(3, {}).files.items():
    run_data.write_newest(tmp_path, name, 3, content)
  (tmp_path / 'config.json').write_text('{}')
  page = table(run_data.read_run(tmp_path))
  assert '<td>de</td><td class="number">4</td><td class="number">1</td>' in page
  assert '<th class="number">tokens per word</th>' in page
  assert not table(run_data.read_run(tmp_path)._replace(fertility={}))


@pytest.fixture
def corpus_file(tmp_path):
  """Returns a function that writes a file and returns the path of its source."""

  def write(text, **arguments):
    file = tmp_path / f'{len(text)}.{"tsv" if arguments else "txt"}'
    file.write_text(text)
    columns = f', columns={arguments["columns"]}' if arguments else ''
    return f'lm.data.sources:{"table" if arguments else "text"}(files={str(file)!r}{columns})'

  return write
