"""Fills the masks of a text by an encoder whose head is the vocabulary (Devlin et al. 2019)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError
from lm.task import Convert, Example, Features, Pieces, string_field
from lm.text.framing import frame, framing_of
from lm.text.tokenizers import mask_token, text_reader

if TYPE_CHECKING:
  from lm.types import Array, Batch, Output

MOST = 100  # tokens that are predicted for a mask


def inputs(tokenizer: Tokenizer) -> Convert:
  """Returns the function from a `text` to features, one for each of its masks.

  Each has `mask`, the position of its mask among the tokens. The special tokens of the tokenizer's
  template frame the text.

  Raises:
    UserError: the tokenizer has no mask; when features are made: the text has none.
  """
  name, mask = mask_token(tokenizer)
  reader = text_reader(tokenizer, visible=name)
  framed = frame(tokenizer, framing_of(tokenizer), reader)

  def convert(example: Example) -> list[Features]:
    arrays = framed([string_field(example, 'text')]).arrays()
    places = np.flatnonzero(arrays['inputs'] == mask)
    if not len(places):
      raise UserError(f"'text' has no {name} to fill")
    return [Features(arrays, {}, {'mask': place}) for place in places]

  return convert


def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
  """Returns the likeliest tokens of each mask and their probabilities, (B, P, MOST) at most."""
  import jax

  logits_BPV = output.head(masked_states(output, batch))
  p_BPK, tokens_BPK = jax.lax.top_k(jax.nn.softmax(logits_BPV), min(MOST, logits_BPV.shape[-1]))
  return {'values/token': tokens_BPK, 'values/probability': p_BPK}


def masked_states(output: 'Output', batch: 'Batch') -> 'Array':
  """Returns the hidden states at `mask` (B, P) of each segment, (B, P, D)."""
  import jax.numpy as jnp

  masks_BP = batch['mask']
  segments_P = jnp.arange(1, masks_BP.shape[1] + 1)
  is_mask_BPT = batch['segments'][:, None] == segments_P[None, :, None]
  is_mask_BPT &= batch['positions'][:, None] == masks_BP[..., None]
  hidden_BTD = output.hidden
  return jnp.einsum('bpt,btd->bpd', is_mask_BPT.astype(hidden_BTD.dtype), hidden_BTD)


def postprocess(tokenizer: Tokenizer, top_k: int = 5) -> Callable[[Example, Pieces], dict]:
  """Returns the function from the pieces of a text to its `masks`.

  A mask is a list of the `top_k` likeliest fillers, each with its token, text and probability.
  """

  def read(example: Example, pieces: Pieces) -> dict[str, Any]:
    del example
    pairs = (zip(p['values/token'][:top_k], p['values/probability'], strict=False) for p in pieces)
    return {'masks': [[_filler(int(i), float(p)) for i, p in of_mask] for of_mask in pairs]}

  def _filler(token: int, probability: float) -> dict[str, Any]:
    text = tokenizer.decode([token]).strip()
    return {'token': tokenizer.id_to_token(token), 'text': text, 'probability': probability}

  return read
