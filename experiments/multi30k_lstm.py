"""German to English captions with an LSTM and attention: Multi30k (Elliott et al. 2016).

  LM_DATA=DIR python -m lm.train --config=experiments/multi30k_lstm.py --workdir=runs/multi30k_lstm
  python -m lm.translate --workdir=runs/multi30k_lstm < $LM_DATA/multi30k/test2016.de > test2016.en

Reads $LM_DATA/multi30k: 29,000 pairs. The bidirectional encoder and the decoder have one layer of
width 256 each. The decoder has additive attention and input feeding (Bahdanau et al. 2015, Luong et
al. 2015). Vocabulary, tasks, decoders and caches are those of multi30k_de_en.py. Two CPU cores, 8
minutes; BLEU on test2016 31.0 (beam 5). Figures, also of JoeyNMT and the Transformer:
experiments/LOG.md.
"""

from ml_collections import ConfigDict

from lm.config.base import base, select_variant
from lm.config.recurrent import recurrent_encoder_decoder
from lm.config.tasks import small, translation


def get_config(arg=''):
  config = base()
  config.steps = 3000
  config.batch_size = 8
  config.model = recurrent_encoder_decoder(d_model=256, d_hidden=256, depth=1, context=64)
  config.model.dropout = 0.3
  translation(config, 'en', 'val')
  config.data.source = (
    "lm.data.sources:parallel(source='$LM_DATA/multi30k/{split}.de', "
    "target='$LM_DATA/multi30k/{split}.en')"
  )
  config.data.seq_len = config.data.source_len = 64
  config.data.too_long = 'skip'
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 8000})
  config.optim.learning_rate = 1e-3
  config.optim.b2 = 0.999
  config.optim.schedule = 'lm.optim.optimizers:linear'
  config.optim.warmup_steps = 200
  config.optim.final_lr_fraction = 0.0
  config.optim.weight_decay = 0.0
  config.eval.every = 1500
  config.decode.length_penalty = 1.0
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  return small(config, "lm.data.sources:names(source_language='de', target_language='en')")
