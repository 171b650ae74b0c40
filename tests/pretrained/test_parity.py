"""Imported checkpoints give the reference's log-probabilities, and come back byte for byte."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from round_trip import assert_everything_comes_back

import lm
from lm.nn.hooks import with_hooks
from lm.pretrained import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
NAMES = sorted(path.parent.name for path in FOLDER.glob('*/golden.npz') if 'log_p' in np.load(path))
# Each mechanism once; the others combine them.
DEFAULT = ('gemma2', 'gemma3_text', 'gpt2', 'gpt_neox', 'llama_31', 'qwen3')
PARAMS = [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
TOLERANCE = 1e-4


@pytest.fixture(scope='module', params=PARAMS)
def imported(request, tmp_path_factory):
  """Returns the folder of a checkpoint, its imported run and the golden outputs."""
  folder, workdir = FOLDER / request.param, tmp_path_factory.mktemp('pretrained') / 'run'
  checkpoint.import_checkpoint(folder, workdir)
  return folder, lm.load(workdir), np.load(folder / 'golden.npz')


def batch_of(tokens, segments, positions):
  arrays = {'inputs': tokens, 'segments': segments, 'positions': positions}
  return {name: jnp.asarray(x, jnp.int32) for name, x in arrays.items()}


def padded(golden, width):
  """Returns the golden rows padded to a width."""
  (B, T), lengths = golden['tokens'].shape, golden['lengths'][:, None]
  places = np.arange(width)[None].repeat(B, 0)
  tokens = np.pad(golden['tokens'], ((0, 0), (0, width - T)))
  return batch_of(np.where(places < lengths, tokens, 0), places < lengths, places)


def log_p(logits_BTV, tokens):
  """Returns the log-probability of each next token."""
  all_BTV = jax.nn.log_softmax(logits_BTV.astype(jnp.float32))
  return np.take_along_axis(np.asarray(all_BTV)[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[
    ..., 0
  ]


def rows(golden):
  """Yields (row, count of next tokens, their golden log-probabilities)."""
  for row, length in enumerate(golden['lengths'].tolist()):
    yield row, length - 1, golden['log_p'][row, : length - 1]


def first_difference(run, golden):
  """Returns the first layer whose hidden states differ from the golden ones, for a failure."""
  batch, lengths = padded(golden, golden['tokens'].shape[1]), golden['lengths']
  _, sites = with_hooks(run.model)(run.params, batch, reads=('*/embeddings', '*/residual'))
  layers = [x for path, x in sites.items() if path.endswith('embeddings')]
  layers += [x for path, stacked in sites.items() if path.endswith('residual') for x in stacked]
  names = ['the embeddings', *(f'layer {i}' for i in range(len(layers) - 1))]
  inside = np.arange(golden['tokens'].shape[1])[None] < lengths[:, None]
  # The last hidden state of the reference is that after the final norm.
  for name, x, expected in zip(names[:-1], layers, golden['hidden'], strict=False):
    difference = np.abs(np.asarray(x) - expected)[inside].max()
    if difference > TOLERANCE:
      return f'{name} differs by {difference:.2g}'
  return 'no layer before the last one differs'


@pytest.mark.parametrize('width', [12, 17])
def test_log_probs_of_padded_rows(imported, width):
  _, run, golden = imported
  batch = padded(golden, width)
  found = log_p(run.logits(batch['inputs'], batch['segments']), batch['inputs'])
  for row, count, expected in rows(golden):
    close = np.allclose(found[row, :count], expected, atol=TOLERANCE)
    assert close, first_difference(run, golden)


def test_log_probs_of_packed_rows(imported):
  _, run, golden = imported
  lengths = golden['lengths'].tolist()
  tokens = np.concatenate([x[:n] for x, n in zip(golden['tokens'], lengths, strict=True)])[None]
  segments = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
  positions = np.concatenate([np.arange(n) for n in lengths])[None]
  batch = batch_of(tokens, segments, positions)
  output = run.apply(run.params, batch)
  found = log_p(output.head(output.hidden), tokens)[0]
  starts = np.cumsum([0, *lengths])
  for row, count, expected in rows(golden):
    part = found[starts[row] : starts[row] + count]
    assert np.allclose(part, expected, atol=TOLERANCE), first_difference(run, golden)


def test_log_probs_of_cached_decoding(imported):
  _, run, golden = imported
  tokens, prompt = jnp.asarray(golden['tokens']), 4
  B, T = tokens.shape
  step = jax.jit(lambda batch, cache: run.apply(run.params, batch, cache=cache))
  ones, places = jnp.ones((B, T), jnp.int32), jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
  cache, logits = run.model.init_cache(B, T), []
  for part in (slice(prompt), *(slice(t, t + 1) for t in range(prompt, T - 1))):
    output = step(batch_of(tokens[:, part], ones[:, part], places[:, part]), cache)
    cache = output.cache
    logits.append(output.head(output.hidden))
  all_BTV = jax.nn.log_softmax(jnp.concatenate(logits, 1))
  found = np.take_along_axis(np.asarray(all_BTV), np.asarray(tokens)[:, 1:, None], -1)[..., 0]
  for row, count, expected in rows(golden):
    assert np.allclose(found[row, :count], expected, atol=TOLERANCE), first_difference(run, golden)


def test_the_round_trip_keeps_every_byte(imported, tmp_path):
  folder, run, _ = imported
  assert_everything_comes_back(folder, run, tmp_path / 'out')
