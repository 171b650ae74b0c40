"""Several trees of parameters: further models by name, and views of the parameters of the model.

`models` of a config names further models, such as a teacher or a generator. The objective then gets
`apply` and `params` as dicts, in which the model of the config is 'model'. Each of the others is
frozen or trained, and read from a workdir or initialized; it may share parameters with the model,
such as an embedding table. `view` names parameters of the model that
are computed from those that are trained (lm.types.View).

Frozen trees are arguments of the train step. They have no optimizer state, and checkpoints do not
have them: a resumed run reads them again, from the same step of their workdirs.
"""

import contextlib
import functools
import hashlib
import pathlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import tokenizers
from ml_collections import ConfigDict

from lm import components
from lm.components import Components, Trees
from lm.config import resolve
from lm.config.base import another_model
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.parallel import multihost
from lm.text.tokenizers import vocabulary_size
from lm.types import MAIN, Apply, Array, Params, View, apply_of
from lm.workdir import experiment, files, load
from lm.workdir.checkpoints import DIGESTS, Checkpoints, checkpoints_folder
from lm.workdir.load import Run
from lm.workdir.run_data import best_step

_KEY = jax.eval_shape(lambda: jax.random.key(0))  # the shape of a key


class _Model(NamedTuple):
  frozen: bool
  apply: Apply
  init: Callable[[Array], Params]  # boxed parameters
  run: Run | None  # that has the parameters
  step: int | None  # of its checkpoint
  shared: tuple[str, ...] = ()  # parameters of the model of the config


def pinned(config: ConfigDict, workdir: pathlib.Path) -> tuple[ConfigDict, dict[str, str]]:
  """Returns a config with the step of each checkpoint that a resumed run reads again, and digests.

  A step that is not given is that of the run's first start, which config.json has. At the first
  start it is the best one. The digest of each checkpoint, by its key, shows whether a resumed run
  reads what the run began with: `experiment.read_frozen` has those of the first start.

  Args:
    config: of the run, with `models` or `view`.
    workdir: of the run.

  Raises:
    UserError: there is no checkpoint in the workdir of a model, or another one than at the first
      start.
  """
  config = config.copy_and_resolve_references()
  saved = experiment.read_config(workdir) if (workdir / 'config.json').is_file() else ConfigDict()
  digests: dict[str, str] = {}
  sections = [('models', name) for name in config.models]
  for parent, name in sections + ([('', 'warm_start')] if config.view else []):
    section, key = (config[parent][name], f'{parent}.{name}') if parent else (config[name], name)
    if not section.workdir:
      continue
    before = (saved.get(parent, {}) if parent else saved).get(name)
    if section.step is None:
      with config.unlocked():
        section.step = before.step if before else _best(section.workdir, f'{key}.workdir')
    digests[key] = _digest(section.workdir, f'{key}.workdir', section.step)
    if digests[key] != experiment.read_frozen(workdir).get(key, digests[key]):
      raise UserError(
        f'{key}.workdir={section.workdir!r}: checkpoint {section.step} is another one than at the '
        'first start of this run; name a copy of that one, or start in a new --workdir'
      )
  return config.lock(), digests


def _digest(name: str, key: str, step: int) -> str:
  folder = checkpoints_folder(_root(name, key)) / str(step) / DIGESTS
  parts = sorted(folder.glob('*.json')) if multihost.is_primary() else []
  content = b''.join(part.read_bytes() for part in parts)
  return multihost.broadcast_from_primary(hashlib.sha256(content).hexdigest() if content else '')


def _best(name: str, key: str) -> int:
  root = _root(name, key)
  with contextlib.closing(Checkpoints(root)) as checkpoints:
    steps = multihost.broadcast_from_primary(checkpoints.steps())
  if not steps:
    raise UserError(f'{key}={name!r}: no checkpoint there')
  best, _ = best_step(root, steps, experiment.read_config(root).checkpoint.monitor)
  return multihost.broadcast_from_primary(steps[-1] if best is None else best)


def _root(name: str, key: str) -> pathlib.Path:
  root = files.workdir(name, key, multihost.process_index_and_count()[0])
  if not (root / 'config.json').is_file():
    raise UserError(f'{key}={name!r}: no run there (config.json is missing)')
  return root


def trees(config: ConfigDict, built: Components, vocab_size: int) -> Trees:
  """Returns the functions of the trees of a config with `models` or `view`.

  Raises:
    UserError: a model has no source or two, or the view is not one.
  """
  models = {name: _model(config, built, name, vocab_size) for name in sorted(config.models)}
  view = None
  if config.view:
    view = resolve.call(resolve.resolve(config.view, 'view'), 'view')
    if not isinstance(view, View):
      raise UserError(
        f'view={config.view!r} returns {type(view).__name__}; it must name a function that returns '
        'lm.types.View(split, merge)'
      )
  trained = [name for name, each in models.items() if not each.frozen]
  apply: Any = built.apply
  if models:
    wrap = functools.partial(meshes.with_mesh, mesh=built.mesh, rules=built.rules)
    apply = {MAIN: built.apply} | {name: wrap(each.apply) for name, each in models.items()}

  def fresh(key: Array) -> dict[str, Params]:
    keys = {name: jax.random.fold_in(key, zlib.crc32(name.encode())) for name in models}
    return {name: x.init(keys[name]) for name, x in models.items() if x.run is None}

  def arrange(key: Array, params: Params, others: dict[str, Params]) -> tuple[Params, Params]:
    frozen = {name: others[name] for name, each in models.items() if each.frozen}
    if view is not None:
      boxed = params
      params, kept = view.split(key, nn.unbox(boxed))
      params, frozen[MAIN] = (_boxed_like(tree, boxed) for tree in (params, kept))
    if trained:
      params = {MAIN: params} | {name: others[name] for name in trained}
    return params, frozen

  def main(params: Params, frozen: Params) -> Params:
    own = params[MAIN] if trained else params
    return own if view is None else view.merge(own, frozen[MAIN])

  def join(params: Params, frozen: Params) -> Any:
    if not models:
      return main(params, frozen)
    own = main(params, frozen)
    joined = {MAIN: own}
    for name, each in models.items():
      tree = (frozen if each.frozen else params)[name]
      joined[name] = {**tree, **{key: own[key] for key in each.shared}}
    return joined

  abstract = {name: each.run.boxed for name, each in models.items() if each.run is not None}
  read = functools.partial(_read, models, built)
  computed = view is not None or trained
  return Trees(apply, fresh, abstract, read, arrange, join, main if computed else None)


def _model(config: ConfigDict, built: Components, name: str, vocab_size: int) -> _Model:
  section, key = config.models[name], f'models.{name}'
  if name == MAIN:
    raise UserError(f'{key}: {MAIN!r} is the name of the model of the config; take another')
  if set(section) != (known := set(another_model())):
    raise UserError(
      f'{key} has the keys {", ".join(sorted(section))}, not {", ".join(sorted(known))}; '
      'lm.config.base.another_model makes such a section'
    )
  if bool(section.workdir) == bool(section.model):
    raise UserError(f'{key}: give either the workdir of a run or a section `model`')
  if section.workdir:
    if section.shared:
      raise UserError(f'{key}.shared={section.shared!r}: a model of a workdir has all parameters')
    run = load.open_run(_root(section.workdir, f'{key}.workdir'))
    _check_reads(run, config, key, vocab_size)
    return _Model(section.frozen, apply_of(run.model), lambda _: run.boxed, run, section.step)
  of_model = config.copy_and_resolve_references()
  with of_model.unlocked():
    of_model.model = section.model
  module = components.model(of_model, vocab_size)
  init = components.init_of(module, config.data.seq_len)
  shared = tuple(section.shared)
  if shared:
    _check_shared(shared, f'{key}.shared', *(jax.eval_shape(f, _KEY) for f in (init, built.init)))
  own = functools.partial(_without, shared, init)
  return _Model(section.frozen, apply_of(module), own, None, None, shared)


def _check_reads(run: Run, config: ConfigDict, key: str, vocab_size: int) -> None:
  """Raises UserError if the model of a workdir cannot read rows of this config."""
  model, where = run.model, f'{key}.workdir={str(run.workdir)!r}'
  if (lacking := vocab_size - vocabulary_size(run.tokenizer)) > 0:
    raise UserError(
      f'{where}: {lacking} tokens of data.tokenizer are not there; set data.tokenizer.fn='
      "'lm.text.tokenizers:existing' with its tokenizer.json"
    )
  context = load.longest_row(model)
  both = getattr(model, 'reads_source', False)
  for name in ('seq_len', 'source_len') if both else ('seq_len',):
    if context is not None and config.data[name] > context:
      raise UserError(f'{where}: it reads {context} tokens; data.{name}={config.data[name]}')


def _without(names: tuple[str, ...], init: Callable[[Array], Params], key: Array) -> Params:
  """Returns initial parameters without some of them."""
  return {name: x for name, x in init(key).items() if name not in names}


def _check_shared(names: tuple[str, ...], key: str, own: Params, main: Params) -> None:
  """Raises UserError unless both trees have equal shapes under each name."""
  for name in names:
    if unknown := [tree for tree in (own, main) if name not in tree]:
      raise UserError(f'{key}: no parameter {name!r} among {", ".join(sorted(unknown[0]))}')
    shapes = [jax.tree.map(lambda x: x.shape, nn.unbox(tree[name])) for tree in (own, main)]
    if shapes[0] != shapes[1]:
      raise UserError(f'{key}: {name!r} has {shapes[0]}, and {shapes[1]} in the model')


def _read(
  models: Mapping[str, _Model], built: Components, tokenizer: tokenizers.Tokenizer
) -> dict[str, Params]:
  """Returns the parameters of the models that have a workdir, on the mesh of the run.

  Raises:
    UserError: a checkpoint is missing or damaged, or its tokens are not those of the run.
  """
  found = {}
  for name, each in models.items():
    if each.run is None:
      continue
    there = each.run.tokenizer
    for i in range(min(vocabulary_size(there), vocabulary_size(tokenizer))):
      old, new = there.id_to_token(i), tokenizer.id_to_token(i)
      if old != new:
        raise UserError(
          f'models.{name}.workdir={str(each.run.workdir)!r}: its token {i} is {old!r}, here it is '
          f"{new!r}; set data.tokenizer.fn='lm.text.tokenizers:existing' with its tokenizer.json"
        )
    try:
      found[name] = load.restore(each.run, each.step, built.mesh, built.rules).params
    except UserError as e:
      raise UserError(f'models.{name}.step={each.step}: {e}') from e
  return found


def _boxed_like(tree: Params, boxed: Params) -> Params:
  """Returns a tree whose leaves have the boxes of the parameters of their path and shape."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(
    boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned)
  )
  boxes = {path: x for path, x in leaves if isinstance(x, nn.Partitioned)}

  def box(path: Any, x: Array) -> Any:
    own = boxes.get(path)
    return own.replace_boxed(x) if own is not None and own.value.shape == x.shape else x

  return jax.tree_util.tree_map_with_path(box, tree)
