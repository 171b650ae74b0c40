"""A small Llama on Wikipedia in a language of your choice.

  python -m lm.train --config=experiments/wikipedia.py:zh --workdir=runs/wikipedia_zh

The argument is a language of TensorFlow Datasets' wiki40b: en, zh-cn (or zh), de, fr, ja, ... The
data need the network once, and the packages named in gpt2_small's header. For one GPU or a TPU
slice.
"""

from ml_collections import ConfigDict

from lm.config.base import base, llama, smoke
from lm.errors import UserError, did_you_mean

# The languages of the builder wiki40b (Guo et al. 2020).
LANGUAGES = (
  'en ar zh-cn zh-tw nl fr de it ja ko pl pt ru es th tr bg ca cs da el et fa fi he hi hr hu id lt '
  'lv ms no ro sk sl sr sv tl uk vi'
)


def get_config(arg='en'):
  language = {'smoke': 'en', 'zh': 'zh-cn'}.get(arg, arg)
  if language not in LANGUAGES.split():
    offered = ', '.join([*LANGUAGES.split(), 'smoke'])
    raise UserError(
      f'--config: no language {arg!r}{did_you_mean(arg, LANGUAGES.split())}; there is {offered}'
    )
  config = base()
  config.steps = 50_000
  config.batch_size = 64
  config.data.source = f"lm.data.sources:tfds(name='wiki40b/{language}')"
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 32_000})
  config.data.seq_len = 1024
  config.model = llama(depth=12, d_model=512, heads=8, kv_heads=4, d_mlp=1536, context=1024)
  config.model.dtype = 'bfloat16'
  config.optim.learning_rate = 1e-3
  config.optim.warmup_steps = 1000
  config.eval.every = 2000
  config.checkpoint.every = 2000
  return smoke(config) if arg == 'smoke' else config
