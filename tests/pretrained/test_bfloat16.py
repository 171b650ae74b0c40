"""In bfloat16, log-probabilities are as close to those in float32 as the reference's are."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lm
from lm.pretrained import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'


@pytest.mark.parametrize(
  ('name', 'tolerance'),
  # The largest difference of transformers 5.24 in bfloat16 from its golden float32 values, as
  # `make_checkpoints.py --bfloat16` prints it.
  [('bert_masked', 0.0210), ('llama', 0.0088)],
)
def test_log_probs_in_bfloat16(name, tolerance, tmp_path):
  checkpoint.import_checkpoint(FOLDER / name, tmp_path / 'run')
  run, golden = lm.load(tmp_path / 'run'), np.load(FOLDER / name / 'golden.npz')
  (B, T), lengths = golden['tokens'].shape, golden['lengths'][:, None]
  inside = np.arange(T)[None] < lengths
  batch = {'inputs': golden['tokens'], 'segments': inside, 'examples': np.ones((B, 1))}
  batch |= {'positions': np.arange(T)[None].repeat(B, 0)}
  batch |= {'types': golden['types']} if 'types' in golden else {}
  batch = {key: jnp.asarray(x, jnp.int32) for key, x in batch.items()}

  @jax.jit
  def log_p(params, batch):
    output = run.model.clone(dtype='bfloat16').apply({'params': params}, batch)
    assert output.hidden.dtype == jnp.bfloat16
    return jax.nn.log_softmax(output.head(output.hidden))

  found = log_p(run.params, batch)
  if 'types' in golden:
    expected = jax.nn.log_softmax(golden['logits'])
  else:
    found = jnp.take_along_axis(found[:, :-1], batch['inputs'][:, 1:, None], -1)[..., 0]
    expected, inside = golden['log_p'], inside[:, 1:]
  assert 1e-4 < np.abs(np.asarray(found - expected))[inside].max() < tolerance
