"""A train step that updates only the table rows of its batch, for word vectors.

A step of word vectors changes a few hundred rows of tables that have millions. The step gathers
the rows of its batch, differentiates and updates these, and scatters them back. Adam's moments of
other rows do not decay ("lazy" updates).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.components import Components
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.training import train_step as dense_step
from lm.training.train_step import Metrics, StepFunction
from lm.types import Array, Batch, Params, TrainState

State = tuple[Params, Any]  # parameters and the state of their optimizer


def train_step(components: Components, seed: int, microbatches: int) -> StepFunction:
  """Returns `(state, batch) -> (state, metrics)`, updating the rows of `objective.sparse_rows`.

  Raises:
    UserError: the objective has no `sparse_rows`.
  """
  sparse_rows = components.objective.sparse_rows
  if sparse_rows is None:
    raise UserError(
      'objective.train_step=lm.training.sparse_step:train_step: the objective names no rows of '
      'tables (lm.types.Objective.sparse_rows); leave the key out for the default step'
    )
  dense = dense_step.train_step(components, seed, microbatches)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    rows, batch = sparse_rows(batch)
    full = state.params, state.opt_state
    params, opt_state = gather_rows(full, rows)
    new, metrics = dense(state.replace(params=params, opt_state=opt_state), batch)
    params, opt_state = scatter_rows(full, rows, (new.params, new.opt_state))
    return new.replace(params=params, opt_state=opt_state), metrics

  return meshes.with_mesh(step, components.mesh, components.rules)


def gather_rows(state: State, rows: Mapping[str, Array]) -> State:
  """Returns parameters and optimizer state with only the given rows of some tables.

  Args:
    state: parameters and optimizer state. Parts of the optimizer state that have the tree structure
      of the parameters, such as Adam's moments, are gathered too.
    rows: (N,) row ids by parameter name; `scatter_rows` drops rows out of range.
  """

  def node(part: Any) -> Any:
    if not mirrors(part):
      return part
    taken = {name: jnp.take(part[name], r, axis=0, mode='clip') for name, r in rows.items()}
    return {**part, **taken}

  mirrors = _mirrors(state)
  return jax.tree.map(node, state, is_leaf=mirrors)


def scatter_rows(full: State, rows: Mapping[str, Array], changed: State) -> State:
  """Returns `full` with the rows of `gather_rows` replaced; rows out of range are dropped."""

  def node(old: Any, new: Any) -> Any:
    if not mirrors(old):
      return new
    back = {name: old[name].at[r].set(new[name], mode='drop') for name, r in rows.items()}
    return {**new, **back}

  mirrors = _mirrors(full)
  return jax.tree.map(node, full, changed, is_leaf=mirrors)


def _mirrors(state: State) -> Callable[[Any], bool]:
  """Returns whether a part of a state has the tree structure of the parameters."""
  structure: Any = jax.tree.structure(state[0])
  return lambda part: structure == jax.tree.structure(part)
