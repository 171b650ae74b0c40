"""The train step of every objective: compiled once, on any mesh."""

import functools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from lm.components import Components
from lm.errors import UserError
from lm.parallel import mesh as meshes
from lm.types import MAIN, Apply, Array, Batch, Objective, Output, Params, TrainState

# The name of a metric of shape (L,): for each leaf of the parameters, 1 if its gradient is 0.
ZERO_GRADIENTS = 'zero_gradients'
# The names of the scalar metrics that are not terms of the loss.
OF_THE_STEP = ('gradient_norm', 'learning_rate', 'skipped', 'streak')
# The constants that fold_in takes to derive keys from the key of a step. Without microbatches,
# dropout gets the key of the step itself, and Flax folds in a hash of each module's path.
_DRAW, _PARTS = 1, 2

Metrics = dict[str, Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def check_step(
  train_steps: StepFunction, components: Components, state: TrainState, batch: Mapping[str, Any]
) -> Any:
  """Traces a step without computing anything, so that its errors show at start-up.

  Args:
    train_steps: from `make_train_steps`; the first step uses this trace.
    components: of the run.
    state: abstract.
    batch: the batches of one dispatch, stacked on a first axis; arrays or their shapes.

  Returns:
    The `jax.stages.Traced`, None without jit.

  Raises:
    UserError: from the components of the config.
  """
  if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
    return None
  # Real batches have this sharding; with another one, JAX would trace again.
  rows = meshes.batch_sharding(components.mesh, components.rules, stacked=True)
  shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows) for k, x in batch.items()}
  return train_steps.trace(state, shapes)  # type: ignore[attr-defined]


def init_train_state(
  components: Components, key: Array, read: dict[str, Params] | None = None
) -> tuple[TrainState, TrainState]:
  """Initializes the state on the mesh, sharded from the start.

  Args:
    components: of the run.
    key: of the initial values.
    read: the parameters of further models that come from workdirs; they are donated.

  Returns:
    The state, and the abstract state: shape, dtype and sharding of each leaf.
  """
  abstract, shardings = abstract_state(components)

  def make(key: Array, read: dict[str, Params]) -> TrainState:
    return nn.unbox(_train_state(components, key, components.init(key), read))

  return jax.jit(make, out_shardings=shardings, donate_argnums=1)(key, read or {}), abstract


def init_some(
  components: Components, key: Array, abstract: Params, paths: Collection[str]
) -> dict[str, Array]:
  """Returns the parameters at `paths`, with the values of `init_train_state`.

  The other parameters are not materialized.
  """
  shardings = flatten_dict(jax.tree.map(lambda x: x.sharding, abstract), sep='/')

  def some(key: Array) -> dict[str, Array]:
    params = flatten_dict(nn.unbox(components.init(key)), sep='/')
    return {path: params[path] for path in paths}

  return jax.jit(some, out_shardings={path: shardings[path] for path in paths})(key)


def start_train_state(
  components: Components,
  key: Array,
  params: Params,
  abstract: TrainState,
  read: dict[str, Params] | None = None,
) -> TrainState:
  """Returns the first state of a run from the parameters of its model, which are donated."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract)

  def make(params: Params, read: dict[str, Params]) -> TrainState:
    return nn.unbox(_train_state(components, key, params, read))

  return jax.jit(make, out_shardings=shardings, donate_argnums=(0, 1))(params, read or {})


def abstract_state(components: Components) -> tuple[TrainState, TrainState]:
  """Returns the abstract state and the shardings of its leaves, without computing anything."""
  read = {} if components.trees is None else components.trees.abstract
  boxed = jax.eval_shape(
    lambda k, read: _train_state(components, k, components.init(k), read), jax.random.key(0), read
  )
  named = boxed.replace(opt_state=_boxed_like(boxed.opt_state, boxed.params))
  shardings = meshes.shardings(named, components.mesh, components.rules)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
  )
  return abstract, shardings


def _boxed_like(opt_state: Any, params: Params) -> Any:
  """Returns an optimizer state without the axes of leaves that are no parameter's shape.

  A factored moment has an axis less than its parameter, whose box it is in.
  """

  def is_box(x: Any) -> bool:
    return isinstance(x, nn.Partitioned)

  def known(x: Any) -> Any:
    return x.names, getattr(x.value, 'shape', None)

  shapes = {known(x) for x in jax.tree.leaves(params, is_leaf=is_box) if is_box(x)}
  return jax.tree.map(
    lambda x: x.value if is_box(x) and known(x) not in shapes else x, opt_state, is_leaf=is_box
  )


def abstract_params(components: Components) -> Params:
  """Returns the abstract parameters of the model, whatever is trained."""
  boxed = jax.eval_shape(components.init, jax.random.key(0))
  shardings = meshes.shardings(boxed, components.mesh, components.rules)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings
  )


def evaluated(components: Components) -> Callable[[TrainState], Params] | None:
  """Returns `state -> parameters of the model` for evaluations and programs, jitted.

  None if these are `state.params`.
  """
  trees, average = components.trees, components.optimizer.evaluated
  main = None if trees is None else trees.main
  if main is None and average is None:
    return None

  def params(state: TrainState) -> Params:
    trained = state.params if average is None else average(state.params, state.opt_state)
    return trained if main is None else main(trained, state.frozen)

  shardings = jax.tree.map(lambda x: x.sharding, abstract_params(components))
  return jax.jit(params, out_shardings=shardings)


def _train_state(
  components: Components, key: Array, params: Params, read: dict[str, Params]
) -> TrainState:
  """Returns the first state from the parameters of the model and those of further models."""
  frozen: Params = {}
  if (trees := components.trees) is not None:
    params, frozen = trees.arrange(key, params, {**trees.fresh(key), **read})
  # One buffer each: the state is donated, and a buffer can be donated only once.
  counters = {name: jnp.zeros((), jnp.int32) for name in ('step', 'skipped', 'streak')}
  return TrainState(
    **counters,
    params=params,
    opt_state=components.optimizer.transformation.init(params),
    frozen=frozen,
  )


def for_objective(
  components: Components, frozen: Params
) -> tuple[Any, Callable[[Params], Any] | None]:
  """Returns the `apply` of an objective, and `join`: trained parameters -> those it receives."""
  trees = components.trees
  if trees is None:
    return components.apply, None
  return trees.apply, lambda params: trees.join(params, frozen)


def make_train_step(
  components: Components, seed: int, microbatches: int, state: TrainState
) -> StepFunction:
  """Returns the jitted `(state, batch) -> (state, metrics)`, which donates the old state.

  The new state has the shardings of the old one, which `state` gives.

  A step whose loss or gradient is not finite leaves parameters and optimizer as they were and is
  counted. Metrics are float32 scalars: each term's mean, `gradient_norm`, `learning_rate`,
  `skipped` and `streak`; and ZERO_GRADIENTS, an array. The rate is that of the update: a skipped
  step does not count for its schedule.
  """
  one = components.train_step(components, seed, microbatches)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    return one(state, _sample(components, seed, state.step, batch))

  rows = meshes.batch_sharding(components.mesh, components.rules)
  return _jitted(step, components, state, rows)


def make_train_steps(
  components: Components, seed: int, microbatches: int, state: TrainState
) -> StepFunction:
  """Returns a jitted function like that of `make_train_step`, for several consecutive steps.

  Batches and metrics are stacked on a first axis. The host dispatches all steps at once, because
  a dispatch takes longer than a small step. `objective.sample` runs for all batches together,
  before the first step.
  """
  one = components.train_step(components, seed, microbatches)

  def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
    count = jax.tree.leaves(batches)[0].shape[0]
    sample = functools.partial(_sample, components, seed)
    return jax.lax.scan(one, state, jax.vmap(sample)(state.step + jnp.arange(count), batches))

  rows = meshes.batch_sharding(components.mesh, components.rules, stacked=True)
  return _jitted(steps, components, state, rows)


def _sample(components: Components, seed: int, step: Array, batch: Batch) -> Batch:
  """Returns a batch with the arrays that `objective.sample` adds; steps count from 0."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  sample = components.objective.sample
  return batch if sample is None else sample(batch, draw_key(key))


def _jitted(
  function: StepFunction, components: Components, state: TrainState, rows: NamedSharding
) -> StepFunction:
  shardings = jax.tree.map(lambda x: x.sharding, state)
  replicated = NamedSharding(components.mesh, PartitionSpec())
  return jax.jit(
    function,
    in_shardings=(shardings, rows),
    out_shardings=(shardings, replicated),
    donate_argnums=0,
  )


def train_step(components: Components, seed: int, microbatches: int) -> StepFunction:
  """Returns the default `(state, batch) -> (state, metrics)`, to be jitted.

  `objective.train_step` of a config names this function or another one with its signature.
  """
  transformation = optax.with_extra_args_support(components.optimizer.transformation)
  schedule = components.optimizer.schedule

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    apply, join = for_objective(components, state.frozen)
    grads, terms = gradients(
      components.objective, apply, state.params, batch, key, microbatches, join
    )
    squares = jax.tree.map(lambda g: jnp.sum(jnp.square(g)), grads)
    norm = jnp.sqrt(jax.tree.reduce(operator.add, squares))
    finite = jnp.isfinite(norm) & jnp.isfinite(loss := sum(terms.values()))

    def update(params: Params, opt_state: Any) -> tuple[Params, Any]:
      # Optimizers such as optax.contrib.momo read the loss.
      updates, opt_state = transformation.update(
        grads, opt_state, params, gradient_norm=norm, value=loss
      )
      return optax.apply_updates(params, updates), opt_state

    def keep(params: Params, opt_state: Any) -> tuple[Params, Any]:
      return params, opt_state

    # A branch: `jnp.where` on each leaf would keep the old and the new state in memory.
    params, opt_state = jax.lax.cond(finite, update, keep, state.params, state.opt_state)
    new = TrainState(
      step=state.step + 1,
      skipped=state.skipped + ~finite,
      streak=jnp.where(finite, 0, state.streak + 1),
      params=params,
      opt_state=opt_state,
      frozen=state.frozen,
    )
    metrics = terms | {
      'gradient_norm': norm,
      'learning_rate': schedule(state.step - state.skipped),
      'skipped': new.skipped,
      'streak': new.streak,
      ZERO_GRADIENTS: jnp.stack(jax.tree.leaves(squares)) == 0,
    }
    return new, {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}

  return meshes.with_mesh(step, components.mesh, components.rules)


def draw_key(key: Array) -> Array:
  """Returns the key that samples the batch of a step, from the key of the step."""
  return jax.random.fold_in(key, _DRAW)


def part_key(key: Array, index: Array | int) -> Array:
  """Returns the key of a microbatch, from the key of its step."""
  return jax.random.fold_in(jax.random.fold_in(key, _PARTS), index)


def gradients(
  objective: Objective,
  apply: Apply,
  params: Params,
  batch: Batch,
  key: Array | None,
  microbatches: int = 1,
  join: Callable[[Params], Any] | None = None,
) -> tuple[Params, dict[str, Array]]:
  """Returns the gradient of the sum of the terms' means, and the means.

  Each microbatch divides its sums by the weights of the full batch. The sum of the gradients of all
  microbatches is therefore the gradient of the full batch. `join` maps `params` to what the
  objective receives; None for themselves. A loss of a layer is the mean over
  microbatches, which is that of the full batch only if the loss is a mean over tokens.
  """
  weights = {name: jnp.maximum(w, 1e-8) for name, w in objective.normalizers(batch).items()}
  of_layers: set[str] = set()  # the names of their losses, known when the model is traced

  def noting(function: Apply) -> Any:
    def noted(*args: Any, **kwargs: Any) -> Output:
      output = function(*args, **kwargs)
      of_layers.update(output.losses)
      return output

    return noted

  noted: Any = None
  if isinstance(apply, dict):  # those of frozen models train nothing
    trained = params.keys() if isinstance(params, dict) and MAIN in params else (MAIN,)
    noted = {name: noting(f) if name in trained else f for name, f in apply.items()}
  else:
    noted = noting(apply)

  def check_names(sums: dict[str, Array]) -> None:
    if missing := sorted(of_layers - sums.keys()):
      raise UserError(
        f'objective.fn: the loss {missing[0]!r} of a layer would be dropped: loss_sums must return '
        'the terms of Output.losses too'
      )
    if both := sorted(of_layers & weights.keys()):
      raise UserError(
        f'model: a layer names its loss {both[0]!r}, which is a term of the objective; rename it'
      )
    if sums.keys() - of_layers != weights.keys():
      raise UserError(
        f'objective.fn: loss_sums returns {", ".join(sorted(sums)) or "nothing"} and normalizers '
        f'{", ".join(sorted(weights)) or "nothing"}; both must return the same names'
      )

  def loss(params: Params, part: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
    sums = objective.loss_sums(noted, params if join is None else join(params), part, key)
    check_names(sums)
    means = {name: value / weights.get(name, microbatches) for name, value in sums.items()}
    return sum(means.values(), jnp.zeros(())), means

  differentiate = jax.grad(loss, has_aux=True)
  if microbatches == 1:
    return differentiate(params, batch, key)

  def body(carry, xs):
    part, i = xs
    of_part = None if key is None else part_key(key, i)
    return jax.tree.map(jnp.add, carry, differentiate(params, part, of_part)), None

  parts = jax.tree.map(lambda x: _split(x, microbatches), batch)
  zero = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype),
    jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], parts), key),
  )
  total, _ = jax.lax.scan(body, zero, (parts, jnp.arange(microbatches)))
  return total


def _split(x: Array, parts: int) -> Array:
  # Row r goes to part r % parts, so that each part stays spread over all devices.
  return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
