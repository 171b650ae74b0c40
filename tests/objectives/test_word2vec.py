import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.errors import UserError
from lm.models.embeddings import Embeddings
from lm.nn.losses import sigmoid_cross_entropy, squared_sigmoid
from lm.objectives import word2vec
from lm.objectives.word2vec import hierarchical_softmax, huffman, negative_sampling
from lm.types import apply_of

COUNTS = np.array([0, 0, 40, 25, 12, 9, 6, 4, 3, 1])  # END and <unk> are not words
V, D, B, T = len(COUNTS), 5, 3, 12


@pytest.fixture
def apply():
  return apply_of(Embeddings(V, D, T))


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  names = ('embedding', 'unembedding')
  return {name: rng.normal(size=(V, D)).astype(np.float32) for name in names}


@pytest.fixture
def batch():
  rng = np.random.default_rng(1)
  segments = np.repeat([[1] * 5 + [2] * 7], B, axis=0)
  segments[-1, 10:] = 0
  return {
    'inputs': np.zeros((B, T), np.int32),  # unused: the words are the targets
    'targets': rng.integers(0, V, (B, T)).astype(np.int32),
    'segments': segments.astype(np.int32),
    'weights': (segments > 0).astype(np.float32),
  }


def _sample(objective, batch, key):
  """Returns the sampled batch of a compiled program as NumPy arrays."""
  return jax.device_get(jax.jit(objective.sample)(batch, jax.random.key(key)))


def _softplus(x):
  return np.log1p(np.exp(x))


def _pairs(batch):
  """Returns the pairs (row, word, neighbor) of a sampled batch."""
  if 'neighbors' in batch:
    return np.argwhere(np.asarray(batch['neighbors'])).tolist()
  left, right = np.asarray(batch['left']), np.asarray(batch['right'])
  return [
    [b, t, s]
    for b, t in np.ndindex(*left.shape)
    for s in range(t - left[b, t], t + right[b, t] + 1)
    if s != t
  ]


def test_neighbors_equal_those_of_a_loop_over_the_kept_words():
  rng = np.random.default_rng(2)
  kept = rng.random((8, 20)) < 0.6
  window = rng.integers(1, 4, (8, 20))
  segments = np.sort(rng.integers(1, 4, (8, 20)), axis=1)
  found = np.asarray(jax.jit(word2vec.neighbors)(kept, window, segments))
  expected = np.zeros((8, 20, 20), bool)
  for b in range(8):
    there = np.flatnonzero(kept[b]).tolist()
    for i, word in enumerate(there):
      width = window[b, word]
      for other in there[max(0, i - width) : i] + there[i + 1 : i + 1 + width]:
        expected[b, word, other] = segments[b, word] == segments[b, other]
  np.testing.assert_array_equal(found, expected)


def test_keep_probabilities_are_those_of_the_program_word2vec():
  counts = np.array([0, 1, 99, 900])
  # f = 0.001, 0.099, 0.9 and t = 0.01: sqrt(t / f) + t / f.
  expected = [0, 1, np.sqrt(0.01 / 0.099) + 0.01 / 0.099, np.sqrt(0.01 / 0.9) + 0.01 / 0.9]
  np.testing.assert_allclose(word2vec.keep_probability(counts, 0.01), expected, rtol=1e-6)
  np.testing.assert_array_equal(word2vec.keep_probability(counts, 0), [0, 1, 1, 1])


def test_kept_words_move_to_the_front():
  rng = np.random.default_rng(3)
  kept, one, other = rng.random((6, 9)) < 0.5, *rng.integers(1, 99, (2, 6, 9))
  kept[0] = True
  found = jax.jit(word2vec.compact)(kept, one, other)
  for array, moved in zip((one, other), found, strict=True):
    for row, keeps, new in zip(array.tolist(), kept, moved.tolist(), strict=True):
      there = [x for x, k in zip(row, keeps, strict=True) if k]
      assert new == there + [0] * (9 - len(there))


def test_cbow_has_the_neighbors_of_skip_gram(batch):
  output = functools.partial(negative_sampling, negatives=3, num_sampled=2)
  pairs = []
  batch['targets'] *= batch['segments'] > 0  # as in packed rows
  for make in (word2vec.skip_gram, word2vec.cbow):
    sampled = _sample(make(3, 1e-1, output, COUNTS), batch, 5)
    words = sampled['centers']
    pairs.append([(b, words[b, t], words[b, s]) for b, t, s in _pairs(sampled)])
  assert pairs[0] == pairs[1] and len(pairs[0]) > 10


def test_skip_gram_is_the_sum_over_all_pairs(apply, params, batch):
  output = functools.partial(negative_sampling, negatives=3, num_sampled=2)
  objective = word2vec.skip_gram(2, 0, output, COUNTS)
  sampled = _sample(objective, batch, 0)
  words, table = sampled['centers'], params['unembedding']
  negatives = sampled['negatives'].ravel()
  expected = 0.0
  for b, t, s in _pairs(sampled):
    vector = params['embedding'][words[b, s]]
    expected += _softplus(-table[words[b, t]] @ vector)
    expected += 3 / len(negatives) * sum(_softplus(table[n] @ vector) for n in negatives)
  assert len(_pairs(sampled)) > 20
  found = jax.jit(lambda p, b: objective.loss_sums(apply, p, b, None)['loss'])(params, sampled)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert objective.normalizers(sampled)['loss'] == batch['weights'].sum()


def test_cbow_predicts_from_the_mean_and_gives_each_neighbor_the_full_gradient(
  apply, params, batch
):
  output = functools.partial(negative_sampling, negatives=3, num_sampled=2)
  objective = word2vec.cbow(2, 0, output, COUNTS)
  sampled = _sample(objective, batch, 0)
  words, table = sampled['centers'], params['unembedding']
  vectors, negatives = params['embedding'], sampled['negatives'].ravel()
  loss, gradient = 0.0, np.zeros((V, D))
  for (b, t), pairs in itertools.groupby(_pairs(sampled), lambda pair: pair[:2]):
    near = words[b, [s for *_, s in pairs]]
    mean = vectors[near].mean(0)
    loss += _softplus(-table[words[b, t]] @ mean)
    loss += 3 / len(negatives) * sum(_softplus(table[n] @ mean) for n in negatives)
    error = -table[words[b, t]] / (1 + np.exp(table[words[b, t]] @ mean))
    for n in negatives:
      error = error + 3 / len(negatives) * table[n] / (1 + np.exp(-table[n] @ mean))
    np.add.at(gradient, near, error)
  sums = jax.value_and_grad(lambda p: objective.loss_sums(apply, p, sampled, None)['loss'])
  value, gradients = jax.jit(sums)(params)
  np.testing.assert_allclose(value, loss, rtol=1e-5)
  np.testing.assert_allclose(gradients['embedding'], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('make', [word2vec.skip_gram, word2vec.cbow])
@pytest.mark.parametrize('output', [negative_sampling, hierarchical_softmax])
def test_sparse_rows_give_the_loss_and_gradients_of_full_tables(make, output, apply, params, batch):
  objective = make(2, 1e-1, output, COUNTS)
  sums = jax.value_and_grad(lambda p, b: objective.loss_sums(apply, p, b, None)['loss'])

  @jax.jit
  def both(params, batch, key):
    sampled = objective.sample(batch, key)
    rows, numbered = objective.sparse_rows(sampled)
    some = {name: params[name].at[r].get(mode='fill', fill_value=0) for name, r in rows.items()}
    return rows, sums(params, sampled), sums(some, numbered)

  rows, (expected, whole), (found, part) = jax.device_get(both(params, batch, jax.random.key(3)))
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for name, r in rows.items():
    back = np.zeros((V, D), np.float32)
    back[r[r < V]] = part[name][r < V]  # padding is not a row
    np.testing.assert_allclose(back, whole[name], rtol=1e-4, atol=1e-5)
    assert not whole[name][np.setdiff1d(np.arange(V), r)].any()


def test_negatives_are_sampled_in_proportion_to_powers_of_counts():
  output = negative_sampling(COUNTS, num_sampled=400, rows_per_sample=10, power=0.75)
  batch = {'centers': np.zeros((100, 1), np.int32)}
  sampled = _sample(output, batch, 0)['negatives'].ravel()
  shares = COUNTS**0.75 / (COUNTS**0.75).sum()
  found = np.bincount(sampled, minlength=V) / len(sampled)
  assert not found[:2].any()
  np.testing.assert_allclose(found, shares, atol=4 * np.sqrt(0.25 / len(sampled)))


def test_rows_of_a_group_use_the_negatives_of_their_group_alone(apply, params, batch):
  given = {name: np.concatenate([x, x]) for name, x in batch.items()}
  for make in (word2vec.skip_gram, word2vec.cbow):
    output = functools.partial(negative_sampling, negatives=3, num_sampled=2, rows_per_sample=2)
    objective = make(2, 0, output, COUNTS)
    sampled = _sample(objective, given, 0)
    assert sampled['negatives'].shape == (
      3,
      4,
    )  # three groups of two rows, with two negatives per row
    sums = jax.jit(
      lambda b, objective=objective: objective.loss_sums(apply, params, b, None)['loss']
    )
    together = sums(sampled)
    apart = 0
    for group in range(3):
      part = {name: x[2 * group : 2 * group + 2] for name, x in sampled.items()}
      part['negatives'] = sampled['negatives'][group : group + 1]
      apart += float(sums(part))
    np.testing.assert_allclose(together, apart, rtol=1e-5)


@pytest.mark.parametrize(
  ('rows', 'shared', 'groups'), [(32, 8, 4), (3, 8, 1), (12, 5, 2), (7, 3, 1)]
)
def test_at_least_rows_per_sample_rows_share_negatives(rows, shared, groups):
  output = negative_sampling(COUNTS, num_sampled=3, rows_per_sample=shared)
  centers = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
  sampled = jax.eval_shape(output.sample, {'centers': centers}, jax.random.key(0))
  assert sampled['negatives'].shape == (groups, 3 * rows // groups)


def test_samples_depend_on_the_key_and_the_row(batch):
  objective = word2vec.skip_gram(3, 1e-1, negative_sampling, COUNTS)
  draw = jax.jit(objective.sample)
  one, same, other = (jax.device_get(draw(batch, jax.random.key(k))) for k in (0, 0, 1))
  np.testing.assert_array_equal(one['neighbors'], same['neighbors'])
  assert (one['neighbors'] != other['neighbors']).any()
  assert (one['negatives'] != other['negatives']).any()
  alike = {name: np.repeat(x[:1], B, axis=0) for name, x in batch.items()}
  of_rows = np.asarray(draw(alike, jax.random.key(0))['neighbors'])
  assert (of_rows[0] != of_rows[1]).any()


def test_no_pair_has_a_token_that_is_no_word(batch):
  objective = word2vec.skip_gram(3, 0, negative_sampling, COUNTS)
  sampled = _sample(objective, batch, 0)
  words = sampled['centers']
  assert (words < 2).any()
  assert all(words[b, t] > 1 and words[b, s] > 1 for b, t, s in _pairs(sampled))


def test_probabilities_of_hierarchical_softmax_sum_to_1():
  output = hierarchical_softmax(COUNTS)
  words = np.arange(2, V)[:, None]
  extra = output.sample({'centers': words}, jax.random.key(0))
  rows = jax.device_get({'centers': words} | extra)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(V, D)).astype(np.float32)
  vector = np.broadcast_to(rng.normal(size=D).astype(np.float32), (1, 1, D))

  @jax.jit
  def nats(row):
    all_pairs = output.all_pairs(vector, table, row, jnp.ones((1, 1, 1)))
    return all_pairs, output.paired(vector, table, row, jnp.ones((1, 1)))

  each = [nats({name: x[i : i + 1] for name, x in rows.items()}) for i in range(V - 2)]
  all_pairs, paired = np.array(each).T
  np.testing.assert_allclose(all_pairs, paired, rtol=1e-5)
  np.testing.assert_allclose(np.exp(-paired).sum(), 1, rtol=1e-5)


def test_huffman_paths_have_the_minimal_cost():
  nodes, turns, lengths = huffman(COUNTS)
  present = np.flatnonzero(COUNTS)
  # Kraft's equality: a full binary tree. Its cost by hand: the sum of all merged weights of
  # 1 3 4 6 9 12 25 40 is 4 + 8 + 14 + 21 + 35 + 60 + 100.
  assert sum(0.5 ** lengths[present]) == 1
  assert (lengths * COUNTS).sum() == 4 + 8 + 14 + 21 + 35 + 60 + 100
  codes = {tuple(turns[w, : lengths[w]]) for w in present}
  assert len(codes) == len(present)
  assert (lengths[COUNTS == 0] == 0).all()
  # One root, and one inner node fewer than words.
  assert len({nodes[w, 0] for w in present}) == 1
  assert {n for w in present for n in nodes[w, : lengths[w]]} == set(range(len(present) - 1))


def test_losses_of_scores_and_their_gradients():
  scores = np.array([-30.0, -2.0, 0.0, 0.5, 30.0], np.float32)
  sigmoid = 1 / (1 + np.exp(-np.float64(scores)))

  @jax.jit
  def both(scores, label):
    slope = jax.grad(lambda s: sigmoid_cross_entropy(s, label).sum())(scores)
    return sigmoid_cross_entropy(scores, label), slope, squared_sigmoid(scores, label)

  for label in (0.0, 1.0):
    found, slope, squared = both(scores, np.float32(label))
    nats = np.logaddexp(0, np.float64(-scores if label else scores))
    np.testing.assert_allclose(found, nats, rtol=2e-6)
    np.testing.assert_allclose(slope, sigmoid - label, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(squared, (label - sigmoid) ** 2, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
  ('make', 'told'),
  [
    (lambda: word2vec.skip_gram(window=0), 'objective.window=0 is not'),
    (lambda: word2vec.cbow(subsample=1.5), 'objective.subsample=1.5 is not a share'),
    (lambda: negative_sampling(COUNTS, negatives=0), 'negatives=0 is not'),
    (lambda: negative_sampling(COUNTS, num_sampled=0), 'num_sampled=0 is not'),
    (lambda: negative_sampling(COUNTS, rows_per_sample=0), 'rows_per_sample=0 is not'),
  ],
)
def test_arguments_out_of_range_raise(make, told):
  with pytest.raises(UserError, match=told):
    make()
