"""Fine-tuning of a model, imported or pretrained here, on the tasks of $LM_DATA.

  python -m lm.convert from_hf DIR --workdir=runs/minilm
  export LM_DATA=DIR
  python -m lm.train --config=experiments/finetune.py:sst2,runs/minilm --workdir=runs/tuned

The argument is TASK,WORKDIR. The sizes of the model, its tokenizer with its special tokens, and all
its parameters come from that workdir; the head is new. BERT's pooler is kept where there is one.
Decoders stay causal unless --config.model.causal=False. An encoder-decoder gives its encoder alone.

TASK is sst2, ag_news (classes), rte (classes of pairs), wnut17 (tags) or squad (answers), and in
Chinese chnsenticorp, msra_ner or cmrc2018. TASK,WORKDIR,random trains the same model from scratch.
The recipe is that of Devlin et al. 2019: AdamW with a linear schedule, weight decay 0.01, three
epochs (six of rte). A row of a batch holds several examples, with hardly any padding. The number of
rows gives about 32 examples a step (sst2, ag_news) or 16 (the others).

Means of 3 seeds of MiniLM (22M), in parentheses those of transformers on torch: SST-2 test accuracy
88.8 % (88.3), WNUT development F1 53.2 (52.5), SQuAD sample development F1 61.2 (56.3, one seed).
RTE 56.0 %, where a bag of words has 55.6; AG News 90.6 % (one seed). Two CPU cores, 5 to 26 minutes
each.

Recipes for published checkpoints, not run here, with the published figures:
- `:glue_NAME` on GLUE's development sets, bert-base-cased, means of 5 seeds of Hugging Face's Flax
  examples: sst2 92.23 +- 0.57, cola 59.04 (Matthews), mrpc 88.97 F1 and 84.36 accuracy, stsb 88.94
  (Pearson), qqp 90.76, mnli 83.80, qnli 90.82, rte 64.76. They read TensorFlow Datasets.
- `:cmrc` on CMRC 2018's development set, exact match and F1 (Cui et al. 2021): BERT-base 65.5 and
  84.5, BERT-wwm 66.3 and 85.6. It reads $LM_DATA/cmrc2018, of which our sample is a part.
`:smoke` fine-tunes a tiny random BERT, which it writes into the cache.
"""

import json

import msra_ner
import numpy as np
from ml_collections.config_dict import placeholder
from tokenizers.processors import BertProcessing
from wnut17 import TAGS

from lm.config import tasks
from lm.config.base import base, encoder, select_variant, unrolled
from lm.data import cache, fingerprints
from lm.data.sources import languages
from lm.errors import UserError
from lm.pretrained import checkpoint, families, safetensors
from lm.text import tokenizers
from lm.text.framing import framing_of
from lm.workdir.fine_tuning import reads_left_to_right, start_from

_POOLED = 'lm.nn.heads:pooled'


def get_config(arg=''):
  task, _, rest = arg.partition(',')
  workdir, _, start = rest.partition(',')
  if start not in ('', 'random'):
    raise UserError(
      f"--config: {start!r} in the argument {arg!r}: the third part can be 'random', for random "
      'parameters'
    )
  if task == 'smoke':
    if workdir:
      raise UserError(f'--config: {arg!r} names a workdir; :smoke starts from a random one')
    workdir = _random_checkpoint()
  elif not workdir:
    raise UserError(
      f'--config: no imported workdir in the argument {arg!r}; give a task and a workdir, as in '
      'experiments/finetune.py:sst2,runs/minilm'
    )
  published = {f'glue_{name}': _glue(name) for name in _GLUE}
  config = _pretrained(workdir)
  if start:
    config.warm_start.workdir, config.warm_start.rules = '', ()
  return select_variant(config, task, **_TASKS, **published, cmrc=_cmrc, smoke=_smoke)


def _pretrained(workdir):
  """Returns a config with the model, the tokenizer and the parameters of a workdir."""
  config = base()
  config.model = encoder(depth=1, d_model=64, heads=1, context=128)  # start_from gives its sizes
  config.model.head, config.model.pooling = _POOLED, 'lm.nn.pooling:first'
  config.data.too_long = 'truncate'
  start_from(config, workdir)
  if 'heads' in config.model:
    unrolled(config.model)
  config.optim.update({
    'schedule': 'lm.optim.optimizers:linear',
    'warmup_steps': 60,
    'final_lr_fraction': 0.0,
    'b2': 0.999,
    'weight_decay': 0.01,
    'weight_decay_mask': '.',  # every parameter, as AdamW of torch decays by default
  })  # fmt: skip
  return config


def _train(config, seq_len, rows, steps, rate):
  """Sets the length of the rows, rows per step, steps, and the peak of the learning rate."""
  config.data.seq_len, config.batch_size, config.steps = seq_len, rows, steps
  config.optim.learning_rate = rate
  config.eval.every = config.checkpoint.every = -(-steps // 3)  # after each epoch
  return config


def _frame(config, options=''):
  """Reads texts with the special tokens of the run's tokenizer, such as [CLS] and [SEP]."""
  framing = framing_of(tokenizers.existing([], config.data.tokenizer.file))
  config.data.converter += f'(special_tokens={framing!r}{options})'
  if framing == 'end' and config.model.pooling is not None:
    # Pretraining here gives the first token no meaning.
    pooling = 'last' if reads_left_to_right(config) else 'mean'
    config.model.pooling = f'lm.nn.pooling:{pooling}'


def _classes(config, labels, split, fields=('text',)):
  tasks.classification(config, labels, split)
  config.data.task = f'lm.tasks.text:classification(fields={fields!r})'
  _frame(config)
  return config


def _table(name, **columns):
  return f"lm.data.sources:table(files='$LM_DATA/{name}/{{split}}.tsv', columns={columns})"


def _sst2(config):  # 6,920 sentences of 23 tokens; 32.6 a step
  _classes(config, ('0', '1'), 'dev')
  tasks.test_set(config, 'test')
  config.data.source = _table('sst2', text='text', label='label')
  return _train(config, 128, 6, 637, 5e-5)


def _ag_news(config):  # 5,100 items of 53 tokens; 33 a step
  _classes(config, ('1', '2', '3', '4'), 'test')
  config.data.source = _table('ag_news', text=('title', 'description'), label='label')
  return _train(config, 256, 7, 462, 5e-5)


def _rte(config):  # 1,767 pairs of 52 tokens; 16.3 a step, for six epochs
  _classes(config, ('0', '1'), 'test', fields=('premise', 'hypothesis'))
  config.data.source = _table('rte', premise='premise', hypothesis='hypothesis', label='label')
  if config.model.pooling == 'lm.nn.pooling:first':
    config.model.pooling = 'lm.nn.pooling:mean'  # as MiniLM was pretrained
  return _train(config, 128, 7, 648, 1e-4)


def _wnut17(config):  # 3,394 posts of 31 tokens; 16.1 a step
  tasks.tagging(config, TAGS, 'dev', 'lm.metrics.spans:entities')
  config.model.head = placeholder(str)
  _frame(config)
  config.data.source = "lm.data.sources:conll(files='$LM_DATA/wnut17_ner/{split}.tsv')"
  return _train(config, 128, 4, 633, 5e-5)


def _squad(config):  # 1,979 windows of 203 tokens; 15.7 a step
  _answers(config, 'squad', 'jsonl')
  return _train(config, 384, 9, 377, 1e-4)


def _answers(config, name, ending, options=''):
  tasks.extraction(config, 'dev', f'lm.metrics.answers:{name.removesuffix("2018")}')
  config.model.head = placeholder(str)
  _frame(config, f', threshold=None{options}')
  config.data.source = f"lm.data.sources:squad(files='$LM_DATA/{name}/{{split}}.{ending}')"
  config.optim.warmup_steps = 37
  # The objective is twice the mean of BERT's two losses, and so is its gradient.
  config.optim.clip_norm = 2.0
  return config


def _chnsenticorp(config):  # 6,365 reviews of 120 characters; 16 a step
  _classes(config, ('0', '1'), 'dev')
  tasks.test_set(config, 'test')
  config.data.source = _table('chnsenticorp_hotel', text='text', label='label')
  return _train(config, 256, 8, 1200, 2e-4)


def _msra_ner(config):  # 8,000 sentences of 48 characters; 16 a step
  tasks.tagging(config, msra_ner.TAGS, 'dev', 'lm.metrics.spans:entities')
  tasks.test_set(config, 'test')
  config.model.head = placeholder(str)
  _frame(config)
  config.data.source = "lm.data.sources:conll(files='$LM_DATA/msra_ner/{split}.tsv', separator='')"
  return _train(config, 256, 3, 1500, 2e-4)


def _cmrc2018(config):  # 2,515 questions; 3,300 windows of 400 characters
  _answers(config, 'cmrc2018', 'json', ', stride=256, longest=60')
  return _train(config, 512, 8, 1200, 2e-4)


_TASKS = {
  'sst2': _sst2, 'chnsenticorp': _chnsenticorp, 'msra_ner': _msra_ner, 'cmrc2018': _cmrc2018,
  'ag_news': _ag_news, 'rte': _rte, 'wnut17': _wnut17, 'squad': _squad,
}  # fmt: skip


def _cmrc(config):  # two epochs of 10,142 questions, about 14,000 windows; 32 a step, one in a row
  _answers(config, 'cmrc2018', 'json', ', longest=60')
  config.data.packing_slack = 512.0
  _train(config, 512, 32, 900, 3e-5)
  config.optim.warmup_steps = 90
  return _attention_dropout(config)


def _attention_dropout(config):
  """Drops attention weights too, as BERT's fine-tuning does; imports leave that out."""
  if config.model.attention_layer == 'lm.nn.layers:Attention':
    config.model.attention_layer += '(dropout=0.1)'
  return config


# Fields, classes (none for a number), examples, epochs and development split of each task.
_GLUE = {
  'sst2': (('sentence',), ('negative', 'positive'), 67_349, 3, 'validation'),
  'cola': (('sentence',), ('unacceptable', 'acceptable'), 8_551, 3, 'validation'),
  'mrpc': (('sentence1', 'sentence2'), ('not_equivalent', 'equivalent'), 3_668, 5, 'validation'),
  'stsb': (('sentence1', 'sentence2'), (), 5_749, 3, 'validation'),
  'qqp': (('question1', 'question2'), ('not_duplicate', 'duplicate'), 363_846, 3, 'validation'),
  'mnli': (
    ('premise', 'hypothesis'), ('entailment', 'neutral', 'contradiction'), 392_702, 3,
    'validation_matched',
  ),
  'qnli': (('question', 'sentence'), ('entailment', 'not_entailment'), 104_743, 3, 'validation'),
  'rte': (('sentence1', 'sentence2'), ('entailment', 'not_entailment'), 2_490, 3, 'validation'),
}  # fmt: skip


def _glue(name):
  """Returns the variant of a task of GLUE (Wang et al. 2019): 32 examples a step, one in a row."""
  fields, labels, examples, epochs, split = _GLUE[name]

  def variant(config):
    if labels:
      _classes(config, labels, split, fields)
    else:
      tasks.regression(config, split)
      config.data.task = f'lm.tasks.text:regression(fields={fields!r})'
      _frame(config)
    section = config.eval.sets.validation
    if name == 'cola':
      section.scores = (*section.scores, 'lm.metrics.labels:matthews')
    if name in ('mrpc', 'qqp'):
      section.scores = (f'lm.metrics.labels:classification(positive={labels[1]!r})',)
    columns = {field: field for field in fields} | {'label' if labels else 'value': 'label'}
    config.data.source = f"lm.data.sources:tfds(name='glue/{name}', columns={columns})"
    config.data.packing_slack = 128.0  # one example in a row, as published
    _train(config, 128, 32, epochs * examples // 32, 2e-5)
    config.optim.update({'warmup_steps': 0, 'weight_decay': 0.0})
    return _attention_dropout(config)

  return variant


_SMOKE = {  # a config.json with the sizes of lm.config.tasks.small
  'model_type': 'bert',
  'architectures': ['BertModel'],
  'vocab_size': 1000,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'max_position_embeddings': 64,
  'type_vocab_size': 2,
}
_LANGUAGES = ('de', 'en', 'fr', 'zh')


def _smoke(config):
  _classes(config, _LANGUAGES, 'validation')
  return tasks.small(config, f'lm.data.sources:languages(languages={_LANGUAGES}, size=2000)')


def _random_checkpoint():
  """Returns the workdir of a random BERT, after importing it from files of Hugging Face's layout.

  It is in the preparation cache.
  """

  def build(place):
    texts = [example['text'] for example in languages('train', languages=_LANGUAGES, size=2000)]
    tokenizer = tokenizers.wordpiece(texts, _SMOKE['vocab_size'] - 2)
    tokenizer.add_special_tokens(['[CLS]', '[SEP]'])
    first, last = ((name, tokenizer.token_to_id(name)) for name in ('[CLS]', '[SEP]'))
    tokenizer.post_processor = BertProcessing(last, first)
    rng, tensors = np.random.default_rng(0), {}
    for entry in families.family_of(_SMOKE).entries:
      for names in entry.tensor_names():
        for name, shape in zip(names, entry.transform.shapes, strict=True):
          tensors[name] = rng.normal(0, 0.02, shape).astype(np.float32)
    source = place / 'source'
    source.mkdir()
    (source / 'config.json').write_text(json.dumps(_SMOKE))
    safetensors.write_file(source / 'model.safetensors', tensors)
    tokenizer.save(str(source / 'tokenizer.json'))
    checkpoint.import_checkpoint(source, place / 'workdir')
    return {}

  code = fingerprints.of_values([f'{f.__module__}:{f.__name__}' for f in _CODE])
  place, _ = cache.artifact('', 'random_bert', {'config': _SMOKE, 'code': code}, build)
  return str(place / 'workdir')


_CODE = (checkpoint.import_checkpoint, families.family_of, tokenizers.wordpiece, base)
