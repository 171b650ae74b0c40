# ruff: noqa: RUF001
import pytest

from lm.text.segment import Token, as_single_token, sentence_spans, split_sentences


@pytest.mark.parametrize(
  'wanted',
  [
    ['He paid 3.50 dollars.', '"Is it?" she said.', '"Yes."', 'They left (at last!).', 'Go.'],
    ['Dr. J. R. Smith of the U.S. Army met Mr. Brown at No. 5.', 'He did.'],
    ['See e.g. Fig. 3 of vol. 2, Oct. 4.', 'I said no.', 'Well, etc. and so on.'],
    ['1. One thing.', '2. Another.', 'In 1999.', 'Then...', 'And . . . so on.'],
    ['It costs 5 p. a piece, see http://a.b/?c=d.e for more!', 'Éa est là?!', 'Oh…', 'Ah.'],
    ['Er sagte: „Komm!“', 'Dann ging er.'],
    ['« Viens\xa0!\xa0»', 'Il vint.'],
    ['«Пойдём!»', 'Он пошёл.', 'Куда?'],
    ['أين هو؟', 'هنا.', 'نعم'],
    ['वह गया।', 'क्यों?'],
    ['The “end.”', '‘So.’', '[Yes.]', 'No'],
  ],
)
def test_sentences_between_spaces(wanted):
  for space in (' ', '\n', ' \n ', '\u3000'):
    raw = space.join(wanted)
    assert [raw[start:end] for start, end in sentence_spans(raw)] == wanted


@pytest.mark.parametrize(
  'wanted',
  [
    ['他说：“你好。”', '然后走了。', '真的吗？！', '是的……', '好吧'],
    ['“你好！”，他说。', '「走吧。」', '（好。）', '「好。」', '《书》。'],
    ['你好!', '你是谁?', '我是3.5版.', '好'],
    ['“走……”——他说。', '嗯。'],
    ['用python3.5写。', 'Good。', 'OK'],
    ['値は３．１４である．', '次に'],
    ['行く。', '「はい！」', 'と言った。'],
  ],
)
def test_sentences_without_spaces(wanted):
  raw = ''.join(wanted)
  assert [raw[start:end] for start, end in sentence_spans(raw)] == wanted


def test_blank_lines_end_sentences_and_line_ends_do_not():
  raw = 'A title\r\n\r\nsome\ntext. x\n \t\nand on\u2029end\n\n\n'
  found = [raw[start:end] for start, end in sentence_spans(raw)]
  assert found == ['A title', 'some\ntext. x', 'and on', 'end']


def test_sentences_know_their_place():
  assert split_sentences(as_single_token('  Go. 走。 ')).tokens == (
    Token('Go.', 2, 5),
    Token('走。', 6, 8),
  )


@pytest.mark.parametrize('raw', ['', ' \n\n ', '\u2029'])
def test_no_text_has_no_sentences(raw):
  assert split_sentences(as_single_token(raw)).tokens == ()


def test_marks_alone_are_a_sentence():
  assert [*sentence_spans('...')] == [(0, 3)] and [*sentence_spans(' ?! ')] == [(1, 3)]
