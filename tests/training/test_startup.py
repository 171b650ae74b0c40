"""What is wrong with the functions of a config is one line, before anything is written."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, gpt2
from lm.decode.loop import check_decoding
from lm.errors import UserError
from lm.evaluation.evaluators import Evaluators
from lm.metrics.labels import classification
from lm.metrics.translation import chrf
from lm.nn.embedding import InputLayer
from lm.nn.layers import Attention, Linear
from lm.parallel.host import Never
from lm.text import tokenizers
from lm.training import trainer
from lm.training.train_step import abstract_state, gradients
from lm.types import Metric, Objective, apply_of

SIZE = 300


def tiny(**leaves):
  config = base()
  config.batch_size = config.eval.batch_size = 4
  config.model = gpt2(depth=1, d_model=8, heads=2, context=8)
  config.data.seq_len = 8
  config.data.source = 'test_startup:lines'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.log.sample_prompts = ()
  config.update_from_flattened_dict(leaves)
  return config


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(20)]


def unnamed():
  return Objective(lambda apply, params, batch, key: {'a': jnp.zeros(()), 'b': jnp.zeros(())}, dict)


def test_a_sum_without_a_weight_is_reported_by_its_name():
  objective = Objective(
    lambda apply, params, batch, key: {'a': params['w'] ** 2, 'b': params['w']},
    normalizers=lambda batch: {'a': jnp.ones(())},
  )
  with pytest.raises(UserError, match=r'objective\.fn: loss_sums returns a, b .* normalizers a;'):
    gradients(objective, None, {'w': jnp.ones(())}, {'x': jnp.ones(2)}, None)
  with pytest.raises(UserError, match=r'loss_sums returns a, b .* normalizers a;'):
    gradients(objective, None, {'w': jnp.ones(())}, {'x': jnp.ones(2)}, None, microbatches=2)


@pytest.mark.parametrize(
  ('section', 'fn', 'words'),
  [
    (
      'objective',
      'lm.metrics.tokens:targets',
      ('takes no', 'z_loss', 'label_smoothing', 'logits_chunk'),
    ),
    ('objective', 'test_startup:lines', ('takes no',)),
    ('optim', 'optax:adam', ('optim.fn', 'takes no', 'schedule', 'lm.types.Optimizer')),
  ],
)
def test_keys_of_another_function_are_reported_together(section, fn, words):
  with pytest.raises(UserError) as error:
    components.build_components(tiny(**{f'{section}.fn': fn}), SIZE)
  assert all(word in str(error.value) for word in words) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('section', 'value', 'kind'),
  [
    ('objective', {'fn': 'lm.metrics.tokens:targets'}, 'returns Metric; .* lm.types.Objective'),
    (
      'optim',
      {'fn': 'test_startup:plain', 'steps': 3},
      'returns GradientTransformation.*Optimizer',
    ),
    (
      'optim',
      {'fn': 'optax:adam', 'learning_rate': 0.1, 'decay_steps': 3},
      'takes no decay_steps.*Optimizer',
    ),
  ],
)
def test_what_makes_something_else_is_reported(section, value, kind):
  config = tiny()
  with config.unlocked():
    config[section] = ConfigDict(value)
  with pytest.raises(UserError, match=kind):
    components.build_components(config, SIZE)


def plain(steps):
  import optax

  return optax.adam(0.1)


class NoCache(Attention):
  """Forgets to return its cache."""

  @nn.compact
  def __call__(self, x, memory, mask, cache):
    return super().__call__(x, memory, mask, cache)[0], None


class NoPair(Attention):
  """Returns its output alone."""

  @nn.compact
  def __call__(self, x, memory, mask, cache):
    return super().__call__(x, memory, mask, cache)[0]


@pytest.mark.parametrize(
  ('layer', 'message'),
  [(NoCache, r'attention_layer: .* None in its place'), (NoPair, r'not a pair \(y, cache\)')],
)
def test_a_layer_that_returns_no_cache_is_reported(layer, message, decoder):
  model = decoder(attention_layer=layer)
  tokens = np.zeros((1, 3), np.int32)
  batch = {'inputs': tokens, 'segments': tokens + 1, 'positions': tokens}
  init = components.init_of(model, 8)
  with pytest.raises(UserError, match=message):
    params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
    check_decoding(model, apply_of(model), params, batch)


def test_decoding_of_a_right_layer_is_traced(decoder):
  model = decoder()
  tokens = np.zeros((2, 3), np.int32)
  params = nn.unbox(jax.eval_shape(components.init_of(model, 8), jax.random.key(0)))
  batch = {'inputs': tokens, 'segments': tokens + 1, 'positions': tokens}
  check_decoding(model, apply_of(model), params, batch)


def sees_batch():
  def apply(module, x, batch, add_positions, d_model):
    of_tokens = Linear((3, d_model), (None, 'embed'), name='patches')(batch['patches'])
    of_examples = Linear((2, 5, d_model), (None, None, 'embed'), 2, name='image')(batch['image'])
    return add_positions(x + of_tokens + of_examples[:, :1])

  return InputLayer(apply)


def test_parameters_are_initialized_from_a_row(decoder):
  known = {name: np.zeros(8, np.int32) for name in ('inputs', 'segments', 'positions')}
  arrays = {'patches': np.zeros((8, 3), np.uint8), 'image': np.zeros((4, 2, 5), np.float16)}
  row = components.abstract_row(known | arrays)
  assert row['image'] == ['float16', 4, 2, 5]
  found = jax.eval_shape(
    components.init_of(decoder(input_layer=sees_batch), 8, row), jax.random.key(0)
  )
  stack = nn.unbox(found)['decoder']
  assert stack['patches']['kernel'].shape == (3, 16) and stack['image']['kernel'].shape[:2] == (
    2,
    5,
  )
  del row['patches']
  with pytest.raises(UserError, match=r"batch\['patches'\], and rows have image, inputs, pos"):
    jax.eval_shape(components.init_of(decoder(input_layer=sees_batch), 8, row), jax.random.key(0))
  plain, key = decoder(), jax.random.key(0)
  shapes = [jax.eval_shape(components.init_of(plain, 8, r), key) for r in (None, row)]
  assert shapes[0] == shapes[1], 'what a model does not read changes nothing'


def twice():
  return Metric(lambda output, batch: {'loss': (jnp.ones(()), jnp.ones(()))})


def own():
  terms = {'reward': (jnp.ones(()), jnp.ones(()))}
  return Metric(lambda output, batch: terms, lambda means: {'regret': -means['reward']})


def directions_of(config):
  tokenizer = tokenizers.bytes([])
  functions = components.build_components(config, tokenizer.get_vocab_size())
  evaluators = Evaluators(config, functions, tokenizer)
  return evaluators.directions(abstract_state(functions)[0].params)


def test_metrics_of_a_set_are_known_by_name_before_a_step():
  paths = ('lm.metrics.tokens:targets', 'test_startup:own')
  assert directions_of(tiny(**{'eval.sets.validation.metrics': paths})) == {
    'eval/validation/loss': False,
    'eval/validation/accuracy': True,
    'eval/validation/perplexity': False,
    'eval/validation/reward': None,
    'eval/validation/regret': None,
  }
  with pytest.raises(UserError, match=r"eval\.sets\.validation: two metrics .* value 'loss'"):
    paths = ('lm.metrics.tokens:targets', 'test_startup:twice')
    directions_of(tiny(**{'eval.sets.validation.metrics': paths}))


def test_references_are_checked_before_there_are_outputs():
  classification(positive='b').check(['a', 'b'])
  with pytest.raises(UserError, match="positive='c' does not occur among the labels"):
    classification(positive='c').check(['a', 'b'])
  with pytest.raises(UserError, match='it scores labels'):
    classification().check([['a'], ['b']])
  with pytest.raises(UserError, match=r'sentence 1 \(from 0\) has no reference'):
    chrf().check(['a', []])


def test_nothing_is_written_where_a_function_is_wrong(tmp_path):
  config = tiny()
  with config.unlocked():
    config.objective = ConfigDict({'fn': 'test_startup:unnamed'})
  with pytest.raises(UserError, match='loss_sums returns a, b'):
    trainer.train(config, 'x.txt', tmp_path / 'run', Never())
  assert not (tmp_path / 'run').exists()
