"""Evaluation: exact means over whole sets, each example once."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lm import mesh as meshes
from lm.run import placement
from lm.run.build import Functions, with_mesh
from lm.types import Batch, Metric, Params, Terms

EvalStep = Callable[[Params, Batch], Terms]


def make_eval_step(functions: Functions, metrics: Iterable[Metric]) -> EvalStep:
  """Returns the jitted `(params, batch) -> {name: (sum, weight)}` of some metrics."""
  metrics = list(metrics)

  def step(params: Params, batch: Batch) -> Terms:
    output = functions.apply(params, batch)
    terms: Terms = {}
    for metric in metrics:
      terms |= metric.terms(output, batch)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), terms)

  return jax.jit(with_mesh(step, functions.mesh, functions.rules))


def evaluate(
  step: EvalStep,
  metrics: Iterable[Metric],
  params: Params,
  batches: Iterable[Mapping[str, np.ndarray]],
  functions: Functions,
) -> dict[str, float]:
  """Returns the metrics over all batches; sums of batches are added up in double precision."""
  sharding = meshes.batch_sharding(functions.mesh, functions.rules)
  totals: dict[str, np.ndarray] = {}
  for batch in batches:
    terms = jax.device_get(step(params, placement.put_batch(batch, sharding)))
    for name, pair in terms.items():
      totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
  means = {name: float(s / w) if w else float('nan') for name, (s, w) in totals.items()}
  for metric in metrics:
    means |= metric.derive(means)
  return means
