"""The base configuration: sizes and steps with defaults that follow other keys."""

import copy

import flax.linen as nn
import jax
import pytest

from lm import cli, components
from lm.config.base import base, encoder_decoder, llama, sizes, smoke
from lm.config.recurrent import recurrent_encoder_decoder

FILE = """
from lm.config.base import base, select_variant, llama, smoke

def get_config(arg=''):
  config = base()
  if arg == 'grouped':
    config.model = llama(depth=2, d_model=64, heads=8, kv_heads=2, d_mlp=96, context=128)
    arg = ''
  return select_variant(config, arg, smoke=smoke)
"""


@pytest.fixture
def model_of(tmp_path):
  (tmp_path / 'sized.py').write_text(FILE)

  def read(arg, *overrides):
    given = [f'--config.model.{override}' for override in overrides]
    return cli.config(['x', f'--config={tmp_path / "sized.py"}{arg}', *given])[0]

  return read


def kernels(config):
  """Returns the shapes of the first attention layer and the MLP, without the axis of layers."""
  model = components.model(config, 300)
  boxed = jax.eval_shape(components.init_of(model, 16), jax.random.key(0))
  layer = nn.unbox(boxed)['decoder']['layers']['layer_0']
  attention = {name: x['kernel'].shape[1:] for name, x in layer['attention'].items()}
  return attention, layer['mlp']['up']['kernel'].shape[1:]


@pytest.mark.parametrize(
  ('overrides', 'shape', 'mlp'),
  [
    ((), (128, 4, 3, 32), (128, 512)),
    (('heads=8',), (128, 8, 3, 16), (128, 512)),
    (('d_model=256',), (256, 4, 3, 64), (256, 1024)),
    (('d_model=256', 'heads=8', 'd_mlp=100', 'head_dim=20'), (256, 8, 3, 20), (256, 100)),
  ],
)
def test_default_sizes_follow_overrides(model_of, overrides, shape, mlp):
  attention, up = kernels(model_of('', *overrides))
  assert (attention['qkv'], up) == (
    shape,
    mlp,
  )  # one kernel with the same number of q, k and v heads


def test_sizes_of_a_smoke_config_follow_overrides(model_of):
  assert kernels(model_of(':smoke'))[0]['qkv'] == (32, 4, 3, 8)
  attention, up = kernels(model_of(':smoke', 'heads=8', 'd_model=64'))
  assert (attention['qkv'], up) == ((64, 8, 3, 8), (64, 128))


def test_explicit_sizes_stay_and_are_printed(model_of):
  config = model_of(':grouped', 'heads=4', 'd_model=32')
  line = sizes(config.model)
  for part in ('heads=4', 'kv_heads=2', 'head_dim=8', 'd_mlp=96', 'share 2 key/value heads'):
    assert part in line
  assert 'share' not in sizes(model_of('', 'heads=8').model)


def test_a_copy_follows_its_own_sizes():
  config = base()
  other = copy.deepcopy(config)
  other.model.heads = 16
  assert (other.model.kv_heads, config.model.kv_heads) == (16, 4)


def test_the_scale_of_embeddings_follows_the_width():
  model = encoder_decoder(depth=1, d_model=64, heads=2, context=8)
  model.d_model = 256
  assert model.embed_scale == 16
  model.embed_scale = 2.5
  model.d_model = 16
  assert model.embed_scale == 2.5


def test_the_encoder_of_a_recurrent_model_follows_its_decoder():
  model = recurrent_encoder_decoder(d_model=8, d_hidden=16, depth=2, context=8)
  model.d_hidden, model.depth = 32, 3
  assert (model.encoder.d_hidden, model.encoder.depth) == (32, 3)
  assert sizes(model) == 'depth=3 d_model=8 d_hidden=32; encoder: depth=3 d_hidden=32'


def test_smoke_keeps_groups():
  config = base()
  with config.unlocked():
    config.model = llama(depth=2, d_model=64, heads=8, kv_heads=2, d_mlp=96, context=128)
  model = smoke(config).model
  assert (model.heads, model.kv_heads, model.head_dim, model.d_mlp) == (4, 2, 8, 64)


def test_default_references_are_one_way():
  config = base()
  config.batch_size = 12
  config.steps = 77
  assert config.eval.batch_size == 12
  assert config.optim.decay_steps == 77
  config.eval.batch_size = 64
  config.optim.decay_steps = 99
  assert config.batch_size == 12, 'a larger evaluation batch changed what is trained'
  assert config.steps == 77
