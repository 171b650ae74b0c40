"""What all tests share: strict JAX, caches of their own, tiny models with random parameters."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Set before jax is imported, and passed on to the processes that tests start.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
if 'LM_TEST_FOLDER' not in os.environ:
  # One cache of prepared data and one of compiled programs, for all workers of pytest-xdist and
  # all processes that tests start; nothing outlives the run.
  os.environ['LM_TEST_FOLDER'] = folder = tempfile.mkdtemp()
  os.environ['LM_CACHE'] = f'{folder}/data'
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{folder}/programs'
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
os.environ.setdefault('JAX_NUMPY_RANK_PROMOTION', 'raise')
if os.environ['JAX_PLATFORMS'] == 'cpu':
  # Compilation is most of the cost of a tiny program; without optimization, in one piece and by
  # the older emitters it takes a third of the time or less. Newer versions reject the last flag.
  _FLAGS = '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1'
  if tuple(map(int, importlib.metadata.version('jaxlib').split('.')[:2])) < (0, 11):
    _FLAGS += ' --xla_cpu_use_fusion_emitters=false'
  os.environ.setdefault('XLA_FLAGS', _FLAGS)

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.components import init_of
from lm.data.sources.embedded import python_library
from lm.models.transformer import Decoder, Encoder, EncoderDecoder
from lm.nn.layers import Attention, GatedMlp, RMSNorm, post_norm
from lm.nn.position import alibi, relative, rope, sinusoidal

VOCABULARY, CONTEXT = 37, 16

# What each architecture changes in a tiny GPT-2.
VARIANTS = {
  'gpt2': {},
  'llama': {
    'position': rope,
    'norm': RMSNorm,
    'mlp': GatedMlp,
    'kv_heads': 2,
    'bias': False,
    'tie_embeddings': False,
  },
  'windows': {
    'position': rope,
    'attention_layer': (functools.partial(Attention, window=3), Attention),
    'depth': 4,
    'kv_heads': 1,
  },
  'alibi': {'position': alibi, 'logit_soft_cap': 5.0, 'vocab_multiple': 8},
  'vaswani': {
    'position': sinusoidal,
    'block_layout': post_norm,
    'final_norm': False,
    'embed_scale': 4.0,
  },
  't5': {
    'position': functools.partial(relative, buckets=8, max_distance=10),
    'norm': RMSNorm,
    'bias': False,
  },
}


def fields(variant, changes):
  """Returns the fields of a tiny model: a variant by name, and what else differs."""
  sizes = {'d_model': 16, 'depth': 2, 'heads': 4, 'kv_heads': 4, 'head_dim': 4, 'd_mlp': 24}
  return {'vocab_size': VOCABULARY, 'context': CONTEXT} | sizes | VARIANTS[variant] | changes


@contextlib.contextmanager
def few_files():
  """Has the embedded sources read one file in twelve of Python's library: 100 kB of prose."""
  cached = (python_library._documents, python_library._measured, python_library._functions)
  places = [place for place in python_library.files() if place.name != 'topics.py'][::12]
  found = {place: python_library.files()[place] for place in places}
  with pytest.MonkeyPatch.context() as patch:
    # The fingerprint of a source is that of these files, and so is its place in LM_CACHE.
    patch.setattr(python_library, 'files', lambda: found)
    for function in cached:
      function.cache_clear()
    yield
  for function in cached:
    function.cache_clear()


@pytest.fixture(scope='module')
def small_library():
  """Has all tests of a module read few files, as `few_files` does."""
  with few_files():
    yield


@pytest.fixture(scope='session')
def decoder():
  """Makes a tiny decoder: a variant by name, and what else differs."""
  return lambda variant='gpt2', **changes: Decoder(**fields(variant, changes))


@pytest.fixture(scope='session')
def encoder():
  """Makes a tiny encoder likewise; without `classes` its head is the vocabulary."""
  return lambda variant='gpt2', **changes: Encoder(**fields(variant, changes))


@pytest.fixture(scope='session')
def encoder_decoder():
  """Makes a tiny encoder-decoder likewise, of one layer that reads and two that write."""

  def make(variant='vaswani', **changes) -> EncoderDecoder:
    return EncoderDecoder(**fields(variant, {'encoder_depth': 1} | changes))

  return make


@pytest.fixture(scope='session')
def params_of():
  """Draws the parameters of a model so large that every part of it changes the output."""

  def draw(model, seed=0):
    shapes = nn.unbox(jax.eval_shape(init_of(model, CONTEXT), jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    drawn = [jnp.asarray(rng.normal(0, 0.4, leaf.shape), leaf.dtype) for leaf in leaves]
    return jax.tree.unflatten(tree, drawn)

  return draw


@pytest.fixture(scope='session')
def batch_of():
  """Makes a batch of random tokens, the rows whole or packed as `segments` says.

  `source` are the segments of rows that an encoder reads for a decoder, where it does.
  """

  def make(B=2, T=12, seed=0, segments=None, source=None):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (B, T + 1))
    segments_BT = np.ones((B, T), int) if segments is None else np.asarray(segments)
    integers = {
      'inputs': tokens[:, :-1],
      'targets': tokens[:, 1:],
      'segments': segments_BT,
      'positions': _positions(segments_BT),
      'bytes': rng.integers(1, 5, (B, T)),
    }
    if source is not None:
      source_BS = np.asarray(source)
      integers |= {
        'source': rng.integers(0, VOCABULARY, source_BS.shape),
        'source_segments': source_BS,
        'source_positions': _positions(source_BS),
      }
    batch = {name: jnp.asarray(value, jnp.int32) for name, value in integers.items()}
    return batch | {'weights': jnp.asarray(segments_BT > 0, jnp.float32)}

  return make


def _positions(segments_BT):
  """Returns the index of each token within its segment, 0 on padding."""
  starts_BT = np.diff(segments_BT, axis=1, prepend=-1) != 0
  index_BT = np.broadcast_to(np.arange(segments_BT.shape[1]), segments_BT.shape)
  begins_BT = np.maximum.accumulate(np.where(starts_BT, index_BT, 0), axis=1)
  return np.where(segments_BT > 0, index_BT - begins_BT, 0)
