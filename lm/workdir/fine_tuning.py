"""Fine-tuning: a config takes the model, the tokenizer and the parameters of another run."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from lm.errors import UserError
from lm.workdir.untrusted import read_config

# What a model section says about its objective; all else is that of the other run.
_OF_TASK = ('head', 'pooling', 'num_classes')
_TRANSFORMER, _RECURRENT = 'lm.models.transformer:', 'lm.models.recurrent:'
_ENCODER = f'{_TRANSFORMER}Encoder'
_STACK = ('cell', 'd_hidden', 'depth', 'scan_unroll')  # of recurrent layers
_POOLERS = ('lm.nn.heads:pooler', 'lm.nn.heads:pooled')  # heads with the dense layer of BERT
_LEARNED = 'lm.nn.position:learned'


def start_from(config: ConfigDict, workdir: str, keep_head: bool = False) -> ConfigDict:
  """Returns the config with the model of another run, its tokenizer, and a warm start from it.

  The sizes and the functions are those of the other run. `head`, `pooling` and `num_classes` stay
  those of the config: a new head for the classes, tags or answers of its task. A head of the same
  function keeps its arguments. Models without a table of positions read rows of any length.

  The config has a model of the same kind, or an encoder, which takes the layers of an
  encoder-decoder's encoder, or those of a decoder. The latter stays causal; a later
  `config.model.causal = False` changes that.

  Args:
    config: of the task, with its model and lengths of rows.
    workdir: of a run that was trained or imported.
    keep_head: whether the parameters of the head are taken too, for the same objective.

  Raises:
    UserError: there is no run in the workdir, or its model is of another kind.
  """
  root = pathlib.Path(workdir)
  if not (root / 'config.json').is_file():
    raise UserError(
      f'--config: no run in {workdir!r} (config.json is missing); train one, or import one by '
      'python -m lm.convert from_hf DIR --workdir=OUT'
    )
  model = read_config(root).model
  rules: tuple[str, ...] = ()
  pooler = str(model.get('head')).startswith(_POOLERS)
  if config.model.fn == _ENCODER and not keep_head:
    # BERT's pooler is taken where both have it.
    rules = ('^head/ ->',) if pooler else ('^(head|pooler)/ ->',)
    if model.fn != _ENCODER:
      model, stack_rules = _as_encoder(model, workdir)
      rules += stack_rules
  elif model.fn != config.model.fn:
    raise UserError(
      f'--config: the model of {workdir!r} is {model.fn!r}, and this config needs a '
      f'{config.model.fn!r}'
    )
  with model.unlocked():
    if not keep_head:
      for key in _OF_TASK:
        if key in config.model:
          kept = model.get(key)
          if key in model:
            del model[key]
          model[key] = config.model.get_ref(key)
          if key == 'head' and model.head and str(kept).startswith(model.head):
            model.head = kept
    if not _is_learned(model.get('position')):  # rows are as long as those of the config
      both = max(config.data.seq_len, config.data.source_len)
      model.context = both if 'encoder_depth' in model else config.data.get_oneway_ref('seq_len')
  config.model = model
  config.data.tokenizer = ConfigDict(
    {'fn': 'lm.text.tokenizers:existing', 'file': str(root / 'tokenizer.json')}
  )
  config.warm_start.workdir = workdir
  if rules:
    config.warm_start.rules = rules
  return config


def _is_learned(position: Any) -> bool:
  """Returns whether a position scheme is a table, with or without arguments such as its offset."""
  return isinstance(position, str) and position.partition('(')[0] == _LEARNED


def _as_encoder(model: ConfigDict, workdir: str) -> tuple[ConfigDict, tuple[str, ...]]:
  """Returns an encoder with the layers of another model, and the rules of its warm start."""
  fields = model.to_dict()
  rules: tuple[str, ...]
  if model.fn == f'{_TRANSFORMER}Decoder':
    rules = ('^encoder/ -> decoder/',)
    fields |= {'fn': _ENCODER, 'causal': True}
  elif model.fn == f'{_TRANSFORMER}EncoderDecoder':
    shared = fields.pop('share_embeddings')
    rules = () if shared else ('^embedding$ -> source_embedding',)
    fields |= {'fn': _ENCODER, 'depth': fields.pop('encoder_depth') or model.depth}
    del fields['cross_attention']
  elif model.fn == f'{_RECURRENT}Decoder':
    rules = ('^encoder/layers/ -> decoder/',)
    stack = {key: fields.pop(key) for key in _STACK}
    fields |= {'fn': f'{_RECURRENT}Encoder'}
    fields |= {'encoder': {'fn': f'{_RECURRENT}Unidirectional', **stack}}
  else:
    raise UserError(
      f'--config: the model of {workdir!r} is {model.fn!r}; this config needs an encoder, a '
      'decoder or an encoder-decoder of lm.models'
    )
  return ConfigDict(fields), rules


def reads_left_to_right(config: ConfigDict) -> bool:
  """Returns whether the tokens of the config's encoder know earlier tokens alone."""
  return config.model.get('causal', False) or config.model.fn.startswith(_RECURRENT)
