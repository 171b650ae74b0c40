"""The text of a compiled program: what it does, and how often.

A program for several devices is that of one of them, so all sizes here are of one device. What
stands in a loop counts as often as the loop turns.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_SIZES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'token': 0}
_ARRAY = re.compile(r'\b(\w+)\[([\d,]*)\](\{[^{}]*\})?')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')
_LINE = re.compile(r'^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$')
_CALLED = re.compile(r'\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'\b(?:branch_computations=\{([^}]*)\})')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Array(NamedTuple):
  """An array of an instruction: where it says `S(1)`, it lies outside the main memory."""

  dtype: str
  shape: tuple[int, ...]
  layout: str

  @property
  def bytes(self) -> float:
    """Returns its size."""
    return math.prod(self.shape) * size_of(self.dtype)


class Instruction(NamedTuple):
  """One line of a program."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # of the result
  operands: tuple[str, ...]
  attributes: str


Program = dict[str, list[Instruction]]  # instructions by computation; 'ENTRY' is where it begins


def size_of(dtype: str) -> float:
  """Returns the bytes of a number, such as 2 for 'bf16'."""
  if dtype in _SIZES:
    return _SIZES[dtype]
  bits = re.search(r'\d+', dtype)
  return int(bits.group()) / 8 if bits else 0


def parse(text: str) -> Program:
  """Returns the computations of `Compiled.as_text()`."""
  program: Program = {}
  computation = None
  for line in _joined(text):
    if computation is None:
      head = _HEAD.match(line)
      if head:
        computation = 'ENTRY' if head.group(1) else head.group(2)
        program[computation] = []
    elif line.rstrip() == '}':
      computation = None
    elif found := _LINE.match(line):
      program[computation].append(_instruction(*found.groups()))
  return program


def _joined(text: str) -> Iterator[str]:
  """Yields lines, with those that go on with the attributes of an instruction joined to it."""
  whole = ''
  for line in text.splitlines():
    if whole and (line.startswith(('  ', '%', 'ENTRY')) or line.rstrip() in ('}', '')):
      yield whole
      whole = ''
    whole += line
  yield whole


def walk(program: Program) -> Iterator[tuple[float, str, Instruction]]:
  """Yields (how often it is done, its computation, the instruction).

  Branches are taken once each time: of an `if` all of them count.
  """
  yield from _walk(program, 'ENTRY', 1.0)


def _walk(
  program: Program, computation: str, times: float
) -> Iterator[tuple[float, str, Instruction]]:
  for instruction in program[computation]:
    yield times, computation, instruction
    again = times * turns(program, instruction)
    for inner in called(instruction):
      if inner in program:
        yield from _walk(program, inner, again)


def called(instruction: Instruction) -> list[str]:
  """Returns the computations that an instruction goes into, but those of single numbers."""
  if instruction.opcode in ('reduce', 'all-reduce', 'all-reduce-start', 'reduce-scatter', 'sort'):
    return []  # of a number, and not of an array
  names = _CALLED.findall(instruction.attributes)
  for branches in _BRANCHES.findall(instruction.attributes):
    names += [name.strip().lstrip('%') for name in branches.split(',')]
  return names


def turns(program: Program, loop: Instruction) -> int:
  """Returns how often what an instruction calls is done: a loop's turns, else 1."""
  if loop.opcode != 'while':
    return 1
  known = _TRIPS.search(loop.attributes)
  if known:
    return int(known.group(1))
  # A counter that is compared with a constant, in the condition or in what it calls.
  condition = re.search(r'condition=%?([\w.\-]+)', loop.attributes)
  constants = (
    [
      int(number.attributes)
      for _, _, number in _walk(program, condition.group(1), 1.0)
      if number.opcode == 'constant' and number.attributes.isdecimal()
    ]
    if condition and condition.group(1) in program
    else []
  )
  return max(constants, default=1)


def _instruction(name: str, rest: str) -> Instruction:
  kind, rest = _cut(rest) if rest.startswith('(') else rest.split(' ', 1)
  opcode, _, rest = rest.strip().partition('(')
  inside, attributes = _cut('(' + rest)
  operands = tuple(re.findall(r'%([\w.\-]+)', inside))
  if opcode == 'constant':
    attributes = inside[1:-1]
  return Instruction(name, opcode, arrays(kind), operands, attributes)


def arrays(text: str) -> tuple[Array, ...]:
  """Returns the arrays that a text spells, such as 'bf16[4,128]{1,0}, s32[]'."""
  return tuple(
    Array(dtype, tuple(int(n) for n in shape.split(',') if n), layout)
    for dtype, shape, layout in _ARRAY.findall(re.sub(r'/\*.*?\*/', '', text))
  )


def _cut(text: str) -> tuple[str, str]:
  """Returns the text up to where its first bracket is closed, and what follows."""
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if not depth:
      return text[: i + 1], text[i + 1 :]
  return text, ''
