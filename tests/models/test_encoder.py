"""The encoder: bidirectional attention within each example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lm.nn.attention import blockwise
from lm.nn.layers import Attention
from lm.nn.pooling import first, mean
from lm.objectives.supervised import cross_entropy
from lm.training.train_step import gradients
from lm.types import apply_of

T = 10
SITE = 'encoder/embeddings'
SEGMENTS = np.array([1, 1, 1, 2, 2, 2, 2, 3, 3, 0])
PACKED = np.array([[1] * 4 + [2] * 6, [1] * 7 + [2] * 3])


def _of_examples(batch, P=2, seed=0):
  """Returns a batch of tokens with P examples per row and one class for each."""
  rng = np.random.default_rng(seed)
  B = batch['segments'].shape[0]
  there = np.asarray(batch['segments']).max(1)[:, None] > np.arange(P)[None]
  arrays = {'targets': rng.integers(0, 3, (B, P)), 'examples': there * (1 + np.arange(P))[None]}
  whole = {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}
  return batch | whole | {'weights': jnp.asarray(there, jnp.float32)}


def test_tokens_depend_on_all_tokens_of_their_segment_and_no_others(encoder, influence, batch_of):
  model = encoder('t5', attention_fn=functools.partial(blockwise, block=6))
  found = influence(model, batch_of(B=1, T=T, segments=SEGMENTS[None]), SITE)
  np.testing.assert_array_equal(found, np.equal.outer(SEGMENTS, SEGMENTS))


def test_windows_of_an_encoder_are_symmetric(encoder, influence, batch_of):
  model = encoder(attention_layer=functools.partial(Attention, window=3), depth=1)
  distance = np.abs(np.subtract.outer(np.arange(T), np.arange(T)))
  found = influence(model, batch_of(B=1, T=T), SITE)
  np.testing.assert_array_equal(found, distance < 3)


def test_a_pooled_example_depends_on_all_its_tokens_and_no_other(encoder, influence, batch_of):
  batch = _of_examples(batch_of(B=1, T=T, segments=SEGMENTS[None]), P=4)
  found = influence(encoder(pooling=first, num_classes=3), batch, SITE)
  # The fourth example does not exist.
  np.testing.assert_array_equal(found, np.equal.outer([1, 2, 3, 4], SEGMENTS))


def test_packed_examples_equal_separate_ones(encoder, params_of, batch_of, alone):
  model = encoder(pooling=mean, num_classes=3)
  params, tokens = params_of(model), batch_of(T=T, segments=PACKED)
  batch = _of_examples(tokens)

  @jax.jit
  def run(params, batch):
    output = apply_of(model)(params, batch)
    grads, _ = gradients(cross_entropy(), apply_of(model), params, batch, None)
    return output.head(output.hidden), grads

  logits_BPC, packed_grads = jax.device_get(run(params, batch))
  total = jax.tree.map(np.zeros_like, packed_grads)
  for document in (1, 2):
    names, nth = ('targets', 'weights', 'examples'), [document - 1]
    whole = {name: np.pad(np.asarray(batch[name])[:, nth], ((0, 0), (0, 1))) for name in names}
    found_BPC, grads = jax.device_get(run(params, alone(tokens, document) | whole))
    np.testing.assert_allclose(logits_BPC[:, nth], found_BPC[:, :1], atol=2e-5)
    total = jax.tree.map(np.add, total, grads)
  # The loss is a mean: over four examples, and twice over two.
  for x, y in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(total), strict=True):
    np.testing.assert_allclose(x, y / 2, rtol=1e-4, atol=2e-6)

  # A poison token in the other document changes no bit of this one.
  poisoned = batch | {'inputs': np.where(PACKED == 1, batch['inputs'], 7)}
  found_BPC, _ = jax.device_get(run(params, poisoned))
  np.testing.assert_array_equal(found_BPC[:, 0], logits_BPC[:, 0])
  assert (found_BPC[:, 1] != logits_BPC[:, 1]).any()


def test_the_head_has_a_vector_and_a_bias_for_each_class(encoder, params_of, batch_of):
  model, batch = encoder(num_classes=5), batch_of()
  params = params_of(model)
  output = jax.jit(apply_of(model))(params, batch)
  expected = np.asarray(output.hidden) @ np.asarray(params['head']['kernel']).T
  logits = np.asarray(output.head(output.hidden))
  np.testing.assert_allclose(
    logits, expected + np.asarray(params['head']['bias']), rtol=1e-4, atol=1e-5
  )
  assert logits.shape == (2, 12, 5)


def test_without_classes_the_head_is_over_the_vocabulary(encoder, params_of, batch_of):
  model, batch = encoder(), batch_of()
  params = params_of(model)
  output = jax.jit(apply_of(model))(params, batch)
  assert 'head' not in params
  expected = np.asarray(output.hidden) @ np.asarray(params['embedding']).T
  np.testing.assert_allclose(output.head(output.hidden), expected, rtol=1e-4, atol=1e-5)
