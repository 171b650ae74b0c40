import gc
import json
import pathlib
import re
import weakref

import flax.linen as nn
import jax
import numpy as np
import pytest

import lm
from lm import components
from lm.config.base import base, gpt2
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.write import LazyArray, write_like, write_workdir


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


GUIDE = pathlib.Path(__file__).parents[2] / 'experiments/README.md'
LAYER = """
from lm.nn.layers import Mlp
class Mine(Mlp):
  pass
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a directory with runs/a and runs/b, whose layer is in their source/."""
  folder = tmp_path_factory.mktemp('merged')
  config, tokenizer = base(), tokenizers.bytes([])
  config.model = gpt2(depth=1, d_model=8, heads=2, context=8)
  config.data.seq_len = 8
  model = components.model(config, tokenizer.get_vocab_size())
  shapes = nn.unbox(jax.eval_shape(components.init_of(model, 8), jax.random.key(0)))
  config.model.mlp = 'my_layer:Mine'
  before = config.to_json()
  for seed, name in enumerate('ab'):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype(x.dtype), shapes)
    row = {'inputs': ['int32', 8], 'segments': ['int32', 8], 'positions': ['int32', 8]}

    def write_more(place):
      (place / 'source').mkdir(exist_ok=True)
      (place / 'source/my_layer.py').write_text(LAYER)

    write_workdir(folder / 'runs' / name, config, tokenizer, params, write_more, 3 + seed, row)
  assert config.to_json() == before, 'the config of the caller stays'
  return folder


def test_the_guide_averages_two_runs(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (block,) = re.findall(r'```python\n([^`]*write_like[^`]*)```', GUIDE.read_text())
  names = {}
  exec(block, names)
  mean = lm.load('runs/mean')
  assert (mean.step, mean.config.model.mlp) == (3, 'my_layer:Mine')
  a, b = (run.params for run in names['runs'])
  expected = jax.tree.map(lambda x, y: (np.asarray(x) + np.asarray(y)) / 2, a, b)
  jax.tree.map(np.testing.assert_array_equal, mean.params, expected)
  for file in ('source/my_layer.py', 'tokenizer.json'):
    assert pathlib.Path('runs/mean', file).read_text() == pathlib.Path('runs/a', file).read_text()
  row = json.loads(pathlib.Path('runs/mean/data.json').read_text())['row']
  assert row == {'inputs': ['int32', 8], 'positions': ['int32', 8], 'segments': ['int32', 8]}
  with pytest.raises(UserError, match='runs/mean is not empty'):
    write_like(mean, expected, 'runs/mean')
  other = dict(expected, embedding=np.zeros((3, 8), np.float32))
  with pytest.raises(UserError, match=r"'embedding' has the shape \(3, 8\), and \(257, 8\) in"):
    write_like(mean, other, 'runs/other')
  assert sorted(path.name for path in pathlib.Path('runs').iterdir()) == ['a', 'b', 'mean']
