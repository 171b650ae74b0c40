"""Pointing at tokens: which token of each example an answer begins with, and which it ends with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.errors import UserError
from lm.types import Array, Batch, Output


class SpanStatistics(NamedTuple):
  """What a model says of the span of each example: both (B, P)."""

  nats: Array  # float32, -log p(start) - log p(stop)
  correct: Array  # float32, 1 where both tokens have the highest logit


def span_statistics(output: Output, batch: Batch) -> SpanStatistics:
  """Returns the negative log-likelihood of each span and whether it is the likeliest.

  Both ends are drawn from the tokens of the example's passage and its token at position 0, which
  stands for no answer; what else is read is no candidate.

  Args:
    output: of an encoder, two logits a token.
    batch: segments, positions and char_stop, (B, T), and start and stop, (B, P), as
      lm.tasks.spans makes them.

  Raises:
    UserError: the model has not two logits a token.
  """
  logits_BTC = output.head(output.hidden)
  B, T = batch['segments'].shape
  if logits_BTC.shape != (B, T, 2):
    raise UserError(
      f'model: spans need two logits a token, ({B}, {T}, 2), and it gives {logits_BTC.shape}; '
      'set model.num_classes=2 and leave model.pooling empty'
    )
  candidate_BT = (batch['char_stop'] > 0) | (batch['positions'] == 0)
  segment_P = jnp.arange(1, batch['start'].shape[1] + 1)
  same_BPT = batch['segments'][:, None, :] == segment_P[None, :, None]
  among_BPT = same_BPT & candidate_BT[:, None, :]

  def point(end: str, logits_BT: Array) -> tuple[Array, Array]:
    is_target_BPT = batch['positions'][:, None, :] == batch[end][:, :, None]
    # Finite, so that a slot without an example gives finite gradients.
    logits_BPT = jnp.where(among_BPT, logits_BT[:, None, :], -1e9)
    picked_BP = jnp.sum(jnp.where(among_BPT & is_target_BPT, logits_BPT, 0), axis=-1)
    best_BP1 = logits_BPT.argmax(-1, keepdims=True)
    correct_BP = jnp.take_along_axis(among_BPT & is_target_BPT, best_BP1, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BPT, axis=-1) - picked_BP, correct_BP

  start_nats, start_correct = point('start', logits_BTC[..., 0])
  stop_nats, stop_correct = point('stop', logits_BTC[..., 1])
  correct = (start_correct & stop_correct).astype(jnp.float32)
  return SpanStatistics(start_nats + stop_nats, correct)
