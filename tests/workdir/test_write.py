import gc
import weakref

import numpy as np
import pytest

from lm.config.base import base
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.write import LazyArray, write_workdir


def lazy(values):
  """Returns lazy arrays that fail if another one is still in memory."""
  alive = []

  def reader(x):
    def read():
      gc.collect()
      assert not [ref for ref in alive if ref() is not None]
      copy = x.copy()
      alive.append(weakref.ref(copy))
      return copy

    return LazyArray(read)

  return {name: reader(x) for name, x in values.items()}


def test_one_lazy_array_is_in_memory_at_a_time(tmp_path):
  values = {f'x{i}': np.full((3, 1000), i, np.float32) for i in range(6)}
  write_workdir(tmp_path / 'run', base(), tokenizers.bytes([]), lazy(values))
  checkpoints = Checkpoints(tmp_path / 'run')
  found = checkpoints.leaves(0, 'params')
  checkpoints.close()
  assert found == {name: ((3, 1000), np.dtype(np.float32)) for name in values}


def test_an_error_of_a_lazy_array_leaves_nothing(tmp_path):
  def read():
    raise UserError('a tensor is damaged')

  with pytest.raises(UserError, match='a tensor is damaged'):
    write_workdir(tmp_path / 'run', base(), tokenizers.bytes([]), {'x': LazyArray(read)})
  assert not list(tmp_path.iterdir())
