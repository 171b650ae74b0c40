"""Fine-tuning: a config takes the model, the tokenizer and the parameters of another run."""

import pathlib

from ml_collections import ConfigDict

from lm.errors import UserError
from lm.workdir.untrusted import read_config

# What a model section says about its objective; all else is that of the other run.
_OF_TASK = ('head', 'pooling', 'num_classes')
_ENCODER = 'lm.models.transformer:Encoder'
_POOLERS = ('lm.nn.heads:pooler', 'lm.nn.heads:pooled')  # heads with the dense layer of BERT
_LEARNED = 'lm.nn.position:learned'


def start_from(config: ConfigDict, workdir: str, keep_head: bool = False) -> ConfigDict:
  """Returns the config with the model of another run, its tokenizer, and a warm start from it.

  The sizes and the functions are those of the other run. `head`, `pooling` and `num_classes` stay
  those of the config, which has a model of the same kind: an encoder gets a new head for the
  classes, tags or answers of its task, an encoder-decoder generates translations. A head of the
  same function keeps its arguments. Models without a table of positions read rows of any length.

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
  if model.fn != config.model.fn:
    raise UserError(
      f'--config: the model of {workdir!r} is {model.fn!r}, and this config needs a '
      f'{config.model.fn!r}'
    )
  pooler = str(model.get('head')).startswith(_POOLERS)
  with model.unlocked():
    if not keep_head:
      for key in _OF_TASK:
        if key in config.model:
          kept = model[key]
          del model[key]
          model[key] = config.model.get_ref(key)
          if key == 'head' and model.head and str(kept).startswith(model.head):
            model.head = kept
    if model.position != _LEARNED:  # rows are as long as those of the config
      both = max(config.data.seq_len, config.data.source_len)
      model.context = both if 'encoder_depth' in model else config.data.get_oneway_ref('seq_len')
  config.model = model
  config.data.tokenizer = ConfigDict(
    {'fn': 'lm.text.tokenizers:existing', 'file': str(root / 'tokenizer.json')}
  )
  config.warm_start.workdir = workdir
  if model.fn == _ENCODER and not keep_head:
    # BERT's pooler is taken where both have it.
    config.warm_start.rules = ('^head/ ->',) if pooler else ('^(head|pooler)/ ->',)
  return config
