"""From a config to the pure functions of a run."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm.config import resolve, validate
from lm.data.batches import AnyRows
from lm.data.rows import FeatureRows
from lm.errors import UserError
from lm.optim.optimizers import Optimizer
from lm.parallel import mesh as meshes
from lm.text.tokenizers import end_id, vocabulary_size
from lm.text.vocabulary import words_of
from lm.types import (
  HOOKS_COLLECTION,
  Apply,
  Array,
  Metric,
  Objective,
  Params,
  apply_of,
  refuse_state,
)

Built = TypeVar('Built', Objective, Optimizer)
TRAIN_STEP = 'lm.training.train_step:train_step'  # unless objective.train_step names another


class Inference(NamedTuple):
  """What evaluation, generation and prediction need of a config."""

  model: nn.Module
  apply: Apply
  mesh: Mesh
  rules: dict[str, tuple[str, ...]]


class Components(NamedTuple):
  """What an experiment's config says, as functions: those of `Inference` and those that train."""

  model: nn.Module
  apply: Apply
  init: Callable[[Array], Params]  # key -> parameters, boxed with their logical axes
  objective: Objective
  optimizer: Optimizer
  mesh: Mesh
  rules: dict[str, tuple[str, ...]]
  train_step: Callable[..., Any]  # (components, seed, microbatches) -> ((state, batch) -> ...)


def build_components(config: ConfigDict, vocab_size: int, devices=None) -> Components:
  """Returns the functions of a config for a tokenizer with ids below `vocab_size`.

  Raises:
    UserError: a value of the config is wrong, or two do not fit together.
  """
  validate.validate_config(config)
  mesh_config = {k: v for k, v in config.mesh.items() if k != 'rules'}
  mesh = meshes.make_mesh(mesh_config, devices)
  rules = meshes.logical_axis_rules(config.mesh.rules)
  model_fn = model(config, vocab_size)
  objective = _built(_without_step(config.objective), 'objective', Objective)
  path = config.objective.get('train_step', TRAIN_STEP)
  train_step = resolve.resolve(path, 'objective.train_step')
  optimizer = _built(config.optim, 'optim', Optimizer)
  if config.batch_size % config.microbatches:
    raise UserError(
      f'microbatches={config.microbatches} does not divide batch_size={config.batch_size}'
    )
  if not objective.microbatched and config.microbatches > 1:
    raise UserError(
      f'microbatches={config.microbatches}: what {config.objective.fn!r} draws is shared by the '
      'whole batch; it must be 1, and batch_size smaller'
    )
  meshes.check_batch(config.batch_size // config.microbatches, mesh, rules, 'batch_size')
  meshes.check_batch(config.eval.batch_size, mesh, rules, 'eval.batch_size')
  apply = meshes.with_mesh(apply_of(model_fn), mesh, rules)
  init = init_of(model_fn, config.data.context)
  return Components(model_fn, apply, init, objective, optimizer, mesh, rules, train_step)


def _without_step(objective: ConfigDict) -> ConfigDict:
  """Returns the section `objective` without the key that is no argument of its function."""
  return ConfigDict({key: value for key, value in objective.items() if key != 'train_step'})


def pass_word_counts(
  functions: Components,
  config: ConfigDict,
  rows: AnyRows,
  tokenizer: tokenizers.Tokenizer,
) -> Components:
  """Returns functions whose objective knows how often words occur, where it asks for `counts`.

  Raises:
    UserError: it does, and the rows are not of text.
  """
  section = _without_step(config.objective)
  objective = resolve.build_section(section, 'objective')
  if 'counts' not in inspect.signature(objective).parameters:
    return functions
  if isinstance(rows, FeatureRows):
    raise UserError(
      f'objective.fn={config.objective.fn!r} goes by words of text: leave data.task empty'
    )
  occurrences = rows.counts(vocabulary_size(tokenizer))
  words = list(words_of(tokenizer).values())
  counts = np.zeros_like(occurrences)
  counts[words] = occurrences[words]
  if np.count_nonzero(counts) < 2:
    least = config.data.tokenizer.get('min_count')
    where = '' if least is None else f' with data.tokenizer.min_count={least}'
    lower = '' if least is None else 'lower it, or '
    before = occurrences.sum() - occurrences[end_id(tokenizer)]  # those that became unknown too
    raise UserError(
      f'data.source={config.data.source!r}: of {before:,} words of text {counts.sum():,} are left'
      f'{where}, {np.count_nonzero(counts)} different ones, and two are needed; '
      f'{lower}take more text'
    )
  return functions._replace(objective=_built(section, 'objective', Objective, counts=counts))


def inference(config: ConfigDict, model: nn.Module, apply: Apply, mesh: Mesh) -> Inference:
  """Returns what evaluates a model on a mesh; the objective and the optimizer are not needed.

  Raises:
    UserError: `eval.batch_size` does not divide over the mesh.
  """
  rules = meshes.logical_axis_rules(config.mesh.rules)
  meshes.check_batch(config.eval.batch_size, mesh, rules, 'eval.batch_size')
  return Inference(model, meshes.with_mesh(apply, mesh, rules), mesh, rules)


def _built(section: ConfigDict, key: str, kind: type[Built], **arguments: Any) -> Built:
  """Returns what the function of a section makes.

  Raises:
    UserError: the section has keys that the function does not take, or it makes something else.
  """
  fn = resolve.resolve(section.get('fn'), f'{key}.fn')
  parameters = inspect.signature(fn).parameters
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  left = [name for name in section if name != 'fn' and name not in parameters and not takes_any]
  whole = f'a function of yours that returns {kind.__module__}.{kind.__name__}'
  if kind is Optimizer:
    whole += '(transformation, schedule) and takes learning_rate, schedule, steps, ...'
  if len(left) > 1 or (left and kind is Optimizer and left == ['steps']):
    raise UserError(
      f'{key}.fn={section.fn!r} takes no {", ".join(left)}; it takes {", ".join(parameters)}. Keys '
      f'of the function before stay unless the section is replaced, config.{key} = '
      f"ConfigDict({{'fn': ..., ...}}); fn names {whole}"
    )
  made = resolve.call(resolve.build_section(section, key), key, **arguments)
  if not isinstance(made, kind):
    raise UserError(f'{key}.fn={section.fn!r} makes {type(made).__name__}; it names {whole}')
  return made


def model(config: ConfigDict, vocab_size: int) -> nn.Module:
  """Returns the model of a config.

  Raises:
    UserError: its vocabulary is not the tokenizer's, its classes are not those of data.labels, or
      the rows are longer than its context.
  """
  section = dict(config.model)
  if section['vocab_size'] is None:
    section['vocab_size'] = vocab_size
  if section['vocab_size'] != vocab_size:
    raise UserError(
      f'model.vocab_size={section["vocab_size"]}, but the tokenizer has {vocab_size} entries; '
      "leave it empty to take the tokenizer's (model.vocab_multiple pads the table)"
    )
  if 'num_classes' in section and section['num_classes'] is None and config.data.labels:
    section['num_classes'] = len(config.data.labels)
  labels = len(config.data.labels)
  if labels and section.get('num_classes') not in (None, labels):
    raise UserError(
      f'model.num_classes={section["num_classes"]}, but data.labels names {labels}; leave it empty'
    )
  rows = ('context', 'source_context') if 'encoder_depth' in section else ('context',)
  for key in rows:
    if config.data[key] > section['context']:
      raise UserError(
        f'data.{key}={config.data[key]} is longer than model.context={section["context"]}'
      )
  made = resolve.call(resolve.build_section(section, 'model'), 'model')
  if not isinstance(made, nn.Module):
    raise UserError(
      f'model.fn={section["fn"]!r} makes {type(made).__name__}, not a flax.linen.Module'
    )
  return made


def metrics(config: ConfigDict, name: str) -> list[Metric]:
  """Returns the metrics of the evaluation set `name`.

  Raises:
    UserError: one makes no Metric.
  """
  key = f'eval.sets.{name}.metrics'
  found = [resolve.call(resolve.resolve(path, key), key) for path in config.eval.sets[name].metrics]
  for path, metric in zip(config.eval.sets[name].metrics, found, strict=True):
    if not isinstance(metric, Metric):
      raise UserError(
        f'{key}={path!r} makes no lm.types.Metric; a function that compares outputs with '
        f'references belongs in eval.sets.{name}.scores'
      )
  return found


def init_of(model: nn.Module, context: int) -> Callable[[Array], Params]:
  """Returns `key -> parameters` with boxes of partitioning metadata around them.

  Raises:
    UserError: later, where it is traced: the model has state, or losses of its own layers.
  """

  def init(key: Array) -> Params:
    row = jnp.zeros((1, context), jnp.int32)
    along = ('inputs', 'targets', 'segments', 'positions')
    source = ('source', 'source_segments', 'source_positions')
    batch = dict.fromkeys((*along, *source), row) | {'examples': row[:, :1]}
    mutable = nn.DenyList((HOOKS_COLLECTION,))
    output, variables = model.init_with_output({'params': key}, batch, mutable=mutable)
    refuse_state(output, {name: x for name, x in variables.items() if name != 'params' and x})
    return variables['params']

  return init


def parameter_count(params: Params) -> int:
  """Returns how many numbers the model learns."""
  return sum(x.size for x in jax.tree.leaves(params))
