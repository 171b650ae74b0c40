"""Evaluation: exact means over whole sets, each example once."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.components import Components, Inference
from lm.errors import UserError
from lm.parallel import mesh
from lm.parallel import mesh as meshes
from lm.parallel.mesh import with_mesh
from lm.types import Batch, Metric, Params, WeightedSums

EvalStep = Callable[[Params, Batch], WeightedSums]


def make_eval_step(functions: Components | Inference, metrics: Iterable[Metric]) -> EvalStep:
  """Returns the jitted `(params, batch) -> {name: (sum, weight)}` of some metrics."""
  metrics = list(metrics)

  def step(params: Params, batch: Batch) -> WeightedSums:
    output = functions.apply(params, batch)
    terms: WeightedSums = {}
    for metric in metrics:
      found = metric.terms(output, batch)
      check_apart(terms, found)
      terms |= found
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), terms)

  return jax.jit(with_mesh(step, functions.mesh, functions.rules))


def check_apart(names: Collection[str], others: Iterable[str]) -> None:
  """Raises UserError where two metrics of a set give the same name to their values."""
  for name in others:
    if name in names:
      raise UserError(f'two metrics of the set are called {name!r}; leave one of them out')


def trace(
  step: Callable[[Params, Batch], Any],
  params: Params,
  row: Mapping[str, np.ndarray],
  batch_size: int,
  functions: Components | Inference,
) -> Any:
  """Returns the traced program of a jitted step, which its first call takes; computes nothing.

  Args:
    step: maps parameters and a batch to anything.
    params: parameters, or their shapes.
    row: a batch of one row.
    batch_size: that of the program.
    functions: those that the step is made of.
  """
  rows = meshes.batch_sharding(functions.mesh, functions.rules)
  shapes = {
    k: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype, sharding=rows)
    for k, x in row.items()
  }
  return step.trace(params, shapes)  # type: ignore[attr-defined]


def names_of(traced: Any, metrics: Sequence[Metric]) -> dict[str, bool | None]:
  """Returns the name of every value of some metrics and its direction, without computing them.

  Args:
    traced: their step, see `trace`.
    metrics: in the order of the step.

  Raises:
    UserError: two values have one name.
  """
  names = list(traced.out_info)
  means = dict.fromkeys(names, 1.0)
  for metric in metrics:
    derived = metric.derive(means)
    check_apart(means, derived)
    means |= derived
  directions = {name: d for metric in metrics for name, d in metric.higher_is_better.items()}
  return {name: directions.get(name) for name in means}


def evaluate(
  step: EvalStep,
  metrics: Iterable[Metric],
  params: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  functions: Components | Inference,
) -> dict[str, float]:
  """Returns the metrics over all batches; sums of batches are added up in double precision."""
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  totals: dict[str, np.ndarray] = {}
  for batch in batches:
    terms = jax.device_get(step(params, mesh.make_global_batch(batch, sharding)))
    for name, pair in terms.items():
      totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
  means = {name: float(s / w) if w else float('nan') for name, (s, w) in totals.items()}
  for metric in metrics:
    means |= metric.derive(means)
  return means
