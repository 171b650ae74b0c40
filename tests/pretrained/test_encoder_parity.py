"""Imported encoders give the reference's hidden states and logits, in padded and packed rows."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.nn.hooks import with_hooks
from lm.pretrained import checkpoint, safetensors

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
GOLDEN = {path.parent.name: path for path in sorted(FOLDER.glob('*/golden.npz'))}
NAMES = [name for name, path in GOLDEN.items() if 'types' in np.load(path)]
TOLERANCE = 1e-4


@pytest.fixture(scope='module', params=NAMES)
def imported(request, tmp_path_factory):
  """Returns the folder of a checkpoint, its imported run and the golden outputs."""
  workdir = tmp_path_factory.mktemp('encoder') / 'run'
  checkpoint.import_checkpoint(FOLDER / request.param, workdir)
  return FOLDER / request.param, lm.load(workdir), np.load(GOLDEN[request.param])


def batch_of(golden, width):
  """Returns the golden rows padded to a width with token 0."""
  (B, T), lengths = golden['tokens'].shape, golden['lengths'][:, None]
  places = np.arange(width)[None].repeat(B, 0)
  rows = {name: np.pad(golden[name], ((0, 0), (0, width - T))) for name in ('tokens', 'types')}
  rows = {name: np.where(places < lengths, x, 0) for name, x in rows.items()}
  batch = {'inputs': rows['tokens'], 'types': rows['types']}
  batch |= {'segments': places < lengths, 'positions': places}
  return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}


def packed(golden):
  """Returns the golden rows in one packed row, and the index of the first token of each."""
  lengths = golden['lengths'].tolist()
  batch = {
    name: np.concatenate([x[:n] for x, n in zip(golden[key], lengths, strict=True)])
    for name, key in (('inputs', 'tokens'), ('types', 'types'))
  }
  batch['segments'] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
  batch['positions'] = np.concatenate([np.arange(n) for n in lengths])
  batch = {name: jnp.asarray(x, jnp.int32)[None] for name, x in batch.items()}
  examples = jnp.arange(1, len(lengths) + 1, dtype=jnp.int32)[None]
  return batch | {'examples': examples}, np.cumsum([0, *lengths])


def test_hidden_states_of_each_layer(imported):
  _, run, golden = imported
  batch = batch_of(golden, golden['tokens'].shape[1]) | {'examples': jnp.ones((2, 1), jnp.int32)}
  _, sites = with_hooks(run.model)(run.params, batch, reads=('*/embeddings', '*/residual'))
  found = [x for path, x in sites.items() if path.endswith('embeddings')]
  stacked = [x for path, x in sorted(sites.items()) if path.endswith('residual')]
  found += [x for layers in zip(*stacked, strict=True) for x in layers]
  inside = np.asarray(batch['segments']) > 0
  for layer, (x, expected) in enumerate(zip(found, golden['hidden'], strict=True)):
    difference = np.abs(np.asarray(x) - expected)[inside].max()
    assert difference < TOLERANCE, f'layer {layer} differs by {difference:.2g}'


@pytest.mark.parametrize('width', [12, 17])
def test_logits_of_padded_rows(imported, width):
  _, run, golden = imported
  batch = batch_of(golden, width)
  found = np.asarray(run.logits(batch['inputs'], batch['segments'], types=batch['types']))
  if 'logits' not in golden:
    assert found.shape[-1] == 0
  elif golden['logits'].ndim == 2:
    assert np.allclose(found[:, 0], golden['logits'], atol=TOLERANCE)
  else:
    for row, length in enumerate(golden['lengths']):
      expected = golden['logits'][row, :length]
      assert np.allclose(found[row, :length], expected, atol=TOLERANCE)


def test_logits_of_packed_rows(imported):
  _, run, golden = imported
  batch, starts = packed(golden)
  output = run.apply(run.params, batch)
  logits = np.asarray(output.head(output.hidden))[0]
  last = golden['hidden'][-1]
  for row, length in enumerate(golden['lengths']):
    inside = slice(starts[row], starts[row] + length)
    if 'logits' not in golden:
      assert np.allclose(output.hidden[0, inside], last[row, :length], atol=TOLERANCE)
    elif golden['logits'].ndim == 2:
      assert np.allclose(logits[row], golden['logits'][row], atol=TOLERANCE)
    else:
      assert np.allclose(logits[inside], golden['logits'][row, :length], atol=TOLERANCE)


def test_the_round_trip_of_an_encoder_keeps_every_byte(imported, tmp_path):
  folder, run, _ = imported
  checkpoint.export_run(run.workdir, tmp_path / 'out')
  before, after = (safetensors.read_folder(each) for each in (folder, tmp_path / 'out'))
  assert before.keys() == after.keys()
  for name, tensor in before.items():
    assert tensor.dtype == after[name].dtype and tensor.shape == after[name].shape
    assert tensor.read().tobytes() == after[name].read().tobytes()
