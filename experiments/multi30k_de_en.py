"""German to English captions, Multi30k (Elliott et al. 2016): the Transformer of the article.

  LM_DATA=DIR python -m lm.train --config=experiments/multi30k_de_en.py --workdir=runs/multi30k
"""

from lm.config import base, choose, encoder_decoder, evaluation, smoke


def get_config(arg: str = ''):
  config = base()
  config.steps = 3000
  config.batch_size = 4  # rows of 128 + 128 tokens
  config.data.source = (
    "lm.data.sources:parallel(source='$LM_DATA/multi30k/{split}.de', "
    "target='$LM_DATA/multi30k/{split}.en')"
  )
  config.data.task = 'lm.tasks.text:text_to_text'
  config.data.convert = 'lm.tasks.write:encoder_decoder'
  config.data.tokenizer = {'fn': 'lm.text.tokenizers:unigram', 'vocab_size': 8000}
  config.model = encoder_decoder(depth=3, d_model=256, heads=4, context=128)
  config.model.dropout = 0.3
  config.model.init_std = 0.05
  config.objective.label_smoothing = 0.1
  config.optim.b2 = 0.98
  config.optim.learning_rate = 7e-4
  config.optim.schedule = 'lm.optim:inverse_sqrt'
  config.optim.warmup = 600
  config.optim.weight_decay = 0.0
  config.eval.every = 1000
  metrics = ('lm.metrics.tokens:targets',)
  config.eval.sets = {'validation': evaluation('val', metrics=metrics, scores=('lm.metrics.translation:bleu(language="en")',))}
  config.log.prompts = ()
  return choose(config, arg, smoke=smoke)
