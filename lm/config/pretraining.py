"""Config changes for each pretraining objective on running text; see lm.config.base.

Each function takes a config with its source and model, sets the leaves of the objective, and
returns it. The evaluation sets get the same corruption, which there depends on the row alone: the
figures of all steps and seeds are comparable.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.config.base import another_model

_MASK = '<|mask|>'
_SENTINELS = tuple(f'<extra_id_{i}>' for i in range(100))
# Those of all objectives, and the separator of the tasks that a run may be fine-tuned on. A config
# that has them already gets no others.
SPECIAL_TOKENS = ('<|sep|>', _MASK, *_SENTINELS)
_WORDS = 'lm.text.words:word_marks'
_TARGETS = ('lm.metrics.tokens:targets',)


def masked(config: ConfigDict, transform: str = 'lm.data.masking:masked') -> ConfigDict:
  """An encoder predicts masked words (Devlin et al. 2019).

  Args:
    config: has the model of an encoder; a head that it names stays.
    transform: import path with the arguments of lm.data.masking.masked.
  """
  config.model.pooling = placeholder(str)
  config.model.head = config.model.head or 'lm.nn.heads:masked'
  return corrupted(config, transform, special_tokens=(_MASK,))


def replaced_tokens(
  config: ConfigDict, generator: ConfigDict, transform: str = 'lm.data.masking:masked'
) -> ConfigDict:
  """An encoder detects the tokens that a generator has replaced (Clark et al. 2020, ELECTRA).

  Both have one embedding table, which the generator projects to its width (section 3.2 there).
  Evaluation sets replace the masked tokens by random ones, whatever the generator has learned.

  Args:
    config: has the model of an encoder.
    generator: the model section of a smaller encoder.
    transform: import path with the arguments of lm.data.masking.masked.
  """
  generator.pooling, generator.head = placeholder(str), 'lm.nn.heads:masked'
  with generator.unlocked():
    del generator.input_layer
    generator.input_layer = {
      'fn': 'lm.nn.embedding:normed',
      'norm': 'lm.nn.layers:LayerNorm',
      'width': config.model.get_oneway_ref('d_model'),
    }
  generator = another_model(frozen=False, model=generator, shared=('embedding',))
  config.models = ConfigDict({'generator': generator})
  config.objective = ConfigDict(
    {'fn': 'lm.objectives.replaced_tokens:replaced_tokens', 'weight': 50.0}
  )
  config.model.pooling, config.model.num_classes = placeholder(str), 1
  config.model.head = 'lm.nn.heads:pooled(activation="jax.nn:gelu")'
  corrupted(config, transform, special_tokens=(_MASK,))
  for section in config.eval.sets.values():
    section.transforms = ('lm.data.masking:replaced',)
    section.metrics = ('lm.metrics.tokens:detection',)
  return config


def masked_or_causal(
  config: ConfigDict, transform: str = 'lm.data.masking:masked_next_tokens'
) -> ConfigDict:
  """A decoder predicts masked words in some rows, and all tokens in others (GPT-BERT).

  The set `validation` stays that of a causal language model, and `masked` has the same text.

  Args:
    config: has the model of a decoder.
    transform: import path with the arguments of lm.data.masking.masked_next_tokens.
  """
  causal = config.eval.sets.validation.to_dict()
  corrupted(config, transform, special_tokens=(_MASK,))
  masked = config.eval.sets.validation.to_dict()
  masked['transforms'] = ('lm.data.masking:masked_next_tokens(causal=0.0)',)
  config.eval.sets = ConfigDict({'validation': causal, 'masked': masked})
  return config


def denoising(
  config: ConfigDict,
  transform: str = 'lm.data.denoising:span_corruption',
  special_tokens: tuple[str, ...] = _SENTINELS,
) -> ConfigDict:
  """An encoder-decoder generates the spans that sentinels replace (Raffel et al. 2020, T5).

  Args:
    config: has the model of an encoder-decoder.
    transform: import path of a function of lm.data.denoising with its arguments.
    special_tokens: what the transform needs: sentinels, or a mask.
  """
  return corrupted(config, transform, special_tokens)


def infilling(config: ConfigDict, transform: str = 'lm.data.denoising:infilling') -> ConfigDict:
  """An encoder-decoder generates the text, given one with masked spans (Lewis et al. 2020, BART).

  Args:
    config: has the model of an encoder-decoder.
    transform: import path with the arguments of lm.data.denoising.infilling.
  """
  return corrupted(config, transform, special_tokens=(_MASK,))


def corrupted(config: ConfigDict, transform: str, special_tokens: tuple[str, ...]) -> ConfigDict:
  """Returns the config with a corruption of the rows of training and of all evaluation sets."""
  config.data.words = _WORDS
  wanted = (*config.data.special_tokens, SPECIAL_TOKENS[0], *special_tokens)
  config.data.special_tokens = tuple(dict.fromkeys(wanted))
  config.data.transforms = (transform,)
  for section in config.eval.sets.values():
    section.transforms, section.metrics = (transform,), _TARGETS
  config.log.sample_prompts = ()
  return config
