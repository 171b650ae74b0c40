"""The formulas of the article this project grew from: what holds of them, and what does not.

For each there is the right gradient by hand, in float64, against finite differences and against
`jax.grad` of the code of lm; and the line that is printed, which is shown to be another function.
z is a score, s its sigmoid. experiments/ARTICLE.md says what the lines are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from by_hand import differences, equal, random, sigmoid, softmax

from lm.models.embeddings import Embeddings
from lm.nn.losses import cross_entropy, sigmoid_cross_entropy, squared_sigmoid, token_statistics
from lm.objectives.glove import glove
from lm.objectives.supervised import squared_error
from lm.objectives.word2vec import negative_sampling
from lm.types import EmbeddingTable, Output, OutputHead, apply_of

N, V, D = 4, 5, 3


def differ(x, y):
  assert not np.allclose(x, y, rtol=0.01, atol=0.01)


# Word2Vec: theta of an output, the vectors x_j of words, labels y_ij.
THETA, X = random(D), random(V, D, seed=1)
LABELS = (random(N, V, seed=2) > 0).astype(float)
Z = X @ THETA
S = sigmoid(Z)


def test_the_squared_error_of_a_sigmoid_has_the_slope_s_less_y_times_that_of_s():
  by_hand = np.sum((S - LABELS) * S * (1 - S), axis=0) @ X
  equal(differences(lambda t: np.sum((LABELS - sigmoid(X @ t)) ** 2) / 2, THETA), by_hand)

  def ours(theta):
    scores_NV = jnp.broadcast_to(jnp.asarray(X) @ theta, (N, V))
    return jnp.sum(squared_sigmoid(scores_NV, jnp.asarray(LABELS))) / 2

  equal(jax.jit(jax.grad(ours))(jnp.asarray(THETA)), by_hand)


def test_the_derivation_of_word2vec_changes_its_loss_twice_and_loses_the_labels():
  # First line: the label is the sigmoid itself. The error it began with is then 0 for all theta.
  assert np.sum((S - sigmoid(X @ THETA)) ** 2) == 0
  # Second: -sum s log s. Its slope has a logarithm, and falls with s where s > 1 / e.
  by_hand = (-S * (1 - S) * (np.log(S) + 1)) @ X
  equal(differences(lambda t: -np.sum(sigmoid(X @ t) * np.log(sigmoid(X @ t))), THETA), by_hand)
  # Third: z s. -log s is log(1 + e^-z), above 0 everywhere, and not z.
  differ(-S * np.log(S), Z * S)
  # Its slope is printed with a minus that is a plus, and simplified to tanh(z / 2).
  printed = X.T @ (((1 + np.exp(-Z)) - Z * np.exp(-Z)) / (1 + np.exp(-Z)) ** 2)
  simplified = X.T @ ((1 - np.exp(-Z)) / (1 + np.exp(-Z)))
  equal(simplified, X.T @ np.tanh(Z / 2))
  right = jax.grad(lambda t: jnp.sum((jnp.asarray(X) @ t) * jax.nn.sigmoid(jnp.asarray(X) @ t)))
  third = jax.jit(right)(jnp.asarray(THETA))
  equal(third, X.T @ (((1 + np.exp(-Z)) + Z * np.exp(-Z)) / (1 + np.exp(-Z)) ** 2))
  differ(third, printed)
  differ(printed, simplified)
  # No label is left in it: what pulls vectors together and what pushes them apart are one.
  for labels in (LABELS, 1 - LABELS):
    differ(np.sum((S - labels) * S * (1 - S), axis=0) @ X, N * simplified)
    differ(np.sum(S - labels, axis=0) @ X, N * simplified)


@pytest.mark.parametrize(
  ('loss', 'slope'),
  [
    (sigmoid_cross_entropy, lambda s, y: s - y),
    (squared_sigmoid, lambda s, y: 2 * (s - y) * s * (1 - s)),
  ],
)
def test_negative_sampling_has_the_slope_of_its_loss(loss, slope):
  output = negative_sampling(np.ones(V), negatives=2, num_sampled=2, loss=loss)
  batch = {'centers': jnp.asarray([[1]]), 'negatives': jnp.asarray([[3, 4]])}
  table, vector = X, THETA

  def ours(h_BTD):
    return output.paired(h_BTD, jnp.asarray(table, jnp.float32), batch, jnp.ones((1, 1)))

  found = jax.jit(jax.grad(ours))(np.asarray(vector, np.float32)[None, None])
  words, labels = [1, 3, 4], np.array([1, 0, 0])
  equal(found[0, 0], slope(sigmoid(table[words] @ vector), labels) @ table[words])


def test_the_slope_of_the_squared_error_vanishes_where_it_is_far_wrong_and_the_logistic_one_not():
  score, label = jnp.asarray(-20.0), jnp.asarray(1.0)
  assert abs(jax.jit(jax.grad(squared_sigmoid))(score, label)) < 1e-7
  equal(jax.jit(jax.grad(sigmoid_cross_entropy))(score, label), -1)


def test_the_matrix_form_of_glove_has_another_gradient_than_the_printed_one():
  x, w, y = random(V, D), random(D, V, seed=1), random(V, V, seed=2)
  error = x @ w - y
  by_hand = (2 * error @ w.T, -2 * error)

  def loss(x, y):
    return ((x @ w - y) ** 2).sum()

  equal(differences(lambda x: loss(x, y), x), by_hand[0])
  equal(differences(lambda y: loss(x, y), y), by_hand[1])
  for found, expected in zip(jax.jit(jax.grad(loss, argnums=(0, 1)))(x, y), by_hand, strict=True):
    equal(found, expected)
  assert (-2 * x @ w @ y).shape == (V, V) != x.shape, 'the printed one is no change of X'
  differ(-2 * y @ x @ w, by_hand[1])
  # Nor is the sum of (x_i w_j - y_i y_j)^2, which is printed as equal, the norm.
  differ(np.sum((x @ w - y @ y.T) ** 2), loss(x, y))


def test_the_printed_gradient_of_glove_is_wrong_where_the_shapes_agree_and_at_the_minimum():
  x, w = random(D, D), random(D, D, seed=1)
  y = x @ w
  equal(differences(lambda x: np.sum((x @ w - y) ** 2), x), np.zeros((D, D)))
  differ(-2 * x @ w @ y, np.zeros((D, D)))
  # Over both X and Y, as printed, the minimum is to know nothing.
  assert np.sum((np.zeros((D, D)) @ w - np.zeros((D, D))) ** 2) == 0


def test_glove_is_weighted_least_squares_of_logarithms_of_the_pairs_that_occur():
  tables = {'embedding': (V, D), 'unembedding': (V, D), 'bias': (V, 1), 'unembedding_bias': (V, 1)}
  wide = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(tables.items())}
  params = {name: jnp.asarray(table, jnp.float32) for name, table in wide.items()}
  pairs = [(0, 1, 3.0), (0, 2, 200.0), (4, 1, 1.0)]
  i, j, counts = (np.array(column) for column in zip(*pairs, strict=True))
  batch = {
    'inputs': jnp.asarray([i]),
    'neighbours': jnp.asarray([j]),
    'counts': jnp.asarray([counts], jnp.float32),
    'weights': jnp.ones((1, len(pairs))),
  }
  apply = apply_of(Embeddings(V, D, len(pairs), biases=True))
  slope = jax.grad(lambda p: glove(x_max=10.0).loss_sums(apply, p, batch, None)['loss'])
  found = jax.jit(slope)(params)
  expected = {name: np.zeros(shape) for name, shape in tables.items()}
  for a, b, count in pairs:
    score = wide['embedding'][a] @ wide['unembedding'][b]
    error = score + wide['bias'][a, 0] + wide['unembedding_bias'][b, 0] - np.log(count)
    slope = min(1, count / 10) ** 0.75 * error
    expected['embedding'][a] += slope * wide['unembedding'][b]
    expected['unembedding'][b] += slope * wide['embedding'][a]
    expected['bias'][a] += slope
    expected['unembedding_bias'][b] += slope
  for name, gradient in expected.items():
    equal(found[name], gradient)


def test_the_slopes_of_a_softmax_are_p_on_the_diagonal_less_p_p():
  z = random(V)
  p = softmax(z)
  by_hand = np.diag(p) - np.outer(p, p)
  equal(jax.jit(jax.jacobian(jax.nn.softmax))(jnp.asarray(z)), by_hand)
  equal([differences(lambda z, k=k: softmax(z)[k], z) for k in range(V)], by_hand)
  equal(by_hand.sum(axis=0), 0)


def test_the_gradient_of_cross_entropy_is_p_less_y():
  hidden, kernel, targets = random(1, N, D), random(V, D, seed=1), np.array([[0, 3, 3, 2]])
  p, y = softmax(hidden[0] @ kernel.T), np.eye(V)[targets[0]]

  def by_hand(hidden):
    return -np.sum(y * np.log(softmax(hidden[0] @ kernel.T)))

  equal(differences(by_hand, hidden)[0], (p - y) @ kernel)

  def ours(hidden, kernel):
    weights = jnp.ones((1, N))
    return cross_entropy(
      hidden, OutputHead(EmbeddingTable(kernel)), jnp.asarray(targets), weights
    ).total

  narrow = [jnp.asarray(x, jnp.float32) for x in (hidden, kernel)]
  loss, (d_hidden, d_kernel) = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(*narrow)
  equal(loss, by_hand(hidden))
  equal(d_hidden[0], (p - y) @ kernel)
  equal(d_kernel, (p - y).T @ hidden[0])


def test_the_derivation_of_cross_entropy_mixes_two_functions_and_drops_the_logarithm():
  x, y = random(N, D), np.array([1.0, 0.0, 1.0, 0.0])
  theta = 3 * THETA
  z = x @ theta
  s = sigmoid(z)
  # -sum y log s without its other half: where y is 0 nothing is learned, and s = 1 is best.
  half = jax.grad(lambda t: -jnp.sum(jnp.asarray(y) * jax.nn.log_sigmoid(jnp.asarray(x) @ t)))
  equal(jax.jit(half)(jnp.asarray(theta)), x.T @ (-y * (1 - s)))
  # Both halves: s - y, which is the softmax's p - y for two classes.
  whole = jax.grad(lambda t: jnp.sum(sigmoid_cross_entropy(jnp.asarray(x) @ t, jnp.asarray(y))))
  equal(jax.jit(whole)(jnp.asarray(theta)), x.T @ (s - y))
  equal(softmax(np.stack([z, 0 * z], axis=-1))[:, 0], s)
  # Printed: y z s for -y log s, and the gradient tanh(z / 2) x whatever y is.
  differ(-y * np.log(s), y * z * s)
  printed = x.T @ ((1 - np.exp(-z)) / (1 + np.exp(-z)))
  for right in (x.T @ (-y * (1 - s)), x.T @ (s - y)):
    differ(printed, right)


def test_the_printed_gradient_of_the_squared_error_is_the_negative_of_that_with_targets_of_0():
  # Theta and x are numbers here: the article subtracts x from a sigmoid.
  x, theta = random(N), 0.7
  s = sigmoid(theta * x)

  def mean(theta, targets):
    return jnp.mean(squared_sigmoid(theta * jnp.asarray(x), jnp.asarray(targets)))

  right = np.mean(2 * (s - x) * s * (1 - s) * x)
  equal(jax.jit(jax.grad(mean))(theta, x), right)
  equal(differences(lambda t: np.mean((sigmoid(t * x) - x) ** 2), np.array(theta)), right)
  printed = np.mean(-2 * x * np.exp(-theta * x) / (1 + np.exp(-theta * x)) ** 3)
  assert abs(printed - right) > 0.05
  equal(printed, -jax.jit(jax.grad(mean))(theta, np.zeros(N)))


def test_the_gradient_of_the_squared_error_of_a_linear_prediction():
  hidden, kernel, y = random(1, N, D), random(1, D, seed=1), random(1, N, seed=2)
  batch = {'targets': jnp.asarray(y, jnp.float32), 'weights': jnp.ones((1, N))}

  def loss(kernel):
    output = Output(jnp.asarray(hidden, jnp.float32), OutputHead(EmbeddingTable(kernel)), {})
    objective = squared_error()
    total = objective.loss_sums(lambda *_, **__: output, None, batch, None)['loss']
    return total / objective.normalizers(batch)['loss']

  error = hidden[0] @ kernel[0] - y[0]
  equal(jax.jit(jax.grad(loss))(jnp.asarray(kernel, jnp.float32))[0], 2 / N * error @ hidden[0])


def test_accuracy_is_the_share_of_targets_that_have_the_highest_score():
  hidden, kernel, targets = random(1, N, D), random(V, D, seed=1), np.array([[0, 3, 3, 2]])

  @jax.jit
  def correct(hidden, kernel):
    return token_statistics(
      hidden, OutputHead(EmbeddingTable(kernel)), jnp.asarray(targets)
    ).correct

  found = correct(*(np.asarray(x, np.float32) for x in (hidden, kernel)))
  np.testing.assert_array_equal(found, np.argmax(hidden @ kernel.T, axis=-1) == targets)
