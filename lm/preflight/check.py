"""Everything that is known of a config on a slice, in one piece."""

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from lm.preflight import decode as decoding
from lm.preflight import hlo, least, program, roofline
from lm.preflight.bound import Bound
from lm.preflight.chips import Slice
from lm.preflight.collectives import Collective, collectives
from lm.preflight.decode import Decoding
from lm.preflight.program import NoRoom, Program, Step
from lm.preflight.roofline import Estimate

# An array of so many bytes on every chip is told.
LARGE = 1 << 20


class Compiled(NamedTuple):
  """What the compiler's program says."""

  program: Program
  exchanges: list[Collective]


class Checked(NamedTuple):
  """What `lm.preflight` finds."""

  step: Step
  least: Mapping[str, float] | None  # bytes, by axis
  estimate: Estimate | Bound
  replicated: list[tuple[str, tuple[int, ...]]]
  room: float  # bytes that a device has
  compiled: Compiled | None = None  # None where arithmetic alone has found it
  decoding: Decoding | NoRoom | None = None  # where it was asked for

  @property
  def fits(self) -> bool:
    """Returns whether a train step fits into the memory of a chip."""
    return self.step.memory.total <= self.room

  @property
  def decoding_needs(self) -> float:
    """Returns the bytes that writing takes, 0 where nobody asked."""
    if self.decoding is None:
      return 0.0
    found = self.decoding
    return found.needed if isinstance(found, NoRoom) else found.memory.total

  @property
  def decoding_fits(self) -> bool:
    """Returns whether writing fits into the memory of a chip."""
    return not isinstance(self.decoding, NoRoom) and self.decoding_needs <= self.room


def check(config: ConfigDict, slice_: Slice, decode: bool = False) -> Checked:
  """Compiles a config's train step for a slice, and reads what came out.

  Args:
    config: an experiment's.
    slice_: the chips.
    decode: whether to compile the loop of the decoders too.

  Raises:
    UserError: the config is wrong or does not divide over the slice, or the model does not write.
    NoRoom: the compiler finds no way to do the train step with the memory of a chip.
  """
  if decode:
    decoding.check_writes(config)
  step, made = program.compile_step(config, slice_)
  functions = step.functions
  text = hlo.parse(made.text)
  exchanges = collectives(text, functions.mesh)
  devices = list(functions.mesh.devices.flat)
  found = roofline.estimate(text, exchanges, devices, slice_, step.model_flops, step.tokens)
  written: Decoding | NoRoom | None = None
  if decode:
    try:
      written = decoding.compile_decode(config, slice_, step)
    except NoRoom as e:
      written = e
  return Checked(
    step,
    least.least(config, functions.model, functions.mesh, step.state.params),
    found,
    program.replicated(functions.mesh, step.state.params, LARGE),
    slice_.chip.room,
    Compiled(made, exchanges),
    written,
  )
