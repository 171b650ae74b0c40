"""Imported encoders give the reference's hidden states and logits, in padded and packed rows."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from round_trip import assert_everything_comes_back

import lm
from lm.errors import UserError
from lm.nn.hooks import with_hooks
from lm.pretrained import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
GOLDEN = {path.parent.name: path for path in sorted(FOLDER.glob('*/golden.npz'))}
# Golden files of encoders have types; those of models with a head have logits.
NAMES = [name for name, path in GOLDEN.items() if 'types' in np.load(path)]
# Each mechanism once; the others combine them.
DEFAULT = (
  'bert',
  'bert_answers',
  'distilbert_classes',
  'electra_masked',
  'electra_replaced',
  'modernbert_tags',
  'roberta_masked',
)
PARAMS = [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
TOLERANCE = 1e-4
SITES = '*/embeddings', '*/residual', 'encoder/hidden'


@pytest.fixture(scope='module', params=PARAMS)
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


def test_a_type_beyond_the_table_is_refused(imported):
  """Its embedding would be NaN, and so all logits of the row."""
  _, run, golden = imported
  rows = run.params['encoder'].get('types', np.zeros((1, 1)))  # without a table, 0 is the only type
  for wrong in (len(rows), -1):
    types = np.where(golden['tokens'] == golden['tokens'][0, 3], wrong, 0)
    with pytest.raises(UserError, match=f'types: {wrong} is no token type of the model'):
      run.logits(golden['tokens'], types=types)


def difference(found, expected, length):
  """Returns the largest difference over the tokens of a row, or over the classes of the row."""
  inside = slice(None if expected.ndim == 1 else length)
  return np.abs(found[inside] - expected[inside]).max()


def first_difference(run, golden):
  """Returns the first layer whose hidden states differ from the golden ones, for a failure."""
  batch = batch_of(golden, golden['tokens'].shape[1]) | {'examples': jnp.ones((2, 1), jnp.int32)}
  _, sites = with_hooks(run.model)(run.params, batch, reads=SITES)
  layers = [x for path, x in sites.items() if path.endswith('embeddings')]
  stacked = [x for path, x in sorted(sites.items()) if path.endswith('residual')]
  layers += [x for group in zip(*stacked, strict=True) for x in group]
  # The last hidden state of the reference is that after the final norm, if there is one.
  layers[-1] = sites['encoder/hidden']
  for layer, (x, expected) in enumerate(zip(layers, golden['hidden'], strict=True)):
    for row, length in enumerate(golden['lengths']):
      off = difference(np.asarray(x)[row], expected[row], length)
      if off > TOLERANCE:
        return f'layer {layer} differs by {off:.2g} (0: the embeddings)'
  return 'no layer differs'


def test_outputs_of_padded_rows(imported):
  _, run, golden = imported
  batch = batch_of(golden, 17)
  if 'logits' in golden:
    expected = golden['logits']
    found = np.asarray(run.logits(batch['inputs'], batch['segments'], types=batch['types']))
    found = found[:, 0] if expected.ndim == 2 else found
  else:
    expected, examples = golden['hidden'][-1], {'examples': jnp.ones((2, 1), jnp.int32)}
    found = np.asarray(jax.jit(run.apply)(run.params, batch | examples).hidden)
  for row, length in enumerate(golden['lengths']):
    off = difference(found[row], expected[row], length)
    assert off < TOLERANCE, first_difference(run, golden)


def test_outputs_of_packed_rows(imported):
  _, run, golden = imported
  batch, starts = packed(golden)
  output = jax.jit(run.apply)(run.params, batch)
  expected, found = golden['hidden'][-1], output.hidden
  if 'logits' in golden:
    expected, found = golden['logits'], output.head(found)
  else:
    assert output.head(found).shape[-1] == 0
  for row, length in enumerate(golden['lengths']):
    part = np.asarray(found)[0, row if expected.ndim == 2 else slice(starts[row], None)]
    assert difference(part, expected[row], length) < TOLERANCE, first_difference(run, golden)


@pytest.mark.parametrize('name', ['bert', pytest.param('modernbert', marks=pytest.mark.slow)])
def test_a_failure_names_the_first_layer_that_differs(name, tmp_path):
  checkpoint.import_checkpoint(FOLDER / name, tmp_path / 'run')
  run, golden = lm.load(tmp_path / 'run'), dict(np.load(GOLDEN[name]))
  assert first_difference(run, golden) == 'no layer differs'
  golden['hidden'][1, 0, 3, 5] += 0.01
  assert first_difference(run, golden).startswith('layer 1 differs by 0.01')


def test_the_round_trip_of_an_encoder_keeps_every_byte(imported, tmp_path):
  folder, run, _ = imported
  assert_everything_comes_back(folder, run, tmp_path / 'out')
