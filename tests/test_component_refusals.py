"""Models with state raise, because a train step would drop it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lm.components import init_of
from lm.errors import UserError
from lm.models.transformer import Decoder
from lm.nn.layers import Mlp
from lm.types import Output, apply_of

SIZES = {'d_model': 8, 'heads': 2, 'kv_heads': 2, 'head_dim': 4, 'd_mlp': 8}


class Sowing(Mlp):
  """A layer that sows what no step reads."""

  collection = 'statistics'

  @nn.compact
  def __call__(self, x_BTD):
    self.sow(self.collection, 'balance', jnp.mean(x_BTD))
    return super().__call__(x_BTD)


class Recording(Sowing):
  collection = 'intermediates'


class Counting(Mlp):
  @nn.compact
  def __call__(self, x_BTD):
    count = self.variable('batch_stats', 'count', jnp.zeros, ())
    return super().__call__(x_BTD + count.value)


def _decoder(kind=Decoder, **changes):
  return kind(vocab_size=11, context=4, depth=2, **SIZES, **changes)


BATCH = dict.fromkeys(('inputs', 'segments', 'positions'), jnp.ones((1, 4), jnp.int32))


@pytest.mark.parametrize('mlp', [Sowing, Recording, Counting])
@pytest.mark.parametrize('remat', [None, jax.checkpoint_policies.nothing_saveable])
def test_variables_of_a_layer_raise_before_the_first_step(mlp, remat):
  name = {'Sowing': 'statistics', 'Recording': 'intermediates', 'Counting': 'batch_stats'}[
    mlp.__name__
  ]
  with pytest.raises(UserError, match=f'{name}.*decoder/layers/layer_0/mlp'):
    jax.eval_shape(init_of(_decoder(mlp=mlp, remat_policy=remat), 4), jax.random.key(0))


@pytest.mark.parametrize('mlp', [Sowing, Recording])
def test_a_layer_that_sows_raises_where_its_model_is_applied(mlp):
  params = jax.eval_shape(init_of(_decoder(), 4), jax.random.key(0))
  with pytest.raises(UserError, match='sows'):
    jax.eval_shape(apply_of(_decoder(mlp=mlp)), nn.unbox(params), BATCH)


def test_a_model_without_state_is_unchanged():
  model = _decoder()
  params = nn.unbox(init_of(model, 4)(jax.random.key(0)))
  plain = nn.unbox(model.init(jax.random.key(0), BATCH)['params'])
  jax.tree.map(lambda x, y: (x == y).all() or pytest.fail('another initial value'), params, plain)
  output = apply_of(model)(params, BATCH)
  assert isinstance(output, Output) and output.losses == {}
