"""Checkpoints of Hugging Face's layout: a folder becomes a workdir, and a workdir such a folder.

A workdir that was imported keeps the files of its source in `pretrained/`, with the names and dtypes
of its tensors: an export writes exactly the set of tensors that came in.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from lm.config.base import base
from lm.errors import UserError
from lm.pretrained import families, layout, safetensors
from lm.pretrained.families import Family
from lm.pretrained.safetensors import Tensor
from lm.text import tokenizers
from lm.workdir import experiment, files
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.write import write_workdir

_KEPT = 'pretrained'  # folder of a workdir
_TENSORS = 'tensors.json'  # names and dtypes, in order
# Files that an export copies, if the source had them.
_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'vocab.txt',
  'merges.txt',
  'chat_template.jinja',
)


def read_config(folder: Path) -> dict[str, Any]:
  """Returns the content of config.json.

  Raises:
    UserError: it is missing or damaged.
  """
  file = folder / 'config.json'
  if not file.is_file():
    raise UserError(f'{folder}: config.json is missing; give a folder that save_pretrained wrote')
  try:
    found = json.loads(file.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f'{file} is damaged: {e}') from e
  if not isinstance(found, dict):
    raise UserError(f'{file} is no JSON object')
  return found


def read_parameters(family: Family, tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
  """Returns the parameters of a checkpoint by path, in the dtype that it stores.

  Raises:
    UserError: tensors are missing, unexpected or misshapen; or a buffer, or a tied output head, is
      not what the config says.
  """
  prefix = family.prefix
  if not any(name.startswith(prefix) for name in tensors):
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
  names = {n for entry in family.entries for names in entry.tensor_names() for n in names}
  for name in [n for n in tensors if n not in names]:
    expected = family.buffers(name)
    if name == family.tied:
      expected = tensors[family.entries[0].names[0]].read()
    if expected is None:
      continue
    found = tensors[name].read()
    if found.shape != np.shape(expected) or not np.array_equal(
      found.astype(expected.dtype), expected
    ):
      what = (
        'is not the embedding' if name == family.tied else 'has other values than its config says'
      )
      raise UserError(f'{source}: {name} {what}')
    tensors = {n: tensor for n, tensor in tensors.items() if n != name}
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  layout.check_tensors(family.entries, shapes, source)
  return layout.import_parameters(family.entries, lambda name: tensors[name].read())


def export_tensors(
  family: Family, params: Mapping[str, np.ndarray], names: Mapping[str, str] | None
) -> dict[str, np.ndarray]:
  """Returns the tensors of parameters by name.

  Args:
    family: of the model.
    params: by path.
    names: dtype by the name of each tensor of the checkpoint that was imported, in its order; None
      for the canonical set of the family.
  """
  found = layout.export_tensors(family.entries, params)
  if names is None:
    return found
  bare = not any(name.startswith(family.prefix) for name in names)
  tensors = {}
  for name, dtype in names.items():
    full = family.prefix + name if bare else name
    if full in found:
      x = found[full]
    elif full == family.tied:
      x = found[family.entries[0].names[0]]
    else:
      x = np.asarray(family.buffers(full))
    tensors[name] = np.asarray(x).astype(safetensors.dtype_of(dtype))
  return tensors


def import_folder(folder: Path, workdir: Path) -> str:
  """Writes the workdir of a folder that `save_pretrained` wrote; returns a line that sums it up.

  Raises:
    UserError: the folder or the workdir is wrong; nothing is written then.
  """
  files.check_new(workdir)
  values = read_config(folder)
  family = families.family_of(values)
  tokenizer_file = folder / 'tokenizer.json'
  if not tokenizer_file.is_file():
    raise UserError(
      f'{folder}: tokenizer.json is missing; AutoTokenizer.from_pretrained(...).save_pretrained '
      'writes it'
    )
  tokenizer = tokenizers.existing([], str(tokenizer_file))
  rows, size = tokenizers.vocabulary_size(tokenizer), family.model.vocab_size
  if rows > size:
    raise UserError(
      f'{folder}: tokenizer.json has {rows} tokens, and the embedding has {size} rows '
      '(config.json: vocab_size)'
    )
  tensors = safetensors.read_folder(folder)
  params = read_parameters(family, tensors, str(folder))
  config = base()
  with config.unlocked():
    config.model = family.model
    config.eval.sets = {}
  config.data.seq_len = family.model.context
  config.log.sample_prompts = ()

  def keep_source(target: Path) -> None:
    kept = target / _KEPT
    kept.mkdir()
    for name in _FILES:
      if (folder / name).is_file():
        shutil.copyfile(folder / name, kept / name)
    names = {name: safetensors.name_of(tensor.dtype) for name, tensor in tensors.items()}
    (kept / _TENSORS).write_text(json.dumps(names, indent=1) + '\n')

  write_workdir(workdir, config, tokenizer, unflatten_dict(params, sep='/'), keep_source)
  count = sum(x.size for x in params.values())
  return f'{workdir}: {values["model_type"]}, {count:,} parameters in {len(tensors)} tensors'


def export_run(workdir: Path, out: Path, step: int | None = None) -> str:
  """Writes the folder that `from_pretrained` loads; returns a line that sums it up.

  Args:
    workdir: of a run that was imported, or that started from one.
    out: a directory that is missing or empty.
    step: of the checkpoint; None for the newest.

  Raises:
    UserError: the run is of no family, or a directory is wrong; nothing is written then.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--out={out} is not empty; give the name of a new directory')
  experiment.read_config(workdir)
  kept = workdir / _KEPT
  if not kept.is_dir():
    raise UserError(f'--workdir={workdir}: {_KEPT}/ is missing: the run was not imported')
  family = families.family_of(read_config(kept))
  names = json.loads((kept / _TENSORS).read_text())
  checkpoints = Checkpoints(workdir)
  try:
    steps = checkpoints.steps()
    if step is not None and step not in steps:
      raise UserError(f'--step={step}: {workdir} has checkpoints at {", ".join(map(str, steps))}')
    step = steps[-1] if step is None else step
    params = _stored_parameters(checkpoints, step)
  finally:
    checkpoints.close()
  tensors = export_tensors(family, params, names)
  temporary = out.absolute().with_name(f'{out.absolute().name}.{os.getpid()}.tmp')
  try:
    temporary.mkdir(parents=True)
    for file in sorted(kept.iterdir()):
      if file.name in _FILES:
        shutil.copyfile(file, temporary / file.name)
    safetensors.write_file(temporary / 'model.safetensors', tensors)
    os.replace(temporary, out)
  except OSError as e:
    raise UserError(f'--out={out} cannot be written: {e.strerror or e}') from e
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return f'{out}: {len(tensors)} tensors of step {step}'


def _stored_parameters(checkpoints: Checkpoints, step: int) -> dict[str, np.ndarray]:
  """Returns the parameters of a step by path, in the dtype that they are stored in."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = {
    path: jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    for path, (shape, dtype) in checkpoints.leaves(step, 'params').items()
  }
  return {k: np.asarray(x) for k, x in checkpoints.restore_subset(step, wanted).items()}
