"""Measures import and export of a random Llama in bfloat16: seconds and memory.

  python tests/pretrained/measure_import.py FOLDER [D N H G F V]

The sizes are those of TinyLlama by default, 1.1B parameters. FOLDER must be empty, and needs 6 GB;
an import and an export run in a process each. The memory is the peak of the resident set above
that of the idle process, divided by the bytes of the tensors.
"""

import json
import math
import pathlib
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np

from lm.pretrained import checkpoint, families, layout, safetensors

SIZES = (2048, 22, 32, 4, 5632, 32000)
SHARDS = 4
TOKENIZER = pathlib.Path(__file__).parent / 'checkpoints' / 'llama' / 'tokenizer.json'


def write(folder: pathlib.Path, sizes: tuple[int, ...]) -> int:
  """Writes the checkpoint in shards; returns the bytes of its tensors."""
  names = ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads')
  config = dict(zip((*names, 'intermediate_size', 'vocab_size'), sizes, strict=True))
  config |= {'model_type': 'llama', 'max_position_embeddings': 2048}
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'tokenizer.json').write_bytes(TOKENIZER.read_bytes())
  shapes = layout.shapes_of(families.family_of(config).entries)
  dtype, rng, index = np.dtype(ml_dtypes.bfloat16), np.random.default_rng(0), {}
  for i in range(SHARDS):
    shard = list(shapes)[i::SHARDS]
    file = f'model-{i + 1:05}-of-{SHARDS:05}.safetensors'
    tensors = ((n, rng.standard_normal(shapes[n], np.float32).astype(dtype)) for n in shard)
    safetensors.write_stream(folder / file, {n: (dtype, shapes[n]) for n in shard}, tensors)
    index |= dict.fromkeys(shard, file)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': index}))
  return sum(map(math.prod, shapes.values())) * dtype.itemsize


def resident(key: str) -> int:
  """Returns a line of /proc/self/status in bytes: VmRSS, or its peak VmHWM."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def run(program: str, source: pathlib.Path, target: pathlib.Path) -> None:
  """Prints the seconds and the memory of a conversion as JSON."""
  jax.numpy.zeros(1).block_until_ready()
  idle, start = resident('VmRSS'), time.perf_counter()
  getattr(checkpoint, program)(source, target)
  seconds = time.perf_counter() - start
  print(json.dumps({'seconds': round(seconds, 1), 'bytes': resident('VmHWM') - idle}))


def measure(folder: pathlib.Path, sizes: tuple[int, ...] = SIZES) -> dict[str, dict[str, float]]:
  """Returns seconds and memory over bytes stored of the import and of the export."""
  stored, found = write(folder / 'source', sizes), {}
  for program, source, target in (
    ('import_checkpoint', 'source', 'run'),
    ('export_run', 'run', 'exported'),
  ):
    command = [sys.executable, __file__, program, str(folder / source), str(folder / target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    found[program] = {'seconds': result['seconds'], 'ratio': round(result['bytes'] / stored, 2)}
  return found


if __name__ == '__main__':
  first, *others = sys.argv[1:]
  if first in ('import_checkpoint', 'export_run'):
    run(first, *map(pathlib.Path, others))
  else:
    print(measure(pathlib.Path(first), tuple(map(int, others)) or SIZES))
