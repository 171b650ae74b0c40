"""Checkpoints of Hugging Face's layout: a folder becomes a workdir, and a workdir such a folder.

An imported workdir keeps the files of its source in `pretrained/`, with the names and dtypes
of its tensors: an export writes exactly the set of tensors that came in.
"""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict
from tokenizers import Tokenizer

from lm.config.base import base
from lm.errors import UserError
from lm.pretrained import (
  card,
  configs,
  families,
  gguf,
  hub,
  layout,
  safetensors,
  section,
  spm,
  vocabulary,
)
from lm.pretrained.family import Family
from lm.pretrained.layout import Entry
from lm.text import tokenizers
from lm.workdir import experiment, files, sources, untrusted
from lm.workdir.checkpoints import Checkpoints, attempt
from lm.workdir.run_data import best_step
from lm.workdir.write import LazyArray, write_workdir

_KEPT = 'pretrained'  # folder of a workdir
_TENSORS = 'tensors.json'  # names and dtypes, in order
_TABLES = ('embedding', 'unembedding', 'head_bias')  # parameters with a row for each token
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
  *spm.NAMES,
)


def read_config(folder: Path) -> dict[str, Any]:
  """Returns the content of config.json.

  Raises:
    UserError: it is missing or damaged.
  """
  file = folder / 'config.json'
  if not file.is_file():
    what = 'config.json is missing' if folder.is_dir() else 'no such folder'
    raise UserError(
      f'{folder}: {what}; give a folder that save_pretrained wrote, OWNER/NAME or FILE.gguf'
    )
  return _json_object(file, file.read_bytes())


def _json_object(file: Path, content: bytes) -> dict[str, Any]:
  """Returns the content of a JSON file."""
  try:
    found = json.loads(content.decode('utf-8'))
  except (ValueError, RecursionError) as e:
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
  _check_links(path)
  contents = {name: (path / name).read_bytes() for name in _FILES if (path / name).is_file()}
  tokenizer = _read_tokenizer(path)
  contents.setdefault('tokenizer.json', tokenizer.to_str().encode())
  tensors = safetensors.read_folder(path)
  return Source(
    str(path),
    config,
    {name: tensor.shape for name, tensor in tensors.items()},
    lambda name: tensors[name].read(),
    tokenizer,
    {name: safetensors.name_of(tensor.dtype) for name, tensor in tensors.items()},
    contents,
  )


def _check_links(folder: Path) -> None:
  """Raises UserError if a file that is read is a link which leaves the folder.

  The cache of `huggingface_hub` has links to its own blobs, which are followed.
  """
  root = folder.resolve()
  inside = [root, *([root.parents[1] / 'blobs'] if root.parent.name == 'snapshots' else [])]
  for file in sorted(folder.iterdir()):
    read = file.name in _FILES or file.suffix == '.safetensors' or file.name == safetensors.INDEX
    if read and not any(file.resolve().is_relative_to(each) for each in inside):
      raise UserError(f'{file} is a link to {file.resolve()}, which is not in its folder; copy it')


def _read_tokenizer(folder: Path) -> Tokenizer:
  """Returns the tokenizer of a folder: that of tokenizer.json, or of a SentencePiece model."""
  file = folder / 'tokenizer.json'
  if file.is_file():
    return tokenizers.existing([], str(file))
  if (folder / 'source.spm').is_file():
    raise UserError(
      f'{folder}: source.spm and target.spm segment sources and targets differently, and a workdir '
      'has one tokenizer; tokenizer.json with the ids of vocab.json is needed'
    )
  converted = spm.read_folder(folder)
  if converted is None:
    raise UserError(
      f'{folder}: tokenizer.json is missing, and so is {" or ".join(spm.NAMES)}; '
      'AutoTokenizer.from_pretrained(...).save_pretrained writes it'
    )
  with tempfile.NamedTemporaryFile(suffix='.json') as temporary:
    converted.save(temporary.name)
    return tokenizers.existing([], temporary.name)


def canonical_names(family: Family, names: Iterable[str]) -> dict[str, str]:
  """Returns the stored name of each tensor by its name in the family's layout.

  Checkpoints of a model without its head lack the prefix, and old ones have other names. A copy
  replaces the tensor that it equals where that is missing.
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


def read_parameters(family: Family, source: Source) -> dict[str, LazyArray]:
  """Returns the parameters of a checkpoint by path, in the dtype that it stores.

  Each is read when it is stored in a workdir.

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
      # A buffer in half precision is the rounded one.
      same = found.shape == expected.shape and np.array_equal(found, expected.astype(found.dtype))
      if not same:
        what = 'the config' if original is None else f'{original}, to which it is tied'
        raise UserError(f'{source.name}: {name} differs from {what}')
    elif re.match(family.unused, name):
      del own[name]
  shapes = {name: source.shapes[stored] for name, stored in own.items()}
  layout.check_tensors(family.entries, shapes, source.name)

  def lazy(entry: Entry) -> LazyArray:
    return LazyArray(lambda: layout.join(entry, lambda name: source.read(own[name])))

  return {entry.path: lazy(entry) for entry in family.entries}


def unused_tensors(family: Family, source: Source) -> dict[str, np.ndarray]:
  """Returns the tensors that the model does not use, by their stored names."""
  names = {n for entry in family.entries for names in entry.tensor_names() for n in names}
  own = canonical_names(family, source.shapes)
  return {
    stored: source.read(stored)
    for name, stored in own.items()
    if name not in names and re.match(family.unused, name)
  }


def write_tensors(
  file: Path,
  family: Family,
  read: Callable[[str], np.ndarray],
  names: Mapping[str, np.dtype],
  unused: Mapping[str, np.ndarray],
) -> None:
  """Writes parameters as safetensors; one of them is in memory at a time.

  Args:
    file: the file.
    family: of the model.
    read: `path -> parameter`.
    names: dtype by the name of each tensor, in the order of the file. They are the names of the
      checkpoint that was imported, or the canonical ones of the family.
    unused: tensors of that checkpoint that the model does not use, by name.
  """
  own = canonical_names(family, names)
  shapes = layout.shapes_of(family.entries)
  copies = {name: original for name, original in family.tied.items() if name in own}
  others = {
    name: unused[stored] if stored in unused else np.asarray(family.buffers(name))
    for name, stored in own.items()
    if name not in shapes and name not in copies
  }

  def tensors() -> Iterator[tuple[str, np.ndarray]]:
    for entry in family.entries:
      for name, x in layout.split(entry, read(entry.path)):
        for each in (name, *(copy for copy, original in copies.items() if original == name)):
          yield own[each], x.astype(names[own[each]], copy=False)
    for name, x in others.items():
      yield own[name], x.astype(names[own[name]])

  def shape(name: str) -> tuple[int, ...]:
    return others[name].shape if name in others else shapes[copies.get(name, name)]

  full = {stored: name for name, stored in own.items()}
  described = {stored: (dtype, shape(full[stored])) for stored, dtype in names.items()}
  safetensors.write_stream(file, described, tensors())


def import_checkpoint(
  path: Path, workdir: Path, revision: str | None = None, new_tokens: Sequence[str] = ()
) -> str:
  """Writes the workdir of a checkpoint; returns a line that sums it up.

  Args:
    path: a folder that `save_pretrained` wrote, a GGUF file, or OWNER/NAME of a hub.
    workdir: a directory that is missing or empty.
    revision: a branch, tag or commit on the hub.
    new_tokens: special tokens to add; see `lm.pretrained.vocabulary`.

  Raises:
    UserError: the checkpoint or the workdir is wrong; nothing is written then.
  """
  files.check_new(workdir)
  at = ''
  if hub.is_name(path):
    path, commit = hub.download(path.as_posix(), revision, _FILES)
    at = f', of commit {commit}'
  elif revision is not None:
    raise UserError(f'--revision={revision}: {path} is no OWNER/NAME of a hub')
  source = open_source(path)
  generation = _json_object(
    path / 'generation_config.json', source.files.get('generation_config.json', b'{}')
  )
  family = families.family_of(source.config, source.shapes, generation)
  tokenizer, without = vocabulary.cut_to(source.tokenizer, family.model.vocab_size, str(path))
  source = source._replace(tokenizer=tokenizer)
  at += f'; without {", ".join(without)}, which the embedding has no row for' if without else ''
  params = read_parameters(family, source)
  if new_tokens:
    larger = vocabulary.add_tokens(source.config, source.tokenizer, new_tokens, source.shapes)
    params = {path: _with_rows(larger, path, x) for path, x in params.items()}
    contents = {
      'config.json': json.dumps(larger.config, indent=2) + '\n',
      'tokenizer.json': larger.tokenizer.to_str(),
    }
    encoded = {name: text.encode() for name, text in contents.items()}
    source = source._replace(
      config=larger.config, tokenizer=larger.tokenizer, files=source.files | encoded
    )
    family = families.family_of(source.config, source.shapes, generation)
    at += f'; {larger.summary()}'
  config = base()
  with config.unlocked():
    config.model = family.model
    config.eval.sets = {}
  config.data.seq_len = family.model.context
  config.log.sample_prompts = ()
  config.data.update(family.data)
  config.decode.update(family.decode)
  if family.model.fn == 'lm.models.transformer:Decoder':
    config.decode.start = tokenizers.ids_before(source.tokenizer)
  unused = unused_tensors(family, source)

  def keep_source(folder: Path) -> None:
    (folder / _KEPT).mkdir()
    for name, content in source.files.items():
      (folder / _KEPT / name).write_bytes(content)
    (folder / _KEPT / _TENSORS).write_text(json.dumps(source.names, indent=1) + '\n')
    if unused:
      safetensors.write_file(folder / _KEPT / _UNUSED, unused)

  tree = unflatten_dict(params, sep='/')
  write_workdir(workdir, config, source.tokenizer, tree, keep_source)
  count = sum(math.prod(shape) for shape in layout.shapes_of(family.entries).values())
  return f'{workdir}: {source.config["model_type"]}, {count:,} parameters{at}'


def _with_rows(larger: vocabulary.Enlarged, path: str, x: LazyArray) -> LazyArray:
  return LazyArray(lambda: larger.rows(path, x.read()))


def export_run(workdir: Path, out: Path, step: int | None = None, trusted: bool = True) -> str:
  """Writes the folder that `from_pretrained` loads; returns a line that sums it up.

  A run that was imported gives the set of tensors that came in. Any other gives the canonical set
  of the family that has its model.

  Args:
    workdir: of a run.
    out: a directory that is missing or empty.
    step: of the checkpoint; None for the best one, or else the newest, as in all programs.
    trusted: whether the code of the workdir may run, as in `lm.workdir.load.load`.

  Raises:
    UserError: no family has the model of the run, or a directory is wrong; nothing is written then.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f'--out={out} is not empty; give the name of a new directory')
  if trusted:
    config = experiment.read_config(workdir)
  else:
    config = untrusted.read_config(workdir)
    untrusted.read_tokenizer(workdir)  # a damaged one ends the program here
  kept = workdir / _KEPT
  names = json.loads((kept / _TENSORS).read_text()) if kept.is_dir() else None
  unused = safetensors.read_file(kept / _UNUSED) if (kept / _UNUSED).is_file() else {}
  checkpoints = Checkpoints(workdir)
  try:
    step, why = _chosen_step(workdir, checkpoints, step, config)
    with sources.workdir_modules(workdir / 'source') if trusted else contextlib.nullcontext():
      described, family, contents = (
        _kept_files(workdir, config, names) if kept.is_dir() else _described(workdir, config, step)
      )
    stored = checkpoints.leaves(step, 'params')
    if missing := sorted({entry.path for entry in family.entries} - stored.keys()):
      raise UserError(f'--workdir={workdir}: checkpoint {step} lacks the parameter {missing[0]}')

    def read(path: str) -> np.ndarray:
      x = _read_parameter(checkpoints, step, path, *stored[path])
      return x[: family.model.vocab_size] if path in _TABLES else x  # without model.vocab_multiple

    dtypes = {name: stored[entry.path][1] for entry in family.entries for name in entry.all_names()}
    dtypes |= dict.fromkeys(family.stored, np.dtype(np.float32))
    if names is not None:
      dtypes = {name: safetensors.dtype_of(dtype) for name, dtype in names.items()}
    temporary = out.absolute().with_name(f'{out.absolute().name}.{os.getpid()}.tmp')
    try:
      temporary.mkdir(parents=True)
      for name, content in contents.items():
        (temporary / name).write_bytes(content)
      others = {name: tensor.read() for name, tensor in unused.items()}
      write_tensors(temporary / 'model.safetensors', family, read, dtypes, others)
      os.replace(temporary, out)
    except OSError as e:
      raise UserError(f'--out={out} cannot be written: {e.strerror or e}') from e
    finally:
      shutil.rmtree(temporary, ignore_errors=True)
  finally:
    checkpoints.close()
  which = f'step {step}' + (f', {why}' if why else '')
  return f'{out}: {described["model_type"]}, {len(dtypes)} tensors of {which}'


def _chosen_step(
  workdir: Path, checkpoints: Checkpoints, step: int | None, config: ConfigDict
) -> tuple[int, str]:
  """Returns the step to export, and why it is the one."""
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'--workdir={workdir}: no checkpoint there')
  if step is None:
    best, why = best_step(workdir, steps, config.checkpoint.monitor)
    return (steps[-1] if best is None else best), why
  if step not in steps:
    raise UserError(f'--step={step}: {workdir} has checkpoints at {", ".join(map(str, steps))}')
  return step, ''


def _kept_files(
  workdir: Path, config: ConfigDict, names: Mapping[str, str] | None
) -> tuple[dict[str, Any], Family, dict[str, bytes]]:
  """Returns the config.json of an imported run, its family, and the contents of its files.

  Raises:
    UserError: the model section of the run has changed since.
  """
  kept = workdir / _KEPT
  described = read_config(kept)
  family = families.family_of(described, names)
  model = family.model
  if different := section.differences(config.model, model):
    key = different[0]
    raise UserError(
      f'--workdir={workdir}: model.{key}={config.model.get(key)!r} is not that of '
      f'{_KEPT}/config.json, which says {model.get(key)!r}'
    )
  contents = {p.name: p.read_bytes() for p in sorted(kept.iterdir()) if p.name in _FILES}
  return described, family, contents


def _described(
  workdir: Path, config: ConfigDict, step: int
) -> tuple[dict[str, Any], Family, dict[str, bytes]]:
  """Returns the config.json of a run that was trained here, its family, and its files by name.

  Raises:
    UserError: no family has its model, or its tokenizer has more tokens than the model.
  """
  tokenizer = experiment.read_tokenizer(workdir)
  rows, size = tokenizers.vocabulary_size(tokenizer), config.model.get('vocab_size')
  if size is not None and rows > size:
    raise UserError(f'model.vocab_size={size}: the tokenizer of {workdir} has {rows} tokens')
  model = config.model.copy_and_resolve_references()
  with model.unlocked():
    model.vocab_size = rows if size is None else size
    if config.data.labels and 'num_classes' in model and model.num_classes is None:
      model.num_classes = len(config.data.labels)
    if 'encoder_depth' in model and model.encoder_depth is None:
      model.encoder_depth = model.depth
  origin = _imported_origin(config)
  like = None
  if origin is not None:
    file = origin / 'generation_config.json'
    generation = _json_object(file, file.read_bytes() if file.is_file() else b'{}')
    like = configs.config_like(read_config(origin), generation, model, config.data)
  if like is None or origin is None:
    described, family = configs.config_of(model, config.data.get('converter'), config.data.labels)
    ids, contents = card.tokenizer_files(config, described, tokenizer)
    described |= ids
  else:
    described, family = like
    contents = {p.name: p.read_bytes() for p in sorted(origin.iterdir()) if p.name in _FILES}
    known = Tokenizer.from_str(contents['tokenizer.json'].decode())
    if known.get_vocab() != tokenizer.get_vocab():  # such as special tokens of a task
      contents['tokenizer.json'] = tokenizer.to_str(pretty=True).encode()
  contents['config.json'] = card.as_json(described).encode()
  # AutoTokenizer takes Qwen 2's own tokenizer in place of another one in the folder.
  is_other = like is None and described['model_type'] == 'qwen2'
  reader = 'PreTrainedTokenizerFast' if is_other else 'AutoTokenizer'
  contents['README.md'] = card.model_card(workdir, config, described, step, reader).encode()
  return described, family, contents


def _imported_origin(config: ConfigDict) -> Path | None:
  """Returns the files of the checkpoint from which a run was fine-tuned, at any distance."""
  seen: set[Path] = set()
  while config.warm_start.workdir:
    workdir = Path(config.warm_start.workdir).absolute()
    if workdir in seen or not (workdir / 'config.json').is_file():
      return None
    if (workdir / _KEPT).is_dir():
      return workdir / _KEPT
    seen.add(workdir)
    config = experiment.read_config(workdir)
  return None


def _read_parameter(
  checkpoints: Checkpoints, step: int, path: str, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
  """Returns a parameter of a step in the dtype that it is stored in."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = {path: jax.ShapeDtypeStruct(shape, dtype, sharding=device)}
  found, reason = attempt(checkpoints.restore_subset, step, wanted)
  if found is None:
    raise UserError(f'checkpoint {step} is damaged ({reason}); choose another one by --step')
  return np.asarray(found[path])
