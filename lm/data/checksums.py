"""Checksums of arrays and files, against damage by disks and mistakes; not against attackers.

The checksum of an array is the sum of its elements, read as unsigned integers, each multiplied by
odd random weights of 64 bits, modulo 2**64: multilinear hashing (Lemire and Kaser 2014, "Strongly
Universal String Hashing is Fast"). One changed element always changes it; other damage is missed
with a probability of at most 2**-32, and usually 2**-64. A sum needs no order: parts of an array,
on any devices and processes, add up to the checksum of the whole. NumPy computes it faster than
hashlib computes SHA-256.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

CHUNK = 2**26  # bytes of a file that have a checksum of their own
MODULUS = 2**64
_LINE = 2**14  # elements of a line of a file
_WEIGHTS = 2**16  # of consecutive elements, multiplied out; 512 KiB


def array_checksum(part: np.ndarray, index: Sequence[slice] = ()) -> int:
  """Returns the checksum of a part of an array.

  The weight of an element is the product of one weight for each of its indices.

  Args:
    part: elements of at most 8 bytes.
    index: the place of the part in the array, a slice for each axis; () for the entire array.
  """
  weights = []
  for axis, size in enumerate(part.shape):
    start = (index[axis].start or 0) if index else 0
    raw = np.random.PCG64(axis).random_raw(start + size)[start:]
    weights.append(raw | np.uint64(1))
  while len(weights) > 1 and len(weights[-2]) * len(weights[-1]) <= _WEIGHTS:
    last = weights.pop()
    weights[-1] = np.outer(weights[-1], last).ravel()
  total = part.view(f'u{part.itemsize}')
  for weight in reversed(weights):
    rows = total.reshape(-1, len(weight))
    total = np.einsum('ij,j->i', rows, weight, dtype=np.uint64)
  return int(total.sum(dtype=np.uint64))


def file_checksums(file: pathlib.Path) -> list[str]:
  """Returns the checksum of each chunk of a file, in hexadecimal digits."""
  if not file.stat().st_size:
    return []
  data = np.asarray(np.memmap(file, np.uint8, 'r'))
  return [_bytes_checksum(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]


def _bytes_checksum(data: np.ndarray) -> str:
  """Returns the checksum of bytes, read as lines of uint32 with zeros at the end."""
  if missing := -len(data) % (4 * _LINE):
    data = np.pad(data, (0, missing))
  return f'{array_checksum(data.view(np.uint32).reshape(-1, _LINE)):016x}'
