"""Everything that is known of a config on a slice, in one piece."""

from typing import NamedTuple

from ml_collections import ConfigDict

from lm.preflight import hlo, least, program, roofline
from lm.preflight.chips import Slice
from lm.preflight.collectives import Collective, collectives
from lm.preflight.program import Step
from lm.preflight.roofline import Estimate

# Of the memory of a chip, what the system and the runtime keep for themselves.
RESERVED = 0.016
# An array of so many bytes on every chip is told.
LARGE = 1 << 20


class Checked(NamedTuple):
  """What `lm.preflight` finds."""

  step: Step
  exchanges: list[Collective]
  least: dict[str, float] | None  # bytes, by axis
  estimate: Estimate
  replicated: list[tuple[str, tuple[int, ...]]]
  room: float  # bytes that a device has

  @property
  def fits(self) -> bool:
    """Returns whether a step fits into the memory of a chip."""
    return self.step.memory.total <= self.room


def check(config: ConfigDict, slice_: Slice) -> Checked:
  """Compiles a config's train step for a slice, and reads what came out.

  Raises:
    UserError: the config is wrong or does not divide over the slice.
    NoRoom: the compiler finds no way to do with the memory of a chip.
  """
  step = program.compile_step(config, slice_)
  functions = step.functions
  text = hlo.parse(step.text)
  exchanges = collectives(text, functions.mesh)
  devices = list(functions.mesh.devices.flat)
  found = roofline.estimate(text, exchanges, devices, slice_, step.model_flops, step.tokens)
  return Checked(
    step,
    exchanges,
    least.least(config, functions.model, functions.mesh, step.state.params),
    found,
    program.replicated(functions.mesh, step.state.params, LARGE),
    slice_.chip.memory / slice_.chip.devices * (1 - RESERVED),
  )
