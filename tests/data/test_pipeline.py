import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from lm.data import encoding, pipeline
from lm.errors import UserError
from lm.text import tokenizers

BYTES = tokenizers.bytes([])
# A module of the user, importable here and in workers.
CORPUS = """
  import multiprocessing, os, pathlib, signal, sys, time
  from lm.errors import UserError

  class Lines:
    def __init__(self, count):
      self.count = count
    def __len__(self):
      return self.count
    def __getitem__(self, i):
      return {'text': f'line {i} of some text ' + 'é' * (i % 5)}

  def lines(split, count=1000):
    print('a source may print')
    return Lines(count)

  def no_text(split):
    return [{'txt': 'a', 'label': 1}]

  def number(split):
    return [{'text': 'a'}, {'text': 3}]

  def half(split):
    return [{'text': 'a'}, {'text': 'one \\ud83d'}]

  def nothing(split):
    return []

  def odd(examples):
    for example in examples:
      if int(example['text'].split()[1]) % 2:
        yield example

  def halves(examples):
    for example in examples:
      half = len(example['text']) // 2
      yield {'text': example['text'][:half]}
      yield {'text': example['text'][half:]}

  def mistaken(examples):
    raise UserError('the user is mistaken')
    yield

  def broken(examples):
    raise ZeroDivisionError('the step is broken')
    yield

  PARENT = int(os.environ.get('PREPARING', '0'))

  def deadly(examples):
    if os.getpid() != PARENT:
      os.kill(os.getpid(), signal.SIGKILL)
    yield from examples

  # 'go' is a folder: a file that a step names is a part of what its examples are prepared from.
  def held(examples):
    while not (pathlib.Path(__file__).parent / 'go').exists():
      time.sleep(0.01)
    yield from examples

  def held_in_workers(examples):
    yield from held(examples) if multiprocessing.parent_process() else examples
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
  """Puts the user's module on the import path, and imports it again in each test."""
  file = tmp_path / 'some_corpus.py'
  file.write_text(textwrap.dedent(CORPUS))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv('PREPARING', str(os.getpid()))
  monkeypatch.delitem(sys.modules, 'some_corpus', raising=False)
  yield file
  sys.modules.pop('some_corpus', None)


def documents(rows):
  """Returns the documents of rows of byte tokens, in the order of the corpus."""
  tokens = np.asarray(rows.stream)
  return [bytes((d[:-1] - 1).tolist()).decode() for d in np.split(tokens, rows.ends)[:-1]]


def line(i):
  return f'line {i} of some text ' + 'é' * (i % 5)


def test_documents_are_in_order_with_their_bytes(section):
  rows = pipeline.packed_rows(section('some_corpus:lines'), 'train', BYTES, 0)
  assert documents(rows) == [line(i) for i in range(1000)]
  assert rows.documents == 1000
  assert rows.bytes == sum(len(line(i).encode()) for i in range(1000))
  assert rows.tokens == rows.bytes + 1000


def test_steps_filter_and_split(section):
  data = section('some_corpus:lines(count=600)', prepare=('some_corpus:odd', 'some_corpus:halves'))
  rows = pipeline.packed_rows(data, 'train', BYTES, 0)
  halves = [(line(i)[: len(line(i)) // 2], line(i)[len(line(i)) // 2 :]) for i in range(1, 600, 2)]
  assert documents(rows) == [half for both in halves for half in both]


def test_several_processes_and_one_prepare_the_same(section, tmp_path, monkeypatch):
  alone = pipeline.packed_rows(section('some_corpus:lines(count=3000)'), 'train', BYTES, 0)
  monkeypatch.setattr(encoding, '_PATIENCE', 0.0)
  data = section('some_corpus:lines(count=3000)', workers=3, cache=str(tmp_path / 'other'))
  shared = pipeline.packed_rows(data, 'train', BYTES, 0)
  assert documents(shared) == documents(alone) and shared.fingerprint == alone.fingerprint
  assert len(encoding.chunks(3000)) > 3 * encoding._AHEAD


@pytest.mark.parametrize('count', [1, 2])
def test_errors_of_a_step_reach_the_user(section, monkeypatch, count):
  monkeypatch.setattr(encoding, '_PATIENCE', 0.0)

  def run(step):
    data = section('some_corpus:lines', prepare=(f'some_corpus:{step}',), workers=count)
    return pipeline.packed_rows(data, 'train', BYTES, 0)

  with pytest.raises(UserError, match='the user is mistaken'):
    run('mistaken')
  with pytest.raises((ZeroDivisionError, RuntimeError), match='the step is broken'):
    run('broken')


def test_errors_in_workers_reach_the_parent(section, monkeypatch):
  source = encoding.open_source('some_corpus:lines', 'train')
  chunks = encoding.chunks(len(source))

  def run(step):
    job = encoding.Job('some_corpus:lines', 'train', (f'some_corpus:{step}',), BYTES.to_str())
    return list(encoding._encode_in_processes(2, job, chunks))

  with pytest.raises(UserError, match='the user is mistaken'):
    run('mistaken')
  with pytest.raises(RuntimeError, match=r'(?s)a preparation worker failed.*the step is broken'):
    run('broken')
  with pytest.raises(RuntimeError, match='a preparation worker died'):
    run('deadly')


def test_a_prepared_split_is_not_prepared_again(section, monkeypatch):
  data = section('some_corpus:lines')
  first = pipeline.packed_rows(data, 'train', BYTES, 0)
  monkeypatch.setattr(pipeline, 'encode', None)
  again = pipeline.packed_rows(data, 'train', BYTES, 0)
  assert again.fingerprint == first.fingerprint


def test_every_input_of_rows_changes_their_name(section, module):
  def fingerprint(source='some_corpus:lines', seed=0, tokenizer=BYTES, split='train', **changes):
    return pipeline.packed_rows(section(source, **changes), split, tokenizer, seed).fingerprint

  first = fingerprint()
  others = [
    fingerprint('some_corpus:lines(count=999)'),
    fingerprint(seed=1),
    fingerprint(tokenizer=tokenizers.characters(['a'])),
    fingerprint(split='test'),
    fingerprint(prepare=('some_corpus:odd',)),
    fingerprint(seq_len=17),
    fingerprint(pack='lm.data.packing:best_fit'),
  ]
  module.write_text(module.read_text() + '\nCHANGED = True\n')
  others.append(fingerprint())
  assert len({first, *others}) == 9
  module.write_text(module.read_text() + '\n# a comment\n')
  assert fingerprint(workers=2) == others[-1]


def test_content_without_a_fingerprint_is_hashed(section, module):
  data = section('some_corpus:no_fingerprint')
  module.write_text(
    "from os import environ\ndef no_fingerprint(split): return [{'text': environ['CONTENT']}]\n"
  )
  prepared = []
  for content in ('one', 'two', 'one'):
    os.environ['CONTENT'] = content
    prepared.append(documents(pipeline.packed_rows(data, 'train', BYTES, 0)))
  del os.environ['CONTENT']
  assert prepared == [['one'], ['two'], ['one']]


def test_the_tokenizer_is_trained_once_on_the_training_split(section, corpus, monkeypatch):
  source = corpus('aab' * 30 + 'xyz' * 10, validation=0.25)
  data = section(source, tokenizer={'fn': 'lm.text.tokenizers:characters', 'min_count': 1})
  first = pipeline.tokenizer(data)
  assert set(first.get_vocab()) == {'<|end|>', '<unk>', 'a', 'b'}
  monkeypatch.setattr(tokenizers.characters, '__code__', (lambda texts, min_count: 1 / 0).__code__)
  assert pipeline.tokenizer(data).to_str() == first.to_str()
  with pytest.raises(ZeroDivisionError):
    pipeline.tokenizer(section(source, tokenizer=data['tokenizer'] | {'min_count': 2}))


def test_an_existing_tokenizer_follows_its_file(section, tmp_path):
  file = tmp_path / 'tokenizer.json'
  leaves = {'fn': 'lm.text.tokenizers:existing', 'file': str(file)}
  for trained in (tokenizers.bytes([]), tokenizers.characters(['abc'])):
    trained.save(str(file))
    data = section('some_corpus:lines', tokenizer=leaves)
    assert pipeline.tokenizer(data).get_vocab_size() == trained.get_vocab_size()


def test_an_evaluation_set_may_have_its_own_source(section, corpus):
  other = corpus('some other text')
  rows = pipeline.packed_rows(section('some_corpus:lines'), 'train', BYTES, 0, source=other)
  assert documents(rows) == ['some other text']


def test_progress_is_reported(section):
  seen = []
  data = section('some_corpus:lines', tokenizer={'fn': 'lm.text.tokenizers:characters'})
  pipeline.tokenizer(data, lambda *args: seen.append(args))
  assert seen[-1] == (1000, 1000, 'training the tokenizer')
  seen.clear()
  pipeline.packed_rows(data, 'train', BYTES, 0, lambda *args: seen.append(args))
  assert [done for done, _, _ in seen] == [256, 512, 768, 1000]
  assert {(total, what) for _, total, what in seen} == {(1000, "preparing 'train'")}


def test_long_documents_are_tokenized_in_pieces_without_loss(section, corpus, monkeypatch):
  text = '\n'.join(f'line {n}, and more of it' for n in range(500))
  monkeypatch.setattr(encoding, '_PIECE', 100)
  monkeypatch.setattr(encoding, '_BATCH', 250)
  rows = pipeline.packed_rows(section(corpus(text)), 'train', BYTES, 0)
  assert documents(rows) == [text]


def test_a_document_with_more_bytes_than_int32_is_rejected(tmp_path):
  chunk = {'tokens': np.zeros(2, np.uint16), 'counts': np.array([2]), 'sizes': np.array([2**31])}
  with pytest.raises(UserError, match=r'document 1 has 2,147,483,648 bytes; .*2,147,483,647'):
    encoding.write_tokens(tmp_path, [chunk], np.uint16)
  chunk['sizes'] -= 1
  assert encoding.write_tokens(tmp_path, [chunk], np.uint16)['bytes'] == 2**31 - 1


def test_pieces_of_long_and_short_texts_are_joined(monkeypatch):
  monkeypatch.setattr(encoding, '_PIECE', 10)
  monkeypatch.setattr(encoding, '_BATCH', 25)
  texts = ['ab', '', 'é' * 40, 'one two three four', '']
  encoded = encoding.text_encoder(BYTES)(iter(texts))
  assert encoded['sizes'].tolist() == [len(t.encode()) for t in texts]
  assert encoded['counts'].tolist() == [len(t.encode()) + 1 for t in texts]
  expected = [b for t in texts for b in [*(x + 1 for x in t.encode()), 0]]
  assert encoded['tokens'].tolist() == expected


def test_a_long_line_is_cut_between_words(section, corpus, monkeypatch):
  text = ' '.join(f'word{n}' for n in range(500))
  monkeypatch.setattr(encoding, '_PIECE', 100)
  tokenizer = tokenizers.words([text], min_count=1, pattern=r'\S+')
  rows = pipeline.packed_rows(section(corpus(text)), 'train', tokenizer, 0)
  assert rows.tokens == 500 + 1
  assert not rows.counts(tokenizer.get_vocab_size())[tokenizer.token_to_id('<unk>')]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'source': 'some_corpus:lines(cont=3)'}, "takes no argument 'cont'"),
    ({'source': 'some_corpus:line'}, r"data\.source='some_corpus:line': .*did you mean 'lines'"),
    ({'source': 'some_corpus:no_text'}, "no string under 'text'; it has 'txt', 'label'"),
    ({'source': 'some_corpus:number'}, "'text' of an example is 3 and no string"),
    (
      {'source': 'some_corpus:half'},
      r"data\.source: 'text' .* has the lone surrogate .* after 'one '",
    ),
    ({'source': 'some_corpus:nothing'}, "split 'train' has no text"),
    ({'prepare': ('some_corpus:even',)}, r'data\.prepare\[0\]'),
    ({'seq_len': 0}, r'data\.seq_len=0'),
    ({'pack': 'lm.data.packing:worst_fit'}, r'data\.pack=.*did you mean .*best_fit'),
  ],
)
def test_user_errors_are_reported_in_one_line(section, changes, message):
  data = section('some_corpus:lines') | changes
  with pytest.raises(UserError, match=message) as e:
    pipeline.packed_rows(data, 'train', BYTES, 0)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('tokenizer', 'message'),
  [
    ({'fn': 'lm.text.tokenizers:bpe'}, 'data.tokenizer.*vocab_size'),
    ({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 9000}, 'the corpus yields only'),
    ({'fn': 'lm.text.tokenizers:bpe', 'vocab': 9000}, "takes no argument 'vocab'"),
    ({'vocab_size': 9000}, "the section needs 'fn'"),
  ],
)
def test_errors_of_the_tokenizer_are_reported_in_one_line(section, tokenizer, message):
  with pytest.raises(UserError, match=message) as e:
    pipeline.tokenizer(section('some_corpus:lines', tokenizer=tokenizer))
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('source', ['number', 'nothing'])
def test_a_corpus_that_trains_no_tokenizer_is_reported(section, source):
  leaves = {'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 257}
  with pytest.raises(UserError, match=r'data\.source'):
    pipeline.tokenizer(section(f'some_corpus:{source}', tokenizer=leaves))


PREPARE = """
  import json, sys
  from lm.data import encoding, pipeline
  from lm.text import tokenizers
  encoding._PATIENCE = 0  # workers are started wherever there is something left to do
  rows = pipeline.packed_rows(json.loads(sys.argv[1]), 'train', tokenizers.bytes([]), 0)
  print(rows.fingerprint, rows.tokens)
"""


def start(data, folder):
  return subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(PREPARE), json.dumps(data)],
    env=os.environ | {'PYTHONPATH': str(folder)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for_tokens(cache, process):
  while not list(pathlib.Path(cache).glob('tokens-*.partial/tokens.bin')):
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)


def test_two_runs_at_once_prepare_the_same(section, tmp_path):
  data = section('some_corpus:lines', prepare=('some_corpus:held',))
  first = start(data, tmp_path)
  wait_for_tokens(data['cache'], first)
  second = start(data, tmp_path)
  assert any('waiting for another process' in line for line in second.stderr)
  (tmp_path / 'go').mkdir()
  results = [process.communicate(timeout=60) for process in (first, second)]
  lines = [out.splitlines()[-1] for out, _ in results]
  assert lines[0] == lines[1]


def test_a_run_killed_while_preparing_does_not_harm_the_next(section, tmp_path):
  data = section('some_corpus:lines', prepare=('some_corpus:held',))
  killed = start(data, tmp_path)
  wait_for_tokens(data['cache'], killed)
  killed.send_signal(signal.SIGKILL)
  killed.communicate(timeout=60)
  (tmp_path / 'go').mkdir()
  rows = pipeline.packed_rows(data, 'train', BYTES, 0)
  assert documents(rows) == [line(i) for i in range(1000)]
  assert not list(pathlib.Path(data['cache']).glob('*.partial'))


def test_workers_end_with_their_parent(section, tmp_path):
  step = 'some_corpus:held_in_workers'
  data = section('some_corpus:lines(count=100000)', prepare=(step,), workers=2)
  parent = start(data, tmp_path)
  wait_for_tokens(data['cache'], parent)
  deadline = time.monotonic() + 60
  children = []
  while len(children) < 3 and time.monotonic() < deadline:
    children = pathlib.Path(f'/proc/{parent.pid}/task/{parent.pid}/children').read_text().split()
    time.sleep(0.05)
  parent.send_signal(signal.SIGKILL)
  parent.wait(timeout=60)
  (tmp_path / 'go').mkdir()
  parent.communicate(timeout=60)
  assert len(children) >= 3  # two workers, and a process that tracks their resources
  while any(map(alive, children)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(alive, children))


def alive(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split()[2] != 'Z'
  except OSError:
    return False


def test_a_full_disk_leaves_no_partial_tokens(section, monkeypatch):
  data = section('some_corpus:lines')

  def fill(job, source, count):
    yield encoding.text_encoder(BYTES)(['some text'])
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(pipeline, 'encode', fill)
    with pytest.raises(UserError, match=r'data\.cache=.*the disk is full'):
      pipeline.packed_rows(data, 'train', BYTES, 0)
  assert not [p for p in pathlib.Path(data['cache']).iterdir() if not p.name.startswith('.')]
  assert pipeline.packed_rows(data, 'train', BYTES, 0).documents == 1000


def test_damaged_tokens_are_prepared_again_with_a_warning(section, capsys):
  data = section('some_corpus:lines')
  pipeline.packed_rows(data, 'train', BYTES, 0)
  (file,) = pathlib.Path(data['cache']).glob('tokens-*/tokens.bin')
  file.write_bytes(file.read_bytes()[:-10])
  assert documents(pipeline.packed_rows(data, 'train', BYTES, 0))[-1] == line(999)
  assert 'is damaged or of an older version and is prepared again' in capsys.readouterr().err


def test_text_that_looks_like_a_special_token_is_text():
  texts = ['a<|end|>é', '', '<|end|>']
  encoded = encoding.text_encoder(tokenizers.bytes([]))(texts)
  # By hand: byte b is token b + 1, and each document ends with one END, token 0.
  expected = [[b + 1 for b in text.encode()] + [0] for text in texts]
  assert encoded['tokens'].tolist() == [token for ids in expected for token in ids]
  assert encoded['counts'].tolist() == [11, 1, 8]
  assert encoded['sizes'].tolist() == [10, 0, 7]
