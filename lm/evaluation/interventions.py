"""Interventions on a run: a run under edits, the logit lens, and activation patching.

  run = lm.load('runs/quickstart')
  edited(run, {'*/mlp/output@2': jnp.zeros_like}).generate(['The '])   # without the MLP of layer 2
  logit_lens(run, 'The cat')                                           # (N, T, V)
  patch(run, 'The cat', 'The dog', lambda logits_TV: logits_TV[-1, 7])  # (N, T)

Edits, and the paths of hook points, are those of `lm.nn.hooks.with_hooks`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.components import example_batch
from lm.decode.loop import check_prompt_length
from lm.decode.stream import prompt_encoder
from lm.errors import UserError
from lm.models.transformer import Decoder
from lm.nn.hooks import Edit, EditedApply, with_hooks
from lm.types import Array, Batch, Params
from lm.workdir import experiment
from lm.workdir.load import Loaded

Model = TypeVar('Model', bound=Loaded)
LAYERS = 'decoder/layers/*'
_Edits = tuple[tuple[str, Edit], ...]  # a static argument of jit


def edited(run: Model, edits: Mapping[str, Edit]) -> Model:
  """Returns a run whose logits, predictions and generated texts are computed under edits.

  A run that has edits keeps them, and its own come first. While generating, an edit receives the
  prompt first, with padding after its last token, and then one token at a time. Embeddings by
  `embed` are not edited.

  Raises:
    UserError: an edit matches no hook point, or changes a shape.
  """
  apply = EditedApply(run.model, _joined(edits_of(run), edits))
  row = experiment.read_row(run.workdir)
  try:
    jax.eval_shape(apply, run.params, example_batch(run.config.data.seq_len, row))
  except ValueError as e:
    raise UserError(f'edits: {e}') from e
  return dataclasses.replace(run, apply=apply)


def edits_of(run: Loaded) -> dict[str, Edit]:
  """Returns the edits of a run that `edited` gave, and none of another one."""
  return run.apply.edits if isinstance(run.apply, EditedApply) else {}


def _joined(edits: Mapping[str, Edit], later: Mapping[str, Edit]) -> dict[str, Edit]:
  """Returns both edits; where they have one pattern, the later one receives the earlier's array."""

  def both(first: Edit, second: Edit) -> Edit:
    return lambda x: second(first(x))

  shared = {name: both(edits[name], edit) for name, edit in later.items() if name in edits}
  return {**edits, **later, **shared}


def logit_lens(run: Loaded, text: str) -> np.ndarray:
  """Returns the logits after each layer, as if the layers above were skipped: (N, T, V) float32.

  The first of the T tokens is the end token, which precedes a text. Those of the last layer are the
  logits of the model (nostalgebraist 2020, "interpreting GPT: the logit lens").

  Raises:
    UserError: the model is no decoder, or the text is too long.
  """
  return np.asarray(
    _lens(_decoder(run), tuple(edits_of(run).items()), run.params, _batch(run, text))
  )


def patch(
  run: Loaded,
  text: str,
  source: str,
  metric: Callable[[Array], Array],
  site: str = 'residual',
) -> np.ndarray:
  """Returns a metric of a text for each layer and token, with one activation of another text there.

  This is activation patching (Vig et al. 2020; Meng et al. 2022, section 2): (N, T) float32.

  Args:
    run: a decoder.
    text: whose logits the metric reads.
    source: has as many tokens, and gives the activations.
    metric: `logits_TV -> value`.
    site: hook point of a layer with arrays (B, T, ...), such as 'residual', 'attention/output',
      'attention/heads' or 'mlp/output'.

  Raises:
    UserError: the model is no decoder, a text is too long, the texts differ in the count of
      tokens, or the site is not one hook point of each layer.
  """
  model, both = _decoder(run), [_batch(run, each) for each in (text, source)]
  lengths = [batch['inputs'].shape[1] for batch in both]
  if lengths[0] != lengths[1]:
    raise UserError(f'patch: the texts have {lengths[0]} and {lengths[1]} tokens, and need as many')
  edits = tuple(edits_of(run).items())
  return np.asarray(_patched(model, edits, metric, site, run.params, *both))


def _decoder(run: Loaded) -> Decoder:
  if not isinstance(run.model, Decoder):
    raise UserError(f'--workdir={run.workdir}: model.fn={run.config.model.fn!r} is no decoder')
  return run.model


def _batch(run: Loaded, text: str) -> Batch:
  ids = jnp.array([prompt_encoder(run.tokenizer, run.config.decode.start)(text)], jnp.int32)
  check_prompt_length(run.model, ids.size, f'{text[:40]!r}')
  return {'inputs': ids, 'segments': jnp.ones_like(ids), 'positions': jnp.arange(ids.size)[None]}


def _read(
  model: Decoder, edits: _Edits, params: Params, batch: Batch, site: str
) -> tuple[list[str], Array]:
  """Returns the pattern of a site in each layer, and its arrays (N, B, T, ...)."""
  patterns = [f'{LAYERS}/{site}@{n}' for n in range(model.depth)]
  _, found = with_hooks(model)(params, batch, tuple(patterns), dict(edits))
  if len(found) != model.depth:
    raise UserError(
      f'patch: site={site!r} matches {len(found)} hook points of {model.depth} layers'
    )
  return patterns, jnp.stack(list(found.values()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _lens(model: Decoder, edits: _Edits, params: Params, batch: Batch) -> Array:
  def logits(x_BTD: Array) -> Array:
    skipping = _joined({'decoder/stack_output': lambda _: x_BTD}, dict(edits))
    output, _ = with_hooks(model)(params, batch, (), skipping)
    return output.head(output.hidden)[0]

  return jax.vmap(logits)(_read(model, edits, params, batch, 'residual')[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _patched(
  model: Decoder,
  edits: _Edits,
  metric: Any,
  site: str,
  params: Params,
  batch: Batch,
  source: Batch,
) -> Array:
  patterns, arrays_NBT = _read(model, edits, params, source, site)

  def of(place: tuple[Array, Array]) -> Array:
    layer, token = place

    def edit(n: int) -> Edit:
      return lambda x: jnp.where(layer == n, x.at[:, token].set(arrays_NBT[n][:, token]), x)

    patches = {pattern: edit(n) for n, pattern in enumerate(patterns)}
    output, _ = with_hooks(model)(params, batch, (), _joined(dict(edits), patches))
    return metric(output.head(output.hidden)[0])

  shape = model.depth, batch['inputs'].shape[1]
  places = jnp.meshgrid(*map(jnp.arange, shape), indexing='ij')
  return jax.lax.map(of, tuple(x.ravel() for x in places)).reshape(shape)
