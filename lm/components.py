"""Builds the pure functions of a run from its config."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm.config import resolve, validate
from lm.data.packed_rows import PackedRows, Rows
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.text.tokenizers import end_id, vocabulary_size, word_ids
from lm.types import (
  HOOKS_COLLECTION,
  LOSSES_COLLECTION,
  Apply,
  Array,
  Batch,
  Metric,
  Objective,
  Optimizer,
  Params,
  apply_of,
  refuse_state,
)

Built = TypeVar('Built', Objective, Optimizer)
Shapes = Mapping[str, list[Any]]  # the dtype and the shape of each field of a row
TRAIN_STEP = 'lm.training.train_step:train_step'  # unless objective.train_step names another
NAMED_TREES = 'lm.training.named_trees:trees'  # where a config has `models` or `view`


@dataclasses.dataclass(frozen=True)
class Inference:
  """The functions of a config that evaluation, generation and prediction need."""

  model: nn.Module
  apply: Apply
  mesh: Mesh
  rules: dict[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Trees:
  """The functions of a run with several trees of parameters (lm.training.named_trees).

  Attributes:
    apply: of each tree by name, what the objective receives; that of the model without `models`.
    fresh: key -> boxed parameters by name, of the further models that are initialized.
    abstract: boxed shapes by name, of the further models that are read from workdirs.
    read: tokenizer -> the parameters of these.
    arrange: (key, parameters of the model, those of further models) -> (trained, frozen).
    join: (trained, frozen) -> what the objective receives.
    main: (trained, frozen) -> parameters of the model; None if `trained` is that.
  """

  apply: Any
  fresh: Callable[[Array], dict[str, Params]]
  abstract: dict[str, Params]
  read: Callable[[tokenizers.Tokenizer], dict[str, Params]]
  arrange: Callable[[Array, Params, dict[str, Params]], tuple[Params, Params]]
  join: Callable[[Params, Params], Any]
  main: Callable[[Params, Params], Params] | None


@dataclasses.dataclass(frozen=True)
class Components(Inference):
  """The functions of a config: those of `Inference`, and those that train."""

  init: Callable[[Array], Params]  # key -> parameters, boxed with their logical axes
  objective: Objective
  optimizer: Optimizer
  train_step: Callable[..., Any]  # (components, seed, microbatches) -> ((state, batch) -> ...)
  trees: Trees | None = None  # None for the parameters of the model alone


def build_components(config: ConfigDict, vocab_size: int, devices=None) -> Components:
  """Returns the functions of a config for a tokenizer with ids below `vocab_size`.

  Raises:
    UserError: a value of the config is wrong, or two do not fit together.
  """
  validate.validate_config(config)
  mesh = meshes.make_mesh({k: v for k, v in config.mesh.items() if k != 'rules'}, devices)
  rules = meshes.logical_axis_rules(config.mesh.rules)
  module = model(config, vocab_size)
  objective = _built(_without_train_step(config.objective), 'objective', Objective)
  path = config.objective.get('train_step', TRAIN_STEP)
  train_step = resolve.resolve(path, 'objective.train_step')
  optimizer = _built(config.optim, 'optim', Optimizer)
  if config.batch_size % config.microbatches:
    raise UserError(
      f'microbatches={config.microbatches} does not divide batch_size={config.batch_size}'
    )
  if not objective.microbatched and config.microbatches > 1:
    raise UserError(
      f'microbatches={config.microbatches} must be 1, because the samples of '
      f'{config.objective.fn!r} are shared by the entire batch; lower batch_size instead'
    )
  meshes.check_batch(config.batch_size // config.microbatches, mesh, rules, 'batch_size')
  meshes.check_batch(config.eval.batch_size, mesh, rules, 'eval.batch_size')
  apply = meshes.with_mesh(apply_of(module), mesh, rules)
  init = init_of(module, config.data.seq_len)
  built = Components(module, apply, mesh, rules, init, objective, optimizer, train_step)
  if config.models or config.view:
    trees = resolve.resolve(NAMED_TREES, 'models')(config, built, vocab_size)
    built = dataclasses.replace(built, trees=trees)
  return built


def _without_train_step(objective: ConfigDict) -> ConfigDict:
  """Returns the section `objective` without `train_step`, which is no argument of its function."""
  return ConfigDict({key: value for key, value in objective.items() if key != 'train_step'})


def with_row(functions: Components, config: ConfigDict, row: Shapes) -> Components:
  """Returns the functions, whose parameters are initialized from a row of the training data.

  Raises:
    UserError: the row is longer than the model's context.
  """
  check_length(config, row, 'data.transforms')
  init = init_of(functions.model, config.data.seq_len, row)
  return dataclasses.replace(functions, init=init)


def check_length(config: ConfigDict, row: Shapes, key: str) -> None:
  """Raises UserError if transforms, those of the config's `key`, make rows above model.context."""
  context = config.model.context
  for name in ('inputs', 'source') if 'encoder_depth' in config.model else ('inputs',):
    length = row[name][1] if name in row else 0
    if length > context:
      raise UserError(
        f'{key} makes rows of {length} {name}, longer than model.context={context}; reduce '
        'data.seq_len, or raise model.context'
      )


def pass_corpus(
  functions: Components,
  config: ConfigDict,
  rows: Rows,
  tokenizer: tokenizers.Tokenizer,
) -> Components:
  """Returns the functions, with an objective that knows the corpus.

  It receives `counts`, those of words, or `corpus`, a pair: all tokens, (tokens,), and the end of
  each document in them, (documents,).

  Raises:
    UserError: the objective takes one of them, and the rows are not text, have fewer than two
      words, or come from several sources.
  """
  section = _without_train_step(config.objective)
  builder = resolve.build_section(section, 'objective')
  asked = {'counts', 'corpus'} & inspect.signature(builder).parameters.keys()
  if not asked:
    return functions
  if any(s.get('task', config.data.task) for s in config.data.mixture.values() or [config.data]):
    raise UserError(
      f'objective.fn={config.objective.fn!r} needs words of text: leave data.task empty'
    )
  if 'corpus' in asked:
    if not isinstance(rows, PackedRows):
      raise UserError(f'objective.fn={config.objective.fn!r} needs one source: no data.mixture')
    objective = _built(section, 'objective', Objective, corpus=(rows.stream, rows.ends))
    return dataclasses.replace(functions, objective=objective)
  occurrences = rows.counts(vocabulary_size(tokenizer))  # type: ignore[attr-defined]
  words = list(word_ids(tokenizer).values())
  counts = np.zeros_like(occurrences)
  counts[words] = occurrences[words]
  if (distinct := np.count_nonzero(counts)) < 2:
    min_count = config.data.tokenizer.get('min_count')
    remedy = 'lower data.tokenizer.min_count, or ' if min_count else ''
    total = occurrences.sum() - occurrences[end_id(tokenizer)]  # unknown words included
    raise UserError(
      f'data.source={config.data.source!r}: {counts.sum():,} of {total:,} words are in the '
      f'vocabulary (data.tokenizer.min_count={min_count}), {distinct} distinct, and two are '
      f'needed; {remedy}take more text'
    )
  objective = _built(section, 'objective', Objective, counts=counts)
  return dataclasses.replace(functions, objective=objective)


def inference(config: ConfigDict, model: nn.Module, apply: Apply, mesh: Mesh) -> Inference:
  """Returns the functions that evaluate a model on a mesh, without objective and optimizer.

  Raises:
    UserError: `eval.batch_size` does not divide over the mesh.
  """
  rules = meshes.logical_axis_rules(config.mesh.rules)
  meshes.check_batch(config.eval.batch_size, mesh, rules, 'eval.batch_size')
  return Inference(model, meshes.with_mesh(apply, mesh, rules), mesh, rules)


def _built(section: ConfigDict, key: str, kind: type[Built], **arguments: Any) -> Built:
  """Returns the result of a section's function, which must be an instance of `kind`.

  Raises:
    UserError: the section has keys that are not arguments of the function, or the type differs.
  """
  fn = resolve.resolve(section.get('fn'), f'{key}.fn')
  parameters = inspect.signature(fn).parameters
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  unknown = [name for name in section if name != 'fn' and name not in parameters and not takes_any]
  expected = f'a function that returns {kind.__module__}.{kind.__name__}'
  if kind is Optimizer:
    expected += '(transformation, schedule) and takes learning_rate, schedule, decay_steps'
  if len(unknown) > 1 or (kind is Optimizer and unknown == ['decay_steps']):
    raise UserError(
      f'{key}.fn={section.fn!r} takes no {", ".join(unknown)}; it takes {", ".join(parameters)}. '
      'A section keeps the keys of its previous function unless it is replaced, as by '
      f"config.{key} = ConfigDict({{'fn': ..., ...}}); fn must name {expected}"
    )
  result = resolve.call(resolve.build_section(section, key), key, **arguments)
  if not isinstance(result, kind):
    raise UserError(
      f'{key}.fn={section.fn!r} returns {type(result).__name__}; it must name {expected}'
    )
  return result


def model(config: ConfigDict, vocab_size: int) -> nn.Module:
  """Returns the model of a config.

  Raises:
    UserError: its vocabulary is smaller than the tokenizer's, its number of classes is not that of
      data.labels, rows are longer than its context, or its sizes do not fit together.
  """
  section = dict(config.model)
  if section['vocab_size'] is None:
    section['vocab_size'] = vocab_size
  if section['vocab_size'] < vocab_size:  # pretrained models may have more rows than tokens
    raise UserError(
      f'model.vocab_size={section["vocab_size"]}, but the tokenizer has {vocab_size} entries; '
      "leave it empty to take the tokenizer's (model.vocab_multiple pads the table)"
    )
  labels = len(config.data.labels)
  if labels and section.get('num_classes', labels) is None:
    section['num_classes'] = labels
  if labels and section.get('num_classes') not in (None, labels):
    raise UserError(
      f'model.num_classes={section["num_classes"]}, but data.labels names {labels}; leave it empty'
    )
  for key in ('seq_len', 'source_len') if 'encoder_depth' in section else ('seq_len',):
    if config.data[key] > section['context']:
      raise UserError(
        f'data.{key}={config.data[key]} is longer than model.context={section["context"]}'
      )
  module = resolve.call(resolve.build_section(section, 'model'), 'model')
  if not isinstance(module, nn.Module):
    raise UserError(
      f'model.fn={section["fn"]!r} returns {type(module).__name__}, not a flax.linen.Module'
    )
  return module


def metrics(config: ConfigDict, name: str) -> list[Metric]:
  """Returns the metrics of the evaluation set `name`.

  Raises:
    UserError: a path returns no Metric.
  """
  key, paths = f'eval.sets.{name}.metrics', config.eval.sets[name].metrics
  values = [resolve.call(resolve.resolve(path, key), key) for path in paths]
  for path, metric in zip(paths, values, strict=True):
    if not isinstance(metric, Metric):
      raise UserError(
        f'{key}={path!r} returns no lm.types.Metric; a function that compares outputs with '
        f'references belongs in eval.sets.{name}.scores'
      )
  return values


def abstract_row(row: Mapping[str, np.ndarray]) -> Shapes:
  """Returns the dtype and the shape of each field of a row, as JSON values."""
  return {name: [x.dtype.name, *x.shape] for name, x in sorted(row.items())}


def example_batch(context: int, row: Shapes | None = None) -> Batch:
  """Returns a batch of one row of zeros, from which a model is initialized; see `init_of`."""
  target = ('inputs', 'targets', 'segments', 'positions')
  source = ('source', 'source_segments', 'source_positions')
  known: Shapes = {name: ['int32', context] for name in (*target, *source)}
  shapes = row or {**known, 'examples': ['int32', 1]}
  return {name: jnp.zeros((1, *shape), dtype) for name, (dtype, *shape) in shapes.items()}


def init_of(model: nn.Module, context: int, row: Shapes | None = None) -> Callable[[Array], Params]:
  """Returns `key -> parameters`, boxed with their partitioning metadata.

  Args:
    model: the model.
    context: the length of rows of the fields that all models know.
    row: the fields of a row of the training data; None or {} for those fields alone.

  Raises:
    UserError: when traced, the model has variables besides parameters, or reads a field that no row
      has.
  """

  def init(key: Array) -> Params:
    mutable = nn.DenyList((HOOKS_COLLECTION, LOSSES_COLLECTION))
    variables = model.init({'params': key}, _Row(example_batch(context, row)), mutable=mutable)
    refuse_state({name: x for name, x in variables.items() if name != 'params' and x})
    return variables['params']

  return init


class _Row(dict[str, Array]):
  """A batch whose missing fields are errors in one line."""

  def __missing__(self, name: str) -> Array:
    raise UserError(
      f'model: it reads batch[{name!r}], and rows have {", ".join(self)}; a converter or a '
      'transform may add it'
    )


def flops_per_token(config: ConfigDict, model: nn.Module, params: Params) -> float | None:
  """Returns the training FLOPs of a token of a full row, or None if they are not known."""
  flops = getattr(model, 'flops_per_token', None)
  # An encoder-decoder counts sources and targets as equally long, and denoising has few targets.
  if flops is None or (config.data.task is None and hasattr(model, 'encoder_depth')):
    return None
  return flops(params, config.data.seq_len)


def parameter_count(params: Params) -> int:
  """Returns the count of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
