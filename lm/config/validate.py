"""The form of a config and the bounds of its numbers, checked before anything is made."""

import math
from typing import Any

from ml_collections import ConfigDict

from lm.config.base import base, evaluation
from lm.errors import UserError, did_you_mean

# Key -> least value, and greatest. A key that a config lacks (another model, another optimizer) is
# passed over.
_BOUNDS: dict[str, tuple[float, float]] = {
  'seed': (0, 2**32 - 1),
  'steps': (1, math.inf),
  'batch_size': (1, math.inf),
  'microbatches': (1, math.inf),
  'dispatch': (1, math.inf),
  'nonfinite_limit': (1, math.inf),
  'data.context': (1, math.inf),
  'data.source_context': (1, math.inf),
  'data.workers': (0, math.inf),
  'data.tokenizer.min_count': (0, 2**32 - 1),
  'data.tokenizer.vocab_size': (1, 2**32 - 1),
  'model.depth': (1, math.inf),
  'model.d_model': (1, math.inf),
  'model.heads': (1, math.inf),
  'model.kv_heads': (1, math.inf),
  'model.vocab_multiple': (1, math.inf),
  'model.scan_unroll': (1, math.inf),
  'model.d_hidden': (1, math.inf),
  'model.encoder.d_hidden': (1, math.inf),
  'model.encoder.depth': (1, math.inf),
  'model.encoder.scan_unroll': (1, math.inf),
  'model.encoder.width': (1, math.inf),
  'model.dropout': (0, 0.999),
  'objective.z_loss': (0, math.inf),
  'objective.label_smoothing': (0, 0.999),
  'objective.chunk': (0, math.inf),
  'optim.learning_rate': (0, math.inf),
  'optim.warmup': (0, math.inf),
  'optim.b1': (0, 0.999999),
  'optim.b2': (0, 0.999999),
  'optim.weight_decay': (0, math.inf),
  'eval.every': (1, math.inf),
  'eval.batch_size': (1, math.inf),
  'checkpoint.every': (1, math.inf),
  'checkpoint.keep': (0, math.inf),
  'checkpoint.keep_best': (0, math.inf),
  'log.every': (1, math.inf),
  'log.sample_tokens': (0, math.inf),
  'decode.beam_size': (1, math.inf),
  'decode.max_tokens': (0, math.inf),
  'decode.max_length_ratio': (0, math.inf),
  'decode.batch_size': (1, math.inf),
}


# Sections that an experiment replaces as a whole, and the keys of theirs that every run reads.
_FREE: dict[str, tuple[str, ...]] = {
  'data.tokenizer': ('fn',),
  'eval.sets': (),
  'mesh.rules': (),
  'model': ('fn', 'vocab_size', 'context'),
  'objective': ('fn',),
  'optim': ('fn', 'steps'),
}


def form(config: Any, name: str) -> None:
  """Raises UserError where a config lacks a key that every run reads, or has another type there.

  Args:
    config: what a file holds.
    name: of the file, which the error begins with.
  """
  _same_form(config, base(), '', name)
  for key, section in config.eval.sets.items():
    _same_form(section, evaluation(''), f'eval.sets.{key}', name)


def _same_form(value: Any, example: Any, key: str, name: str) -> None:
  where = f'{name}: {key}' if key else name
  if isinstance(example, ConfigDict):
    if not isinstance(value, ConfigDict):
      raise UserError(f'{where} is {value!r:.60}, not a section with keys')
    for part in _FREE.get(key, tuple(example)):
      inner = f'{key}.{part}' if key else part
      if part not in value:
        raise UserError(
          f'{name} has no key {inner!r}{did_you_mean(part, value)}; lm.config.base has it '
          '(a file of another version of lm?)'
        )
      if key not in _FREE:
        _same_form(value[part], example[part], inner, name)
    return
  # Whole numbers are fine where others are expected.
  expected: Any = (int, float) if isinstance(example, float) else type(example)
  expected = (tuple, list) if isinstance(example, tuple) else expected
  wrong = not isinstance(value, expected) or isinstance(value, bool) != isinstance(example, bool)
  if example is not None and value is not None and wrong:
    raise UserError(f'{where}={value!r:.60} is not of type {type(example).__name__}')


def validate_config(config: ConfigDict) -> None:
  """Raises UserError for a number that is out of its bounds, or a type that is none."""
  for key, (least, most) in _BOUNDS.items():
    value = _get(config, key)
    if value is not None and not least <= value <= most:
      above = f' and no more than {most:g}' if most < math.inf else ''
      raise UserError(f'{key}={value} is out of range: it is at least {least:g}{above}')
  clip = _get(config, 'optim.clip')
  if clip is not None and not clip > 0:
    raise UserError(f'optim.clip={clip}: the largest norm is above 0; inf clips nothing')
  cap = _get(config, 'model.logit_soft_cap')
  if cap is not None and not cap > 0:
    raise UserError(f'model.logit_soft_cap={cap} is not above 0; leave it empty for none')
  penalty = _get(config, 'decode.length_penalty')
  if penalty is not None and not math.isfinite(penalty):
    raise UserError(f'decode.length_penalty={penalty} is not a finite number; 0 is no penalty')
  for name in config.eval.sets:
    limit = _get(config, f'eval.sets.{name}.limit')
    if limit is not None and limit < 0:
      raise UserError(f'eval.sets.{name}.limit={limit} is not 0, for all examples, or more')
    scores = _get(config, f'eval.sets.{name}.scores')
    if scores and config.data.task is None:
      raise UserError(
        f'eval.sets.{name}.scores={scores!r} compare outputs with references, which running text '
        'lacks: give data.task, or leave scores empty'
      )
  if config.checkpoint.keep + config.checkpoint.keep_best < 1:
    raise UserError('checkpoint.keep=0 and checkpoint.keep_best=0 keep no checkpoint at all')
  if not (config.checkpoint.keep or config.eval.sets or config.eval.vectors):
    raise UserError(
      'checkpoint.keep=0: with eval.sets and eval.vectors empty no checkpoint is best'
    )
  for key in ('model.dtype', 'model.encoder.dtype'):
    dtype = _get(config, key)
    if dtype is not None and dtype not in ('float32', 'bfloat16'):
      why = ': its small gradients become 0, for there is no loss scaling'
      raise UserError(
        f'{key}={dtype!r} is none of float32, bfloat16{why if dtype == "float16" else ""}'
      )
  of_sets = [f'eval.sets.{name}.transforms' for name in config.eval.sets]
  for key in ('data.transforms', 'data.prepare', *of_sets):
    value = _get(config, key)
    if not (value is None and key in of_sets) and not isinstance(value, tuple | list):
      raise UserError(f"{key}={value!r} is not a list of import paths, written ('{value}',)")


def _get(config: ConfigDict, key: str) -> Any:
  node: Any = config
  for part in key.split('.'):
    if not isinstance(node, ConfigDict) or part not in node:
      return None
    node = node[part]
  return node
