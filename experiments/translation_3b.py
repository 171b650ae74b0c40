"""English to German by an encoder-decoder with the sizes of T5 3B (Raffel et al. 2020), WMT 2014.

  python -m lm.preflight --config=experiments/translation_3b.py --topology=v5e:4x4
  python -m lm.train --config=experiments/translation_3b.py --workdir=gs://BUCKET/translation_3b

For a TPU slice: parameters, optimizer state and batch are sharded over 16 chips (`mesh.fsdp`). With
full remat, the forward pass saves only the input of each layer. Data and task are those of
wmt14_en_de. The model was compiled for TPUs (experiments/LOG.md), and never trained.
"""

import wmt14_en_de

from lm.config.base import select_variant
from lm.config.tasks import small


def get_config(arg=''):
  config = wmt14_en_de.get_config()
  config.batch_size = 256
  config.model.update({'depth': 24, 'd_model': 1024, 'd_mlp': 16_384})
  config.model.update({'heads': 32, 'kv_heads': 32, 'head_dim': 128, 'embed_scale': 32.0})
  config.model.remat_policy = 'jax:checkpoint_policies.nothing_saveable'
  config.optim.learning_rate = 3e-4
  config.mesh.update({'data': -1, 'fsdp': 16})
  config.eval.batch_size = 256
  return select_variant(config, arg, smoke=_smoke)


def _smoke(config):
  config.mesh.fsdp = 1
  return small(config, "lm.data.sources:names(source_language='en', target_language='de')")
