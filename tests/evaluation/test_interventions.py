"""Edits, the lens and patching of a decoder with random parameters, which a run holds."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.base import base
from lm.decode.batch import generate_batch
from lm.errors import UserError
from lm.evaluation.interventions import edited, logit_lens, patch
from lm.evaluation.trained_model import TrainedModel
from lm.nn.hooks import with_hooks
from lm.task import Features
from lm.text import tokenizers
from lm.types import apply_of

EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
IDS = [[256, *b'abcd']]  # the end token of a byte tokenizer, then 'abcd'


@pytest.fixture(scope='module')
def run(decoder, params_of, tmp_path_factory):
  tokenizer, config = tokenizers.bytes([]), base()
  IDS[0][0] = tokenizer.token_to_id('<|end|>')
  IDS[0][1:] = tokenizer.encode('abcd').ids
  config.data.seq_len = 16
  model = decoder('llama', vocab_size=tokenizer.get_vocab_size())
  folder, params = tmp_path_factory.mktemp('run'), params_of(model)
  (folder / 'data.json').write_text('{"train": ""}')
  return TrainedModel(folder, config, tokenizer, model, params, params, apply_of(model), 0)


def test_the_lens_reads_the_residual_stream_of_each_layer(run):
  found = logit_lens(run, 'abcd')
  assert found.shape == (2, 5, 257)
  batch = {'inputs': jnp.array(IDS), 'segments': jnp.ones((1, 5), int)}
  batch['positions'] = jnp.arange(5)[None]

  @jax.jit
  def apply(params, batch):
    output, reads = with_hooks(run.model)(params, batch, ('*/residual',))
    return output.head(output.hidden), reads

  logits, reads = apply(run.params, batch)
  np.testing.assert_allclose(found[1], logits[0], rtol=1e-4, atol=1e-4)
  x = np.asarray(reads['decoder/layers/layer_0/residual'][0, 0], np.float64)
  x /= np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
  params = jax.device_get(run.params)
  expected = x * params['decoder']['final_norm']['scale'] @ params['unembedding'].T
  np.testing.assert_allclose(found[0], expected, rtol=1e-3, atol=1e-3)


def test_the_table_of_the_lens_ends_with_the_next_token_of_the_model(run):
  spec = importlib.util.spec_from_file_location('lens', EXPERIMENTS / 'lens.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  table = module.lens(run, 'abcd')
  best = [int(i) for i in logit_lens(run, 'abcd')[-1].argmax(-1)]
  assert len(table) == 2 and table[-1] == [run.tokenizer.decode([i]) for i in best]


def test_patching_moves_what_a_position_knows(run):
  def metric(logits_TV):
    return logits_TV[-1, 7]

  own, other = (logit_lens(run, text)[1, -1, 7] for text in ('abcd', 'abxd'))
  found = patch(run, 'abcd', 'abxd', metric)
  assert found.shape == (2, 5) and abs(own - other) > 0.1
  # Above the last layer, a position knows its own logits alone.
  np.testing.assert_allclose(found[1], [own] * 4 + [other], rtol=1e-4)
  # Up to the changed token, the activations of both texts are equal; then both positions matter.
  np.testing.assert_allclose(found[0, :3], [own] * 3, rtol=1e-4)
  assert (np.abs(found[0, 3:] - own) > 1e-3).all()


@pytest.mark.slow  # tests/models/test_hooks.py has edits with a cache
def test_an_edited_run_generates_under_its_edits(run):
  changed = edited(run, {'*/mlp/output@1': lambda x: -x})
  prompt = [Features({'inputs': np.array(IDS[0])}, {}, {})]
  how = run._decode._replace(max_tokens=6)
  tokens = generate_batch(run.model, changed.apply, run.params, prompt, how)[0][0].tokens
  assert len(tokens) == 6
  # A full forward pass, without a cache, continues with the same tokens under the edit alone.
  given = [IDS[0] + tokens]
  assert changed.logits(given)[0].argmax(-1)[4:-1].tolist() == tokens
  assert run.logits(given)[0].argmax(-1)[4:-1].tolist() != tokens


def test_edits_of_an_edited_run_follow_its_own(run):
  first, second = {'*/mlp/output@0': lambda x: 2 * x}, {'*/mlp/output@0': lambda x: x + 1}
  both = {'*/mlp/output@0': lambda x: 2 * x + 1}
  other = {'*/attention/output@1': jnp.zeros_like}
  nested = edited(edited(edited(run, first), second), other)
  expected = edited(run, both | other).logits(IDS)
  np.testing.assert_array_equal(nested.logits(IDS), expected)
  # The lens, and a patch that moves nothing, see the edits too.
  np.testing.assert_allclose(logit_lens(nested, 'abcd')[-1], expected[0], rtol=1e-4, atol=1e-4)
  own = patch(nested, 'abcd', 'abcd', lambda logits_TV: logits_TV[-1, 7])
  np.testing.assert_allclose(own, np.full((2, 5), expected[0, -1, 7]), rtol=1e-4)


def test_mistakes_are_one_line(run):
  for call, message in (
    (lambda: edited(run, {'*/mlp/output@-1': jnp.sin}), 'a number of a layer, from 0, has to foll'),
    (lambda: run.logits([1, 2, 3]), 'they are int64(3,), not integers of (B, T)'),
    (lambda: run.logits([[1, 2], [3]]), 'pad the rows to one length, and give a mask'),
    (lambda: run.logits([[1, 257]]), 'ids: 257 is no token of the model, which has 257 from 0 on'),
    (lambda: run.logits([[1, -1]]), 'ids: -1 is no token of the model'),
    (lambda: run.logits([[1] * 17]), 'ids: rows have 17 tokens, and the model reads 16'),
    (lambda: run.logits([[1, 2]], [[0, 1]]), 'mask: 0 comes before a token'),
    (lambda: run.logits([[1, 2]], [[1]]), 'mask: its shape is (1, 1), and that of the ids (1, 2)'),
    (lambda: run.logits([[1]], None, [[1]]), 'has no decoder beside an encoder'),
    (lambda: edited(run, {'*/mpl/output': jnp.sin}), "no hook point matches the edit '*/mpl/out"),
    (lambda: patch(run, 'ab', 'abc', jnp.sum), 'patch: the texts have 3 and 4 tokens'),
    (lambda: patch(run, 'ab', 'cd', jnp.sum, 'output'), "site='output' matches 4 hook points"),
    (lambda: logit_lens(run, 'a' * 16), 'has 17 tokens and the model reads 16'),
  ):
    with pytest.raises(UserError) as error:
      call()
    assert message in str(error.value) and '\n' not in str(error.value)
