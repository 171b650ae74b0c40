"""Validates the structure and the values of a config before anything is built."""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from lm.config.base import WORD_VECTORS, base, component, evaluation
from lm.errors import UserError, did_you_mean

_LARGE = 2**24  # Larger sizes would take hours to trace. Batches are checked by their memory.
# Key -> minimum, and maximum. Keys that a config lacks (of another model or optimizer) are skipped.
_BOUNDS: dict[str, tuple[float, float]] = {
  'seed': (0, 2**32 - 1),
  'steps': (1, math.inf),
  'batch_size': (1, math.inf),
  'microbatches': (1, _LARGE),
  'steps_per_call': (1, _LARGE),
  'max_consecutive_nonfinite': (1, math.inf),
  'data.seq_len': (1, _LARGE),
  'data.source_len': (1, _LARGE),
  'data.workers': (0, math.inf),
  'data.tokenizer_alpha': (0, sys.float_info.max),
  'data.tokenizer.min_count': (0, 2**32 - 1),
  'data.tokenizer.vocab_size': (1, 2**32 - 1),
  'model.context': (1, 2**31 - 1),
  'model.vocab_size': (1, 2**31 - 1),
  'model.num_classes': (1, _LARGE),
  'model.depth': (1, 2**12),
  'model.encoder_depth': (1, 2**12),
  'model.d_model': (1, _LARGE),
  'model.heads': (1, 2**16),
  'model.kv_heads': (1, 2**16),
  'model.head_dim': (1, _LARGE),
  'model.d_mlp': (1, _LARGE),
  'model.vocab_multiple': (1, _LARGE),
  'model.scan_unroll': (1, _LARGE),
  'model.d_hidden': (1, _LARGE),
  'model.encoder.d_hidden': (1, _LARGE),
  'model.encoder.depth': (1, 2**12),
  'model.encoder.scan_unroll': (1, _LARGE),
  'model.encoder.width': (1, _LARGE),
  'model.dropout': (0, 0.999),
  'objective.z_loss': (0, math.inf),
  'objective.label_smoothing': (0, 0.999),
  'objective.logits_chunk': (0, math.inf),
  'optim.learning_rate': (0, math.inf),
  'optim.warmup_steps': (0, math.inf),
  'optim.b1': (0, 0.999999),
  'optim.b2': (0, 0.999999),
  'optim.weight_decay': (0, math.inf),
  'eval.every': (1, math.inf),
  'eval.batch_size': (1, math.inf),
  'early_stopping.patience': (0, math.inf),
  'early_stopping.min_delta': (0, sys.float_info.max),
  'checkpoint.every': (1, math.inf),
  'checkpoint.keep_last': (0, math.inf),
  'checkpoint.keep_best': (0, math.inf),
  'log.every': (1, math.inf),
  'log.sample_tokens': (0, math.inf),
  'decode.beam_size': (1, _LARGE),
  'decode.max_tokens': (0, _LARGE),
  'decode.max_length_ratio': (0, math.inf),
  'decode.batch_size': (1, math.inf),
}

# Key -> condition, what the value must be. Keys that a config lacks are skipped.
_CONDITIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
  'optim.clip_norm': (lambda norm: norm > 0, 'above 0; inf clips nothing'),
  'model.logit_soft_cap': (lambda cap: cap > 0, 'above 0; None for no cap'),
  **dict.fromkeys(
    ('decode.forbidden', 'decode.start'),
    (
      lambda ids: all(isinstance(i, int) and i >= 0 for i in ids),
      'ids of tokens, such as (58100,)',
    ),
  ),
  'decode.length_penalty': (math.isfinite, 'a finite number; 0 for no penalty'),
  **dict.fromkeys(
    ('model.dtype', 'model.encoder.dtype'),
    (
      lambda dtype: dtype in ('float32', 'bfloat16'),
      'one of float32, bfloat16; there is no loss scaling, so small float16 gradients become 0',
    ),
  ),
}
# Sections that an experiment may replace, and their keys that every run reads.
_REPLACEABLE: dict[str, tuple[str, ...]] = {
  'data.mixture': (),
  'data.tokenizer': ('fn',),
  'eval.sets': (),
  'mesh.rules': (),
  'model': ('fn', 'vocab_size', 'context'),
  'models': (),
  'objective': ('fn',),
  'optim': ('fn', 'decay_steps'),
}


def check_structure(config: Any, name: str) -> None:
  """Raises UserError if a config lacks a key that every run reads, or has a value of another type.

  Args:
    config: as an experiment file returns it.
    name: name of the file, for errors.
  """
  _check_structure(config, base(), '', name)
  for key, section in config.eval.sets.items():
    of_set = evaluation('')
    if isinstance(section, ConfigDict) and 'component' not in section:  # of an older run
      del of_set.component
    _check_structure(section, of_set, f'eval.sets.{key}', name)
  may_have = component('', task='', converter='', prepare=(), transforms=())
  for key, section in config.data.mixture.items():
    where = f'data.mixture.{key}'
    _check_structure(section, component(''), where, name)
    for extra in sorted(set(section) - set(component(''))):
      if extra not in may_have:
        near = did_you_mean(extra, list(may_have))
        raise UserError(f'{name}: {where}.{extra}{near}: the keys are {", ".join(may_have)}')
      _check_structure(section[extra], may_have[extra], f'{where}.{extra}', name)


def _check_structure(value: Any, example: Any, key: str, name: str) -> None:
  where = f'{name}: {key}' if key else name
  if isinstance(example, ConfigDict):
    if not isinstance(value, ConfigDict):
      raise UserError(f'{where} is {value!r:.60}, not a section with keys')
    for part in _REPLACEABLE.get(key, tuple(example)):
      inner = f'{key}.{part}' if key else part
      if part not in value:
        raise UserError(
          f'{name} has no key {inner!r}{did_you_mean(part, value)}; lm.config.base has it '
          '(a file of another version of lm?)'
        )
      if key not in _REPLACEABLE:
        _check_structure(value[part], example[part], inner, name)
    return
  # An int is a valid float, and a list a valid tuple.
  wider = {float: (int, float), tuple: (tuple, list)}
  expected = wider.get(type(example), type(example))
  wrong = not isinstance(value, expected) or isinstance(value, bool) != isinstance(example, bool)
  if example is not None and value is not None and wrong:
    shown = ' '.join(f'{value!r:.60}'.split())  # a section has several lines
    raise UserError(f'{where}={shown} is not of type {type(example).__name__}')


def validate_config(config: ConfigDict) -> None:
  """Raises UserError for a value out of its range, or values that contradict each other."""
  for key, (minimum, maximum) in _BOUNDS.items():
    value = _get(config, key)
    if value is not None and not isinstance(value, int | float):
      raise UserError(f'{key}={value!r:.60} is not a number')
    if value is not None and not minimum <= value <= maximum:
      limit = f' and at most {maximum:.10g}' if maximum < math.inf else ''
      raise UserError(
        f'{key}={value!r:.60} is out of range: it must be at least {minimum:g}{limit}'
      )
  for key, (condition, expected) in _CONDITIONS.items():
    value = _get(config, key)
    if value is not None and not condition(value):
      raise UserError(f'{key}={value!r} must be {expected}')
  paths = {f'data.{key}': config.data[key] for key in ('transforms', 'prepare')}
  for name, section in config.eval.sets.items():
    paths[f'eval.sets.{name}.transforms'] = section.get('transforms') or ()
    if (section.get('limit') or 0) < 0:
      raise UserError(f'eval.sets.{name}.limit={section.limit} must be 0 (all examples) or more')
    of = section.get('component') or ''
    if of and of not in config.data.mixture:
      known = ', '.join(config.data.mixture) or 'none'
      raise UserError(
        f'eval.sets.{name}.component={of!r}{did_you_mean(of, list(config.data.mixture))} must be '
        f'one of data.mixture ({known}), or empty'
      )
    own = config.data.mixture[of] if of else {}
    if section.get('scores') and own.get('task', config.data.task) is None:
      raise UserError(
        f'eval.sets.{name}.scores={section.scores!r} compare outputs with references, which '
        'running text lacks: give data.task, or leave scores empty'
      )
  if config.data.mixture:
    _check_mixture(config)
  for key, value in paths.items():
    if not isinstance(value, tuple | list):
      raise UserError(f"{key}={value!r} must be a list of import paths, such as ('{value}',)")
  if config.decode.sampler is not None and config.decode.beam_size > 1:
    raise UserError(
      f'decode.sampler={config.decode.sampler!r} has no effect on the beam search of '
      f'decode.beam_size={config.decode.beam_size}; set decode.beam_size=1, or no sampler'
    )
  if config.checkpoint.keep_last + config.checkpoint.keep_best < 1:
    raise UserError('checkpoint.keep_last=0 and checkpoint.keep_best=0 keep no checkpoint at all')
  if config.eval.vector_metrics and WORD_VECTORS not in config.eval.evaluators:
    raise UserError(
      f'eval.vector_metrics={tuple(config.eval.vector_metrics)!r}: nothing computes them; add '
      f'{WORD_VECTORS!r} to eval.evaluators'
    )


def _check_mixture(config: ConfigDict) -> None:
  """Raises UserError if a mixture has impossible weights, or something else needs one source."""
  weights = {name: section.weight for name, section in config.data.mixture.items()}
  for name, weight in weights.items():
    if not 0 <= weight < math.inf:
      raise UserError(f'data.mixture.{name}.weight={weight} must be 0 or more, and finite')
  if not any(weights.values()):
    raise UserError('data.mixture: all weights are 0; give one source a weight above 0')
  if config.data.source:
    raise UserError(
      f'data.source={config.data.source!r} and data.mixture, of {", ".join(weights)}: leave one of '
      'them empty'
    )
  for name, section in config.eval.sets.items():
    if not section.source and not section.get('component'):
      raise UserError(
        f'eval.sets.{name}.source is empty and means data.source, but data.mixture has several '
        f'sources; name one of these, as lm.config.base.mixture does, or eval.sets.{name}.component'
      )


def _get(config: ConfigDict, key: str) -> Any:
  """Returns the value of a dotted key, or None where a section lacks it."""

  def child(node: Any, part: str) -> Any:
    return node.get(part) if isinstance(node, ConfigDict) else None

  return functools.reduce(child, key.split('.'), config)
