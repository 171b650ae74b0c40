"""Opens a workdir, for notebooks and for programs that read a trained model."""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm import components
from lm.data import cache
from lm.errors import UserError, first_line
from lm.nn.embedding import check_types
from lm.parallel import host, multihost
from lm.parallel import mesh as meshes
from lm.text.tokenizers import vocabulary_size
from lm.types import Apply, Array, Batch, Params, apply_of
from lm.workdir import experiment, files, sources, untrusted
from lm.workdir.checkpoints import Checkpoints, attempt
from lm.workdir.run_data import best_step


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained model before its parameters are read."""

  workdir: pathlib.Path
  config: ConfigDict
  tokenizer: tokenizers.Tokenizer
  model: nn.Module
  boxed: Params  # abstract, in the boxes of `nn.with_partitioning`
  _: dataclasses.KW_ONLY
  trusted: bool = True


@dataclasses.dataclass(frozen=True)
class Loaded(Run):
  """A trained model with its parameters, config and tokenizer."""

  params: Params
  apply: Apply
  step: int
  steps: tuple[int, ...] = ()  # of all checkpoints in an average or an ensemble
  # The workdir, step and reason of each checkpoint that was chosen by default.
  notes: tuple[str, ...] = ()
  mesh: Mesh | None = None  # of the parameters; None for one device

  def modules(self) -> contextlib.AbstractContextManager[None]:
    """Returns a context manager that resolves import paths of the config to code in source/.

    The code of a workdir that is not trusted is never imported.
    """
    if not self.trusted:
      return contextlib.nullcontext()
    return sources.workdir_modules(self.workdir / 'source')

  def logits(self, ids: Any, mask: Any = None, decoder_ids: Any = None, types: Any = None) -> Array:
    """Returns the logits of a batch, jitted: (B, T, V), or those of the model's head.

    Args:
      ids: (B, T) token ids, or those of the encoder input of an encoder-decoder.
      mask: (B, T), 0 on padding after a row; None without padding.
      decoder_ids: (B, T) input ids of the decoder of an encoder-decoder.
      types: (B, T) token types of BERT and its relatives; None for zeros.

    Raises:
      UserError: the arrays have other shapes, the model has no such token or type, rows are longer
        than its context, padding precedes tokens, or `decoder_ids` or `types` are not of the model.
    """
    reads_source = getattr(self.model, 'reads_source', False)
    if reads_source != (decoder_ids is not None):
      raise UserError(
        f'decoder_ids: model.fn={self.config.model.fn!r} '
        + ('needs them' if reads_source else 'has no decoder beside an encoder')
      )
    if types is not None and decoder_ids is not None:
      raise UserError('types: they are of an encoder without a decoder')
    _check_ids(self.model, 'ids', ids)
    _check_mask(mask, np.shape(ids))
    if decoder_ids is not None:
      _check_ids(self.model, 'decoder_ids', decoder_ids)

    def rows(prefix: str, ids: Any, mask: Any) -> Batch:
      ids_BT = jnp.asarray(ids, jnp.int32)
      segments_BT = jnp.ones_like(ids_BT) if mask is None else jnp.asarray(mask, jnp.int32)
      positions_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1], dtype=jnp.int32), ids_BT.shape)
      return {f'{prefix}segments': segments_BT, f'{prefix}positions': positions_BT}

    if decoder_ids is None:
      check_types(types, len(self.params.get('encoder', {}).get('types', ())))
      batch = {'inputs': ids, **rows('', ids, mask)} | ({} if types is None else {'types': types})
    else:
      batch = {'source': ids, **rows('source_', ids, mask)}
      batch |= {'inputs': decoder_ids, **rows('', decoder_ids, None)}
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    return _logits(
      self.apply, self.params, batch | {'examples': jnp.ones((len(ids), 1), jnp.int32)}
    )


def longest_row(model: nn.Module) -> int | None:
  """Returns the most tokens that a model reads in a row, None if there is no limit."""
  return None if getattr(model, 'reads_on', True) else getattr(model, 'context', None)


def _check_ids(model: nn.Module, name: str, ids: Any) -> None:
  """Raises UserError for ids whose embeddings would be NaN or those of other tokens."""
  if isinstance(ids, jax.core.Tracer):
    return  # its values are not known
  try:
    array = np.asarray(ids)
  except ValueError as e:  # rows of different lengths
    raise UserError(f'{name}: {first_line(e)}; pad the rows to one length, and give a mask') from e
  if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
    raise UserError(f'{name}: they are {array.dtype}{array.shape}, not integers of (B, T)')
  size, context = getattr(model, 'vocab_size', None), longest_row(model)
  for found in (array.min(), array.max()):
    if size is not None and not 0 <= found < size:
      raise UserError(f'{name}: {found} is no token of the model, which has {size} from 0 on')
  if context is not None and array.shape[1] > context:
    raise UserError(f'{name}: rows have {array.shape[1]} tokens, and the model reads {context}')


def _check_mask(mask: Any, shape: tuple[int, ...]) -> None:
  """Raises UserError for a mask of another shape, or with padding before tokens."""
  if mask is None or isinstance(mask, jax.core.Tracer):
    return
  array = np.asarray(mask)
  if array.shape != shape:
    raise UserError(f'mask: its shape is {array.shape}, and that of the ids {shape}')
  if np.any((array[:, 1:] != 0) & (array[:, :-1] == 0)):
    raise UserError('mask: 0 comes before a token; padding has to follow the tokens of a row')


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Apply, params: Params, batch: Batch) -> Array:
  output = apply(params, batch)
  return output.head(output.hidden)


def load(
  workdir: str | pathlib.Path,
  step: int | None = None,
  mesh: Mesh | None = None,
  average: int = 1,
  trusted: bool = True,
) -> Loaded:
  """Opens a workdir at a step, by default the best step.

  Import paths in the config resolve to the code in the workdir's source/, also after the call. The
  exception is a module of source/ whose name is already taken, for example by a module of another
  run. A warning is then printed, and the paths resolve to source/ only within
  `with loaded.modules():`.

  Args:
    workdir: the run's directory.
    step: of the checkpoint. None for the best by `checkpoint.monitor`, or for the newest intact
      checkpoint if none has a score.
    mesh: the mesh over which the parameters are sharded, as the config's `mesh.rules` say; see
      `lm.parallel.mesh.make_mesh` and `spread`. None for the first device of this process.
    average: N > 1 gives the mean of the newest N checkpoints (Vaswani et al. 2017, 6.1), whatever
      `step` is.
    trusted: whether the code of the workdir may run: its source/, and any function that its config
      names. False for the workdir of a stranger, whose config may only name the functions listed in
      `lm.config.trust`. Files that its config names are not read.

  Raises:
    UserError: the run or the checkpoint is missing or damaged, there are fewer checkpoints than
      `average`, or the parameters do not divide over the mesh. Without trust, the model needs a
      function that is not listed, a value is out of range, or a link leads out of the workdir.
  """
  run = open_run(workdir, trusted)
  return restore(run, step, mesh, meshes.logical_axis_rules(run.config.mesh.rules), average)


def open_run(workdir: str | pathlib.Path, trusted: bool = True) -> Run:
  """Opens a workdir without reading parameters; see `load`.

  Raises:
    UserError: there is no run; see `load`.
  """
  workdir = files.workdir(workdir)
  config = experiment.read_config(workdir) if trusted else untrusted.read_config(workdir)
  host.enable_compilation_cache(cache.directory(config.data.cache))
  if not trusted:
    return _open_untrusted(workdir, config)
  tokenizer = experiment.read_tokenizer(workdir)
  with sources.import_source(workdir / 'source') as clashes:
    model, boxed = _model(config, tokenizer, workdir)
  if clashes:
    print(
      f'warning: {workdir} has its own {", ".join(clashes)}, but other modules of these names are '
      'imported. The model uses the code of the workdir; other functions of its config come from '
      'the imported modules, except within `with loaded.modules():`',
      file=sys.stderr,
    )
  return Run(workdir, config, tokenizer, model, boxed)


def _open_untrusted(workdir: pathlib.Path, config: ConfigDict) -> Run:
  """Returns a run whose code is not imported; any failure of its model is a UserError."""
  tokenizer = untrusted.read_tokenizer(workdir)
  with untrusted.one_line_errors(workdir):
    meshes.logical_axis_rules(config.mesh.rules)
    model, boxed = _model(config, tokenizer, workdir)
  return Run(workdir, config, tokenizer, model, boxed, trusted=False)


def _model(
  config: ConfigDict, tokenizer: tokenizers.Tokenizer, workdir: pathlib.Path
) -> tuple[nn.Module, Params]:
  """Returns the model of a config and its abstract parameters, boxed."""
  model = components.model(config, vocabulary_size(tokenizer))
  init = components.init_of(model, config.data.seq_len, experiment.read_row(workdir))
  return model, jax.eval_shape(init, jax.random.key(0))


def restore(
  run: Run,
  step: int | None,
  mesh: Mesh | None,
  rules: Mapping[str, tuple[str, ...]],
  average: int = 1,
) -> Loaded:
  """Returns a run with the parameters of a step; each device reads its shards; see `load`."""
  workdir = run.workdir
  abstract = _abstract_params(run.boxed, mesh, rules)
  with contextlib.closing(Checkpoints(workdir)) as checkpoints:
    if average > 1:
      params, steps = _averaged(checkpoints, abstract, workdir, average)
      why = f'the mean of the newest {average}'
    elif step is not None:
      params, at = restore_params(checkpoints, abstract, workdir, [step])
      steps, why = (at,), ''
    else:
      best, why = best_step(workdir, checkpoints.steps(), run.config.checkpoint.monitor)
      order = sorted(checkpoints.steps(), key=lambda s: (s == best, s), reverse=True)
      params, at = restore_params(checkpoints, abstract, workdir, order)
      steps, why = (at,), why if at == order[0] else 'the newest intact one'
  notes = (f'{workdir} at step {", ".join(map(str, steps))}, {why}',) if why else ()
  return Loaded(
    **vars(run),
    params=params,
    apply=apply_of(run.model),
    step=steps[-1],
    steps=steps,
    notes=notes,
    mesh=mesh,
  )


def _abstract_params(
  boxed: Params, mesh: Mesh | None, rules: Mapping[str, tuple[str, ...]]
) -> Params:
  """Returns the abstract parameters with their shardings on this machine."""
  shapes = nn.unbox(boxed)
  if mesh is None:
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: first, shapes)
  else:
    shardings = meshes.shardings(boxed, mesh, rules)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )


def _averaged(
  checkpoints: Checkpoints, abstract: Params, workdir: pathlib.Path, count: int
) -> tuple[Params, tuple[int, ...]]:
  """Returns the mean of the parameters of the newest `count` checkpoints, and their steps.

  Raises:
    UserError: there are fewer checkpoints, or one of them is damaged.
  """
  steps = tuple(checkpoints.steps())
  if count > len(steps):
    kept = ', '.join(map(str, steps)) if steps else 'none'
    raise UserError(
      f'--average_checkpoints={count}: {workdir} has {len(steps)} checkpoints ({kept}); '
      'checkpoint.keep_last says how many a run keeps'
    )
  # The sum has the shardings of the parameters. It is float32; parameters may have fewer bits.
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  on_mesh = functools.partial(jax.jit, out_shardings=shardings)
  widen = on_mesh(lambda params: jax.tree.map(lambda x: x.astype(jnp.float32), params))
  add = on_mesh(lambda total, params: jax.tree.map(jnp.add, total, params), donate_argnums=0)
  mean = on_mesh(
    lambda total: jax.tree.map(lambda x, y: (x / count).astype(y.dtype), total, abstract)
  )
  total = None
  try:
    for step in steps[-count:]:
      params, _ = restore_params(checkpoints, abstract, workdir, [step])
      total = add(total, params) if total is not None else widen(params)
  except UserError as e:
    raise UserError(f'--average_checkpoints={count}: {e}') from e
  return mean(total), steps[-count:]


def restore_params(
  checkpoints: Checkpoints, abstract: Params, workdir: pathlib.Path, order: Sequence[int]
) -> tuple[Params, int]:
  """Returns the parameters of the first intact step in `order`, and that step.

  Raises:
    UserError: a step is missing or has other shapes, or all steps are damaged.
  """
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f'--workdir={workdir}: no checkpoint there')
  if missing := [step for step in order if step not in steps]:
    raise UserError(
      f'--step={missing[0]}: {workdir} has checkpoints at {", ".join(map(str, steps))}'
    )
  errors = []
  for step in order:
    params, reason = attempt(checkpoints.restore_params, step, abstract)
    if params is not None:
      return params, step
    errors.append(f'{step} ({reason})')
    if len(order) > 1 and multihost.is_primary():
      print(f'warning: checkpoint {step} is damaged ({reason})', file=sys.stderr)
  if len(order) == 1 < len(steps):
    others = ', '.join(str(s) for s in steps if s not in order)
    raise UserError(
      f'--step={order[0]}: damaged checkpoint: {errors[0]}; {workdir} also has checkpoints at '
      f'{others}'
    )
  raise UserError(f'--workdir={workdir}: no intact checkpoint; damaged: {", ".join(errors)}')
