"""Denoising: sources and targets give the text back, and rates are those of the arguments."""

import numpy as np
import pytest
from test_masking import row_of

from lm.data.denoising import infilling, mixture_of_denoisers, prefix_lm, span_corruption
from lm.errors import UserError
from lm.text import tokenizers
from lm.text.tokenizers import sentinels, with_special_tokens

MODES = ('<|R|>', '<|X|>', '<|S|>')
LETTERS = 'abcdefghijklmnopqrstuvwxyz'


@pytest.fixture(scope='module')
def tokenizer():
  known = tokenizers.characters([LETTERS + ' 。'])
  return with_special_tokens(known, ('<|mask|>', *MODES, *sentinels(40)))


def text_of(rng, size):
  return ''.join(rng.choice([*LETTERS, ' ', ' ', ' '], size))


def segments_of(row, name, prefix=''):
  """Returns the tokens of each segment of a stream."""
  segments = row[f'{prefix}segments']
  return {s: row[name][segments == s].tolist() for s in np.unique(segments[segments > 0])}


def restored(tokenizer, source, targets):
  """Returns the text of a source whose sentinels are replaced by their spans."""
  ids = {tokenizer.token_to_id(name): name for name in sentinels(40)}
  spans, sentinel = {}, None
  for token in targets[:-1]:
    if token in ids:
      sentinel = spans.setdefault(token, [])
    else:
      sentinel.append(token)
  return [part for token in source for part in spans.get(token, [token])]


@pytest.mark.parametrize('unit', ['token', 'word'])
def test_sentinels_decode_to_the_text(tokenizer, unit):
  rng = np.random.default_rng(1)
  transform = span_corruption(tokenizer, unit=unit)
  documents = 0
  while documents < 5000:
    texts = [text_of(rng, int(n)) for n in rng.integers(1, 60, 8)]
    row = row_of(tokenizer, texts)
    originals = list(segments_of(row, 'targets').values())
    row = {name: np.append(values, np.zeros(5, values.dtype)) for name, values in row.items()}
    out = transform(row, rng)
    sources, targets = segments_of(out, 'source', 'source_'), segments_of(out, 'targets')
    assert sources.keys() == targets.keys()
    found = [restored(tokenizer, sources[s], targets[s]) for s in sources]
    # The texts that have spans, in order.
    remaining = iter(originals)
    assert all(text in remaining for text in found)
    assert all(target[-1] == 0 for target in targets.values())
    documents += len(texts)


def test_spans_of_one_text_have_the_rates(tokenizer):
  row = row_of(tokenizer, [text_of(np.random.default_rng(0), 199)])
  out = span_corruption(tokenizer)(row, np.random.default_rng(0))
  spans = round(30 / 3)
  real = out['segments'] > 0
  assert real.sum() == len(real) == 30 + spans + 1
  assert (out['source_segments'] > 0).sum() == 200 - 30 + spans
  np.testing.assert_array_equal(out['inputs'][1:], out['targets'][:-1])
  assert out['inputs'][0] == 0
  np.testing.assert_array_equal(out['positions'], np.arange(41))


def test_many_short_texts_keep_the_room_of_the_targets(tokenizer):
  rng = np.random.default_rng(2)
  row = row_of(tokenizer, [text_of(rng, 3) for _ in range(50)])
  transform = span_corruption(tokenizer, mean_length=1.0)
  shapes = {transform(row, np.random.default_rng(seed))['targets'].shape for seed in range(20)}
  assert shapes == {(30 + 30 + 1,)}
  out = transform(row, rng)
  assert 20 < (out['segments'] > 0).sum() <= 61


def test_mixture_has_one_shape_and_names_its_paradigms(tokenizer):
  rng = np.random.default_rng(3)
  row = row_of(tokenizer, [text_of(rng, 100), text_of(rng, 60)])
  transform = mixture_of_denoisers(tokenizer)
  seen, shapes = set(), set()
  for seed in range(60):
    out = transform(row, np.random.default_rng(seed))
    shapes.add(tuple((name, out[name].shape) for name in sorted(out)))
    first = next(iter(segments_of(out, 'source', 'source_').values()))
    seen.add(tokenizer.id_to_token(first[0]))
    originals = list(segments_of(row, 'targets').values())
    for s, source in segments_of(out, 'source', 'source_').items():
      assert restored(tokenizer, source[1:], segments_of(out, 'targets')[s]) in originals
  assert len(shapes) == 1
  assert seen == set(MODES)


def test_a_suffix_of_a_row_that_ends_inside_its_text_fits(tokenizer):
  row = row_of(tokenizer, [text_of(np.random.default_rng(4), 40)])
  cut = {name: values[:8] for name, values in row.items()}
  transform = mixture_of_denoisers(tokenizer, ('suffix',), modes=False)
  for seed in range(60):  # of which an eighth starts with the text
    out = transform(cut, np.random.default_rng(seed))
    found = restored(tokenizer, out['source'].tolist(), out['targets'].tolist())
    assert out['weights'].sum() >= 3
    assert found[:8] == cut['targets'].tolist()


def test_infilling_replaces_spans_by_one_mask_each(tokenizer):
  rng, mask = np.random.default_rng(4), tokenizer.token_to_id('<|mask|>')
  row = row_of(tokenizer, [text_of(rng, 199)])
  transform = infilling(tokenizer, unit='token', permute=False)
  masks = removed = 0
  for seed in range(100):
    out = transform(row, np.random.default_rng(seed))
    source = segments_of(out, 'source', 'source_')[1]
    kept = [token for token in source if token != mask]
    remaining = iter(row['targets'].tolist())
    assert all(token in remaining for token in kept)  # a subsequence
    assert len(kept) == 200 - round(0.3 * 199)
    masks += len(source) - len(kept)
    removed += 200 - len(kept)
    np.testing.assert_array_equal(out['targets'], row['targets'])
    np.testing.assert_array_equal(out['inputs'], row['inputs'])
  assert 2.5 < removed / masks < 3.3  # lengths of a Poisson distribution with the mean 3


def test_infilling_permutes_the_sentences_of_each_text(tokenizer):
  texts = ['a b。 c d。 e f。', 'g h。 i j。']
  row = row_of(tokenizer, texts)
  seen = set()
  for seed in range(40):
    out = infilling(tokenizer, rate=1e-6, mean_length=100.0)(row, np.random.default_rng(seed))
    sources = [
      tokenizer.decode([t for t in tokens[:-1] if t != tokenizer.token_to_id('<|mask|>')])
      for tokens in segments_of(out, 'source', 'source_').values()
    ]
    for text, source in zip(texts, sources, strict=True):
      assert sorted(source.replace(' ', '')) == sorted(text.replace(' ', ''))
      assert {*source.replace(' ', '').split('。')} == {*text.replace(' ', '').split('。')}
    seen.add(sources[0])
  assert len(seen) == 6


def test_prefixes_are_uniform_and_the_loss_covers_the_rest():
  segments = np.repeat([1, 2, 0], [10, 4, 2]).astype(np.int32)
  positions = np.concatenate([np.arange(10), np.arange(4), [0, 0]]).astype(np.int32)
  row = {'segments': segments, 'positions': positions, 'bytes': segments}
  sizes = []
  for seed in range(900):
    out = prefix_lm(row, np.random.default_rng(seed))
    sizes.append(int(out['prefix'][segments == 1].sum()))
    for s in (1, 2):
      prefix, weights = out['prefix'][segments == s], out['weights'][segments == s]
      size = int(prefix.sum())
      np.testing.assert_array_equal(prefix, positions[segments == s] < size)
      np.testing.assert_array_equal(weights, positions[segments == s] >= size - 1)
    assert not out['weights'][segments == 0].any()
    assert not out['prefix'][segments == 0].any()
  counts = np.bincount(sizes)
  assert len(counts) == 10
  assert counts[1:].min() > 60
  del row['bytes']  # that of a task
  with pytest.raises(UserError, match='take rows of running text'):
    prefix_lm(row, np.random.default_rng(0))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda t: span_corruption(t, rate=1.0), r'rate=1.0\) must be above 0 and below 1'),
    (lambda t: span_corruption(t, mean_length=0.5), r'mean_length=0\.5 is not between 1 and'),
    (lambda t: span_corruption(t, rate=None), r'rate=None\) must be above 0 and below 1'),
    (lambda t: span_corruption(t, mean_length='3'), r"mean_length='3' is not a number"),
    (lambda t: span_corruption(tokenizers.characters(['ab'])), 'no sentinels <extra_id_0>'),
    (lambda t: mixture_of_denoisers(t, denoisers=()), 'denoisers='),
    (lambda t: mixture_of_denoisers(t, denoisers=(3.0, 0.15)), r'denoiser 3\.0 must be'),
    (lambda t: mixture_of_denoisers(t, denoisers=('prefix',)), "denoiser 'prefix' must be"),
    (lambda t: infilling(t, mean_length=0.0), 'mean_length=0.0 is not between 1 and'),
    (lambda t: infilling(t, mean_length=float('inf')), 'mean_length=inf is not between 1 and'),
    (lambda t: infilling(tokenizers.characters(['ab'])), 'has no mask'),
  ],
)
def test_refusals(tokenizer, call, message):
  with pytest.raises(UserError, match=message) as e:
    call(tokenizer)
  assert '\n' not in str(e.value)


def test_too_few_sentinels_are_reported():
  few = with_special_tokens(tokenizers.characters([LETTERS]), sentinels(3))
  row = row_of(few, ['abcdefghijklmnopqrstuvwxyz' * 4])
  with pytest.raises(UserError, match=r'5 spans and data\.tokenizer 3 sentinels'):
    span_corruption(few)(row, np.random.default_rng(0))
