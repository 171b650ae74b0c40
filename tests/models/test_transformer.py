import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import components
from lm.components import init_of, parameter_count
from lm.config import resolve
from lm.config.base import base
from lm.errors import UserError
from lm.models.transformer import Decoder, EncoderDecoder
from lm.nn.attention import dot_product
from lm.nn.hooks import with_hooks
from lm.nn.layers import Attention, GatedMlp, RMSNorm, parallel_block, post_norm, sandwich_norm
from lm.nn.position import rope, sinusoidal
from lm.objectives.supervised import cross_entropy
from lm.training.train_step import gradients
from lm.types import apply_of


def _logits(model):
  apply = apply_of(model)

  @jax.jit
  def logits(params, batch):
    output = apply(params, batch)
    return output.head(output.hidden)

  return logits


def _paths(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {'/'.join(key.key for key in path): leaf.shape for path, leaf in leaves}


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _attention(q_BTHK, k_BTHK, v_BTHK):
  scores_BHTS = np.einsum('bthk,bshk->bhts', q_BTHK, k_BTHK) / math.sqrt(q_BTHK.shape[-1])
  seen_TS = np.tri(q_BTHK.shape[1], dtype=bool)
  weights_BHTS = _softmax(np.where(seen_TS, scores_BHTS, -np.inf))
  return np.einsum('bhts,bshk->bthk', weights_BHTS, v_BTHK)


def _gpt2(params, tokens_BT):
  """GPT-2 by the formulas of the paper, in double precision."""

  def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * p['scale'] + p['bias']

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

  x = params['embedding'][tokens_BT] + params['decoder']['position'][: tokens_BT.shape[1]]
  layers = params['decoder']['layers']['layer_0']
  for n in range(layers['mlp']['up']['bias'].shape[0]):
    layer = jax.tree.map(lambda leaf, n=n: leaf[n], layers)
    attention, mlp = layer['attention'], layer['mlp']
    h = norm(layer['attention_norm'], x)
    qkv = np.einsum('btd,dhck->bthck', h, attention['qkv']['kernel']) + attention['qkv']['bias']
    o = _attention(*np.moveaxis(qkv, 3, 0))
    x = x + np.einsum('bthk,hkd->btd', o, attention['out']['kernel']) + attention['out']['bias']
    h = gelu(norm(layer['mlp_norm'], x) @ mlp['up']['kernel'] + mlp['up']['bias'])
    x = x + h @ mlp['down']['kernel'] + mlp['down']['bias']
  return norm(params['decoder']['final_norm'], x) @ params['embedding'].T


def _llama(params, tokens_BT):
  """Llama by the formulas of the paper, in double precision: 4 heads on 2 key/value heads."""

  def norm(p, x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p['scale']

  def turn(x_BTHK):
    T, K = x_BTHK.shape[1], x_BTHK.shape[-1]
    angles_Tk = np.arange(T)[:, None] * 10000.0 ** (-2 * np.arange(K // 2) / K)
    rotation = np.exp(1j * angles_Tk)[:, None]
    turned = (x_BTHK[..., : K // 2] + 1j * x_BTHK[..., K // 2 :]) * rotation
    return np.concatenate([turned.real, turned.imag], axis=-1)

  x = params['embedding'][tokens_BT]
  layers = params['decoder']['layers']['layer_0']
  for n in range(layers['mlp_norm']['scale'].shape[0]):
    layer = jax.tree.map(lambda leaf, n=n: leaf[n], layers)
    h = norm(layer['attention_norm'], x)
    qkv = np.einsum('btd,dgck->btgck', h, layer['attention']['qkv']['kernel'])
    q = qkv[:, :, :, :2].reshape(*qkv.shape[:2], 4, -1)
    k, v = (np.repeat(qkv[:, :, :, i], 2, axis=2) for i in (2, 3))
    o = _attention(turn(q), turn(k), v)
    x = x + np.einsum('bthk,hkd->btd', o, layer['attention']['out']['kernel'])
    h = norm(layer['mlp_norm'], x)
    gate, up = (h @ layer['mlp'][name]['kernel'] for name in ('gate', 'up'))
    x = x + (gate / (1 + np.exp(-gate)) * up) @ layer['mlp']['down']['kernel']
  return norm(params['decoder']['final_norm'], x) @ params['unembedding'].T


@pytest.mark.parametrize(('variant', 'reference'), [('gpt2', _gpt2), ('llama', _llama)])
def test_the_stack_equals_the_architecture_of_the_paper(
  variant, reference, decoder, params_of, batch_of
):
  model = decoder(variant)
  params, batch = params_of(model), batch_of()
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  expected = reference(wide, np.asarray(batch['inputs']))
  np.testing.assert_allclose(_logits(model)(params, batch), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_close_to_float32(decoder, params_of, batch_of):
  model = decoder('llama')
  params, batch = params_of(model), batch_of()
  expected = _logits(model)(params, batch)
  output = jax.jit(apply_of(decoder('llama', dtype='bfloat16')))(params, batch)
  assert output.hidden.dtype == jnp.bfloat16
  found = output.head(output.hidden)
  assert found.dtype == jnp.float32
  assert jnp.abs(found - expected).mean() < 0.03 * jnp.abs(expected).mean()


def _shapes(model, context):
  return nn.unbox(jax.eval_shape(init_of(model, context), jax.random.key(0)))


def test_gpt2_small_has_its_124_million_parameters():
  model = Decoder(
    vocab_size=50257,
    context=1024,
    d_model=768,
    depth=12,
    heads=12,
    kv_heads=12,
    head_dim=64,
    d_mlp=3072,
  )
  assert parameter_count(_shapes(model, 1024)) == 124_439_808


def test_parameters_of_a_llama_counted_by_hand(decoder):
  embeddings = 2 * 37 * 16
  attention = 16 * (4 + 2 + 2) * 4 + 4 * 4 * 16
  layer = attention + 3 * 16 * 24 + 2 * 16
  assert parameter_count(_shapes(decoder('llama'), 16)) == embeddings + 2 * layer + 16


def test_parameters_have_readable_paths_and_periods_on_axis_0(decoder):
  assert _paths(_shapes(decoder('windows', tie_embeddings=False), 16)) == {
    'embedding': (37, 16),
    'unembedding': (37, 16),
    'decoder/final_norm/bias': (16,),
    'decoder/final_norm/scale': (16,),
  } | {
    f'decoder/layers/layer_{i}/{name}': (2, *shape)
    for i in range(2)
    for name, shape in {
      'attention/qkv/kernel': (16, 1, 6, 4),
      'attention/qkv/bias': (1, 6, 4),
      'attention/out/kernel': (4, 4, 16),
      'attention/out/bias': (16,),
      'attention_norm/scale': (16,),
      'attention_norm/bias': (16,),
      'mlp/up/kernel': (16, 24),
      'mlp/up/bias': (24,),
      'mlp/down/kernel': (24, 16),
      'mlp/down/bias': (16,),
      'mlp_norm/scale': (16,),
      'mlp_norm/bias': (16,),
    }.items()
  }


@pytest.mark.parametrize(
  ('order', 'norms'),
  [
    (post_norm, {'attention_norm', 'mlp_norm'}),
    (sandwich_norm, {'attention_norm', 'attention_post_norm', 'mlp_norm', 'mlp_post_norm'}),
    (parallel_block, {'norm'}),
  ],
)
def test_the_block_layout_is_a_function(order, norms, decoder):
  params = _shapes(decoder(block_layout=order, final_norm=order is not post_norm), 16)
  assert set(params['decoder']['layers']['layer_0']) == norms | {'attention', 'mlp'}
  assert ('final_norm' in params['decoder']) == (order is not post_norm)


def test_layers_that_repeat_have_block_layouts_of_their_own(decoder):
  layers = {'attention_layer': (Attention, Attention), 'depth': 4}
  params = _shapes(decoder(block_layout=(parallel_block, sandwich_norm), **layers), 16)
  groups = params['decoder']['layers']
  assert set(groups['layer_0']) == {'norm', 'attention', 'mlp'}
  assert {'attention_norm', 'mlp_post_norm'} < set(groups['layer_1'])
  with pytest.raises(UserError, match='block_layout is a tuple of 3, and'):
    decoder(block_layout=(post_norm,) * 3, **layers)


def test_output_projections_start_smaller_with_depth(decoder):
  params = nn.unbox(jax.jit(init_of(decoder(depth=8, d_model=64, d_mlp=64), 16))(jax.random.key(0)))
  mlp = params['decoder']['layers']['layer_0']['mlp']
  assert float(mlp['up']['kernel'].std()) == pytest.approx(0.02, rel=0.05)
  assert float(mlp['down']['kernel'].std()) == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
  # The layers have different initial values.
  assert (mlp['up']['kernel'][0] != mlp['up']['kernel'][1]).any()


def test_padding_rows_of_the_table_never_have_the_highest_logit(decoder, params_of, batch_of):
  model = decoder(vocab_multiple=8)
  params = params_of(model)
  assert params['embedding'].shape == (40, 16)
  logits = _logits(model)(params, batch_of())
  assert (logits[..., 37:] < -1e8).all() and (logits[..., :37] > -1e3).all()


def test_the_soft_cap_bounds_the_logits(decoder, params_of, batch_of):
  params, batch = params_of(decoder()), batch_of()
  free, capped = (_logits(decoder(logit_soft_cap=cap))(params, batch) for cap in (None, 2.0))
  np.testing.assert_allclose(capped, 2 * np.tanh(np.asarray(free) / 2), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope='module')
def taught(decoder, params_of, batch_of):
  """The gradient, terms and tree of one program, equal for every way to run the layers."""

  def run(**execution):
    model = decoder(dropout=0.2, **execution)
    grads, terms = jax.jit(functools.partial(gradients, cross_entropy(), apply_of(model)))(
      params_of(model), batch_of(), jax.random.key(1)
    )
    return _paths(_shapes(model, 16)), grads, terms

  return run


@pytest.fixture(scope='module')
def scanned(taught):
  return taught()


@pytest.mark.parametrize(
  'execution',
  [
    {'scan_unroll': 2},
    {'scan_unroll': 9},  # all
    {'remat_policy': 'jax:checkpoint_policies.nothing_saveable'},
  ],
)
def test_unrolling_and_rematerialization_change_nothing(execution, taught, scanned):
  # Policies by their import paths, as in experiments.
  execution = dict(execution)
  if 'remat_policy' in execution:
    execution['remat_policy'] = resolve.resolve(execution['remat_policy'], 'model.remat_policy')
  paths, grads, terms = taught(**execution)
  assert paths == scanned[0]
  for x, y in zip(jax.tree.leaves((grads, terms)), jax.tree.leaves(scanned[1:]), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_layers_drop_different_units(decoder, params_of, batch_of):
  model = decoder(dropout=0.5)
  apply = jax.jit(lambda params, batch, key: with_hooks(model)(params, batch, key=key))
  _, sites = apply(params_of(model), batch_of(), jax.random.key(0))
  first, rest = sites['decoder/embeddings'], sites['decoder/layers/layer_0/residual']
  stream = np.concatenate([first[None], rest])
  # A unit that both sublayers of a layer drop is unchanged: one in four.
  unchanged = stream[1:] == stream[:-1]
  assert abs(unchanged.mean() - 0.25) < 0.08
  assert (unchanged[0] == unchanged[1]).mean() < 0.75


def test_rematerialization_computes_layers_twice(decoder, params_of, batch_of):
  def matmuls(remat):
    model = decoder(remat_policy=remat)
    compute = functools.partial(gradients, cross_entropy(), apply_of(model))
    program = str(jax.make_jaxpr(compute)(params_of(model), batch_of(), None))
    return program.count('dot_general')

  assert matmuls(jax.checkpoint_policies.nothing_saveable) > matmuls(None)


def test_layers_of_a_group_have_their_own_windows(decoder, batch_of):
  windows = []

  def spy(q, k, v, mask):
    windows.append(mask.window)
    return dot_product(q, k, v, mask)

  local, full = functools.partial(Attention, window=2), Attention
  model = decoder(attention_layer=(local, local, full), depth=6, attention_fn=spy)
  jax.eval_shape(model.init, jax.random.key(0), batch_of())
  assert windows[:3] == [2, 2, None] and len(windows) % 3 == 0


class Index(Attention):
  """A layer that returns its index."""

  layer: int | None = None

  def __call__(self, x, encoder_output, mask, cache):
    return jnp.full_like(x, self.layer), cache


def test_a_layer_that_asks_receives_its_index(decoder, params_of, batch_of):
  def attention_only(x, sublayers, norm):
    return sublayers[0][1](x)

  pattern = (Index, Attention, Index)
  model = decoder(attention_layer=pattern, depth=6, block_layout=attention_only)

  @jax.jit
  def residuals(params, batch, cache):
    apply = with_hooks(model)
    reads = ('*/residual', '*/residual@5')
    return [apply(params, batch, reads, cache=each)[1] for each in (None, cache)]

  # Layers of a call without a cache are scanned, and those of one with a cache are unrolled.
  for found in residuals(params_of(model), batch_of(T=4), model.init_cache(2, 4)):
    assert found.pop('decoder/layers/layer_2/residual@5')[0, 0, 0] == 5
    of_layer = {path[-10]: x[:, 0, 0, 0].tolist() for path, x in found.items()}
    assert of_layer['0'] == [0, 3] and of_layer['2'] == [2, 5]


def test_the_pattern_is_as_long_as_the_longest_tuple(decoder, params_of):
  model = decoder(position=(rope, functools.partial(rope, theta=1e6)))
  assert set(params_of(model)['decoder']['layers']) == {'layer_0', 'layer_1'}
  assert set(model.init_cache(1, 4)['layers'][0]) == {'layer_0', 'layer_1'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'depth': 3, 'attention_layer': (Attention, Attention)}, 'depth=3 is not a multiple of'),
    ({'heads': 4, 'kv_heads': 3}, 'heads=4 is not a multiple of kv_heads=3'),
    ({'depth': 6, 'scan_unroll': 4}, 'scan_unroll=4 does not divide 6 groups'),
    ({'head_dim': 5, 'position': rope}, 'model.head_dim=5 is odd: rope needs an even size'),
    (
      {'head_dim': 5, 'position': functools.partial(rope, theta=1e6)},
      'model.head_dim=5 is odd: rope needs an even size',
    ),
    ({'d_model': 15, 'position': sinusoidal}, 'model.d_model=15 is odd: sinusoidal needs an even'),
  ],
)
def test_sizes_that_do_not_fit_raise_at_construction(fields, message, decoder):
  with pytest.raises(UserError) as error:
    decoder(**fields)
  assert message in str(error.value)


def test_an_odd_head_size_under_rope_raises_when_the_config_is_built():
  config = base()
  config.model.update({'position': 'lm.nn.position:rope', 'head_dim': 31})
  with pytest.raises(UserError) as error:
    components.model(config, vocab_size=50)
  assert str(error.value) == 'model.head_dim=31 is odd: rope needs an even size'


def test_training_flops_counted_by_hand(decoder):
  # A parameter of a matmul costs 6 FLOPs per token; scores and weighted values of a layer 12 H K T.
  mixing = 12 * 2 * 4 * 4 * 10
  tied = decoder(bias=False)
  norms = 5 * 16
  multiplied = 37 * 16 + 2 * (16 * 12 * 4 + 16 * 16 + 2 * 16 * 24) + norms
  assert tied.flops_per_token(_shapes(tied, 16), 10) == 6 * multiplied + mixing
  untied = decoder(bias=False, tie_embeddings=False)
  assert untied.flops_per_token(_shapes(untied, 16), 10) == 6 * multiplied + mixing


def test_training_flops_of_a_pair_of_texts_counted_by_hand():
  sizes = {'d_model': 16, 'heads': 4, 'kv_heads': 4, 'head_dim': 4, 'd_mlp': 24}
  model = EncoderDecoder(37, 10, depth=2, encoder_depth=3, bias=False, **sizes)
  row = jnp.zeros((1, 10), jnp.int32)
  names = ('inputs', 'segments', 'positions')
  batch = {f'{side}{name}': row for side in ('', 'source_') for name in names}
  batch['source'] = batch.pop('source_inputs')
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), batch))['params']
  # An encoder layer projects q, k, v and out, and a decoder layer does so twice; plus norms.
  attention, mlp = 4 * 16 * 16, 2 * 16 * 24
  layers = 3 * (attention + mlp + 2 * 16) + 2 * (2 * attention + mlp + 3 * 16) + 2 * 16
  mixing = 12 * (3 + 2 * 2) * 16 * 10
  assert model.flops_per_token(params, 10) == (6 * (layers + 37 * 16) + mixing) / 2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'attention_layer': RMSNorm},
      "attention_layer: RMSNorm got an unexpected keyword argument 'rotate'",
    ),
    ({'attention_layer': (Attention, GatedMlp)}, 'attention_layer: GatedMlp got an unexpected'),
    ({'attention_layer': dot_product}, 'attention_layer: dot_product got an unexpected'),
    ({'mlp': Attention}, "mlp: Attention got an unexpected keyword argument 'd_mlp'"),
    ({'norm': dot_product}, "norm: dot_product got an unexpected keyword argument 'bias'"),
  ],
)
def test_a_layer_of_another_kind_raises_one_line(decoder, params_of, changes, message):
  with pytest.raises(UserError) as error:
    params_of(decoder(**changes))
  assert str(error.value).startswith(message) and '\n' not in str(error.value)
