import os
import pathlib
import re

import pytest

from lm.data.sources import conll, conllu
from lm.errors import UserError


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file and returns its name."""

  def write(content):
    (tmp_path / 'a.txt').write_bytes(content.encode())
    return str(tmp_path / 'a.txt')

  return write


def test_blank_lines_separate_sentences(write):
  # A line separator of Unicode is an ordinary word, and so is a word that begins with '#'.
  file = write('\n#Jim\tB-PER\r\nlives\tO\r\n\r\n\n\u2028\tO\n')
  assert list(conll('train', file)) == [
    {'words': ['#Jim', 'lives'], 'tags': ['B-PER', 'O'], 'separator': ' '},
    {'words': ['\u2028'], 'tags': ['O'], 'separator': ' '},
  ]
  assert conll('validation', file, validation=0.5, separator='')[0]['separator'] == ''


def test_columns_are_chosen_by_position(write):
  file = write('EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n')
  sentences = conll('train', file, columns=('words', None, None, 'tags'), delimiter=' ')
  assert list(sentences) == [
    {'words': ['EU', 'rejects'], 'tags': ['B-ORG', 'O'], 'separator': ' '},
  ]
  with pytest.raises(UserError, match="'words' and 'tags' once each"):
    conll('train', file, columns=('words', 'words'))


TREE = """# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
2.1\tgone\t_\tVERB\tV\t_\t_\t_\t_\t_
3\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\t_
"""


def test_conllu_returns_syntactic_words(write):
  words = ['vamos', 'nos', 'mar']
  assert list(conllu('train', write(TREE))) == [
    {'words': words, 'tags': ['VERB', 'PRON', 'NOUN'], 'separator': ' '}
  ]
  assert conllu('train', write(TREE), tags='xpos')[0]['tags'] == ['V', 'P', 'N']
  with pytest.raises(UserError, match=r"tags='pos' .did you mean .*xpos"):
    conllu('train', write(TREE), tags='pos')


def test_a_byte_order_mark_is_no_part_of_the_first_word(write):
  assert conll('train', write('\ufeffa\tO\n'))[0]['words'] == ['a']


def test_broken_lines_are_reported(write):
  with pytest.raises(UserError, match=r"a\.txt, line 4: 1 columns, not 2: 'broken'"):
    list(conll('train', write('a\tO\n\nb\tO\nbroken\n')))
  with pytest.raises(UserError, match=r'a\.txt, line 1: an empty column'):
    list(conll('train', write('\tO\n')))
  with pytest.raises(UserError, match=r'a\.txt, line 1: an empty column'):
    list(conll('train', write(' \tO\n')))
  with pytest.raises(UserError, match=r'a\.txt, line 8: 3 columns, not 10'):
    list(conllu('train', write(TREE + '\n1\ta\tb\n')))
  with pytest.raises(UserError, match=r'a\.txt, line 1: a sentence without words'):
    list(conllu('train', write('# only a comment\n')))


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')
def test_real_files():
  chinese = list(conll('dev', '$LM_DATA/msra_ner/{split}.tsv', separator=''))
  kinds = {f'{mark}-{kind}' for mark in 'BI' for kind in ('PER', 'LOC', 'ORG')} | {'O'}
  assert len(chinese) == 1000 and {t for e in chinese for t in e['tags']} == kinds
  assert len(conll('train', '$LM_DATA/wnut17_ner/{split}.tsv')) == 3394
  sentences = conllu('dev', '$LM_DATA/ud_chinese_gsdsimp/{split}.conllu', separator='')
  assert len(sentences) == 500
  file = pathlib.Path(os.environ['LM_DATA'], 'ud_chinese_gsdsimp/dev.conllu')
  texts = re.findall('^# text = (.*)$', file.read_text('utf-8'), re.MULTILINE)
  words = [''.join(sentence['words']) for sentence in sentences]
  assert words == [text.replace(' ', '') for text in texts]
