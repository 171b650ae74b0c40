"""Mixtures of sources, compared with exact proportions and with each source alone."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from lm.config import base as configs
from lm.config import validate
from lm.data import batches, mixture, pipeline
from lm.errors import UserError
from lm.text import tokenizers
from lm.text.tokenizers import sentinels

SEED = 5
SHARES = {'one': 0.5, 'three': 0.125, 'two': 0.375}


def text(word, count):
  return '\n'.join(f'{word} {n} ' + 'x' * (n % 13) for n in range(count))


@pytest.fixture
def data(section, corpus):
  """Returns a section with a mixture of three sources, of about 160, 60 and 10 rows."""
  sizes = {'one': 160, 'two': 60, 'three': 10}
  sources = {
    name: {
      'source': corpus(text(name, count), name=f'{name}.txt', documents='line'),
      'weight': SHARES[name],
    }
    for name, count in sizes.items()
  }
  return section('', mixture=sources)


def rows_of(data, **changes):
  return pipeline.packed_rows(data | changes, 'train', tokenizers.bytes([]), SEED)


def sources(rows, positions):
  """Returns the index of the source of each position, and of the row within it."""
  _, indices = rows.order(positions, SEED)
  which = np.searchsorted(rows._ends, indices, side='right')
  return which, indices - rows._begins[which]


def test_shares_are_exact_in_every_prefix_and_window():
  rng = np.random.default_rng(0)
  for n in (1, 2, 3, 4, 7, 30):
    shares = rng.dirichlet(np.full(n, 0.7)) * (1 - 1e-4 * n) + 1e-4
    source, nth = mixture.interleave(np.arange(20_000), shares)
    taken = source[None] == np.arange(n)[:, None]
    counts = np.concatenate([np.zeros((n, 1), int), np.cumsum(taken, axis=1)], axis=1)
    for i in range(n):
      assert (nth[taken[i]] == np.arange(taken[i].sum())).all(), 'rows of a source come in order'
    error = counts - shares[:, None] * np.arange(20_001)
    bound = max(sum(1 / k for k in range(1, n + 1)) / 2, 0.5) + 1e-4
    assert np.abs(error).max() <= bound
    for length in (1, 5, 64, 999):
      assert np.abs(error[:, length:] - error[:, :-length]).max() <= (1 if n == 2 else 2 * bound)


def test_positions_need_no_state():
  shares = (0.6, 0.3, 0.1)
  source, nth = mixture.interleave(np.arange(3000), shares)
  some = np.array([2999, 7, 0, 1234])
  for found, all_of in zip(mixture.interleave(some, shares), (source, nth), strict=True):
    assert (found == all_of[some]).all()
  far = 2**32 + np.arange(1000)
  source, nth = mixture.interleave(far, shares)
  assert np.bincount(source) == pytest.approx([600, 300, 100], abs=2)
  assert abs(nth[source == 1][0] - 0.3 * far[0]) < 3


def test_each_source_repeats_on_its_own_epochs_as_permutations(data):
  rows = rows_of(data)
  positions = np.arange(12 * len(rows))
  which, inside = sources(rows, positions)
  for i, (name, part) in enumerate(rows.parts.items()):
    own = inside[which == i]
    epochs = own[: len(own) // len(part) * len(part)].reshape(-1, len(part))
    assert len(epochs) >= 2, 'no source ends the others'
    assert (np.sort(epochs, axis=1) == np.arange(len(part))).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert rows.epochs(len(positions))[f'{name}/epoch'] == pytest.approx(
      len(own) / len(part), abs=1 / len(part)
    )
  assert sum(len(part) for part in rows.parts.values()) == len(rows)


def noise(row, rng):
  return row | {'targets': row['targets'] + rng.integers(0, 100, row['targets'].shape, 'int32')}


def test_a_batch_is_a_function_of_seed_and_step(data):
  data['mixture']['two']['transforms'] = ('test_mixture:noise',)
  rows = rows_of(data)
  spans = [range(step, step + 2) for step in range(0, 40, 2)]
  whole = dict(batches.train_batches(rows, (noise,), 8, SEED, spans))
  resumed = dict(batches.train_batches(rows_of(data), (noise,), 8, SEED, spans[13:]))
  host = dict(batches.train_batches(rows, (noise,), 8, SEED, spans, slice(2, 5)))
  for span, batch in resumed.items():
    assert all((batch[name] == whole[span][name]).all() for name in batch)
  for span, batch in host.items():
    assert all((batch[name] == whole[span][name][:, 2:5]).all() for name in batch)


def test_the_order_of_a_source_does_not_depend_on_the_others(data):
  alone = rows_of(data, mixture={'two': data['mixture']['two']})
  rows = rows_of(data)
  which, inside = sources(rows, np.arange(600))
  mine = inside[which == [*rows.parts].index('two')]
  assert (mine == sources(alone, np.arange(len(mine)))[1]).all()
  assert alone.parts['two'].content == rows.parts['two'].content
  assert alone.content != rows.content


def test_alpha_scales_shares_by_size(data):
  weights = {name: 1.0 for name in SHARES}
  parts = rows_of(data).parts
  tokens = {name: part.tokens for name, part in parts.items()}
  for alpha in (0.0, 0.3, 1.0):
    powers = {name: n**alpha for name, n in tokens.items()}
    shares = mixture.mix(parts, weights, alpha).shares
    total = sum(powers.values())
    assert shares == pytest.approx({name: power / total for name, power in powers.items()})
  as_path = rows_of(data, mix='lm.data.mixture:mix(alpha=0.3)').shares
  assert as_path == mixture.mix(parts, SHARES, 0.3).shares
  without = mixture.mix(parts, weights | {'two': 0}, 0.0)
  assert without.shares == {'one': 0.5, 'three': 0.5}


def test_rows_in_order_and_their_figures(data):
  rows = rows_of(data)
  joined = [part.batch(np.arange(len(part))) for part in rows.parts.values()]
  everything = rows.batch(np.arange(len(rows)))
  for name, values in everything.items():
    assert (values == np.concatenate([batch[name] for batch in joined])).all()
  drawn = rows.batch(rows.order(np.arange(4000), SEED)[1])
  assert rows.tokens_per_row() == pytest.approx((drawn['segments'] > 0).sum() / 4000, rel=0.01)
  counts = rows.counts(300)[:257].astype(float)
  seen = np.bincount(drawn['targets'][drawn['weights'] > 0], minlength=257)[:257]
  assert counts / counts.sum() == pytest.approx(seen / seen.sum(), abs=2e-3)
  assert 'one 50.0%' in rows.note


def test_rows_of_tasks_share_the_largest_number_of_examples(section, corpus):
  task = {'task': 'lm.tasks.text:classification', 'labels': ('a', 'b'), 'too_long': 'error'}
  task |= {'converter': 'lm.tasks.classification:classifier', 'seq_len': 40}
  parts = {}
  for name, words in (('short', 'x'), ('long', 'some longer text ')):
    lines = ['text\tlabel', *(f'{words * (1 + n % 2)}\t{"ab"[n % 2]}' for n in range(30))]
    columns = {'text': 'text', 'label': 'label'}
    file = corpus('\n'.join(lines), name=f'{name}.tsv', columns=columns)
    parts[name] = {'source': file.replace(':text(', ':table('), 'weight': 1.0}
  data = section('', mixture=parts, **task)
  rows = pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), SEED)
  counts = {name: part[0]['examples'].shape[0] for name, part in rows.parts.items()}
  assert counts['short'] > counts['long']
  batch = batches.batch_at(rows, (), 16, SEED, 0)
  assert batch['examples'].shape == (16, counts['short'])
  assert set((batch['examples'] > 0).sum(axis=1)) >= {counts['short'], counts['long']}


TASKS = {
  'task': 'lm.tasks.text:text_to_text',
  'converter': 'lm.tasks.seq2seq:encoder_decoder',
  'labels': ('a', 'b'),
  'too_long': 'error',
  'special_tokens': sentinels(20),
}
SPANS = {'task': None, 'transforms': ('lm.data.denoising:span_corruption',)}


@pytest.fixture
def pairs(corpus):
  """Returns a function that writes pairs of texts and returns their section in a mixture."""

  def write(lines, name, columns=('source', 'target'), **own):
    text = '\n'.join('\t'.join(line) for line in (columns, *lines))
    file = corpus(text, name=name, columns=dict(zip(columns, columns, strict=True)))
    return {'source': file.replace(':text(', ':table('), 'weight': 1.0, **own}

  return write


def segments(row, name, prefix=''):
  of = row[f'{prefix}segments']
  return [row[name][of == n].tolist() for n in np.unique(of[of > 0])]


def test_tasks_and_corrupted_text_share_the_rows_of_a_batch(section, corpus, pairs):
  known = {f'{n} apples': f'{n} Aepfel' for n in range(10, 40)}
  texts = [f'the {n}th line of the text {n * n}' for n in range(80)]
  text = {'source': corpus('\n'.join(texts), documents='line'), 'weight': 1.0, **SPANS}
  mixture = {'text': text, 'pairs': pairs([*known.items()], 'pairs.tsv')}
  data = section('', mixture=mixture, seq_len=60, source_len=40, **TASKS)
  tokenizer = pipeline.tokenizer(data)
  rows = pipeline.packed_rows(data, 'train', tokenizer, SEED)
  batch = batches.batch_at(rows, (), 20, SEED, 3)
  alone = {name: part.batch(np.arange(1)) for name, part in rows.parts.items()}
  assert 'bytes' in alone['text'] and 'examples' in alone['pairs'], 'a model reads neither'
  assert batch.keys() == alone['pairs'].keys() - {'examples'}
  assert {x.shape for x in batch.values()} == {(20, 60)}, 'the larger of both lengths'
  ids = {tokenizer.token_to_id(name) for name in sentinels(20)}
  found = {True: 0, False: 0}
  for row in ({name: x[b] for name, x in batch.items()} for b in range(20)):
    both = segments(row, 'source', 'source_'), segments(row, 'targets')
    for source, target in zip(*both, strict=True):
      corrupted = bool(ids & set(target))
      found[corrupted] += 1
      if corrupted:  # by the sentinel of each span
        cuts = [i for i, token in enumerate(target) if token in ids] + [len(target) - 1]
        spans = {target[a]: target[a + 1 : b] for a, b in itertools.pairwise(cuts)}
        source = [token for each in source for token in spans.get(each, [each])]
        assert tokenizer.decode(source) in '\n'.join(texts)
      else:
        assert known[tokenizer.decode(source)] == tokenizer.decode(target)
  assert min(found.values()) > 10
  # Another component changes neither the order nor the corruption of the first one.
  more = mixture | {'more': pairs([('x', 'y')] * 9, 'more.tsv')}
  rows_of_more = pipeline.packed_rows(data | {'mixture': more}, 'train', tokenizer, SEED)
  drawn = []
  for taken in (rows, rows_of_more):
    which, _ = sources(taken, np.arange(60))
    batch = batches.batch_at(taken, (), 60, SEED, 0)
    drawn.append(batch['source'][which == [*taken.parts].index('text')][:20])
  np.testing.assert_array_equal(*drawn)


def test_text_has_a_prefix_of_no_tokens_beside_a_prefix_language_model(section, corpus, pairs):
  mixture = {
    'text': {'source': corpus('plain text ' * 40), 'weight': 1.0, 'task': None},
    'pairs': pairs([('ab', 'cd')] * 9, 'pairs.tsv'),
  }
  tasks = TASKS | {'converter': 'lm.tasks.seq2seq:decoder'}
  data = section('', mixture=mixture, **tasks)
  rows = pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), SEED)
  batch = rows.batch(np.arange(len(rows)))
  of_pairs = np.arange(len(rows)) < rows._ends[[*rows.parts].index('pairs')]
  assert [*rows.parts] == ['pairs', 'text']
  assert batch['prefix'][of_pairs].any() and not batch['prefix'][~of_pairs].any()
  assert (batch['weights'][~of_pairs] == (batch['segments'][~of_pairs] > 0)).all()


def test_rows_that_cannot_be_equal_are_refused_in_one_line(section, corpus, pairs):
  text = {'source': corpus('plain text ' * 40), 'weight': 1.0, 'task': None}
  of_classes = {'task': 'lm.tasks.text:classification'}
  of_classes['converter'] = 'lm.tasks.classification:classifier'
  classes = pairs([('some text', 'a')] * 9, 'classes.tsv', ('text', 'label'), **of_classes)
  translated = pairs([('ab', 'cd')] * 9, 'pairs.tsv')
  nothing = text | {'source': corpus('\n', name='empty.txt', documents='line')}
  for sections, message in (
    ({'text': text, 'classes': classes}, "'targets'.*'for each input'.*'not for each input'"),
    ({'text': text, 'pairs': translated}, "'source'"),
    ({'text': text, 'nothing': nothing}, r'empty\.txt'),
    ({'text': text | SPANS | {'transforms': ('x:y',)}}, r'data\.mixture\.text.*x'),
    ({'text': text | SPANS, 'few': classes | {'task': 'no:task'}}, 'no:task'),
  ):
    data = section('', mixture=sections, **TASKS)
    with pytest.raises(UserError, match=message) as error:
      pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), SEED)
    assert '\n' not in str(error.value)


READ = []


def recorded(texts):
  """Returns a tokenizer and keeps its training texts in READ."""
  READ[:] = texts
  return tokenizers.bytes([])


def test_the_texts_of_a_tokenizer_follow_its_alpha(data):
  data['tokenizer'] = {'fn': 'test_mixture:recorded'}

  def read(alpha):
    pipeline.tokenizer(data | {'tokenizer_alpha': alpha})
    sizes = {name: sum(len(t) for t in READ if t.startswith(name)) for name in SHARES}
    return sizes, [t for t in READ if t.startswith('three')]

  sizes, _ = read(1.0)
  assert len(READ) == len(set(READ)) == 230, 'each text once, whatever the weights'
  for alpha in (0.3, 0.0):
    found, rare = read(alpha)
    powers = {name: size**alpha for name, size in sizes.items()}
    total = sum(powers.values())
    assert found == pytest.approx(
      {name: sum(sizes.values()) * power / total for name, power in powers.items()}, rel=0.03
    )
    counts = [rare.count(text) for text in set(rare)]
    assert len(counts) == 10 and max(counts) - min(counts) <= 1, 'texts repeat evenly'


def mixed(**changes):
  config = configs.base()
  with config.unlocked():
    configs.mixture(
      config, {'a': 'lm.data.sources:python_docs', 'b': 'lm.data.sources:python_docs'}
    )
    config.update_from_flattened_dict(changes)
  return config


def test_a_mixture_evaluates_every_source():
  config = mixed()
  validate.check_structure(config, 'FILE')
  validate.validate_config(config)
  assert {name: s.source for name, s in config.eval.sets.items()} == {
    name: section.source for name, section in config.data.mixture.items()
  }
  assert config.checkpoint.monitor == 'eval/a/loss'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data.mixture.a.weight': -1.0}, r'data\.mixture\.a\.weight=-1\.0 must be 0 or more'),
    ({'data.mixture.a.weight': float('nan')}, r'data\.mixture\.a\.weight=nan'),
    ({'data.mixture.a.weight': 0.0, 'data.mixture.b.weight': 0.0}, 'all weights are 0'),
    ({'data.source': 'lm.data.sources:python_docs'}, r'data\.source=.*a, b: leave one'),
    ({'eval.sets.a.source': ''}, r'eval\.sets\.a\.source is empty'),
    ({'data.tokenizer_alpha': -0.3}, r'data\.tokenizer_alpha=-0\.3'),
    ({'eval.sets.a.component': 'c'}, r"eval\.sets\.a\.component='c'.*a, b"),
    ({'eval.sets.a.scores': ('x:y',)}, r'eval\.sets\.a\.scores'),
  ],
)
def test_impossible_mixtures_are_refused_in_one_line(changes, message):
  with pytest.raises(UserError, match=message) as error:
    validate.validate_config(mixed(**changes))
  assert '\n' not in str(error.value)


def test_other_mistakes_are_refused_in_one_line(data):
  config = mixed()
  with config.unlocked():
    config.data.mixture.a.wieght = 2.0
  with pytest.raises(UserError, match=r"data\.mixture\.a\.wieght.*'weight'"):
    validate.check_structure(config, 'FILE')
  with config.unlocked():
    config.data.mixture.a = configs.component('x:y', transforms='x:y')
  with pytest.raises(UserError, match=r'data\.mixture\.a\.transforms'):
    validate.check_structure(config, 'FILE')
  with config.unlocked():
    config.data.mixture.a = ConfigDict({'source': 'x:y'})
  with pytest.raises(UserError, match=r"no key 'data\.mixture\.a\.weight'"):
    validate.check_structure(config, 'FILE')
  parts = rows_of(data).parts
  with pytest.raises(UserError, match=r'data\.mix: alpha=-0\.3'):
    rows_of(data, mix='lm.data.mixture:mix(alpha=-0.3)')
  with pytest.raises(UserError, match=r'data\.mixture\.two\.weight=1e-09'):
    mixture.mix(parts, {'one': 1.0, 'two': 1e-9, 'three': 0.0}, 0.0)
  with pytest.raises(UserError, match=r"a row of 'two' has"):
    mixture._common_fields({'one': parts['one'][0], 'two': {'inputs': np.zeros(16, np.float32)}})
  nothing = f'first_examples:first(source={data["mixture"]["one"]["source"]!r}, count=0)'
  with pytest.raises(UserError, match=r'first_examples.*has no text'):
    rows_of(data, mixture=data['mixture'] | {'nothing': {'source': nothing, 'weight': 1.0}})
