"""Features of a task's examples, as prepared and stored in the cache."""

import sys
import textwrap

import numpy as np
import pytest

from lm.data import encoding, features, pipeline
from lm.errors import UserError
from lm.task import Features
from lm.text import tokenizers

BYTES = tokenizers.with_special_tokens(tokenizers.bytes([]), [tokenizers.SEPARATOR])
# A module of the user, importable here and in workers: pairs of texts, and a task whose converter
# makes a Features of each word of a text.
TASKS = """
  import numpy as np
  from lm.task import Converter, Features, Task

  class Pairs:
    def __init__(self, count):
      self.count = count
    def __len__(self):
      return self.count
    def __getitem__(self, i):
      return {'source': f'n{i} ' + 'x' * (i % 3), 'target': str(i * i)}

  def pairs(split, count=700):
    return Pairs(count)

  def texts(split):
    return [{'text': text} for text in ('ab c def', '', 'g')]

  def halves(split):
    return [{'source': 'a' + chr(0xD800), 'target': 'b'}]

  def odd(examples):
    for example in examples:
      if int(example['source'][1:].split()[0]) % 2:
        yield example

  def reading():
    return Task(lambda example: [example['text']], lambda example: '', lambda example: '')

  def by_word(task):
    def features(tokenizer, labels, context):
      def convert(example):
        (text,) = task.inputs(example)
        lines = [np.array(tokenizer.encode(word).ids) for word in text.split()]
        return [Features({'inputs': ids}, {}, {'nth': n}) for n, ids in enumerate(lines)]
      return convert
    return Converter(lambda example: [example['text']], features)
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  """Puts the user's module on the import path, and imports it again in each test."""
  (tmp_path / 'some_tasks.py').write_text(textwrap.dedent(TASKS))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.delitem(sys.modules, 'some_tasks', raising=False)
  yield
  sys.modules.pop('some_tasks', None)


@pytest.fixture
def translating(section):
  """Returns a function that makes the data section of a task of pairs."""

  def make(count=700, **changes):
    base = {
      'task': 'lm.tasks.text:text_to_text',
      'converter': 'lm.tasks.seq2seq:encoder_decoder',
      'labels': (),
      'too_long': 'error',
      'seq_len': 12,
      'source_len': 12,
    }
    return section(f'some_tasks:pairs(count={count})', **base | changes)

  return make


def ids(text):
  """Returns the tokens of a text and END."""
  return [*(b + 1 for b in text.encode()), 0]


def prepared(data):
  """Returns the stored features of a split in the order of the examples."""
  place, meta = pipeline._tokens(data, data['source'], 'train', BYTES, lambda *_: None)
  lengths = {stream: np.load(place / f'{stream}.npy') for stream in features.STREAMS}
  arrays = {}
  for name in meta['fields']:
    stream, _, field = name.partition('/')
    flat = arrays[name] = np.fromfile(place / f'{stream}.{field}.bin', np.int32)
    if stream != features.VALUES:
      arrays[name] = np.split(flat, np.cumsum(lengths[stream])[:-1])
  return arrays, np.load(place / 'example.npy'), meta


def lists(parts):
  return [part.tolist() for part in parts]


def test_features_of_chunks_are_concatenated(translating):
  arrays, example, meta = prepared(translating())
  assert [*meta['fields']] == ['source/source', 'tokens/inputs', 'tokens/targets']
  assert (meta['documents'], meta['features']) == (700, 700)
  assert len(encoding.chunks(700)) == 3
  assert example.tolist() == list(range(700))
  assert lists(arrays['tokens/targets']) == [ids(str(i * i)) for i in range(700)]
  sources = [ids(f'n{i} ' + 'x' * (i % 3)) for i in range(700)]
  assert lists(arrays['source/source']) == sources
  targets = sum(len(str(i * i)) + 1 for i in range(700))
  assert meta['tokens'] == targets + sum(map(len, sources))


def test_errors_count_examples_after_the_preparation_steps(translating):
  data = translating(prepare=('some_tasks:odd',))
  arrays, example, meta = prepared(data)
  # Predictions find the example of a feature by this index.
  kept = list(pipeline.examples(data, 'train'))
  assert meta['documents'] == len(kept) == 350
  assert example.tolist() == list(range(350))
  targets = [ids(kept[i]['target']) for i in example]
  assert lists(arrays['tokens/targets']) == targets == [ids(str(i * i)) for i in range(1, 700, 2)]


def test_an_example_may_have_several_features_or_none(section):
  data = section(
    'some_tasks:texts',
    task='some_tasks:reading',
    converter='some_tasks:by_word',
    labels=(),
    too_long='error',
  )
  arrays, example, meta = prepared(data)
  assert lists(arrays['tokens/inputs']) == [ids(word)[:-1] for word in ('ab', 'c', 'def', 'g')]
  assert example.tolist() == [0, 0, 0, 2]
  assert arrays['values/nth'].tolist() == [0, 1, 2, 0] and arrays['values/nth'].dtype == np.int32
  assert (meta['documents'], meta['features']) == (3, 4)


def test_several_processes_and_one_make_the_same_features(translating, tmp_path, monkeypatch):
  places = []
  for count, patience in ((1, 1e9), (2, 0.0)):
    monkeypatch.setattr(encoding, '_PATIENCE', patience)
    data = translating(count=1500, workers=count, cache=str(tmp_path / f'of {count}'))
    place, _ = pipeline._tokens(data, data['source'], 'train', BYTES, lambda *_: None)
    places.append({file.name: file.read_bytes() for file in place.iterdir()})
  assert places[0] == places[1] and len(places[0]) == 7


def test_too_long_examples_are_reported(translating):
  with pytest.raises(UserError) as error:
    prepared(translating(source_len=6))
  message = str(error.value)
  # n10 xx is the first of seven tokens.
  expected = "data.source_len=6: example 11 of split 'train' has 7 tokens; raise it, or set"
  assert message.startswith(expected)
  assert "data.too_long='truncate' or 'skip'" in message
  with pytest.raises(UserError, match=r"data\.seq_len=4: example 32 of split 'train' has 5"):
    prepared(translating(seq_len=4))


def test_too_long_examples_are_truncated_at_the_end(translating):
  arrays, example, _ = prepared(translating(seq_len=4, source_len=6, too_long='truncate'))
  assert example.tolist() == list(range(700))
  assert lists(arrays['tokens/targets']) == [ids(str(i * i))[:4] for i in range(700)]
  assert lists(arrays['source/source']) == [ids(f'n{i} ' + 'x' * (i % 3))[:6] for i in range(700)]


def test_too_long_examples_are_skipped(translating):
  arrays, example, meta = prepared(translating(seq_len=5, too_long='skip'))
  # Squares of up to four digits; the examples of the last two chunks are all longer.
  assert example.tolist() == list(range(100))
  assert lists(arrays['tokens/targets']) == [ids(str(i * i)) for i in range(100)]
  assert (meta['documents'], meta['features']) == (700, 100)


def test_a_split_without_features_is_reported(translating):
  message = (
    "split 'train' is empty: 700 of 700 examples skipped: they are longer than data.seq_len=1 or "
    'data.source_len=6; raise the limit'
  )
  with pytest.raises(UserError) as error:
    prepared(translating(seq_len=1, source_len=6, too_long='skip'))
  assert str(error.value) == message


def test_examples_skipped_and_truncated_are_counted(translating):
  def note(**changes):
    return pipeline.packed_rows(translating(**changes), 'train', BYTES, 0).note

  assert note() == note(too_long='skip') == ''
  left_out = '600 of 700 examples skipped: they are longer than data.seq_len=5'
  assert note(seq_len=5, too_long='skip') == note(seq_len=5, too_long='skip') == left_out
  assert note(seq_len=5, too_long='truncate') == left_out.replace('skipped', 'truncated')


def test_an_unknown_label_is_reported_with_its_place(section, tmp_path):
  (tmp_path / 'a.tsv').write_text('text\tlabel\na\tham\nb\tspam\n')
  columns = "{'text': 'text', 'label': 'label'}"
  data = section(
    f"lm.data.sources:table(files='{tmp_path}/a.tsv', columns={columns})",
    task='lm.tasks.text:classification',
    converter='lm.tasks.classification:classifier',
    labels=('ham',),
    too_long='error',
  )
  message = r"example 1 of split 'train' \(.*a\.tsv, line 3\): data\.labels: .*'spam'"
  with pytest.raises(UserError, match=message):
    pipeline.packed_rows(data, 'train', BYTES, 0)


def test_dialogues_without_a_reply_are_reported(section, tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"turns": ["hi"]}\n{"turns": ["yo"]}\n')
  data = section(
    f"lm.data.sources:table(files='{tmp_path}/a.jsonl', columns={{'turns': 'turns'}})",
    prepare=('lm.tasks.dialogue:expand_turns',),
    task='lm.tasks.dialogue:replies',
    converter='lm.tasks.dialogue:encoder_decoder',
    labels=(),
    too_long='error',
  )
  for make in (pipeline.tokenizer, lambda data: pipeline.packed_rows(data, 'train', BYTES, 0)):
    with pytest.raises(UserError, match='2 examples; a dialogue of one turn has no'):
      make(data)


def test_a_vocabulary_without_words_is_reported(translating):
  leaves = {'fn': 'lm.text.tokenizers:words', 'min_count': 9}
  with pytest.raises(UserError, match=r"min_count=9: no word of split 'train'"):
    pipeline.tokenizer(translating(count=3) | {'tokenizer': leaves})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'too_long': 'cut'}, "data.too_long='cut' must be one of 'error', 'truncate', 'skip'"),
    ({'converter': None}, "data.task='lm.tasks.text:text_to_text' needs data.converter, such as"),
    ({'task': 'lm.tasks.text:text_to'}, "lm.tasks.text has no function 'text_to' (did you mean"),
    ({'converter': 'lm.tasks.seq2seq:encoder'}, "lm.tasks.seq2seq has no function 'encoder'"),
  ],
)
def test_user_errors_in_the_section_are_reported(changes, message, translating):
  data = translating(**changes)
  with pytest.raises(UserError) as error:
    pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), 0)
  assert message in str(error.value)


def test_a_lone_surrogate_of_a_source_without_files_is_reported(translating):
  data = translating() | {'source': 'some_tasks:halves'}
  message = r"a text of an example has the lone surrogate '\\ud800' at character 1, after 'a'"
  with pytest.raises(UserError, match=message):
    pipeline.tokenizer(data | {'tokenizer': {'fn': 'lm.text.tokenizers:characters'}})
  with pytest.raises(UserError, match=message):
    pipeline.packed_rows(data, 'train', BYTES, 0)


def test_every_input_of_features_changes_their_name(translating):
  def name(**changes):
    data = translating(count=3, **changes)
    return pipeline._tokens(data, data['source'], 'train', BYTES, lambda *_: None)[0].name

  others = [
    {'converter': 'lm.tasks.seq2seq:decoder'},
    {'seq_len': 13},
    {'source_len': 13},
    {'too_long': 'skip'},
    {'labels': ('a',)},
  ]
  names = [name(), *(name(**changes) for changes in others)]
  assert len(set(names)) == 6 and name() == names[0]


def test_converter_arrays_of_different_lengths_raise():
  uneven = Features({'inputs': np.zeros(3), 'targets': np.zeros(2)}, {}, {})
  with pytest.raises(ValueError, match=r"differ in length: {'inputs': 3, 'targets': 2}"):
    features.apply_length_policy(uneven, {'tokens': ('seq_len', 9)}, 'skip')


def test_a_long_prompt_keeps_its_first_token_and_its_end():
  prompt = Features({'inputs': np.arange(20), 'prefix': np.ones(20, int)}, {}, {})
  limits = {'tokens': ('seq_len', 16), 'source': ('source_len', 16)}
  cut = features.apply_prompt_length_policy(prompt, limits, 'truncate')
  np.testing.assert_array_equal(cut.tokens['inputs'], [0, *range(9, 20)])
  assert len(cut.tokens['prefix']) == 12
  assert features.apply_prompt_length_policy(prompt, limits, 'skip') is None
  prompt = Features({'inputs': np.zeros(1, int)}, {'source': np.arange(20)}, {})
  cut = features.apply_prompt_length_policy(prompt, limits, 'truncate')
  np.testing.assert_array_equal(cut.source['source'], np.arange(16))
