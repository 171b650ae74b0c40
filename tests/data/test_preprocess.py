# ruff: noqa: RUF001
import pytest

from lm.data import encoding, pipeline, preprocess
from lm.errors import UserError
from lm.text import tokenizers

pytest.importorskip('rjieba')
pytest.importorskip('opencc')


def run(step, *texts, **arguments):
  examples = [{'text': text, 'label': 'x'} for text in texts]
  return list(step(iter(examples), **arguments))


def texts_of(step, *texts, **arguments):
  return [example['text'] for example in run(step, *texts, **arguments)]


def test_other_fields_stay_unchanged():
  assert run(preprocess.split_sentences, 'Go on. He did.', '') == [
    {'text': 'Go on.', 'label': 'x'},
    {'text': 'He did.', 'label': 'x'},
  ]
  for step in (preprocess.normalize, preprocess.segment_words):
    assert run(step, 'a') == [{'text': 'a', 'label': 'x'}]
    assert list(step([{'text': 'A ﬁ', 'note': ' Ａ  b'}], field='note', case='lower')) == [
      {'text': 'A ﬁ', 'note': 'a b'}
    ]


def test_lines_are_normalized_separately():
  assert texts_of(preprocess.normalize, 'Ａ  b\n\n ﬁ\r\n') == ['A b\n\nfi\n']


def test_words_are_joined_by_spaces():
  assert texts_of(preprocess.segment_words, ' The CAFÉ’s,\n\nopen!', '') == [
    'the café’s , open !',
    '',
  ]
  assert texts_of(preprocess.segment_words, 'The Cats', case='keep') == ['The Cats']
  assert texts_of(preprocess.segment_words, 'The Cats, THE', stop=('en',), case='keep') == [
    'Cats ,'
  ]


def test_chinese_is_segmented_and_simplified_and_loses_stop_words():
  pytest.importorskip('opencc')
  wanted = {
    (): '我 来到 了 北京 的 清华大学 。',
    ('zh',): '来到 北京 清华大学',
  }
  for stop, words in wanted.items():
    texts = texts_of(preprocess.segment_words, '我來到了北京的清華大學。', simplify=True, stop=stop)
    assert texts == [words]


def test_words_are_tagged_for_a_tagging_task():
  assert run(preprocess.tag_words, '我来到 北京。') == [
    {
      'label': 'x',
      'words': ['我', '来到', '北京', '。'],
      'tags': ['r', 'v', 'ns', 'x'],
      'separator': '',
    }
  ]
  (example,) = run(preprocess.tag_words, 'Old dogs', tagger=lambda w: ['T'] * len(w), separator=' ')
  assert example['separator'].join(example['words']) == 'Old dogs' and example['tags'] == ['T', 'T']


def same(words):
  return words


def test_a_tagger_is_named_by_its_path():
  step = 'lm.data.preprocess:tag_words(tagger="test_preprocess:same", separator=" ")'
  (example,) = encoding.prepared_examples([{'text': 'old dogs'}], [step], 0, 1)
  assert list(example['tags']) == ['old', 'dogs']


STEPS = (
  'lm.data.preprocess:normalize',
  'lm.data.preprocess:split_sentences',
  'lm.data.preprocess:segment_words(field="text", stop=("en",))',
)


def documents(rows):
  ids = []
  for i in range(len(rows)):
    ids += rows[i]['inputs'].tolist()
  return bytes(token - 1 for token in ids if token).decode()


def test_steps_return_the_same_in_every_process(section, corpus, monkeypatch):
  lines = ''.join(f'The {n} Ｄogs of {n}. It barked!\n' for n in range(1000))
  data = section(corpus(lines, documents='line'), prepare=STEPS)
  byte_tokens = tokenizers.bytes([])
  alone = pipeline.packed_rows(data, 'train', byte_tokens, 0)
  assert alone.documents == 2000 and '7 dogs 7 .' in documents(alone)
  monkeypatch.setattr(encoding, '_PATIENCE', 0.0)
  shared = pipeline.packed_rows(
    data | {'workers': 2, 'cache': data['cache'] + '2'}, 'train', byte_tokens, 0
  )
  assert shared.fingerprint == alone.fingerprint


@pytest.mark.parametrize(
  ('step', 'message'),
  [
    ('segment_words(field="txt")', "no string under 'txt'; it has 'text'"),
    ('segment_words(stop=("xx",))', "no stop words of 'xx'"),
    ('segment_words(case="upper")', "case='upper'"),
    ('normalize(form="nfkc")', "form='nfkc' must be one of 'NFC'"),
    ('segment_word', "did you mean .*'segment_words'"),
  ],
)
def test_user_errors_are_reported_in_one_line(section, corpus, step, message):
  data = section(corpus('some text'), prepare=(f'lm.data.preprocess:{step}',))
  with pytest.raises(UserError, match=message) as e:
    pipeline.packed_rows(data, 'train', tokenizers.bytes([]), 0)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('step', ['normalize', 'split_sentences', 'segment_words'])
def test_a_lone_surrogate_is_reported_in_one_line_and_leaves_no_files(section, tmp_path, step):
  file = tmp_path / 'some.jsonl'
  file.write_text('{"text": "fine"}\n{"text": "ab \\ud83d cd"}\n')
  data = section(
    f'lm.data.sources:text(files={str(file)!r})', prepare=(f'lm.data.preprocess:{step}',)
  )
  message = r"jsonl, line 2: 'text' has the lone surrogate '\\ud83d' at character 3, after 'ab '"
  with pytest.raises(UserError, match=message) as e:
    pipeline.packed_rows(data, 'train', tokenizers.bytes([]), 0)
  assert '\n' not in str(e.value)
  assert not list(tmp_path.glob('cache/tokens-*'))


def test_control_characters_and_odd_scripts_pass(section, corpus):
  text = 'a\x00b\x1b[0m \x07 e\u0301\u0323 👩‍👩‍👧 مرحبا'
  texts = texts_of(preprocess.segment_words, text, form='NFC', case='keep')
  assert texts == ['a b [ 0m ẹ\u0301 👩‍👩‍👧 مرحبا']
