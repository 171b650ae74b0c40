"""A restored state equals the saved one; the newest and the best checkpoints are kept."""

import contextlib
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.types import TrainState
from lm.workdir.checkpoints import Checkpoints, Damaged, attempt, kept_steps
from lm.workdir.run_data import losses_by_step, write_directions


@pytest.fixture(scope='module')
def state():
  """A train state whose elements all differ from those of an initial state."""
  params = {'kernel': jnp.arange(1.0, 7.0).reshape(2, 3), 'bias': jnp.array([7.0, 8.0])}
  moments = [jax.tree.map(lambda x, by=by: by * x, params) for by in (0.5, 0.25)]
  return TrainState(
    step=jnp.int32(9),
    skipped=jnp.int32(3),
    streak=jnp.int32(2),
    params=params,
    opt_state=(optax.ScaleByAdamState(jnp.int32(6), *moments), optax.EmptyState()),
  )


@pytest.mark.parametrize('stopping', [None, {'metric': 'eval/a/loss', 'best': 0.5, 'since': 2}])
def test_every_element_of_a_state_is_restored(tmp_path, state, stopping):
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(9, state, stopping)
  checkpoints.wait()
  restored, seen = checkpoints.restore(9, abstract)
  checkpoints.close()
  assert seen == stopping
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  for found, saved in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(found, saved)


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory, state):
  """Checkpoints at steps 1 and 2, and at step 3 one of an older version, without digests."""
  folder = tmp_path_factory.mktemp('steps')
  with contextlib.closing(Checkpoints(folder)) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, jax.tree.map(lambda x, step=step: x + step, state), {'best': step})
    checkpoints.wait()
  place = folder / 'checkpoints/3'
  shutil.rmtree(place / 'digests')
  metadata = json.loads((place / '_CHECKPOINT_METADATA').read_text())
  metadata['custom_metadata'] = {}
  (place / '_CHECKPOINT_METADATA').write_text(json.dumps(metadata))
  return folder


def _abstract(tree, dtype=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=x.sharding), tree
  )


@pytest.mark.parametrize(
  ('part', 'what'),
  [
    ('params', 'params/'),
    ('training', 'training/'),
    ('stopping', 'stopping'),
    ('digests', 'is of step 1'),
  ],
)
def test_an_item_of_another_step_is_recognized(two_steps, state, tmp_path, part, what):
  shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
  newer = tmp_path / 'checkpoints/2'
  shutil.rmtree(newer / part)
  shutil.copytree(newer.with_name('1') / part, newer / part)
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    restored, reason = attempt(checkpoints.restore, 2, _abstract(state))
    assert restored is None and what in reason
    wanted = {'bias': _abstract(state.params['bias'])}
    if part in ('params', 'digests'):
      with pytest.raises(Damaged, match=what):
        checkpoints.restore_subset(2, wanted)
    else:
      np.testing.assert_array_equal(checkpoints.restore_subset(2, wanted)['bias'], [9.0, 10.0])


def test_lost_digests_are_damage_and_older_checkpoints_are_announced(
  two_steps, state, tmp_path, capsys
):
  shutil.copytree(two_steps, tmp_path, dirs_exist_ok=True)
  shutil.rmtree(tmp_path / 'checkpoints/2/digests')
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    with pytest.raises(Damaged, match='digests is missing'):
      checkpoints.restore_params(2, _abstract(state.params))
    found = checkpoints.restore_params(3, _abstract(state.params))
  np.testing.assert_array_equal(found['bias'], [10.0, 11.0])
  assert 'checkpoint 3' in (said := capsys.readouterr().err) and 'without digests' in said


def test_arrays_are_verified_before_their_dtype_changes(two_steps, state):
  with contextlib.closing(Checkpoints(two_steps)) as checkpoints:
    wanted = {'kernel': _abstract(state.params['kernel'], jnp.bfloat16)}
    found = checkpoints.restore_subset(1, wanted)['kernel']
    params = checkpoints.restore_params(1, _abstract(state.params, jnp.bfloat16))
  assert found.dtype == params['bias'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(found.astype(np.float32), state.params['kernel'] + 1)


@pytest.mark.parametrize(
  ('last', 'best', 'kept'),
  [
    (2, 0, {50, 60}),
    (1, 1, {60, 30}),
    (1, 3, {60, 30, 40, 20}),  # 30 and 40 have the same score; the older one has priority
    (0, 1, {30}),
    (9, 9, {10, 20, 30, 40, 50, 60}),
  ],
)
def test_the_newest_steps_and_the_lowest_scores_are_kept(last, best, kept):
  scores = {20: 0.3, 30: 0.1, 40: 0.1, 50: 0.9, 60: math.nan, 70: 0.0}  # 70 was never saved
  assert kept_steps([60, 10, 20, 40, 30, 50], scores, last, best) == kept


@pytest.mark.parametrize(('metric', 'sign'), [('eval/a/loss', 1), ('eval/a/accuracy', -1)])
def test_losses_are_negated_if_a_higher_value_is_better(tmp_path, metric, sign):
  lines = [{'step': 1, 'train/loss': 3.0}, {'step': 2, metric: 0.25}, {'step': 4, metric: 0.5}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  write_directions(tmp_path, {metric: sign < 0})
  assert losses_by_step(tmp_path, metric) == {2: sign * 0.25, 4: sign * 0.5}
