"""Mixtures of sources, compared with exact proportions and with each source alone."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from lm.config import base as configs
from lm.config import validate
from lm.data import batches, mixture, pipeline
from lm.errors import UserError
from lm.text import tokenizers

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


def test_a_batch_is_a_function_of_seed_and_step(data):
  rows = rows_of(data)

  def noise(row, rng):
    return row | {'targets': row['targets'] + rng.integers(0, 100, row['targets'].shape)}

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
