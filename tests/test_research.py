"""The results of experiments that are one new function: formulas in NumPy, and exact texts."""

import functools
import importlib.util
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import resolve
from lm.config.base import base
from lm.errors import UserError
from lm.evaluation.trained_model import TrainedModel
from lm.models.ensemble import make_ensemble, stack_params
from lm.nn.hooks import with_hooks
from lm.text import tokenizers
from lm.types import Mask, TrainState, apply_of
from lm.workdir import experiment

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'


def module_of(name):
  """Returns the module of an experiment, as a run of it imports it."""
  experiment.load(str(FOLDER / f'{name}.py'))
  return sys.modules[name]


def module_of_path(name):
  """Returns a module of `experiments/` that is no experiment."""
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_differential_attention_equals_its_formula():
  layer = module_of('differential_attention').DifferentialAttention
  D, T, K, G, R, depth = 8, 5, 4, 4, 2, 3
  model = layer(heads=G * R, kv_heads=G, head_dim=K, layer=depth)
  rng = np.random.default_rng(0)
  x = rng.normal(0, 1, (2, T, D)).astype(np.float32)
  positions = np.broadcast_to(np.arange(T, dtype=np.int32), (2, T))
  args = (x, None, Mask(positions, positions), None)
  shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args))['params']
  params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), shapes)
  found, _ = jax.jit(model.apply)({'params': params}, *args)

  qkv = np.einsum('btd,dgrk->btgrk', x, params['qkv']['kernel'])
  start = 0.8 - 0.6 * np.exp(-0.3 * depth)  # of layer `depth`, counted from 0
  q1, k1, q2, k2 = params['lambdas']
  weight = np.exp(q1 @ k1) - np.exp(q2 @ k2) + start

  def maps(g, r):
    scores = qkv[:, :, g, r] @ qkv[:, :, g, R].swapaxes(1, 2) / np.sqrt(K)
    return softmax(np.where(np.tri(T, dtype=bool), scores, -np.inf))

  heads = []
  for g in range(0, G, 2):
    values = np.concatenate([qkv[:, :, g, R + 1], qkv[:, :, g + 1, R + 1]], axis=-1)
    for r in range(R):
      head = (maps(g, r) - weight * maps(g + 1, r)) @ values
      head /= np.sqrt(np.square(head).mean(-1, keepdims=True) + 1e-5)
      heads.append((1 - start) * head * params['heads_norm']['scale'])
  expected = np.concatenate(heads, axis=-1) @ params['out']['kernel'].reshape(-1, D)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_lambda_of_differential_attention_depends_on_the_depth(decoder, params_of, batch_of):
  layer = module_of('differential_attention').DifferentialAttention
  model = decoder('llama', attention_layer=layer, depth=4)

  @jax.jit
  def heads(params, batch):
    return with_hooks(model)(params, batch, ('*/heads',))[1]

  params = params_of(model)
  norm = params['decoder']['layers']['layer_0']['attention']['heads_norm']
  norm['scale'] = jnp.ones_like(norm['scale'])
  ((_, heads_NBTHK),) = heads(params, batch_of(T=5)).items()
  # With scale 1, the root mean square of a pair after its norm is 1 - lambda_init, but for epsilon.
  found = np.sqrt(np.square(heads_NBTHK.reshape(4, -1, 8)).mean((1, 2)))
  np.testing.assert_allclose(found, 0.2 + 0.6 * np.exp(-0.3 * np.arange(4)), rtol=0.02)


def test_eta_keeps_the_tokens_of_its_formula():
  eta = module_of('eta_sampler')
  rng = np.random.default_rng(0)
  kept = []
  for scale in (0.1, 1.0, 4.0, 30.0):
    p = softmax(scale * rng.normal(0, 1, 50))
    for epsilon in (1e-3, 0.03, 0.5):
      threshold = min(epsilon, np.sqrt(epsilon) * np.exp((p * np.log(p)).sum()))
      expected = (p > threshold) | (p == p.max())
      found = np.isfinite(eta.keep_eta(jnp.asarray(np.log(p), jnp.float32), epsilon))
      np.testing.assert_array_equal(found, expected)
      kept.append(expected.sum())
  assert min(kept) == 1 and max(kept) == 50
  logits_V = jnp.log(jnp.asarray([0.55, 0.4, 0.05]))
  keys = jax.random.split(jax.random.key(0), 2000)
  tokens = jax.jit(jax.vmap(eta.eta(epsilon=0.2), in_axes=(None, 0)))(logits_V, keys)
  shares = np.bincount(tokens, minlength=3) / 2000  # of 0.55 and 0.4, without 0.05
  np.testing.assert_allclose(shares, [0.58, 0.42, 0], atol=0.04)
  assert eta.eta(epsilon=0.2) is eta.eta(epsilon=0.2)  # one compiled program
  with pytest.raises(UserError, match='eta: epsilon=3 is not between 0 and 1'):
    eta.eta(epsilon=3)


def test_contrastive_decoding_of_an_ensemble_equals_numpy(decoder, params_of, batch_of):
  mean = module_of('contrastive_decoding').contrastive
  models = decoder('gpt2'), decoder('llama', depth=1)
  params = [params_of(model, seed) for seed, model in enumerate(models)]
  batch, ensemble = batch_of(T=4), make_ensemble(models, mean)

  @jax.jit
  def logits(params, batch):
    hidden, head, *_ = apply_of(ensemble)(params, batch)
    return *head.replace(mean_of=lambda logits_MBTV: logits_MBTV)(hidden), head(hidden)

  expert, amateur, found = map(np.asarray, logits(stack_params(params), batch))
  p, q = softmax(expert.astype(np.float64)), softmax(amateur.astype(np.float64))
  plausible = p >= 0.1 * p.max(-1, keepdims=True)
  np.testing.assert_array_equal(np.isfinite(found), plausible)
  expected = np.log(p) - np.log(q)
  np.testing.assert_allclose(found[plausible], expected[plausible], rtol=1e-3, atol=1e-3)
  assert 1 < plausible.sum(-1).mean() < 36


def test_prompt_lookup_gives_the_greedy_text_in_fewer_forward_passes(decoder, params_of):
  lookup = module_of_path('prompt_lookup')
  tokenizer = tokenizers.bytes([])
  model = decoder('llama', vocab_size=tokenizer.get_vocab_size(), context=64, depth=1)
  params, config = params_of(model), base()
  run = TrainedModel(FOLDER, config, tokenizer, model, params, params, apply_of(model), 0)
  tokens, passes = lookup.generate(run, 'abab', max_tokens=59)
  prompt = [tokenizer.token_to_id('<|end|>'), *tokenizer.encode('abab').ids]
  # The greedy token after every prefix, from one forward pass without a cache.
  following = run.logits([prompt + tokens])[0].argmax(-1).tolist()[len(prompt) - 1 :]
  assert len(tokens) == 59 and following[:-1] == tokens
  assert passes < 50
  assert lookup.lookup([1, 2, 3, 1, 2, 4, 1, 2], 3, 2) == [3, 1]


def test_lion_has_the_decay_and_the_rates_of_this_library(capsys):
  lion = module_of('lion')
  config = lion.get_config()
  config.optim.clip_norm = float('inf')
  optimizer = resolve.call(resolve.build_section(config.optim, 'optim'), 'optim')
  rng = np.random.default_rng(0)
  params = {'decoder': {'kernel': rng.normal(0, 1, (2, 3))}, 'embedding': rng.normal(0, 1, 5)}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params | {'bias': np.ones(2)})
  state, moments = optimizer.transformation.init(params), jax.tree.map(np.zeros_like, params)
  for step in range(2):
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 1, x.shape), jnp.float32), params)
    updates, state = optimizer.transformation.update(
      grads, state, params, gradient_norm=optax.tree.norm(grads), value=1.0
    )
    rate = float(optimizer.schedule(step))
    signs = jax.tree.map(lambda m, g: np.sign(0.95 * m + 0.05 * g), moments, grads)
    moments = jax.tree.map(lambda m, g: 0.98 * m + 0.02 * g, moments, grads)
    expected = {
      'decoder': {'kernel': signs['decoder']['kernel'] + 0.3 * params['decoder']['kernel']},
      'embedding': 2 * (signs['embedding'] + 0.3 * params['embedding']),
      'bias': signs['bias'],
    }
    expected = jax.tree.map(lambda x, rate=rate: -rate * x, expected)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), updates, expected)
    params = optax.apply_updates(params, updates)
  every, show = lion.watch(every=7)
  show(7, TrainState(*[jnp.zeros((), jnp.int32)] * 3, {'bias': jnp.array([3.0, 4.0])}, ()), {})
  assert every == 7 and f'{np.sqrt(12.5):.4f}  bias' in capsys.readouterr().out


def test_typos_are_those_of_the_row_and_leave_targets():
  row = {
    'inputs': np.arange(1000),
    'targets': np.arange(1, 1001),
    'segments': np.repeat([1, 0], [900, 100]),
  }
  found, again = (module_of('typos').typos(row, np.random.default_rng((3, 7))) for _ in range(2))
  changed = found['inputs'] != row['inputs']
  assert 60 < changed[:900].sum() < 120 and not changed[900:].any()
  np.testing.assert_array_equal(found['inputs'], again['inputs'])
  np.testing.assert_array_equal(found['targets'], row['targets'])
