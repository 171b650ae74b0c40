import json
import math
import struct

import ml_dtypes
import numpy as np
import pytest

from lm.errors import UserError
from lm.pretrained import safetensors

DTYPES = [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16]
DTYPES += [np.int8, np.uint64, np.uint32, np.uint16, np.uint8, np.bool_]


def tensors(rng):
  return {
    f'x{i}.{np.dtype(dtype).name}': rng.integers(0, 2, shape).astype(dtype)
    for i, (dtype, shape) in enumerate(
      (dtype, shape) for dtype in DTYPES for shape in ((), (3,), (2, 0, 4), (2, 3, 5))
    )
  }


def test_every_dtype_and_shape_is_read_back_byte_for_byte(tmp_path):
  stored = tensors(np.random.default_rng(0))
  safetensors.write_file(tmp_path / 'a.safetensors', stored)
  read = safetensors.read_file(tmp_path / 'a.safetensors')
  assert list(read) == list(stored)
  for name, x in stored.items():
    found = read[name].read()
    assert (found.dtype, found.shape, found.tobytes()) == (x.dtype, x.shape, x.tobytes())


def test_the_reference_library_reads_what_is_written(tmp_path):
  reference = pytest.importorskip('safetensors.numpy')
  stored = {k: x for k, x in tensors(np.random.default_rng(1)).items() if 'bfloat16' not in k}
  safetensors.write_file(tmp_path / 'a.safetensors', stored)
  found = reference.load_file(tmp_path / 'a.safetensors')
  assert found.keys() == stored.keys()
  assert all(found[k].tobytes() == x.tobytes() for k, x in stored.items())
  reference.save_file(stored, tmp_path / 'b.safetensors')
  again = safetensors.read_file(tmp_path / 'b.safetensors')
  assert all(again[k].read().tobytes() == x.tobytes() for k, x in stored.items())


def test_a_view_is_written_in_order(tmp_path):
  x = np.arange(12, dtype=np.float32).reshape(3, 4).T
  safetensors.write_file(tmp_path / 'a.safetensors', {'x': x})
  np.testing.assert_array_equal(safetensors.read_file(tmp_path / 'a.safetensors')['x'].read(), x)


def raw(header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


def entry(dtype='F32', shape=(2,), first=0, last=8):
  return {'dtype': dtype, 'shape': list(shape), 'data_offsets': [first, last]}


DATA = bytes(16)
TWICE = b'{"x": %s, "x": %s}' % ((json.dumps(entry()).encode(),) * 2)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'its header would have -1 bytes'),
    (b'\x80\x02}q', 'its header would have -1 bytes'),
    (raw({}, length=2**63), f'its header would have {2**63} bytes'),
    (raw({'x': entry()}, length=500), 'its header would have 500 bytes'),
    (raw(b'[' * 9000), 'its header is damaged'),
    (raw(b'{"x": \xff}'), 'its header is damaged'),
    (raw([]), 'it is no JSON object'),
    (raw(TWICE, bytes(8)), "'x' occurs twice"),
    (raw({'x': 3}, bytes(8)), 'its header is damaged'),
    (raw({'x': {'dtype': 'F32', 'shape': [2]}}, bytes(8)), 'data_offsets'),
    (raw({'x': entry('F8_E4M3', (8,))}, bytes(8)), "dtype 'F8_E4M3' must be one of F64, F32"),
    (raw({'x': entry(shape=(2, True))}, bytes(8)), 'no integer of at least 0'),
    (raw({'x': entry(shape=(-2, -1))}, bytes(8)), 'no integer of at least 0'),
    (raw({'x': entry(shape=(2.0,))}, bytes(8)), 'no integer of at least 0'),
    (raw({'x': entry(shape=(3,))}, bytes(8)), '8 bytes are no F32 of shape'),
    (raw({'x': entry(shape=(2, *[1] * 64))}, bytes(8)), '65 dimensions, more than 32'),
    (raw({'x': entry(shape=(2**62, 2**62), last=2**126)}, bytes(8)), 'the file has'),
    (raw({'x': entry(first=8, last=0)}, bytes(8)), '-8 bytes are no F32'),
    (raw({'x': entry(first=8, last=16)}, DATA), "'x' begins at byte"),
    (raw({'x': entry(), 'y': entry(first=4, last=12)}, DATA), "'y' begins at byte"),
    (raw({'x': entry()}, DATA), 'the tensors end at byte'),
    (raw({'x': entry()}, bytes(7)), 'the tensors end at byte'),
  ],
)
def test_damaged_files_are_refused_in_one_line(content, message, tmp_path):
  file = tmp_path / 'model.safetensors'
  file.write_bytes(content)
  with pytest.raises(UserError) as error:
    safetensors.read_folder(tmp_path)
  assert message in str(error.value) and str(file) in str(error.value)
  assert '\n' not in str(error.value)


def test_every_cut_of_a_file_is_refused(tmp_path):
  safetensors.write_file(tmp_path / 'a.safetensors', {'x': np.ones(3, np.float32)})
  content = (tmp_path / 'a.safetensors').read_bytes()
  for size in range(len(content)):
    (tmp_path / 'b.safetensors').write_bytes(content[:size])
    with pytest.raises(UserError):
      safetensors.read_file(tmp_path / 'b.safetensors')


def sharded(folder, index, **shards):
  for name, names in shards.items():
    safetensors.write_file(
      folder / f'{name}.safetensors', {n: np.full(2, i, np.float32) for i, n in enumerate(names)}
    )
  (folder / 'model.safetensors.index.json').write_text(
    index if isinstance(index, str) else json.dumps({'weight_map': index})
  )


def test_shards_are_read_as_one(tmp_path):
  sharded(tmp_path, {'x': 'a.safetensors', 'y': 'b.safetensors'}, a='x', b='y')
  assert sorted(safetensors.read_folder(tmp_path)) == ['x', 'y']


@pytest.mark.parametrize(
  ('index', 'message'),
  [
    ('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}', "'x' occurs twice"),
    ('{', 'is damaged'),
    ('{"weight_map": 3}', 'is damaged'),
    ({'x': '../a.safetensors'}, 'which is no safetensors file of its folder'),
    ({'x': '/etc/passwd'}, 'which is no safetensors file of its folder'),
    ({'x': 'c.safetensors'}, 'which is missing'),
    ({'x': 'b.safetensors'}, "has 'y', which"),
    ({'x': 'a.safetensors', 'y': 'a.safetensors'}, 'which lacks it'),
    ({'y': 'b.safetensors', 'x': 'b.safetensors'}, 'which lacks it'),
  ],
)
def test_wrong_indices_are_refused_in_one_line(index, message, tmp_path):
  sharded(tmp_path, index, a='x', b='y')
  with pytest.raises(UserError) as error:
    safetensors.read_folder(tmp_path)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
  sharded(tmp_path, {'x': 'a.safetensors', 'y': 'b.safetensors'}, a='x', b='xy')
  with pytest.raises(UserError, match=r"b\.safetensors has 'x', which .* places in 'a\.saf"):
    safetensors.read_folder(tmp_path)


def test_a_shard_that_the_index_does_not_name_is_refused(tmp_path):
  shards = {f'model-0000{i}-of-00002': name for i, name in ((1, 'x'), (2, 'y'))}
  sharded(tmp_path, {'x': 'model-00001-of-00002.safetensors'}, **shards)
  with pytest.raises(UserError, match="does not name 'model-00002-of-00002"):
    safetensors.read_folder(tmp_path)


def test_pickles_are_refused_with_the_reason(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_bytes(b'\x80\x02}q')
  with pytest.raises(UserError, match=r'pytorch_model\.bin, a pickle, which can run any code'):
    safetensors.read_folder(tmp_path)
  (tmp_path / 'pytorch_model.bin').unlink()
  with pytest.raises(UserError, match=r'has neither model\.safetensors nor'):
    safetensors.read_folder(tmp_path)


def test_only_the_header_is_read(tmp_path):
  """A file of 2 GiB, which is sparse on the disk, opens without reading it."""
  count = 2**29
  file = tmp_path / 'model.safetensors'
  header = json.dumps({'x': entry(shape=(count,), last=4 * count)}).encode()
  with file.open('wb') as opened:
    opened.write(struct.pack('<Q', len(header)) + header)
    opened.truncate(8 + len(header) + 4 * count)
  x = safetensors.read_file(file)['x']
  assert math.prod(x.shape) == count and x.read()[-1] == 0
