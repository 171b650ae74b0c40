"""The rows of tables that a step touches, and all that an optimizer keeps of them.

A step of word vectors changes a few hundred rows of tables that have millions. What it does not
touch is neither differentiated nor updated: the step works on tables that consist of its rows, and
puts them back. To an optimizer with a memory, such as Adam's moments, a row that is not touched
is a row that has no step: its moments do not decay ("lazy").
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lm.types import Array, Params

State = tuple[Params, Any]  # parameters and the state of their optimizer


def gather_rows(state: State, rows: Mapping[str, Array]) -> State:
  """Returns parameters and optimizer state that have only these rows of the tables named.

  Args:
    state: the whole; parts of the optimizer's that mirror the parameters are treated like them.
    rows: by parameter name, the rows (N,); those out of range give any row, which `put` leaves out.
  """

  def node(part: Any) -> Any:
    if not mirrors(part):
      return part
    taken = {name: jnp.take(part[name], r, axis=0, mode='clip') for name, r in rows.items()}
    return {**part, **taken}

  mirrors = _mirrors(state)
  return jax.tree.map(node, state, is_leaf=mirrors) if rows else state


def scatter_rows(whole: State, rows: Mapping[str, Array], changed: State) -> State:
  """Returns `whole` with what `take` has given put back; rows out of range are left out."""

  def node(old: Any, new: Any) -> Any:
    if not mirrors(old):
      return new
    back = {name: old[name].at[r].set(new[name], mode='drop') for name, r in rows.items()}
    return {**new, **back}

  mirrors = _mirrors(whole)
  return jax.tree.map(node, whole, changed, is_leaf=mirrors) if rows else changed


def _mirrors(state: State) -> Callable[[Any], bool]:
  """Returns whether a part of a state is a tree like that of the parameters."""
  structure: Any = jax.tree.structure(state[0])
  return lambda part: structure == jax.tree.structure(part)
