"""Replaced-token detection: ELECTRA's objective, with a small generator (Clark et al. 2020)."""

from typing import Any

import jax
import jax.numpy as jnp

from lm.nn import losses
from lm.types import Array, Batch, Objective, Params

GENERATOR = 'generator'  # its name in `models`


def replaced_tokens(weight: float = 50.0, generator_weight: float = 1.0) -> Objective:
  """Returns the masked loss of `models.generator`, and the detection loss of the model.

  Rows are those of lm.data.masking:masked. The generator predicts the masked tokens, and a sample
  of its distribution replaces each. The model, an encoder with num_classes=1 and no pooling,
  detects the tokens that differ from the text. Samples have no gradient (section 2). A sample that
  equals the text counts as original.

  The terms are `loss`, the generator's nats per masked token, and `detection`, the nats per token
  of the model, each times its weight.

  Args:
    weight: of the detection loss; 50 in the paper.
    generator_weight: of the generator's loss.
  """

  def loss_sums(apply: Any, params: Params, batch: Batch, key: Array | None) -> dict[str, Array]:
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    output = apply[GENERATOR](params[GENERATOR], batch, key=keys[0])
    nats = losses.cross_entropy(
      output.hidden, output.head, batch['targets'], batch['weights']
    ).total
    # Evaluation has no key, and takes one that is the same for all.
    sampling = jax.random.key(0) if keys[1] is None else keys[1]
    replaced, is_replaced_BT = replace(
      batch, jax.lax.stop_gradient(output.head(output.hidden)), sampling
    )
    found = apply['model'](params['model'], replaced, key=keys[2])
    logits_BT = found.head(found.hidden)[..., 0]
    nats_BT = losses.sigmoid_cross_entropy(logits_BT, is_replaced_BT)
    detection = jnp.sum(nats_BT * (batch['segments'] > 0))
    both = output.losses, found.losses
    of_layers = {name: sum(each.get(name, 0) for each in both) for name in {**both[0], **both[1]}}
    return {'loss': generator_weight * nats, 'detection': weight * detection} | of_layers

  def normalizers(batch: Batch) -> dict[str, Array]:
    tokens = jnp.sum(batch['segments'] > 0).astype(jnp.float32)
    return {'loss': jnp.sum(batch['weights']), 'detection': tokens}

  return Objective(loss_sums, normalizers)


def replace(batch: Batch, logits_BMV: Array, key: Array) -> tuple[Batch, Array]:
  """Returns the batch with sampled tokens at the masked places, and where they differ, (B, T).

  Args:
    batch: of lm.data.masking:masked.
    logits_BMV: of the masked tokens.
    key: of the samples.
  """
  sampled_BM = jax.random.categorical(key, logits_BMV).astype(jnp.int32)
  rows_B1 = jnp.arange(len(sampled_BM))[:, None]
  # Unused places repeat index 0 with weight 0; a maximum over the places keeps the used ones.
  real_BM = batch['weights'] > 0
  places_BM = jnp.where(real_BM, batch['masked'], batch['inputs'].shape[1])
  inputs_BT = batch['inputs'].at[rows_B1, places_BM].set(sampled_BM, mode='drop')
  differs_BM = (sampled_BM != batch['targets']).astype(jnp.float32)
  is_replaced_BT = jnp.zeros(inputs_BT.shape).at[rows_B1, places_BM].set(differs_BM, mode='drop')
  rest = {name: x for name, x in batch.items() if name not in ('masked', 'targets', 'weights')}
  return rest | {'inputs': inputs_BT}, is_replaced_BT
