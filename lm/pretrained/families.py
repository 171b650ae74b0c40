"""The families of pretrained models by the `model_type` of their config.json."""

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

from lm.errors import UserError, did_you_mean
from lm.pretrained import decoders, encoder_decoders, encoders
from lm.pretrained.family import Family, Reader

FAMILIES: dict[str, Callable[[Reader], Family]] = {
  'bert': encoders.bert,
  'gpt2': decoders.gpt2,
  'llama': decoders.llama,
  'mistral': decoders.mistral,
  'qwen2': decoders.qwen2,
  'qwen3': decoders.qwen3,
  't5': encoder_decoders.t5,
  'mt5': encoder_decoders.mt5,
  'bart': encoder_decoders.bart,
  'marian': encoder_decoders.marian,
  'mbart': encoder_decoders.mbart,
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
  if kind not in FAMILIES:
    known = ', '.join(FAMILIES)
    raise UserError(
      f'config.json: model_type={kind!r} is not supported{did_you_mean(str(kind), FAMILIES)}; '
      f'it must be one of {known}'
    )
  return FAMILIES[kind](Reader(config, names, generation))
