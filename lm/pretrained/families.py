"""The families of pretrained models by the `model_type` of their config.json."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from lm.errors import UserError, did_you_mean
from lm.pretrained import decoders, encoder_decoders, encoders, llama
from lm.pretrained.family import Family, Reader

FAMILIES: dict[str, Callable[[Reader], Family]] = {
  'bart': encoder_decoders.bart,
  'bert': encoders.bert,
  'camembert': encoders.camembert,
  'distilbert': encoders.distilbert,
  'electra': encoders.electra,
  'gemma': llama.gemma,
  'gemma2': llama.gemma2,
  'gemma3': llama.gemma3,
  'gemma3_text': llama.gemma3_text,
  'gpt2': decoders.gpt2,
  'gpt_neox': decoders.gpt_neox,
  'llama': llama.llama,
  'marian': encoder_decoders.marian,
  'mbart': encoder_decoders.mbart,
  'mistral': llama.mistral,
  'modernbert': encoders.modernbert,
  'mt5': encoder_decoders.mt5,
  'pegasus': encoder_decoders.pegasus,
  'qwen2': llama.qwen2,
  'qwen3': llama.qwen3,
  'roberta': encoders.roberta,
  't5': encoder_decoders.t5,
  'xlm-roberta': encoders.xlm_roberta,
}


def family_of(
  config: Mapping[str, Any],
  names: Collection[str] | None = None,
  generation: Mapping[str, Any] = MappingProxyType({}),
) -> Family:
  """Returns the family of a config.json.

  Args:
    config: the content of config.json.
    names: of the tensors of the checkpoint; None for those of a new one.
    generation: the content of generation_config.json.

  Raises:
    UserError: the family is not known, or a value is not supported.
  """
  kind = config.get('model_type')
  if not isinstance(kind, str) or kind not in FAMILIES:
    known = ', '.join(FAMILIES)
    raise UserError(
      f'config.json: model_type={kind!r} is not supported{did_you_mean(str(kind), FAMILIES)}; '
      f'it must be one of {known}'
    )
  return FAMILIES[kind](Reader(config, names, generation))


def with_vocabulary(config: Mapping[str, Any], size: int) -> dict[str, Any]:
  """Returns a config.json with another size of the vocabulary, where its family reads it."""
  if config.get('model_type') == 'gemma3':
    return {**config, 'text_config': {**config.get('text_config', {}), 'vocab_size': size}}
  return {**config, 'vocab_size': size}
