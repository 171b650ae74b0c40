"""What is kept when a run stops because its steps are not finite."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.optim.wrappers import path_name
from lm.parallel.mesh import with_mesh
from lm.run import placement, processes
from lm.run.build import Functions
from lm.run.step import TrainState, draw_key, gradients
from lm.types import Batch


def write(
  workdir: pathlib.Path,
  step: int,
  values: Mapping[str, float],
  functions: Functions,
  seed: int,
  state: TrainState,
  batch: Batch,
) -> pathlib.Path:
  """Writes workdir/nonfinite/STEP.json and the batch as STEP.npz; returns the first.

  The file names the metrics, and the parameters and gradients that hold values which are not
  finite, found by taking the gradient of the batch once more.

  Args:
    step: the step that ended the streak; `values` are its metrics and `batch` its batch.
    state: after it or a few steps later (`parameters_after_step`): older states are given away.
  """
  folder = workdir / 'nonfinite'
  arrays: dict[str, Any] = {k: np.asarray(x) for k, x in placement.local_copy(batch).items()}
  key = draw_key(jax.random.fold_in(jax.random.key(seed), step - 1))
  sample = functions.objective.sample
  batch = batch if sample is None else sample(batch, key)
  found = with_mesh(gradients, functions.mesh, functions.rules)
  grads, terms = jax.jit(
    lambda params, batch: found(functions.objective, functions.apply, params, batch, None)
  )(state.params, batch)
  record = {
    'step': step,
    'parameters_after_step': int(state.step),
    'metrics': {name: repr(value) for name, value in values.items()},
    'terms_without_dropout': {name: repr(float(value)) for name, value in terms.items()},
    'parameters': _not_finite(state.params),
    'gradients': _not_finite(grads),
  }
  file = folder / f'{step}.json'
  if processes.is_first():
    folder.mkdir(exist_ok=True)
    np.savez(folder / f'{step}.npz', **arrays)
    file.write_text(json.dumps(record, indent=2) + '\n')
  return file


def _not_finite(tree) -> dict[str, int]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  count = jax.jit(lambda x: jnp.sum(~jnp.isfinite(x)))  # a leaf may lie on several hosts
  counts = {path_name(path): int(count(x)) for path, x in leaves}
  return {name: count for name, count in counts.items() if count}
