"""What a restore needs of memory, which checkpoint is taken, and which ones stay."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, gpt2
from lm.parallel.host import Never
from lm.text import tokenizers as ours
from lm.training import train_step, trainer
from lm.workdir import checkpoints, experiment, load, run_data
from lm.workdir.checkpoints import Checkpoints, largest_read


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(20)]


def tiny():
  config = base()
  config.steps, config.batch_size, config.eval.batch_size = 10, 4, 4
  config.model = gpt2(depth=1, d_model=8, heads=2, context=8)
  config.data.seq_len = 8
  config.data.source = 'test_restore:lines'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.log.sample_prompts = ()
  return config


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A workdir with checkpoints at steps 2, 4 and 6, of which that of 4 has the best loss."""
  workdir = tmp_path_factory.mktemp('restore') / 'run'
  config = tiny()
  tokenizer = ours.bytes([])
  functions = components.build_components(config, tokenizer.get_vocab_size())
  state, _ = train_step.init_train_state(functions, jax.random.key(0))
  content = trainer.pipeline.packed_rows(config.data, 'train', tokenizer, config.seed).content
  experiment.write_run_config(config, 'x.txt', tokenizer, workdir, content)
  checkpoints = Checkpoints(workdir)
  for at in (2, 4, 6):
    checkpoints.save(at, state.replace(step=jnp.int32(at)))
  checkpoints.wait()
  checkpoints.close()
  run_data.write_directions(workdir, {'eval/validation/loss': False})
  values = {2: 3.0, 4: 1.0, 6: 2.0}
  (workdir / 'metrics.jsonl').write_text(
    '\n'.join(f'{{"step": {s}, "eval/validation/loss": {v}}}' for s, v in values.items())
  )
  return workdir


def held():
  """Returns the bytes of all arrays; several arrays may share a buffer."""
  return sum({x.unsafe_buffer_pointer(): x.nbytes for x in jax.live_arrays()}.values())


def test_a_resume_restores_into_nothing(saved, monkeypatch):
  before, found = held(), []

  def restore(checkpoints, abstract, events):
    found.append((held() - before, abstract))
    raise KeyboardInterrupt

  monkeypatch.setattr(trainer, 'restore_newest', restore)
  with pytest.raises(KeyboardInterrupt):
    trainer.train(tiny(), 'x.txt', saved, Never())
  ((extra, abstract),) = found
  size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
  assert size > 10_000 and extra < size / 20


def test_parameters_taken_from_another_run_are_held_once(saved, monkeypatch):
  config = tiny()
  config.warm_start.workdir = str(saved)
  tokenizer = tokenizers.Tokenizer.from_file(str(saved / 'tokenizer.json'))
  functions = components.build_components(config, tokenizer.get_vocab_size())
  abstract, _ = train_step.abstract_state(functions)
  before, found = held(), []
  begin = trainer.warm_start.start_train_state

  def counted(*args):
    found.append(held() - before)
    return begin(*args)

  monkeypatch.setattr(trainer.warm_start, 'start_train_state', counted)
  state, taken = trainer.warm_start.initial_state(config, functions, tokenizer, abstract)
  size = sum(x.nbytes for x in jax.tree.leaves(state.params))
  assert taken.fresh == () and found[0] < 1.05 * size
  # Nor are they held beside the state that they are given to.
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert held() - before < whole + 0.05 * size


def _stored(shape, chunk, dtype='float32'):
  storage = types.SimpleNamespace(chunk_shape=chunk)
  return types.SimpleNamespace(shape=shape, dtype=np.dtype(dtype), storage=storage)


def _wanted(shape, *slices):
  sharding = types.SimpleNamespace(
    addressable_devices_indices_map=lambda shape: dict(enumerate(slices))
  )
  return types.SimpleNamespace(shape=shape, dtype=np.dtype('float32'), sharding=sharding)


@pytest.mark.parametrize(
  ('chunk', 'slices', 'rows'),
  [
    ((2, 4), [slice(0, 2), slice(2, 4)], 2),  # shards as they were saved
    ((8, 4), [slice(0, 2), slice(2, 4)], 8),  # saved whole: every shard reads all
    ((3, 4), [slice(2, 4)], 6),  # a shard across two chunks
    ((1, 4), [slice(0, 2), slice(3, 8)], 5),  # the largest counts
    (None, [slice(None)], 8),
  ],
)
def test_the_largest_read_by_hand(chunk, slices, rows):
  wanted = _wanted((8, 4), *((part, slice(None)) for part in slices))
  assert largest_read(_stored((8, 4), chunk), wanted) == rows * 4 * 4
  assert largest_read(_stored((8, 4), chunk, 'bfloat16'), wanted) == rows * 4 * 2


def test_no_more_is_read_at_once_than_the_largest_shard(saved, monkeypatch):
  from orbax.checkpoint._src.serialization import limits

  asked = []
  monkeypatch.setattr(checkpoints, 'largest_read', lambda stored, wanted: 3 * 10**9)
  plain = limits.get_byte_limiter

  def limiter(concurrent_bytes=None):
    asked.append(concurrent_bytes)
    return plain(concurrent_bytes)

  monkeypatch.setattr(limits, 'get_byte_limiter', limiter)
  loaded = load.load(saved, 2)
  assert loaded.step == 2 and set(asked) == {4 * 10**9}


@pytest.mark.parametrize(
  ('damaged', 'asked', 'step', 'choice'),
  [
    ((), None, 4, 'the best by eval/validation/loss'),
    ((), 6, 6, None),
    ((4,), None, 6, 'the newest intact one'),
  ],
)
def test_the_best_checkpoint_is_taken_unasked(damaged, asked, step, choice, saved, monkeypatch):
  restore = Checkpoints.restore_params

  def maybe(self, at, abstract):
    if at in damaged:
      raise checkpoints.Damaged('broken')
    return restore(self, at, abstract)

  monkeypatch.setattr(Checkpoints, 'restore_params', maybe)
  loaded = load.load(saved, asked)
  assert loaded.step == step
  assert loaded.notes == (() if choice is None else (f'{saved} at step {step}, {choice}',))


class _Saved:
  """Stands for the checkpoints of a run that is under way."""

  def __init__(self):
    self.kept = []

  def save(self, step, *_):
    self.kept.append(step)

  def steps(self):
    return list(self.kept)

  def prune(self, keep):
    self.kept = [step for step in self.kept if step in keep]


def test_a_step_stays_until_it_has_a_score(tmp_path):
  config = tiny()
  config.checkpoint.update({'keep_last': 0, 'keep_best': 1})
  config.steps, config.eval.every, config.checkpoint.every = 6, 2, 1
  losses = {2: 2.0, 4: 1.0, 6: 3.0}
  checkpoints = _Saved()
  run_data.write_directions(tmp_path, {'eval/validation/loss': False})

  class Evaluators:
    def run(self, step, *_):
      assert step in checkpoints.kept  # it was not deleted before it was scored
      with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write(f'{{"step": {step}, "eval/validation/loss": {losses[step]}}}\n')
      return {'eval/validation/loss': losses[step]}

  nothing = types.SimpleNamespace(write=lambda *a, **k: None, flush=lambda: None)
  watch = types.SimpleNamespace(metrics=nothing, progress=None)
  state = types.SimpleNamespace(params=None)
  run = trainer.Trainer(
    config, tmp_path, None, None, (), Evaluators(), checkpoints, nothing, watch, None
  )
  kept = []
  for at in range(1, 7):
    run._save_and_evaluate(at, state, evaluate=True)
    kept.append(list(checkpoints.kept))
  # The newest is there at any time, to resume from, and the best of those with a score.
  assert kept == [[1], [2], [2, 3], [2, 4], [4, 5], [4, 6]]
  run._prune()
  assert checkpoints.kept == [4]
