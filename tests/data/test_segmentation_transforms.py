import time

import numpy as np
import pytest

from lm.data import batches, pipeline, transforms
from lm.errors import UserError
from lm.text import tokenizers

END = 0
STEMS = ('low', 'tow', 'show', 'new', 'wid', 'sleep', 'high', 'grow')
WORDS = [stem + end for stem in STEMS for end in ('', 'er', 'est', 'ly', 'ing', 'ness')]
WORDS += ['the', 'of'] * 6 + ['天气', '🎉', 'naïve'] * 2
PATHS = {
  'bpe': 'lm.data.transforms:bpe_dropout(stream={!r}, rate={})',
  'unigram': 'lm.data.transforms:subword_regularization(stream={!r}, alpha={})',
}


def sentences(seed, count=150):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]


@pytest.fixture
def pairs(section, tmp_path):
  """Returns a function that makes rows of sentence pairs, their tokenizer, and their section."""
  for name, seed in (('de', 0), ('en', 1)):
    (tmp_path / f'train.{name}').write_text('\n'.join(sentences(seed)) + '\n')
  source = f'lm.data.sources:parallel(source="{tmp_path}/train.de", target="{tmp_path}/train.en")'

  def make(kind='bpe', **changes):
    data = section(
      source,
      task='lm.tasks.text:text_to_text',
      converter='lm.tasks.seq2seq:encoder_decoder',
      tokenizer={'fn': f'lm.text.tokenizers:{kind}', 'vocab_size': 290},
      labels=(),
      too_long='error',
    )
    data |= {'seq_len': 64, 'source_len': 64, 'packing_slack': 1.5} | changes
    tokenizer = pipeline.tokenizer(data)
    return pipeline.packed_rows(data, 'train', tokenizer, 0), tokenizer, data

  return make


def texts(tokenizer, row, stream):
  """Returns the text of each segment of a row, after checking that it ends with END."""
  segments = row[{'source': 'source_segments'}.get(stream, 'segments')]
  texts_of_ids = [row[stream][segments == i + 1].tolist() for i in range(segments.max())]
  assert all(ids[-1] == END for ids in texts_of_ids)
  return [tokenizer.decode(ids, skip_special_tokens=False) for ids in texts_of_ids]


def assert_well_laid(row):
  for prefix, stream in (('', 'targets'), ('source_', 'source')):
    segments, positions = row[f'{prefix}segments'], row[f'{prefix}positions']
    used = segments > 0
    assert (np.diff(used.astype(int)) <= 0).all()
    assert (np.diff(segments[used]) >= 0).all()
    for segment in range(1, segments.max() + 1):
      (places,) = np.nonzero(segments == segment)
      assert (positions[places] == np.arange(len(places))).all() and len(places)
    assert not row[stream][~used].any() and not positions[~used].any()
  for segment in range(1, row['segments'].max() + 1):
    inside = row['segments'] == segment
    targets = row['targets'][inside].tolist()
    assert row['inputs'][inside].tolist() == [END, *targets[:-1]]
  assert not row['inputs'][row['segments'] == 0].any()
  assert (row['weights'] == (row['segments'] > 0)).all()


@pytest.mark.parametrize('reserve', [1.1, 1.5])
@pytest.mark.parametrize(('kind', 'strength'), [('bpe', 0.3), ('bpe', 1.0), ('unigram', 0.1)])
def test_texts_and_segments_stay_and_pieces_change(pairs, kind, strength, reserve):
  rows, tokenizer, _ = pairs(kind, packing_slack=reserve)
  paths = [PATHS[kind].format(stream, strength) for stream in ('source', 'targets')]
  transforms = batches.open_transforms(paths, tokenizer, rows)
  changed = 0
  for i in range(len(rows)):
    before, row = rows[i], rows[i]
    for transform in transforms:
      row = transform(row, np.random.default_rng(i))
    assert row.keys() == before.keys()
    assert all(row[k].dtype == before[k].dtype and row[k].shape == before[k].shape for k in row)
    for stream in ('source', 'targets'):
      assert texts(tokenizer, row, stream) == texts(tokenizer, before, stream)
      changed += (row[stream] != before[stream]).any()
    assert_well_laid(row)
    assert (row['examples'] == before['examples']).all()
  assert changed > len(rows)


def test_a_dropout_rate_of_zero_changes_no_row(pairs):
  rows, tokenizer, _ = pairs()
  for stream in ('source', 'targets'):
    transform = transforms.bpe_dropout(tokenizer, stream, rate=0.0)
    for i in range(len(rows)):
      row = transform(rows[i], np.random.default_rng(0))
      assert all((row[name] == values).all() for name, values in rows[i].items())


def test_all_words_of_a_crowded_row_are_resampled_in_turn(pairs):
  rows, tokenizer, _ = pairs(packing_slack=1.1)
  row = rows[0]
  spare = (row['source_segments'] == 0).sum()
  transform = transforms.bpe_dropout(tokenizer, 'source', rate=1.0)
  single = len(''.join(texts(tokenizer, row, 'source')).encode())
  assert row['source_segments'].max() > 2 and single > 64  # bytes do not fit
  count = row['source_segments'].max()
  longer = np.zeros(count)
  for seed in range(200):
    new = transform(row, np.random.default_rng(seed))
    lengths = np.bincount(new['source_segments'], minlength=count + 1)
    assert lengths[0] < 8 and lengths[0] <= spare
    longer += lengths[1:] > np.bincount(row['source_segments'], minlength=count + 1)[1:]
  possible = [len(text.split()) > 1 for text in texts(tokenizer, row, 'source')]
  assert (longer[possible] > 10).all()


def test_batches_are_resegmented_in_each_epoch(pairs):
  rows, tokenizer, _ = pairs('unigram')
  transforms = batches.open_transforms([PATHS['unigram'].format('source', 0.1)], tokenizer, rows)
  n = len(rows)
  epochs = [batches.batch_at(rows, transforms, n, 3, step) for step in (0, 1)]
  again = batches.batch_at(rows, transforms, n, 3, 1, np.array([5, 1]))
  assert all((again[name] == epochs[1][name][[5, 1]]).all() for name in again)
  by_row = [{bytes(e): s for e, s in zip(b['examples'], b['source'], strict=True)} for b in epochs]
  assert np.mean([(by_row[0][key] != by_row[1][key]).any() for key in by_row[0]]) > 0.9


def test_only_training_rows_have_packing_slack(pairs):
  rows, tokenizer, data = pairs(packing_slack=1.4)
  for i in range(len(rows)):
    for segments in (rows[i]['segments'], rows[i]['source_segments']):
      sizes = np.bincount(segments)[1:]
      assert np.ceil(sizes * 1.4).sum() <= 64
  dense = pairs(packing_slack=1.0)[0]
  assert len(dense) < len(rows) and dense.tokens == rows.tokens
  evaluated = pipeline.packed_rows(data, 'train', tokenizer, None, transformed=False)
  assert len(evaluated) == len(dense)
  assert len(pipeline.packed_rows(data, 'train', tokenizer, None)) > len(evaluated)


def test_an_example_as_long_as_a_row_is_packed(pairs):
  rows, _, _ = pairs(too_long='truncate', seq_len=8, source_len=8, packing_slack=3.0)
  assert sum(row['segments'].max() for row in map(rows.__getitem__, range(len(rows)))) == 150
  assert max((row['segments'] == 1).sum() for row in map(rows.__getitem__, range(len(rows)))) == 8


@pytest.mark.parametrize(('stream', 'prefix'), [('source', 'source_'), ('targets', '')])
def test_bytes_of_a_cut_character_stay(pairs, stream, prefix):
  rows, tokenizer, _ = pairs(too_long='truncate', source_len=9, seq_len=9, packing_slack=1.0)
  transform = transforms.bpe_dropout(tokenizer, stream, rate=0.5)
  cut = 0
  for i in range(len(rows)):
    row, new = rows[i], transform(rows[i], np.random.default_rng(i))
    assert_well_laid(new)
    for segment in range(1, row[f'{prefix}segments'].max() + 1):
      before = row[stream][row[f'{prefix}segments'] == segment].tolist()
      after = new[stream][new[f'{prefix}segments'] == segment].tolist()
      named = [[tokenizer.id_to_token(t) for t in ids] for ids in (before, after)]
      assert ''.join(named[0]) == ''.join(named[1])
      if '�' in tokenizer.decode(before):
        cut += 1
        assert before == after
  assert cut


@pytest.mark.parametrize('value', [0.9, 0])
def test_packing_slack_below_one_is_rejected(pairs, value):
  with pytest.raises(UserError, match=rf'data\.packing_slack={value}: must be at least 1'):
    pairs(packing_slack=value)


def test_packing_slack_without_a_task_is_rejected(section, corpus):
  data = section(corpus('some text'), packing_slack=1.2)
  with pytest.raises(
    UserError, match=r'data\.packing_slack=1\.2: text without a task is packed without'
  ):
    pipeline.packed_rows(data, 'train', tokenizers.bytes([]), 0)


def classes_of(section, corpus_tokens, **changes):
  """Returns rows of a classifier; the examples are in this file."""
  data = section(
    f'{__name__}:labelled',
    task='lm.tasks.text:classification',
    converter='lm.tasks.classification:classifier',
    tokenizer={'fn': 'lm.text.tokenizers:bpe', 'vocab_size': corpus_tokens},
    labels=('long', 'short'),
    too_long='error',
  )
  data |= {'seq_len': 64, 'packing_slack': 1.5} | changes
  tokenizer = pipeline.tokenizer(data)
  return pipeline.packed_rows(data, 'train', tokenizer, 0), tokenizer


def labelled(split):
  del split
  return [{'text': s, 'label': 'long' if len(s) > 20 else 'short'} for s in sentences(2)]


def test_an_encoder_keeps_its_classes(section):
  rows, tokenizer = classes_of(section, 272)
  transform = transforms.bpe_dropout(tokenizer, 'inputs', rate=0.5)
  lengthened = 0
  for i in range(len(rows)):
    row, new = rows[i], transform(rows[i], np.random.default_rng(i))
    for segment in range(1, row['segments'].max() + 1):
      ids = [r['inputs'][r['segments'] == segment].tolist() for r in (row, new)]
      assert ids[0][0] == ids[1][0] == END
      assert tokenizer.decode(ids[0]) == tokenizer.decode(ids[1])
      lengthened += len(ids[1]) > len(ids[0])
    assert (row['targets'] == new['targets']).all() and (row['weights'] == new['weights']).all()
  assert lengthened > 50


@pytest.mark.parametrize(
  ('stream', 'converter', 'message'),
  [
    ('inputs', 'lm.tasks.seq2seq:encoder_decoder', "'targets' of the row"),
    ('inputs', 'lm.tasks.seq2seq:decoder', "'targets' of the row"),
    ('targets', 'lm.tasks.seq2seq:decoder', 'suits rows of lm.tasks.seq2seq:encoder_decoder'),
    ('source', 'lm.tasks.seq2seq:decoder', "stream='source': the rows have 'inputs' only"),
    (
      'sauce',
      'lm.tasks.seq2seq:encoder_decoder',
      r"stream='sauce' \(did you mean 'source'\?\) must be one of",
    ),
  ],
)
def test_unsuitable_streams_are_rejected(pairs, stream, converter, message):
  rows, tokenizer, _ = pairs(converter=converter, seq_len=128)
  with pytest.raises(UserError, match=message):
    batches.open_transforms([PATHS['bpe'].format(stream, 0.1)], tokenizer, rows)


def test_segmentation_of_targets_must_precede_masking_of_inputs(pairs):
  rows, tokenizer, _ = pairs()
  hide = transforms.word_dropout(tokenizer, 'inputs', rate=0.9, token='<|sep|>')
  resample = transforms.bpe_dropout(tokenizer, 'targets', rate=0.5)
  rng = np.random.default_rng(0)
  both = hide(resample(rows[0], rng), rng)
  assert texts(tokenizer, both, 'targets') == texts(tokenizer, rows[0], 'targets')
  with pytest.raises(UserError, match='must come before transforms that change their inputs'):
    resample(hide(rows[0], rng), rng)


def test_targets_with_zero_weights_are_rejected(pairs):
  rows, tokenizer, _ = pairs()
  resample = transforms.bpe_dropout(tokenizer, 'targets', rate=0.5)
  weights = rows[0]['weights'] * (np.arange(64) > 2)
  with pytest.raises(UserError, match=r'suits rows of lm\.tasks\.seq2seq:encoder_decoder'):
    resample(rows[0] | {'weights': weights}, np.random.default_rng(0))


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda t: transforms.bpe_dropout(t, 'source', rate=-0.1), r'bpe_dropout\(rate=-0\.1\) is not'),
    (lambda t: transforms.subword_regularization(t, 'source', -1), r'\(alpha=-1\) is below 0'),
    (
      lambda t: transforms.subword_regularization(t, 'source'),
      'needs a byte-level Unigram tokenizer',
    ),
  ],
)
def test_user_errors_are_reported_in_one_line(pairs, build, message):
  tokenizer = pairs()[1]
  with pytest.raises(UserError, match=message):
    build(tokenizer)


@pytest.mark.parametrize(('kind', 'strength'), [('bpe', 0.1), ('unigram', 0.2)])
def test_twenty_thousand_tokens_take_no_more_than_a_second(pairs, kind, strength):
  rows, tokenizer, _ = pairs(kind)
  paths = [PATHS[kind].format(stream, strength) for stream in ('source', 'targets')]
  transforms = batches.open_transforms(paths, tokenizer, rows)
  speeds = []
  for step in range(10):
    start = time.thread_time()
    batch = batches.batch_at(rows, transforms, 16, 0, step)
    tokens = (batch['segments'] > 0).sum() + (batch['source_segments'] > 0).sum()
    speeds.append(tokens / (time.thread_time() - start))
  assert max(speeds) > 20_000  # half of that of a busy slow core
