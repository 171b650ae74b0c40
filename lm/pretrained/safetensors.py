"""Safetensors files: tensors by name, read as memory maps and stored in their own dtype.

The format is a length (8 bytes, little-endian), a JSON header and the tensors. A header from
elsewhere may say anything: every offset is checked before a byte of a tensor is read. The module
`safetensors.numpy` lacks bfloat16; here its dtype is that of `ml_dtypes`.
"""

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from lm.errors import UserError, did_you_mean

_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
_MOST_DIMENSIONS = 32  # more than any model has; NumPy allows 64
INDEX = 'model.safetensors.index.json'
_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class Tensor(NamedTuple):
  """A tensor in a file, not yet read.

  Attributes:
    file: of the tensor.
    dtype: its element type.
    shape: its sizes.
    offset: of its first byte in the file.
  """

  file: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int

  def read(self) -> np.ndarray:
    """Returns the tensor as a read-only memory map."""
    if not math.prod(self.shape):  # an empty map is an error
      return np.zeros(self.shape, self.dtype)
    count = math.prod(self.shape) * self.dtype.itemsize
    data = np.memmap(self.file, np.uint8, 'r', self.offset, (count,))
    return data.view(self.dtype).reshape(self.shape)


def read_folder(folder: Path) -> dict[str, Tensor]:
  """Returns the tensors of model.safetensors, or of the shards that an index names.

  Raises:
    UserError: there is no such file, or a file or the index is damaged.
  """
  index = folder / INDEX
  if index.is_file():
    return _read_shards(folder, index)
  single = folder / 'model.safetensors'
  if single.is_file():
    return read_file(single)
  pickled = sorted(p.name for p in folder.iterdir() if p.suffix in ('.bin', '.pt', '.pth', '.ckpt'))
  if pickled:
    raise UserError(
      f'{folder} has {pickled[0]}, a pickle, which can run any code when it is read; '
      'only safetensors are read: convert it where you trust it, with save_pretrained'
    )
  raise UserError(f'{folder} has neither model.safetensors nor {INDEX}')


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
  try:
    places = json.loads(index.read_text('utf-8'), object_pairs_hook=_without_duplicates)
    places = dict(places['weight_map'])
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(f'{index} is damaged: {e}') from e
  tensors: dict[str, Tensor] = {}
  for name in sorted({str(name) for name in places.values()}):
    if PurePosixPath(name).name != name or '\\' in name or not name.endswith('.safetensors'):
      raise UserError(f'{index} names {name!r}, which is no safetensors file of its folder')
    file = folder / name
    if not file.is_file():
      raise UserError(f'{index} names {name!r}, which is missing')
    for key, tensor in read_file(file).items():
      if places.get(key) != name:
        raise UserError(f'{file} has {key!r}, which {index.name} places in {places.get(key)!r}')
      tensors[key] = tensor
  unnamed = {file.name for file in folder.glob('model-*-of-*.safetensors')} - set(places.values())
  if unnamed:
    raise UserError(f'{index} does not name {min(unnamed)!r}, a shard in its folder')
  if missing := sorted(places.keys() - tensors.keys()):
    raise UserError(f'{index} has {missing[0]!r} in {places[missing[0]]!r}, which lacks it')
  return tensors


def read_file(file: Path) -> dict[str, Tensor]:
  """Returns the tensors of a file by name; reads its header only.

  Raises:
    UserError: the file cannot be read, or its header is malformed.
  """
  try:
    size = file.stat().st_size
    with file.open('rb') as opened:
      start = opened.read(8)
      length = struct.unpack('<Q', start)[0] if len(start) == 8 else -1
      if not 0 < length <= min(_MAX_HEADER, size - 8):
        raise UserError(f'{file} is no safetensors file: its header would have {length} bytes')
      raw = opened.read(length)
  except OSError as e:
    raise UserError(f'{file} cannot be read: {e.strerror or e}') from e
  try:
    header = json.loads(raw.decode('utf-8'), object_pairs_hook=_without_duplicates)
    if not isinstance(header, dict):
      raise ValueError('it is no JSON object')
    header.pop('__metadata__', None)
    tensors = {name: _tensor(file, entry, 8 + length) for name, entry in header.items()}
    _check_layout(tensors, 8 + length, size)
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise UserError(f'{file}: its header is damaged: {" ".join(str(e).split())}') from e
  return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    raise ValueError(f'{next(n for n in names if names.count(n) > 1)!r} occurs twice')
  return found


def _tensor(file: Path, entry: Mapping[str, Any], start: int) -> Tensor:
  name, shape, (first, last) = entry['dtype'], entry['shape'], entry['data_offsets']
  if name not in _DTYPES:
    raise ValueError(
      f'dtype {name!r} must be one of {", ".join(_DTYPES)}{did_you_mean(name, _DTYPES)}'
    )
  sizes = (*shape, first, last)
  if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in sizes):
    raise ValueError(f'a size or an offset is no integer of at least 0: {sizes}')
  if len(shape) > _MOST_DIMENSIONS:
    raise ValueError(f'{len(shape)} dimensions, more than {_MOST_DIMENSIONS}')
  dtype = np.dtype(_DTYPES[name])
  if last - first != math.prod(shape) * dtype.itemsize:
    raise ValueError(f'{last - first} bytes are no {name} of shape {shape}')
  return Tensor(file, dtype, tuple(shape), start + first)


def _check_layout(tensors: Mapping[str, Tensor], start: int, size: int) -> None:
  """Raises ValueError unless the tensors cover the rest of the file without gaps or overlaps."""
  end = start
  for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].shape)):
    if tensor.offset != end:
      raise ValueError(f'{name!r} begins at byte {tensor.offset}, and the one before ends at {end}')
    end += math.prod(tensor.shape) * tensor.dtype.itemsize
  if end != size:
    raise ValueError(f'the tensors end at byte {end}, and the file has {size}')


def write_file(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes tensors in the order given, each in C order; replaces the file atomically."""
  write_stream(file, {name: (x.dtype, x.shape) for name, x in tensors.items()}, tensors.items())


def write_stream(
  file: Path,
  layout: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
  tensors: Iterable[tuple[str, np.ndarray]],
) -> None:
  """Writes tensors as they come, so that not all need to be in memory; see `write_file`.

  Args:
    file: the file.
    layout: dtype and shape of each tensor, in the order of the file.
    tensors: each tensor of `layout` once, in any order.
  """
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
  end = 0
  for name, (dtype, shape) in layout.items():
    first, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {'dtype': _NAMES[dtype], 'shape': list(shape), 'data_offsets': [first, end]}
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # the tensors are aligned
  start, missing = 8 + len(text), set(layout)
  temporary = file.with_name(f'{file.name}.{os.getpid()}.tmp')
  try:
    with temporary.open('wb') as opened:
      opened.write(struct.pack('<Q', len(text)) + text)
      for name, x in tensors:
        if (x.dtype, x.shape) != layout[name]:
          raise ValueError(f'{name} is {x.dtype} {x.shape}, not {layout[name]}')
        missing.remove(name)
        opened.seek(start + header[name]['data_offsets'][0])
        opened.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)
      if missing:
        raise ValueError(f'no tensor {min(missing)}')
      opened.flush()
      os.fsync(opened.fileno())
    os.replace(temporary, file)
  finally:
    temporary.unlink(missing_ok=True)


def dtype_of(name: str) -> np.dtype:
  """Returns the dtype of a name such as 'BF16'."""
  return np.dtype(_DTYPES[name])


def name_of(dtype: np.dtype) -> str:
  """Returns the name of a dtype, such as 'BF16'."""
  return _NAMES[np.dtype(dtype)]
