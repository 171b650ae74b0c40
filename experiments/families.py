"""One corpus, every family: pretraining on the same English text with one vocabulary and budget.

  export LM_DATA=DIR
  python -m lm.train --config=experiments/families.py:bert --workdir=runs/families/bert
  python -m lm.evaluate --workdir=runs/families/bert --pairs=$LM_DATA/blimp

The families are lstm, gpt, bert, electra, t5, bart and gpt_bert; ngram is the lower bound. The text
is that of ngram.py, 2.9M words. Models have 1.8M parameters, ELECTRA's generator apart. Each trains
with the FLOPs of `gpt` in 1,500 steps of 4,096 tokens, about 30 minutes of a CPU core: 6 for
each parameter of a matmul and each token that it reads (Kaplan et al. 2020, section 2.1). Families
that compute fewer logits or read fewer tokens a step thus take more steps.

The pairs of t5 need `--source_mask='<extra_id_0>'`, and those of bart `--source_mask='<|mask|>'`.
finetune.py:sst2, :wnut17 and :squad start from each but ngram: for gpt_bert with
`--config.model.causal=False`, for t5 and bart from their encoders.
`:tpu_NAME` has 100M words and 91M parameters for a TPU slice; it was not run here.

BLiMP: gpt 56.4 %, the others 51.0 to 53.6 % (3,350 pairs), the n-grams 52.8 %. After fine-tuning,
gpt_bert is the best on WNUT and SQuAD, and bert on SST-2. Figures: experiments/LOG.md.
"""

import ngram as counts
from ml_collections import ConfigDict

from lm.config import pretraining
from lm.config.base import base, encoder, encoder_decoder, gpt2, select_variant, unrolled
from lm.config.base import smoke as small
from lm.config.recurrent import recurrent

D, LAYERS, V, T, ROWS = 128, 4, 8000, 128, 32
H = 232  # of the LSTM
BUDGET = 1500 * ROWS * T * (12 * LAYERS * D**2 + V * D)  # that of gpt, without the factor 6


def get_config(arg='gpt'):
  config = base()
  config.batch_size, config.data.seq_len = ROWS, T
  config.data.source = 'ngram:english'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bpe', 'vocab_size': V - 103})
  # All families have the special tokens of all, and so one vocabulary.
  config.data.special_tokens = pretraining.SPECIAL_TOKENS
  config.optim.learning_rate, config.optim.b2, config.optim.warmup_steps = 2e-3, 0.98, 250
  config.eval.every = 500
  of_family = {f.__name__: f for f in (ngram, lstm, gpt, bert, electra, t5, bart, gpt_bert)}
  on_tpu = {f'tpu_{name}': lambda c, f=f: tpu(f(c)) for name, f in of_family.items()}
  del on_tpu['tpu_ngram']  # it is counted, not trained
  smokes = {f'{name}_smoke': lambda c, f=f: smoke(f(c)) for name, f in of_family.items()}
  return select_variant(config, arg, **of_family, **on_tpu, **smokes, smoke=lambda c: smoke(gpt(c)))


def _steps(config, flops_per_row):
  """Sets the steps that spend the budget; `flops_per_row` is without the factor 6."""
  config.steps = round(BUDGET / (ROWS * flops_per_row))
  return config


BLOCK = 12 * D**2  # parameters of a layer
# Of a layer of an encoder, and of a decoder with cross-attention, whose MLPs have a width of 3 D.
# CROSSING are the keys and values of cross-attention, which read the encoder's tokens.
READING, WRITING, CROSSING = 10 * D**2, 12 * D**2, 2 * D**2
NOISE = round(0.15 * T)


def ngram(config):
  found = counts.get_config()
  found.data.tokenizer, found.data.special_tokens = (
    config.data.tokenizer,
    config.data.special_tokens,
  )
  return found


def lstm(config):
  config.model = recurrent(d_model=D, d_hidden=H, depth=2, context=T)
  config.optim.weight_decay = 0.0
  return _steps(config, T * (4 * H * (D + 3 * H) + D * H + V * D))


def gpt(config):
  config.model = _rope(gpt2(LAYERS, D, 4, T))
  return _steps(config, T * (LAYERS * BLOCK + V * D))


def gpt_bert(config):
  return pretraining.masked_or_causal(gpt(config))


def bert(config):
  config.model = _rope(encoder(LAYERS, D, 4, T))
  return pretraining.masked(_steps(config, T * LAYERS * BLOCK + NOISE * V * D))


def electra(config):
  config.model = _rope(encoder(LAYERS, D, 4, T))
  small, logits = 12 * LAYERS * 64**2 + 64 * D, (V + 64) * D  # of the generator
  _steps(config, T * (LAYERS * BLOCK + small) + NOISE * logits)
  return pretraining.replaced_tokens(config, _rope(encoder(LAYERS, 64, 4, T)))


def t5(config):
  config.model, half = _encoder_decoder(), LAYERS // 2
  targets = NOISE + round(NOISE / 3) + 1
  _steps(config, T * half * (READING + CROSSING) + targets * (half * WRITING + V * D))
  return pretraining.denoising(config)


def bart(config):
  config.model, half = _encoder_decoder(), LAYERS // 2
  per_token = half * (READING + CROSSING + WRITING) + V * D
  return pretraining.infilling(_steps(config, T * per_token))


def _encoder_decoder():
  model = encoder_decoder(LAYERS // 2, D, 4, T)
  model.d_mlp = 3 * model.get_oneway_ref('d_model')
  return unrolled(model)


def _rope(model):
  model.position = 'lm.nn.position:rope'
  return unrolled(model)


def tpu(config):
  """GPT-2's size on 100M words of any .txt files, ten epochs of 130M tokens, for 16 chips."""
  config.data.source = (
    "lm.data.sources:text(files='$LM_DATA/*.txt', documents='line', validation=0.01)"
  )
  for model in (config.model, *(section.model for section in config.models.values())):
    wide = 768 if model.d_model == D else 192
    model.d_model, model.dtype = wide, 'bfloat16'
    if 'd_hidden' in model:
      model.d_hidden = 2496
    else:
      model.depth, model.heads, model.head_dim = 3 * model.depth, wide // 64, 64
      model.scan_unroll = 1
  config.steps, config.batch_size = 10_000, 1024
  # The steps of a recurrent layer would gather a sharded kernel one by one.
  recurrent_model = 'd_hidden' in config.model
  config.mesh.data, config.mesh.fsdp = (16, 1) if recurrent_model else (1, 16)
  config.optim.learning_rate = 5e-4
  return config


def smoke(config):
  config.data.source_len = 32
  for section in config.models.values():
    section.model.depth, section.model.d_model, section.model.context = 1, 16, 32
  return small(config)
