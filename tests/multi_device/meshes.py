"""Training on eight fake devices, in a subprocess of test_multi_device.py."""

import base64
import functools
import math
import re
import types
from collections import Counter
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.components import Components, build_components, init_of
from lm.config.base import another_model, base
from lm.decode import batch as batch_decode
from lm.decode.batch import generate_batch, rows_per_batch
from lm.decode.loop import DecodeConfig, decode_loop
from lm.decode.sampling import row_keys
from lm.errors import UserError
from lm.evaluation import attention_maps, samples
from lm.evaluation.sets import evaluate, make_eval_step
from lm.metrics.tokens import language_model
from lm.models import recurrent
from lm.models.embeddings import Embeddings
from lm.models.recurrent import Bidirectional
from lm.nn import embedding
from lm.nn import losses as nn_losses
from lm.nn.attention import dot_product, splash
from lm.nn.layers import Attention, GatedMlp, Mlp
from lm.nn.recurrent import additive, gru
from lm.objectives import word2vec
from lm.objectives.supervised import cross_entropy
from lm.objectives.word2vec import negative_sampling
from lm.optim import optimizers
from lm.optim.optimizers import adagrad
from lm.parallel import collectives, mesh
from lm.parallel.mesh import with_mesh
from lm.preflight import hlo
from lm.task import Features
from lm.text.tokenizers import END, UNKNOWN, known_words
from lm.training import sparse_step
from lm.training.train_step import (
  abstract_state,
  init_train_state,
  make_train_step,
  make_train_steps,
  train_step,
)
from lm.types import EmbeddingTable, Mask, Objective, OutputHead, apply_of

STEPS = 3
ALL = {'data': 2, 'fsdp': 2, 'tensor': 2}


def test_there_are_eight_devices():
  assert len(jax.devices()) == 8


@pytest.fixture(scope='module')
def functions(decoder, encoder_decoder):
  def make(sizes, devices=None, dropout=0.0, architecture='decoder'):
    changes = {'vocab_multiple': 8, 'kv_heads': 4, 'dropout': dropout}
    if architecture == 'decoder':
      model = decoder('llama', **changes)
    elif architecture == 'encoder_decoder':
      model = encoder_decoder('t5', **changes)
    else:
      model = recurrent.EncoderDecoder(
        vocab_size=37,
        context=16,
        d_model=16,
        d_hidden=16,
        depth=2,
        encoder=functools.partial(Bidirectional, cell=gru, d_hidden=8),
        attention_score=additive,
        vocab_multiple=8,
      )
    over = mesh.make_mesh(sizes, devices)
    apply = with_mesh(apply_of(model), over, mesh.RULES)
    optimizer = optimizers.adamw(1e-2, optimizers.constant, decay_steps=STEPS)
    init = init_of(model, 16)
    return Components(
      model,
      apply,
      over,
      mesh.RULES,
      init,
      cross_entropy(1e-3, logits_chunk=3),
      optimizer,
      train_step,
    )

  return make


@pytest.fixture(scope='module')
def losses(functions, batch_of):
  def train(sizes, devices=None, microbatches=1, architecture='decoder'):
    made = functions(sizes, devices, architecture=architecture)
    # With an encoder, each row of source and target has two documents.
    pairs = np.repeat([[1, 1, 1, 2, 2, 0]], 16, axis=0)
    packed = {} if architecture == 'decoder' else {'segments': pairs, 'source': pairs[:, ::-1]}
    state, _ = init_train_state(made, jax.random.key(0))
    step = make_train_step(made, 0, microbatches, state)
    rows = mesh.batch_sharding(made.mesh, made.rules)
    found = []
    for i in range(STEPS):
      batch = {name: np.asarray(x) for name, x in batch_of(B=16, T=6, seed=i, **packed).items()}
      batch['examples'] = np.ones((16, 2), np.int32)
      state, metrics = step(state, mesh.make_global_batch(batch, rows))
      found.append([float(metrics[name]) for name in ('loss', 'z_loss', 'gradient_norm')])
    assert step._cache_size() == 1
    return np.array(found), state

  return train


@pytest.fixture(scope='module')
def one_device(losses):
  return losses({'data': 1}, jax.devices()[:1])[0]


@pytest.mark.parametrize(
  ('sizes', 'microbatches'),
  [({'data': 8}, 1), ({'fsdp': 8}, 1), ({'data': 2, 'tensor': 4}, 1), (ALL, 2)],
)
def test_decoder_on_eight_devices_has_the_losses_of_one(sizes, microbatches, losses, one_device):
  found, state = losses(sizes, microbatches=microbatches)
  np.testing.assert_allclose(found, one_device, rtol=1e-5)
  _check_placement(state, sizes)


def test_encoder_decoder_on_eight_devices_has_the_losses_of_one(losses):
  run = functools.partial(losses, architecture='encoder_decoder')
  found, state = run(ALL)
  one_device, _ = run({'data': 1}, jax.devices()[:1])
  np.testing.assert_allclose(found, one_device, rtol=1e-5)
  layer = state.params['decoder']['layers']['layer_0']
  kv = layer['cross_attention']['kv']['kernel']  # (N, D, G, 2, K)
  assert kv.addressable_shards[0].data.shape == (2, 16 // 2, 4 // 2, 2, 4)
  table = state.params['decoder']['relative']  # (buckets, H)
  assert table.addressable_shards[0].data.shape == (8, 4 // 2)


def test_recurrent_network_on_eight_devices_has_the_losses_of_one(losses):
  run = functools.partial(losses, architecture='recurrent')
  found, state = run(ALL)
  one_device, _ = run({'data': 1}, jax.devices()[:1])
  np.testing.assert_allclose(found, one_device, rtol=1e-5)
  kernel = state.params['decoder']['layer_1']['state']  # (D, G, D)
  assert kernel.addressable_shards[0].data.shape == (16 // 2, 4, 16 // 2)


def test_dropout_on_eight_devices_is_that_of_one(functions, params_of, batch_of):
  def hidden(sizes, devices=None):
    made = functions(sizes, devices, dropout=0.3)
    run = jax.jit(lambda p, b: made.apply(p, b, key=jax.random.key(7)).hidden)
    return run(params_of(made.model), batch_of(B=8, T=6))

  np.testing.assert_allclose(hidden(ALL), hidden({'data': 1}, jax.devices()[:1]), atol=1e-5)


@pytest.mark.parametrize(
  ('make', 'sizes'),
  [
    (word2vec.skip_gram, {'data': 8}),
    (word2vec.skip_gram, ALL),
    (word2vec.skip_gram, {'data': 2, 'tensor': 4}),
    (word2vec.cbow, {'data': 8}),
  ],
)
def test_word_vectors_on_eight_devices_are_those_of_one(make, sizes):
  V, D, B, T, steps = 40, 8, 8, 6, 4
  counts = np.concatenate([[0], np.arange(V - 1, 0, -1)])
  rows = np.ones((steps, B, T), np.int32)
  targets = np.random.default_rng(0).integers(1, V, rows.shape).astype(np.int32)
  batches = {'targets': targets, 'segments': rows, 'weights': rows.astype(np.float32)}

  def train(sizes, devices=None):
    model = Embeddings(V, D, T)
    over = mesh.make_mesh(sizes, devices)
    output = functools.partial(negative_sampling, rows_per_sample=4)
    objective = make(2, 1e-2, output, counts)
    apply = with_mesh(apply_of(model), over, mesh.RULES)
    made = Components(
      model,
      apply,
      over,
      mesh.RULES,
      init_of(model, T),
      objective,
      adagrad(0.5, optimizers.constant, 9),
      sparse_step.train_step,
    )
    state, _ = init_train_state(made, jax.random.key(0))
    step = make_train_steps(made, 0, 1, state)
    stacked = mesh.batch_sharding(over, mesh.RULES, stacked=True)
    return step(state, mesh.make_global_batch(batches, stacked))

  state, metrics = train(sizes)
  one, expected = train({'data': 1}, jax.devices()[:1])
  np.testing.assert_allclose(metrics['loss'], expected['loss'], rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, one.params
  )
  table = state.params['embedding']
  shape = V // sizes.get('tensor', 1), D // sizes.get('fsdp', 1)
  assert table.addressable_shards[0].data.shape == shape


def _check_placement(state, sizes):
  fsdp, tensor = sizes.get('fsdp', 1), sizes.get('tensor', 1)
  params = state.params
  qkv = params['decoder']['layers']['layer_0']['attention']['qkv']['kernel']  # (N, D, G, 3, K)
  assert qkv.addressable_shards[0].data.shape == (2, 16 // fsdp, 4 // tensor, 3, 4)
  down = params['decoder']['layers']['layer_0']['mlp']['down']['kernel']  # (N, F, D)
  assert down.addressable_shards[0].data.shape == (2, 24 // tensor, 16 // fsdp)
  table = params['embedding']  # (V, D)
  assert table.addressable_shards[0].data.shape == (40 // tensor, 16 // fsdp)
  scale = params['decoder']['final_norm']['scale']
  assert scale.sharding.is_fully_replicated
  # The optimizer state of a parameter is sharded like the parameter.
  moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == down.shape]
  assert len(moments) == 2 and all(m.sharding == down.sharding for m in moments)


def test_error_names_an_axis_that_does_not_divide_over_the_mesh(functions, decoder):
  made = functions({'tensor': 8})  # four heads
  with pytest.raises(UserError) as error:
    init_train_state(made, jax.random.key(0))
  for part in ('heads', 'size 4', 'mesh.tensor=8'):
    assert part in str(error.value)


def test_process_reads_the_rows_of_its_devices():
  over = mesh.make_mesh(ALL)
  sharding = mesh.batch_sharding(over, mesh.RULES)
  np.testing.assert_array_equal(mesh.local_rows(8, sharding), np.arange(8))
  batch = mesh.make_global_batch({'inputs': np.arange(16).reshape(8, 2)}, sharding)['inputs']
  assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 2)}
  np.testing.assert_array_equal(batch, np.arange(16).reshape(8, 2))


def test_rule_override_changes_a_sharding(decoder):
  boxed = jax.eval_shape(init_of(decoder('llama'), 16), jax.random.key(0))
  over = mesh.make_mesh({'fsdp': 8})
  found = mesh.shardings(boxed, over, mesh.logical_axis_rules({'embed': '', 'mlp': 'fsdp'}))
  down = found['decoder']['layers']['layer_0']['mlp']['down']['kernel']
  assert down.spec == PartitionSpec(None, 'fsdp', None)
  assert found['embedding'].is_fully_replicated


def _sent(program):
  """Returns (kind, elements) of all collectives of a compiled program."""
  found = re.findall(
    r'= (.*?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter[a-z-]*)\(', program.as_text()
  )
  sizes = [
    [math.prod(int(n) for n in dims.split(',') if n) for dims in re.findall(r'\[([\d,]*)\]', shape)]
    for shape, _ in found
  ]
  return [(kind.removesuffix('-start'), max(s)) for (_, kind), s in zip(found, sizes, strict=True)]


@pytest.mark.parametrize('layer', [Mlp(d_mlp=64), GatedMlp(d_mlp=64), Attention(8, 8, 4)])
def test_tensor_parallel_layer_has_one_all_reduce(layer):
  over, x_BTD = mesh.make_mesh({'tensor': 8}), jnp.zeros((2, 6, 32))
  positions = jnp.zeros((2, 6), jnp.int32)
  attention = isinstance(layer, Attention)
  rest = (None, Mask(positions, positions, ordered=True), None) if attention else ()
  boxed = jax.eval_shape(layer.init, jax.random.key(0), x_BTD, *rest)
  places = mesh.shardings(boxed, over, mesh.RULES)

  def forward(variables, x_BTD):
    with mesh.set_mesh(over, mesh.RULES):
      y = layer.apply(variables, x_BTD, *rest)
      return mesh.with_logical_constraint(
        y[0] if attention else y, 'batch', 'length', 'activation_embed'
      )

  program = jax.jit(forward, in_shardings=(places, None)).lower(nn.unbox(boxed), x_BTD).compile()
  assert _sent(program) == [('all-reduce', x_BTD.size)]


def test_loss_keeps_the_vocabulary_sharded():
  """Devices that shard V all-reduce sums: there is no all-gather, and no collective of logits."""
  B, T, D, V = 4, 8, 6, 640
  over = mesh.make_mesh({'data': 2, 'tensor': 4})
  rows = NamedSharding(over, PartitionSpec('data'))
  table = NamedSharding(over, PartitionSpec('tensor', None))

  @functools.partial(jax.jit, in_shardings=(rows, table, rows, rows), out_shardings=(rows, table))
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradient(hidden, kernel, targets, weights):
    with mesh.set_mesh(over, mesh.RULES):
      unembed = OutputHead(EmbeddingTable(kernel))
      return nn_losses.cross_entropy(hidden, unembed, targets, weights, 1e-4, 0.1, 2).total

  arguments = (
    jax.ShapeDtypeStruct((B, T, D), jnp.float32),
    jax.ShapeDtypeStruct((V, D), jnp.float32),
    jax.ShapeDtypeStruct((B, T), jnp.int32),
    jax.ShapeDtypeStruct((B, T), jnp.float32),
  )
  sent = _sent(gradient.lower(*arguments).compile())
  assert {kind for kind, _ in sent} == {'all-reduce'}
  # The largest all-reduce of two devices is the gradient of a shard of the table.
  assert max(size for _, size in sent) <= V // 4 * D


def test_loss_gathers_the_table_once_for_all_chunks():
  B, T, D, V = 8, 12, 16, 64
  over = mesh.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  rows = mesh.batch_sharding(over, mesh.RULES)
  table = NamedSharding(over, PartitionSpec('tensor', 'fsdp'))

  @functools.partial(jax.jit, in_shardings=(rows, table, rows, rows), out_shardings=(rows, table))
  @functools.partial(jax.grad, argnums=(0, 1))
  def gradient(hidden, kernel, targets, weights):
    with mesh.set_mesh(over, mesh.RULES):
      unembed = OutputHead(EmbeddingTable(kernel))
      return nn_losses.cross_entropy(hidden, unembed, targets, weights, 0.0, 0.0, 3).total

  shapes = (
    ((B, T, D), jnp.bfloat16),
    ((V, D), jnp.float32),
    ((B, T), jnp.int32),
    ((B, T), 'float32'),
  )
  arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
  program = hlo.parse(gradient.lower(*arguments).compile().as_text())
  sent = hlo.collectives(program, over)
  # Over the batch axes the table is all-gathered and its gradient reduced, outside of loops.
  assert {one.times for one in sent if {'data', 'fsdp'} & {*one.axes}} == {1.0}
  # Over that of the vocabulary each of four chunks has collectives, none as large as the table.
  largest = max(one.bytes for one in sent if one.times == 4)
  assert largest < 4 * V * D / 2


def test_shards_are_counted_by_the_rules_of_the_current_mesh():
  assert mesh.num_shards('batch', 'vocab') == 1
  over = mesh.make_mesh(ALL)
  with mesh.set_mesh(over, mesh.RULES):
    assert [mesh.num_shards(*axes) for axes in (('batch',), ('batch', 'vocab'), ('length',))] == [
      4,
      8,
      1,
    ]
    assert mesh.platform() == 'cpu'


def test_attention_of_sharded_rows_and_heads_is_local():
  over = mesh.make_mesh(ALL)
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (
    jax.random.normal(key, (8, 128, n, 16)) for key, n in zip(keys, (4, 2, 2), strict=True)
  )
  positions = jnp.broadcast_to(jnp.arange(128), (8, 128))
  segments = jnp.repeat(jnp.array([[1, 2]]), 64, axis=1).repeat(8, axis=0)
  mask = Mask(positions, positions, segments, segments, ordered=True)

  @jax.jit
  def attend(q, k, v, mask):
    with mesh.set_mesh(over, mesh.RULES):
      return splash(q, k, v, mask, interpret=True)

  rows = [
    NamedSharding(over, mesh.logical_to_spec(axes, mesh.RULES))
    for axes in (('batch', None, 'heads'), ('batch', None, 'kv_heads'), ('batch', None, 'kv_heads'))
  ]
  placed = jax.device_put((q, k, v), tuple(rows))
  np.testing.assert_allclose(attend(*placed, mask), dot_product(q, k, v, mask), atol=1e-5)
  program = attend.lower(*placed, mask).compile()
  assert not _sent(program)


@pytest.mark.parametrize(
  ('sizes', 'dims'),
  [
    ({'fsdp': 8}, (8,)),
    ({'fsdp': 8}, (2, 4)),  # as on a torus
    ({'fsdp': 8}, (2, 2, 2)),
    ({'data': 2, 'fsdp': 4}, (2, 2)),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, (2,)),
  ],
)
def test_kernel_is_gathered_in_each_pass_and_its_gradient_reduce_scattered(
  sizes, dims, monkeypatch
):
  over = mesh.make_mesh(sizes)
  real = collectives.torus_dims
  monkeypatch.setattr(
    collectives, 'torus_dims', lambda mesh, name: dims if name == 'fsdp' else real(mesh, name)
  )
  layer = GatedMlp(64, dtype=jnp.bfloat16)
  x_BTD = jax.random.normal(jax.random.key(1), (8, 16, 32))
  boxed = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)
  places = mesh.shardings(boxed, over, mesh.RULES)
  rows = mesh.batch_sharding(over, mesh.RULES)

  def loss(variables, x_BTD):
    # The backward pass recomputes the layer, as in large models.
    again = jax.checkpoint(layer.apply, policy=jax.checkpoint_policies.nothing_saveable)
    return jnp.square(again(variables, x_BTD)).sum()

  def gradient(variables, x_BTD):
    with mesh.set_mesh(over, mesh.RULES):
      return jax.grad(loss)(variables, x_BTD)

  split = jax.jit(gradient, in_shardings=(places, rows), out_shardings=places)
  variables = jax.jit(lambda key: nn.unbox(layer.init(key, x_BTD)), out_shardings=places)(
    jax.random.key(0)
  )
  found = split(variables, jax.device_put(x_BTD, rows))
  expected = jax.grad(loss)(jax.device_get(variables), x_BTD)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)

  sent = hlo.collectives(hlo.parse(split.lower(variables, x_BTD).compile().as_text()), over)
  # Three kernels, each gathered in the forward and the backward pass. XLA may combine all-gathers,
  # and share those of recomputed activations and of gradient matmuls. A reduce-scattered gradient
  # has the bytes of one all-gather of its kernel; no full gradient is all-reduced.
  kernels = 4 * sum(x.size for x in jax.tree.leaves(variables['params'])) / over.shape['tensor']
  share = (over.shape['fsdp'] - 1) / over.shape['fsdp']
  by = Counter()
  for one in sent:
    by[one.kind, one.axes] += one.bytes
  assert by['all-gather', ('fsdp',)] <= 2 * kernels * share
  assert by['reduce-scatter', ('fsdp',)] == pytest.approx(kernels * share)
  assert not by['all-reduce', ('fsdp',)] and not by['all-gather', ('tensor',)]
  for kind, along in (
    ('reduce-scatter', dims),
    ('all-gather', collectives.group_torus_dims(dims)),
  ):
    assert {len(one.group) for one in sent if one.kind == kind} == set(along)


@pytest.mark.parametrize(
  ('sizes', 'overrides'),
  [
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, {'mlp': 'fsdp,tensor', 'embed': ''}),
    ({'data': 2, 'fsdp': 2, 'tensor': 2}, {'mlp': 'tensor,fsdp', 'embed': ''}),
    ({'data': 2, 'fsdp': 4}, {'embed': 'data,fsdp', 'batch': 'data'}),
    ({'data': 2, 'fsdp': 4}, {'embed': 'fsdp,data'}),
    ({'data': 4, 'tensor': 2}, {'embed': 'tensor', 'mlp': ''}),
    ({'fsdp': 4, 'tensor': 2}, {'mlp': ''}),
    ({'fsdp': 8}, {'vocab': 'fsdp', 'embed': ''}),
  ],
)
def test_gradients_under_any_rules_are_those_of_one_device(sizes, overrides):
  over, rules = mesh.make_mesh(sizes), mesh.logical_axis_rules(overrides)
  layer, x_BTD = GatedMlp(64, bias=True), jax.random.normal(jax.random.key(1), (8, 4, 32))
  targets_BT = jax.random.randint(jax.random.key(2), (8, 4), 0, 48)
  boxed = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)['params']
  params = {'layer': nn.unbox(layer.init(jax.random.key(0), x_BTD)['params'])}
  params['table'] = jax.random.normal(jax.random.key(3), (48, 32))
  table = nn.Partitioned(params['table'], ('vocab', 'embed'))
  places = mesh.shardings({'layer': boxed, 'table': table}, over, rules)

  def loss(params, x_BTD):
    table = embedding.gather_for_tied(params['table'], x_BTD, jnp.float32)
    y_BTD = layer.apply(
      {'params': params['layer']}, x_BTD + embedding.embedding_lookup(table, targets_BT)
    )
    unembed = OutputHead(table, vocab_size=48)
    return nn_losses.cross_entropy(y_BTD, unembed, targets_BT, jnp.ones(targets_BT.shape)).total

  def gradient(params, x_BTD):
    with mesh.set_mesh(over, rules):
      return jax.value_and_grad(loss)(params, x_BTD)

  found = jax.jit(gradient)(jax.device_put(params, places), x_BTD)
  expected = jax.value_and_grad(loss)(params, x_BTD)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
  ('sizes', 'kinds'),
  [({'data': 8}, {'all-reduce': 2}), ({'fsdp': 8}, {'all-gather': 1, 'reduce-scatter': 1})],
)
def test_tied_table_is_gathered_once_for_all_its_uses(sizes, kinds):
  over = mesh.make_mesh(sizes)
  params = {'table': jax.random.normal(jax.random.key(3), (48, 64))}
  places = mesh.shardings(
    {'table': nn.Partitioned(params['table'], ('vocab', 'embed'))}, over, mesh.RULES
  )
  tokens_BT = jax.random.randint(jax.random.key(2), (8, 16), 0, 48)

  def loss(params, tokens_BT):
    table = embedding.gather_for_tied(params['table'], tokens_BT, jnp.float32)
    x_BTD = embedding.embedding_lookup(table, tokens_BT) + embedding.embedding_lookup(
      table, tokens_BT[:, ::-1]
    )
    unembed = OutputHead(table, vocab_size=48)
    return nn_losses.cross_entropy(x_BTD, unembed, tokens_BT, jnp.ones(tokens_BT.shape)).total

  def gradient(params, tokens_BT):
    with mesh.set_mesh(over, mesh.RULES):
      return jax.grad(loss)(params, tokens_BT)

  rows = mesh.batch_sharding(over, mesh.RULES)
  split = jax.jit(gradient, in_shardings=(places, rows), out_shardings=places)
  given = jax.device_put(params, places), jax.device_put(tokens_BT, rows)
  (found,), (expected,) = (
    jax.tree.leaves(x) for x in (split(*given), jax.grad(loss)(params, tokens_BT))
  )
  np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
  by = Counter()
  for one in hlo.collectives(hlo.parse(split.lower(*given).compile().as_text()), over):
    by[one.kind] += one.bytes
  once = 4 * 48 * 64 * 7 / 8
  assert by == {kind: pytest.approx(times * once, rel=0.01) for kind, times in kinds.items()}


@pytest.mark.parametrize('sizes', [{'data': 8}, {'fsdp': 8}, ALL])
def test_tied_decoder_has_the_gradient_of_one_device(decoder, params_of, batch_of, sizes):
  model = decoder('alibi', depth=1, vocab_multiple=8)
  params, batch, over = params_of(model), batch_of(8), mesh.make_mesh(sizes)
  apply = apply_of(model)

  def loss(apply, params, batch):
    output = apply(params, batch)
    # All rows, and one row, for which the gathered table is not used.
    full, part = (
      nn_losses.cross_entropy(
        output.hidden[:n], output.head, batch['targets'][:n], batch['weights'][:n]
      ).total
      for n in (8, 1)
    )
    statistics = nn_losses.token_statistics(output.hidden, output.head, batch['targets'])
    return full + part, (output.head.table.gathered is not None, statistics.nats)

  boxed = jax.eval_shape(init_of(model, 16), jax.random.key(0))
  places = mesh.shardings(boxed, over, mesh.RULES)
  split = jax.jit(
    with_mesh(jax.grad(functools.partial(loss, apply), has_aux=True), over, mesh.RULES),
    in_shardings=(places, mesh.batch_sharding(over, mesh.RULES)),
  )
  found, (shared, nats) = split(params, batch)
  expected, (alone, others) = jax.grad(functools.partial(loss, apply), has_aux=True)(params, batch)
  assert shared and not alone
  found, expected = (found, nats), (expected, others)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize('dims', [(8,), (2, 4), (2, 2, 2)])
@pytest.mark.parametrize('axis', [0, 2, 3])
def test_scattered_and_gathered_shards_keep_their_order_along_any_axis(dims, axis):
  over = mesh.make_mesh({'fsdp': 8})
  shape = [3, 2, 4, 5]
  shape[axis] = 16
  x = jax.random.normal(jax.random.key(1), (8, *shape))  # one for each device
  spec = PartitionSpec(*[None] * axis, 'fsdp')
  each = functools.partial(jax.shard_map, mesh=over, check_vma=False)
  scatter = each(
    lambda x: collectives.reduce_scatter_along(x[0], axis, 'fsdp', dims),
    in_specs=PartitionSpec('fsdp'),
    out_specs=spec,
  )
  found = jax.jit(scatter)(x)
  np.testing.assert_allclose(found, x.sum(0), rtol=1e-5, atol=1e-5)
  gather = each(
    lambda x: collectives.all_gather_along(x, axis, 'fsdp', collectives.group_torus_dims(dims))[
      None
    ],
    in_specs=spec,
    out_specs=PartitionSpec('fsdp'),
  )
  np.testing.assert_array_equal(jax.jit(gather)(found), np.broadcast_to(found, x.shape))


def test_without_sharded_rows_a_function_is_applied_directly():
  given = (jnp.ones((6, 4)), jnp.ones((4, 8)))
  for over, overrides in (
    (mesh.make_mesh({'fsdp': 1}, jax.devices()[:1]), {}),
    (mesh.make_mesh({'tensor': 8}), {}),
    (mesh.make_mesh({'fsdp': 8}), {}),  # six rows do not divide
    (mesh.make_mesh({'fsdp': 8}), {'batch': ''}),
  ):
    with mesh.set_mesh(over, mesh.logical_axis_rules(overrides)):
      found = collectives.apply_with_gathered_kernel(lambda *both: both, *given, ('embed', 'mlp'))
      assert all(one is other for one, other in zip(found, given, strict=True))
      assert (
        collectives.shard_map_over_batch(lambda *both: both, given[1], ('embed', 'mlp'), given[0])
        == given[::-1]
      )


@pytest.mark.parametrize(
  ('architecture', 'sizes', 'beam'),
  [
    ('decoder', {'fsdp': 8}, 1),
    ('decoder', ALL, 3),
    ('encoder_decoder', ALL, 3),
    ('recurrent', ALL, 1),
  ],
)
def test_texts_generated_on_eight_devices_are_those_of_one(
  architecture, sizes, beam, functions, params_of
):
  rng = np.random.default_rng(2)
  read = [rng.integers(0, 37, length) for length in (3, 7, 1, 5, 6)]
  if architecture == 'decoder':
    prompts = [Features({'inputs': x}, {}, {}) for x in read]
  else:
    prompts = [Features({'inputs': np.array([0])}, {'source': x}, {}) for x in read]
  strategy = DecodeConfig(end=5, max_tokens=6, beam_size=beam, n_best=beam, batch_size=3)

  def generated(sizes, devices=None):
    made = functions(sizes, devices, architecture=architecture)
    places = jax.tree.map(lambda x: x.sharding, abstract_state(made)[0].params)
    params = jax.device_put(params_of(made.model, seed=3), places)
    on_mesh = with_mesh(generate_batch, made.mesh, made.rules)
    found = on_mesh(made.model, apply_of(made.model), params, prompts, strategy)
    texts = [[one.tokens for one in several] for several in found]
    return texts, np.array([one.score for several in found for one in several])

  texts, scores = generated(sizes)
  expected, scores_there = generated({'data': 1}, jax.devices()[:1])
  assert texts == expected and len({tuple(several[0]) for several in texts}) > 2
  np.testing.assert_allclose(scores, scores_there, atol=1e-4)


def test_generation_shards_the_kv_cache_and_keeps_weights_stationary(functions):
  made = functions({'fsdp': 4, 'tensor': 2})
  model, apply, B = made.model, apply_of(made.model), 4
  params, config = abstract_state(made)[0].params, DecodeConfig(end=5, max_tokens=15)

  def begin(params):
    batch = dict.fromkeys(('inputs', 'segments', 'positions'), jnp.ones((B, 1), jnp.int32))
    keys = row_keys(jnp.uint32(0), jnp.arange(B))
    return batch_decode.begin(model, apply, config, 15, params, batch, keys, jnp.full(B, 15))

  def run(params, state):
    step = functools.partial(batch_decode.advance, model, apply, config, params)
    return decode_loop(step, state, 15)

  state = jax.eval_shape(begin, params)
  on_mesh = with_mesh(run, made.mesh, made.rules)
  compiled = jax.jit(on_mesh, donate_argnums=1).lower(params, state).compile()
  buffers = compiled.output_shardings.cache['layers'][0]['layer_0']['attention'].k
  assert buffers.shard_shape((B, 4, 16, 4)) == (1, 2, 16, 4)
  sent = hlo.collectives(hlo.parse(compiled.as_text()), made.mesh)
  # Apart from `out`, the smallest kernel is that of the feed-forward layer.
  kernel = 16 * 24 * 4 / 2
  assert sent and max(one.bytes for one in sent if one.kind == 'all-gather') < kernel * 3 / 4


def test_rows_of_a_decoding_batch_divide_over_the_devices():
  over = mesh.make_mesh(ALL)
  assert rows_per_batch(10, 100) == 10
  with mesh.set_mesh(over, mesh.RULES):
    sizes = (10, 100), (64, 100), (64, 7), (64, 1)
    assert [rows_per_batch(*size) for size in sizes] == [12, 64, 8, 4]


@pytest.mark.parametrize('sizes', [{'data': 8}, {'fsdp': 8}, ALL])
def test_gradient_of_a_gathered_parameter_is_the_sum_over_devices(sizes):
  """The reference is autodiff of a broadcast."""
  over, axes = mesh.make_mesh(sizes), ('vocab', 'embed')
  x = jax.random.normal(jax.random.key(0), (16, 8))
  places = mesh.shardings({'x': nn.Partitioned(x, axes)}, over, mesh.RULES)['x']

  def copies(x):
    with mesh.set_mesh(over, mesh.RULES):
      return collectives.all_gather_param(x, axes, jnp.zeros((8, 1))).arrays

  found, back = jax.vjp(jax.jit(copies), jax.device_put(x, places))
  expected, plain_back = jax.vjp(lambda x: jnp.broadcast_to(x, (len(found), *x.shape)), x)
  np.testing.assert_array_equal(found, expected)
  cotangent = jax.random.normal(jax.random.key(1), found.shape)
  given = jax.device_put(cotangent, found.sharding)
  np.testing.assert_allclose(back(given)[0], plain_back(cotangent)[0], rtol=1e-5, atol=1e-5)


def test_metrics_of_eight_devices_are_those_of_one(functions, params_of, batch_of):
  made = functions({'data': 1}, jax.devices()[:1])
  params = params_of(made.model)
  rows = {name: np.asarray(x) for name, x in batch_of(B=24, T=12, seed=3).items()}
  metrics = [language_model()]

  def figures(functions, size):
    batches = [{name: x[i : i + size] for name, x in rows.items()} for i in range(0, 24, size)]
    found = evaluate(make_eval_step(functions, metrics), metrics, params, batches, functions)
    return np.array([found[name] for name in sorted(found)])

  expected = figures(made, 24)
  for sizes, size in ((ALL, 8), ({'data': 8}, 24), ({'fsdp': 4, 'tensor': 2}, 12)):
    np.testing.assert_allclose(figures(functions(sizes), size), expected, rtol=1e-5)


def test_samples_and_attention_maps_leave_the_parameters_sharded(functions, params_of, monkeypatch):
  words = [END, UNKNOWN, *(f'w{i}' for i in range(35))]
  tokenizer = known_words(words)
  config = base()
  config.log.update({'sample_prompts': ('w1 w2', 'w3', 'w4 w5 w6'), 'sample_tokens': 6})
  read = [Features({'inputs': np.arange(2, 2 + n)}, {}, {}) for n in (5, 3, 7)]
  monkeypatch.setattr(attention_maps, '_examples', lambda *args: read)
  largest = []  # of each check: arrays on one device that are as large as an unsharded leaf

  def check_arrays(places, known):
    split = {x.shape for x in jax.tree.leaves(places) if x.sharding.shard_shape(x.shape) != x.shape}
    largest.append(
      [
        x.shape
        for x in jax.live_arrays()
        if id(x) not in known and split & {shard.data.shape for shard in x.addressable_shards}
      ]
    )

  def evaluated(sizes, devices=None):
    made = functions(sizes, devices)
    places = abstract_state(made)[0].params
    host = jax.device_get(params_of(made.model, seed=3))
    params = jax.device_put(host, jax.tree.map(lambda x: x.sharding, places))
    known = {id(x) for x in jax.live_arrays()}
    real = samples.stream_text

    def watched(*args, **kwargs):
      for piece in real(*args, **kwargs):
        check_arrays(places, known)
        yield piece

    with monkeypatch.context() as patch:
      patch.setattr(samples, 'stream_text', watched)
      texts = samples.samples(config, made, tokenizer).run(3, params).texts
    maps = attention_maps.AttentionMaps(config, 'validation', made, tokenizer)(params)
    check_arrays(places, known)
    cells = [np.frombuffer(base64.b64decode(x['weights']), np.uint8) for x in maps['examples']]
    return texts, np.concatenate(cells).astype(int)

  texts, cells = evaluated({'fsdp': 4, 'tensor': 2})
  # Six tokens, the text that is withheld until the end, and the maps.
  assert len(largest) == 8 and not any(largest)
  expected, cells_there = evaluated({'data': 1}, jax.devices()[:1])
  assert texts == expected and len({text for _, text in texts}) == 3
  assert cells.max() > 100
  np.testing.assert_allclose(cells, cells_there, atol=1)


def test_attention_maps_gather_one_layer_at_a_time(decoder, monkeypatch):
  """The memory of the compiled program stays far below that of all parameters."""
  depth, over = 24, mesh.make_mesh({'fsdp': 8})
  model = decoder('llama', depth=depth, d_model=64, d_mlp=256, head_dim=16)
  optimizer = optimizers.adamw(1e-2, optimizers.constant, decay_steps=STEPS)
  apply = with_mesh(apply_of(model), over, mesh.RULES)
  made = Components(
    model, apply, over, mesh.RULES, init_of(model, 16), cross_entropy(), optimizer, train_step
  )
  params = abstract_state(made)[0].params
  read = [Features({'inputs': np.arange(2, 10)}, {}, {})]
  monkeypatch.setattr(attention_maps, '_examples', lambda *args: read)
  maps = attention_maps.AttentionMaps(base(), 'validation', made, known_words([END]))
  batch = dict.fromkeys(('inputs', 'segments', 'positions'), jnp.ones((8, 16), jnp.int32))
  memory = maps._read.lower(params, batch).compile().memory_analysis()
  total = sum(4 * x.size for x in jax.tree.leaves(params))
  assert memory.argument_size_in_bytes < total / 8 * 1.1
  assert memory.temp_size_in_bytes + memory.output_size_in_bytes < total / 4


@pytest.mark.parametrize(
  ('architecture', 'meshes'),
  [
    ('decoder', [ALL, {'fsdp': 8}]),
    ('encoder_decoder', [ALL]),
  ],
)
def test_initial_values_do_not_depend_on_the_mesh(architecture, meshes, functions):
  def initial(sizes, devices=None):
    made = functions(sizes, devices, architecture=architecture)
    return jax.device_get(init_train_state(made, jax.random.key(3))[0])

  expected = initial({'data': 1}, jax.devices()[:1])
  assert any(np.any(x) for x in jax.tree.leaves(expected.params))
  for sizes in meshes:
    jax.tree.map(np.testing.assert_array_equal, initial(sizes), expected)


def test_hosts_read_disjoint_rows_that_cover_the_batch():
  for sizes in (ALL, {'data': 8}, {'fsdp': 4, 'tensor': 2}, {'data': 2, 'tensor': 4}):
    sharding = mesh.batch_sharding(mesh.make_mesh(sizes), mesh.RULES)
    places = sharding.devices_indices_map((16,))
    for hosts in (1, 2, 4):
      read = []
      for own in np.array(jax.devices()).reshape(hosts, -1):
        here = {device: places[device] for device in own}
        host = types.SimpleNamespace(addressable_devices_indices_map=lambda shape, here=here: here)
        read.append(mesh.local_rows(16, host))
        # In the order of the global batch, for any order of the devices.
        assert sorted(read[-1].tolist()) == read[-1].tolist()
      assert set(np.concatenate(read).tolist()) == set(range(16))


def test_several_trees_on_a_mesh_train_like_one_device(batch_of):
  """A frozen teacher, a second trained model and factored moments, whose shapes have no axes."""
  config = base()
  config.model.update({'context': 16, 'd_model': 16, 'heads': 4, 'depth': 2, 'vocab_multiple': 8})
  config.model.bias = False  # the gradient of a key's bias is rounding, which Adafactor scales up
  config.update({'batch_size': 16, 'data': {'seq_len': 16}})
  models = {'teacher': another_model(model=config.model), 'second': another_model(frozen=False)}
  models['second'].model = config.model
  optimizer = 'optax:adafactor(min_dim_size_to_factor=2)'
  schedule = 'lm.optim.optimizers:constant'
  section = {'optimizer': optimizer, 'schedule': schedule, 'learning_rate': 1e-2, 'decay_steps': 9}
  with config.unlocked():
    config.models = models
    config.optim = {'fn': 'lm.optim.optimizers:from_optax', **section}

  def loss_sums(apply, params, batch, key):
    outputs = {name: apply[name](params[name], batch) for name in apply}
    log_p = {name: jax.nn.log_softmax(x.head(x.hidden)) for name, x in outputs.items()}
    kl_BT = jnp.exp(log_p['teacher']) * (2 * log_p['teacher'] - log_p['model'] - log_p['second'])
    return {'loss': jnp.sum(kl_BT.sum(-1) * batch['weights'])}

  objective = Objective(loss_sums, lambda batch: {'loss': jnp.sum(batch['weights'])})

  def train(sizes, devices=None):
    config.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1} | sizes)
    made = replace(build_components(config, 37, devices), objective=objective)
    state, abstract = init_train_state(made, jax.random.key(0))
    teacher = jax.tree.map(np.array, state.frozen)
    step = make_train_step(made, 0, 2, abstract)
    rows = mesh.batch_sharding(made.mesh, made.rules)
    for i in range(2):
      state, _ = step(state, mesh.make_global_batch(batch_of(B=16, T=6, seed=i), rows))
    jax.tree.map(np.testing.assert_array_equal, state.frozen, teacher)
    return state

  state, one = train(ALL), train({'data': 1}, jax.devices()[:1])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), state.params, one.params
  )
  down = state.frozen['teacher']['decoder']['layers']['layer_0']['mlp']['down']['kernel']
  assert down.addressable_shards[0].data.shape == (2, 64 // 2, 16 // 2)
  own = state.params['second']['decoder']['layers']['layer_0']['mlp']['down']['kernel']
  assert own.sharding == down.sharding
