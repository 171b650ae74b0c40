"""Imported encoder-decoders give the reference's log-probabilities and its greedy texts."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from round_trip import assert_everything_comes_back

import lm
from lm.data import features
from lm.decode.batch import generate_batch
from lm.evaluation.predict import decode_config
from lm.nn.hooks import with_hooks
from lm.pretrained import checkpoint

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
NAMES = sorted(
  path.parent.name for path in FOLDER.glob('*/golden.npz') if 'decoder_ids' in np.load(path)
)
TOLERANCE = 1e-4


# One for each position scheme: what packs rows and decodes does not depend on the rest.
SCHEMES = ('bart', 'marian', 't5')
DEFAULT = ('bart', 't5')


def slow_unless_default(names):
  return [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
  """Returns a function from a name to the folder of a checkpoint, its run and golden outputs."""

  @functools.cache
  def open_checkpoint(name):
    workdir = tmp_path_factory.mktemp('seq2seq') / 'run'
    checkpoint.import_checkpoint(FOLDER / name, workdir)
    return FOLDER / name, lm.load(workdir), np.load(FOLDER / name / 'golden.npz')

  return open_checkpoint


@pytest.fixture(params=slow_unless_default(NAMES))
def imported(request, opened):
  return opened(request.param)


@pytest.fixture(params=slow_unless_default(SCHEMES))
def scheme(request, opened):
  return opened(request.param)


def batch_of(golden, extra=0):
  """Returns the golden rows, with `extra` more tokens of padding on both sides."""

  def row(ids, lengths, prefix):
    ids = np.pad(ids, ((0, 0), (0, extra)))
    places = np.arange(ids.shape[1])[None].repeat(len(ids), 0)
    return {f'{prefix}segments': places < lengths[:, None], f'{prefix}positions': places, 'x': ids}

  source = row(golden['source'], golden['source_lengths'], 'source_')
  target = row(golden['decoder_ids'], np.full(2, golden['decoder_ids'].shape[1]), '')
  batch = {'source': source.pop('x'), 'inputs': target.pop('x'), **source, **target}
  return {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}


def packed(golden):
  """Returns the golden rows in one packed row, on both sides."""
  rows = batch_of(golden)
  batch = {}
  for side, prefix, name in (('source', 'source_', 'source'), ('inputs', '', 'inputs')):
    inside = np.asarray(rows[f'{prefix}segments']) > 0
    segments = np.arange(1, 3)[:, None] * inside
    arrays = {name: rows[side], f'{prefix}segments': segments}
    arrays[f'{prefix}positions'] = rows[f'{prefix}positions']
    batch |= {k: jnp.asarray(np.asarray(x)[inside][None], jnp.int32) for k, x in arrays.items()}
  return batch


def first_difference(run, golden):
  """Returns the first layer whose hidden states differ from the golden ones, for a failure."""
  _, sites = with_hooks(run.model)(
    run.params, batch_of(golden), reads=('*/embeddings', '*/residual')
  )
  targets = np.full(2, golden['decoder_ids'].shape[1])
  for stack, lengths in (('encoder', golden['source_lengths']), ('decoder', targets)):
    layers = [x for path, x in sites.items() if path == f'{stack}/embeddings']
    for path, stacked in sites.items():
      if path.startswith(stack) and path.endswith('residual'):
        layers += list(stacked)
    expected = golden[f'{stack}_hidden']
    inside = np.arange(expected.shape[2])[None] < lengths[:, None]
    # The last hidden state of a reference with a final norm is that after it.
    compared = len(expected) - bool(run.config.model.final_norm)
    for i, (x, y) in enumerate(zip(layers[:compared], expected, strict=False)):
      difference = np.abs(np.asarray(x) - y)[inside].max()
      if difference > TOLERANCE:
        name = f'layer {i - 1}' if i else 'the embeddings'
        return f'{name} of the {stack} differ by {difference:.2g}'
  return 'no hidden state before the last one differs'


def assert_close(log_p, golden, run):
  close = np.allclose(log_p, golden['decoder_log_p'], atol=TOLERANCE)
  assert close, first_difference(run, golden)


def test_log_probs_of_padded_rows(imported):
  _, run, golden = imported
  batch, T = batch_of(golden, 5), golden['decoder_ids'].shape[1]
  logits = run.logits(batch['source'], batch['source_segments'], batch['inputs'])
  assert_close(jax.nn.log_softmax(logits)[:, :T], golden, run)


def test_log_probs_of_packed_rows(scheme):
  _, run, golden = scheme
  output = jax.jit(run.apply)(run.params, packed(golden))
  log_p = jax.nn.log_softmax(output.head(output.hidden))
  assert_close(log_p.reshape(golden['decoder_log_p'].shape), golden, run)


def test_log_probs_of_cached_decoding(scheme):
  _, run, golden = scheme
  batch = batch_of(golden)
  B, T = golden['decoder_ids'].shape
  step = jax.jit(lambda batch, cache: run.apply(run.params, batch, cache=cache))
  cache, log_p = run.model.init_cache(B, T), []
  for part in (slice(2), *(slice(t, t + 1) for t in range(2, T))):
    rows = {name: batch[name][:, part] for name in ('inputs', 'segments', 'positions')}
    source = {name: x for name, x in batch.items() if 'source' in name}
    output = step(rows | (source if part.start is None else {}), cache)
    cache = output.cache
    log_p.append(jax.nn.log_softmax(output.head(output.hidden)))
  assert_close(np.concatenate(log_p, 1), golden, run)


def test_greedy_texts(scheme):
  _, run, golden = scheme
  _, converter = features.build_task(run.config.data)
  prompt = converter.encode_prompt(run.tokenizer)({'source': 'a'})
  starts = prompt.tokens['inputs'].tolist()
  assert starts == golden['greedy'][0, : len(starts)].tolist()
  sources = zip(golden['source'], golden['source_lengths'], strict=True)
  prompts = [prompt._replace(source={'source': ids[:length]}) for ids, length in sources]
  decode = decode_config(run.config.decode, run.tokenizer, golden['greedy'].shape[1] - len(starts))
  found = generate_batch(run.model, run.apply, run.params, prompts, decode)
  for (text,), expected in zip(found, golden['greedy'][:, len(starts) :].tolist(), strict=True):
    ended = decode.end in expected
    assert text.tokens == (expected[: expected.index(decode.end)] if ended else expected)


def test_the_round_trip_of_an_encoder_decoder_keeps_every_byte(imported, tmp_path):
  folder, run, _ = imported
  assert_everything_comes_back(folder, run, tmp_path / 'out')
