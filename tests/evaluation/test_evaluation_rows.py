"""Metrics of a set do not depend on seed, batch size or packing of training."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from lm import components
from lm.config import base as configs
from lm.config import validate
from lm.data import batches, pipeline
from lm.errors import UserError
from lm.evaluation import sets
from lm.evaluation.evaluators import Evaluators
from lm.preflight import train_step
from lm.text import tokenizers
from lm.training import trainer

LINES = [f'{n} bottles of beer on the wall, {n - 1} left' for n in range(60, 0, -1)]
TRANSFORMS = """
import numpy as np

def hidden(row, rng): return row | {'inputs': row['inputs'] * rng.integers(0, 2, 32, np.int32)}
def silent(row, rng): return row | {'weights': 0 * row['weights']}
def longer(row, rng):
  doubled = {k: np.concatenate([x, x]) for k, x in row.items() if np.ndim(x)}
  return row | doubled

def blind(row, rng): return row | {'inputs': 0 * row['inputs']}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
  """Returns a function that makes the config of a tiny model on lines of text."""
  (tmp_path / 'a.txt').write_text('\n'.join(LINES))
  (tmp_path / 'hides.py').write_text(TRANSFORMS)
  monkeypatch.syspath_prepend(tmp_path)

  def make(**changes):
    config = configs.base()
    source = f'lm.data.sources:text(files={str(tmp_path / "a.txt")!r}, documents="line")'
    config.data.update({'source': source, 'seq_len': 32, 'workers': 1})
    config.model = configs.gpt2(depth=1, d_model=16, heads=2, context=32)
    config.eval.sets.validation.split = 'train'
    config.batch_size, config.log.sample_prompts = 8, ()
    config.update_from_flattened_dict(changes)
    return configs.link_defaults(config)

  return make


def values(config, params=None):
  """Returns the figures of random parameters, the same ones for all configs, and these."""
  tokenizer = tokenizers.bytes([])
  functions = components.build_components(config, tokenizer.get_vocab_size())
  if params is None:
    params = nn.unbox(jax.jit(functions.init)(jax.random.key(0)))
    params = jax.tree.map(lambda x: 4 * x, params)
  return Evaluators(config, functions, tokenizer).evaluate(0, params).values, params


def test_figures_do_not_depend_on_seed_packing_or_batch(config):
  first, params = values(config())
  assert 'eval/validation/loss' in first
  for changes in ({'seed': 1}, {'seed': 7, 'data.pack': 'lm.data.packing:best_fit'}):
    assert values(config(**changes), params)[0] == first  # bit by bit
  found, _ = values(config(**{'eval.batch_size': 3}), params)
  assert found.keys() == first.keys()
  np.testing.assert_allclose(list(found.values()), list(first.values()), rtol=1e-5)


def test_rows_of_evaluation_are_the_file_in_order(config):
  for seed in (0, None):
    data = config(seed=seed or 0).data
    rows = pipeline.packed_rows(data, 'train', tokenizers.bytes([]), seed)
    weights = np.concatenate([rows[i]['weights'] for i in range(len(rows))]) > 0
    targets = np.concatenate([rows[i]['targets'] for i in range(len(rows))])[weights]
    ordered = [b for line in LINES for b in [*(x + 1 for x in line.encode()), 0]]
    assert (targets.tolist() == ordered) == (seed is None)
    assert sorted(targets.tolist()) == sorted(ordered)


def test_sets_take_the_transforms_that_they_name(config):
  first, params = values(config())
  # Those of training do not reach evaluation.
  assert values(config(**{'data.transforms': ('hides:blind',)}), params)[0] == first
  named = config(**{'eval.sets.validation.transforms': ('hides:blind',)})
  blind, _ = values(named, params)
  assert blind['eval/validation/loss'] != first['eval/validation/loss']
  # What a transform draws depends on the row alone.
  hidden = {'eval.sets.validation.transforms': ('hides:hidden',)}
  some, _ = values(config(**hidden), params)
  assert some not in (first, blind)
  assert values(config(seed=5, **hidden), params)[0] == some
  other, _ = values(config(**hidden, **{'eval.batch_size': 3}), params)
  np.testing.assert_allclose(list(other.values()), list(some.values()), rtol=1e-5)


def test_the_transforms_of_each_set_are_listed(config):
  def line(**changes):
    made = config(**changes)
    tokenizer = tokenizers.bytes([])
    functions = components.build_components(made, tokenizer.get_vocab_size())
    return Evaluators(made, functions, tokenizer).notes.get('transforms', '')

  assert line() == ''
  said = line(**{'data.transforms': ('hides:blind',)})
  assert "data.transforms=('hides:blind',) apply to training rows alone" in said
  assert 'eval.sets.validation.transforms=()' in said
  said = line(**{'eval.sets.validation.transforms': ('hides:hidden',)})
  assert "eval.sets.validation.transforms=('hides:hidden',)" in said
  with pytest.raises(
    UserError, match=r"eval\.sets\.validation\.transforms='hides:blind' must be a"
  ):
    wrong = config()
    with wrong.ignore_type():
      wrong.eval.sets.validation.transforms = 'hides:blind'
    validate.validate_config(wrong)
  with pytest.raises(UserError, match=r"eval\.sets\.validation\.transforms\[0\]='hides:blnd'"):
    line(**{'eval.sets.validation.transforms': ('hides:blnd',)})


def test_rows_that_transforms_make_longer_than_the_context_are_refused(config):
  message = r'transforms makes rows of 64 inputs, longer than model.context=32; reduce data.seq_len'
  tokenizer = tokenizers.bytes([])
  of_training = config(**{'data.transforms': ('hides:longer',)})
  of_set = config(**{'eval.sets.validation.transforms': ('hides:longer',)})
  with pytest.raises(UserError, match=rf'^data\.{message}'):
    trainer.set_up(of_training, tokenizer)
  with pytest.raises(UserError, match=rf'^eval\.sets\.validation\.{message}'):
    values(of_set)
  with pytest.raises(UserError, match=rf'^data\.{message}'):
    of_training.model.vocab_size = 257
    train_step.describe(of_training, jax.devices()[:1])
  for wider in (of_training, of_set):
    wider.model.context = 64
  assert trainer.set_up(of_training, tokenizer).row['inputs'].shape == (64,)
  values(of_set)


def test_padding_of_the_last_batch_is_empty_after_transforms(config):
  rows = pipeline.packed_rows(config().data, 'train', tokenizers.bytes([]), None)
  size = len(rows) - 1
  last = list(batches.eval_batches(rows, size, transforms=(lambda row, rng: row,)))[-1]
  assert last['weights'][0].any() and not last['weights'][1:].any()


@pytest.mark.parametrize('classes', [1, 2, 4])
def test_a_model_has_as_many_classes_as_there_are_labels(classes):
  config = configs.base()
  config.model = configs.encoder(depth=1, d_model=16, heads=2, context=128)
  config.data.labels = ('a', 'b', 'c')
  assert components.model(config, 9).num_classes == 3
  config.model.num_classes = classes
  with pytest.raises(UserError, match=f'model.num_classes={classes}, but data.labels names 3'):
    components.model(config, 9)


def test_a_set_without_weighted_targets_raises(config):
  silent = {'eval.sets.validation.transforms': ('hides:silent',)}
  with pytest.raises(UserError, match=r'eval\.sets\.validation: all targets have weight 0'):
    values(config(**silent))
  found, _ = values(config(**silent, **{'eval.sets.validation.metrics': ()}))
  assert not found


def test_one_target_at_the_end_of_a_set_is_enough(config):
  rows = pipeline.packed_rows(config().data, 'train', tokenizers.bytes([]), None)
  assert len(rows) > 64  # two batches

  def only_last(row, rng):
    only_last.seen += 1
    return row | {'weights': row['weights'] * (only_last.seen == len(rows))}

  only_last.seen = 0
  sets._check_weights(batches.eval_batches(rows, 64, transforms=(only_last,)), 'a')
