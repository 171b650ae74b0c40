"""Checkpoints of Hugging Face's layout: a folder becomes a workdir, and a workdir such a folder.

An imported workdir keeps the files of its source in `pretrained/`, with the names and dtypes
of its tensors: an export writes exactly the set of tensors that came in.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from tokenizers import Tokenizer

from lm.config.base import base
from lm.errors import UserError
from lm.pretrained import families, gguf, layout, safetensors
from lm.pretrained.family import Family
from lm.text import tokenizers
from lm.workdir import experiment, files
from lm.workdir.checkpoints import Checkpoints
from lm.workdir.run_data import best_step
from lm.workdir.write import write_workdir

_KEPT = 'pretrained'  # folder of a workdir
_TENSORS = 'tensors.json'  # names and dtypes, in order
_UNUSED = 'unused.safetensors'  # tensors that the model does not use
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
    what = 'config.json is missing' if folder.is_dir() else 'no such folder'
    raise UserError(f'{folder}: {what}; give a folder that save_pretrained wrote, or FILE.gguf')
  try:
    found = json.loads(file.read_text('utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise UserError(f'{file} is damaged: {e}') from e
  if not isinstance(found, dict):
    raise UserError(f'{file} is no JSON object')
  return found


class Source(NamedTuple):
  """A checkpoint, opened: a folder of Hugging Face's, or a GGUF file.

  Attributes:
    name: for errors.
    config: the content of config.json.
    shapes: of the tensors by name.
    read: `name -> tensor`.
    tokenizer: its tokenizer.
    names: dtype of each tensor by name, in order; None if an export writes the canonical set.
    files: name -> content of the files that an export copies.
  """

  name: str
  config: dict[str, Any]
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  tokenizer: Tokenizer
  names: dict[str, str] | None
  files: dict[str, bytes]


def open_source(path: Path) -> Source:
  """Opens a folder that `save_pretrained` wrote, or a GGUF file; reads no tensor.

  Raises:
    UserError: it is missing, malformed or of a kind that is not supported.
  """
  if path.suffix == '.gguf':
    found = gguf.open_file(path)
    kept = {'config.json': gguf.as_json(found.config), 'tokenizer.json': found.tokenizer.to_str()}
    contents = {name: text.encode() for name, text in kept.items()}
    return Source(
      str(path), found.config, found.shapes, found.read, found.tokenizer, None, contents
    )
  config = read_config(path)
  tokenizer_file = path / 'tokenizer.json'
  if not tokenizer_file.is_file():
    raise UserError(
      f'{path}: tokenizer.json is missing; AutoTokenizer.from_pretrained(...).save_pretrained '
      'writes it'
    )
  tensors = safetensors.read_folder(path)
  return Source(
    str(path),
    config,
    {name: tensor.shape for name, tensor in tensors.items()},
    lambda name: tensors[name].read(),
    tokenizers.existing([], str(tokenizer_file)),
    {name: safetensors.name_of(tensor.dtype) for name, tensor in tensors.items()},
    {name: (path / name).read_bytes() for name in _FILES if (path / name).is_file()},
  )


def canonical_names(family: Family, names: Iterable[str]) -> dict[str, str]:
  """Returns the stored name of each tensor by its name in the family's layout.

  Checkpoints of a model without its head lack the prefix, and old ones have other names. A copy
  stands for the tensor that it equals where that is missing.
  """
  names, prefix = list(names), family.prefix
  bare = not any(name.startswith(prefix) for name in names)
  found = {}
  for name in names:
    full = prefix + name if bare else name
    for old, new in family.renamed.items():
      full = full.replace(old, new)
    found[full] = name
  for copy, original in family.tied.items():
    if copy in found and original not in found:
      found[original] = found.pop(copy)
  return found


def read_parameters(family: Family, source: Source) -> dict[str, np.ndarray]:
  """Returns the parameters of a checkpoint by path, in the dtype that it stores.

  Raises:
    UserError: tensors are missing, unexpected or misshapen; or a buffer, or a copy of a tensor, is
      not what the config says.
  """
  own = canonical_names(family, source.shapes)
  names = {n for entry in family.entries for names in entry.tensor_names() for n in names}
  for name in own.keys() - names:
    original = family.tied.get(name)
    expected = family.buffers(name) if original is None else source.read(own[original])
    if expected is not None:
      found = source.read(own.pop(name))
      if found.shape != expected.shape or not np.array_equal(
        found.astype(expected.dtype), expected
      ):
        what = 'the config' if original is None else f'{original}, to which it is tied'
        raise UserError(f'{source.name}: {name} differs from {what}')
    elif re.match(family.unused, name):
      del own[name]
  shapes = {name: source.shapes[stored] for name, stored in own.items()}
  layout.check_tensors(family.entries, shapes, source.name)
  return layout.import_parameters(family.entries, lambda name: source.read(own[name]))


def unused_tensors(family: Family, source: Source) -> dict[str, np.ndarray]:
  """Returns the tensors that the model does not use, by their stored names."""
  names = {n for entry in family.entries for names in entry.tensor_names() for n in names}
  own = canonical_names(family, source.shapes)
  return {
    stored: source.read(stored)
    for name, stored in own.items()
    if name not in names and re.match(family.unused, name)
  }


def export_tensors(
  family: Family,
  params: Mapping[str, np.ndarray],
  names: Mapping[str, str] | None,
  unused: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> dict[str, np.ndarray]:
  """Returns the tensors of parameters by name.

  Args:
    family: of the model.
    params: by path.
    names: dtype by the name of each tensor of the checkpoint that was imported, in its order; None
      for the canonical set of the family.
    unused: tensors of that checkpoint that the model does not use, by name.
  """
  found = layout.export_tensors(family.entries, params)
  if names is None:
    return found
  full = {stored: name for name, stored in canonical_names(family, names).items()}
  tensors = {}
  for stored, dtype in names.items():
    name = full[stored]
    x = unused.get(stored, found.get(family.tied.get(name, name)))
    x = np.asarray(family.buffers(name) if x is None else x)
    tensors[stored] = x.astype(safetensors.dtype_of(dtype))
  return tensors


def import_checkpoint(path: Path, workdir: Path) -> str:
  """Writes the workdir of a checkpoint; returns a line that sums it up.

  Raises:
    UserError: the checkpoint or the workdir is wrong; nothing is written then.
  """
  files.check_new(workdir)
  source = open_source(path)
  family = families.family_of(source.config, source.shapes)
  rows, size = tokenizers.vocabulary_size(source.tokenizer), family.model.vocab_size
  if rows > size:
    raise UserError(
      f'{path}: its tokenizer has {rows} tokens, and the embedding has {size} rows '
      '(config.json: vocab_size)'
    )
  params = read_parameters(family, source)
  config = base()
  with config.unlocked():
    config.model = family.model
    config.eval.sets = {}
  config.data.seq_len = family.model.context
  config.log.sample_prompts = ()
  config.data.update(family.data)
  unused = unused_tensors(family, source)

  def keep_source(folder: Path) -> None:
    (folder / _KEPT).mkdir()
    for name, content in source.files.items():
      (folder / _KEPT / name).write_bytes(content)
    (folder / _KEPT / _TENSORS).write_text(json.dumps(source.names, indent=1) + '\n')
    if unused:
      safetensors.write_file(folder / _KEPT / _UNUSED, unused)

  tree = unflatten_dict(params, sep='/')
  tokenizer = tokenizers.with_rows(source.tokenizer, size)
  write_workdir(workdir, config, tokenizer, tree, keep_source)
  count = sum(x.size for x in params.values())
  return f'{workdir}: {source.config["model_type"]}, {count:,} parameters'


def export_run(workdir: Path, out: Path, step: int | None = None) -> str:
  """Writes the folder that `from_pretrained` loads; returns a line that sums it up.

  Args:
    workdir: of a run that was imported, or that started from one.
    out: a directory that is missing or empty.
    step: of the checkpoint; None for the best one, or else the newest, as in all programs.

  Raises:
    UserError: the run is of no family, or a directory is wrong; nothing is written then.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--out={out} is not empty; give the name of a new directory')
  config = experiment.read_config(workdir)
  kept = workdir / _KEPT
  if not kept.is_dir():
    raise UserError(f'--workdir={workdir}: {_KEPT}/ is missing: the run was not imported')
  names = json.loads((kept / _TENSORS).read_text())
  family = families.family_of(read_config(kept), names)
  unused = {}
  if (kept / _UNUSED).is_file():
    unused = {k: x.read() for k, x in safetensors.read_file(kept / _UNUSED).items()}
  checkpoints = Checkpoints(workdir)
  try:
    steps, why = checkpoints.steps(), ''
    if not steps:
      raise UserError(f'--workdir={workdir}: no checkpoint there')
    if step is not None and step not in steps:
      raise UserError(f'--step={step}: {workdir} has checkpoints at {", ".join(map(str, steps))}')
    if step is None:
      best, why = best_step(workdir, steps, config.checkpoint.monitor)
      step = steps[-1] if best is None else best
    params = _stored_parameters(checkpoints, step)
  finally:
    checkpoints.close()
  tensors = export_tensors(family, params, names, unused)
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
  return f'{out}: {len(tensors)} tensors of step {step}' + (f', {why}' if why else '')


def _stored_parameters(checkpoints: Checkpoints, step: int) -> dict[str, np.ndarray]:
  """Returns the parameters of a step by path, in the dtype that they are stored in."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = {
    path: jax.ShapeDtypeStruct(shape, dtype, sharding=device)
    for path, (shape, dtype) in checkpoints.leaves(step, 'params').items()
  }
  return {k: np.asarray(x) for k, x in checkpoints.restore_subset(step, wanted).items()}
