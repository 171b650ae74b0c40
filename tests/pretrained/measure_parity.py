"""Prints, for each checkpoint of checkpoints/, the largest differences from its golden outputs.

  python tests/pretrained/measure_parity.py [NAME ...]

Columns: outputs of padded and of packed rows, and of decoding with a KV cache (log-probabilities of
language models, logits of heads, else hidden states); the last hidden states; and whether the
tensors of an export equal those of the source byte for byte.
"""

import contextlib
import pathlib
import sys
import tempfile

import numpy as np
import test_encoder_decoder_parity
import test_encoder_parity
import test_parity
from round_trip import equal_tensors

import lm
from lm.pretrained import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'


@contextlib.contextmanager
def largest_difference(found):
  """Records the largest absolute difference of the comparisons of a test."""
  allclose, differ = np.allclose, test_encoder_parity.difference

  def recorded_allclose(a, b, **kwargs):
    found.append(float(np.abs(np.asarray(a) - np.asarray(b)).max()))
    return allclose(a, b, **kwargs)

  def recorded_difference(*args):
    found.append(float(differ(*args)))
    return found[-1]

  np.allclose, test_encoder_parity.difference = recorded_allclose, recorded_difference
  try:
    yield
  finally:
    np.allclose, test_encoder_parity.difference = allclose, differ


def hidden_difference(run, golden):
  """Returns the largest difference of the last hidden states over the tokens of the golden rows."""
  if 'types' in golden:
    batch = test_encoder_parity.batch_of(golden, golden['tokens'].shape[1])
    batch |= {'examples': np.ones((2, 1), np.int32)}
    expected, path, lengths = golden['hidden'][-1], 'encoder/hidden', golden['lengths']
  elif 'log_p' in golden:
    batch = test_parity.padded(golden, golden['tokens'].shape[1])
    expected, path, lengths = golden['hidden'][-1], 'decoder/hidden', golden['lengths']
  else:
    batch = test_encoder_decoder_parity.batch_of(golden)
    expected, path = golden['decoder_hidden'][-1], 'decoder/hidden'
    lengths = np.full(2, expected.shape[1])
  _, sites = test_parity.with_hooks(run.model)(run.params, batch, reads=(path,))
  inside = np.arange(expected.shape[1])[None] < lengths[:, None]
  return float(np.abs(np.asarray(sites[path]) - expected)[inside].max())


def row(name):
  """Returns the cells of a checkpoint."""
  golden = np.load(FOLDER / name / 'golden.npz')
  with tempfile.TemporaryDirectory() as place:
    workdir, out = pathlib.Path(place) / 'run', pathlib.Path(place) / 'out'
    checkpoint.import_checkpoint(FOLDER / name, workdir)
    run = lm.load(workdir)
    checkpoint.export_run(workdir, out)
    equal = equal_tensors(FOLDER / name, out)
  opened = FOLDER / name, run, golden
  if 'types' in golden:
    tests = (
      test_encoder_parity.test_outputs_of_padded_rows,
      test_encoder_parity.test_outputs_of_packed_rows,
    )
    tests = [*[lambda test=test: test(opened) for test in tests], None]
  else:
    module = test_parity if 'log_p' in golden else test_encoder_decoder_parity
    padded = (
      (lambda: module.test_log_probs_of_padded_rows(opened, 17))
      if module is test_parity
      else (lambda: module.test_log_probs_of_padded_rows(opened))
    )
    tests = [
      padded,
      lambda: module.test_log_probs_of_packed_rows(opened),
      lambda: module.test_log_probs_of_cached_decoding(opened),
    ]
  cells = []
  for test in tests:
    found = []
    if test is not None:
      with largest_difference(found):
        test()
    cells.append(f'{max(found):.1e}' if found else '')
  return [name, *cells, f'{hidden_difference(run, golden):.1e}', 'yes' if equal else 'NO']


if __name__ == '__main__':
  print(
    '| checkpoint | padded | packed | cached | hidden | bytes equal |\n|---|---|---|---|---|---|'
  )
  for each in sys.argv[1:] or sorted(path.name for path in FOLDER.iterdir()):
    print('| ' + ' | '.join(row(each)) + ' |', flush=True)
