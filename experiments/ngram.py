"""An n-gram model with interpolated modified Kneser-Ney smoothing, the floor of language models.

  LM_DATA=DIR python -m lm.train --config=experiments/ngram.py --workdir=runs/ngram
  python -m lm.evaluate --workdir=runs/ngram --pairs=$LM_DATA/blimp

The tables are counted before the first step, in one pass, and the one step only measures the loss.
The text is English: speeches, Wikipedia, Brown, news, MASC; every fiftieth line is held out. Tokens
are those of a BPE, so that bits per byte compare with those of a network. `:trigram` has N = 3.
Two CPU cores, 2 minutes; 1.687 bits per byte, and 52.8 % of BLiMP. Figures: experiments/LOG.md.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from lm.config.base import base, link_defaults, select_variant, smoke
from lm.config.resolve import ref
from lm.data.sources import text
from lm.data.sources.base import check_split
from lm.parallel.mesh import with_mesh
from lm.training.train_step import OF_THE_STEP, ZERO_GRADIENTS
from lm.types import Optimizer

FILES = ('english_text/us_presidents', 'english_text/enwiki_sample')
FILES += ('english_more/brown', 'english_more/abc_news', 'english_more/masc')


def english(split):
  """Returns the lines of all files as documents; every fiftieth is of the split 'validation'."""
  check_split(split, ('train', 'validation'))
  lines = text('train', files=tuple(f'$LM_DATA/{name}.txt' for name in FILES), documents='line')
  return [line for i, line in enumerate(lines) if (i % 50 == 49) == (split == 'validation')]


def measure(components, seed, microbatches):
  """Returns a train step that changes no parameter and computes the loss of the batch."""
  objective = components.objective

  def step(state, batch):
    sums = objective.loss_sums(components.apply, state.params, batch, None)
    metrics = dict.fromkeys(OF_THE_STEP, jnp.zeros(()))
    metrics |= {name: sums[name] / x for name, x in objective.normalizers(batch).items()}
    metrics[ZERO_GRADIENTS] = jnp.zeros(len(jax.tree.leaves(state.params)))
    return state.replace(step=state.step + 1), metrics

  return with_mesh(step, components.mesh, components.rules)


def untrained(**unused):
  """Returns an optimizer without a state, whose updates `measure` never asks for."""
  del unused
  return Optimizer(optax.identity(), lambda step: 0.0)


def get_config(arg=''):
  config = base()
  config.steps = 1
  config.data.source = ref(english)
  config.data.tokenizer.vocab_size = 8000
  config.model = ConfigDict({
    'fn': 'lm.models.ngram:Ngram',
    'vocab_size': None,
    'context': 128,
    'order': 5,
    'size': 12_000_000,  # n-grams of all lengths
  })  # fmt: skip
  config.objective = ConfigDict({
    'fn': 'lm.objectives.ngram:kneser_ney',
    'order': config.model.get_ref('order'),
    'fallback': None,
    'train_step': ref(measure),
  })  # fmt: skip
  config.optim = ConfigDict({'fn': ref(untrained), 'decay_steps': 0})
  return select_variant(link_defaults(config), arg, smoke=_smoke, trigram=_trigram)


def _trigram(config):
  config.model.order = 3
  return config


def _smoke(config):
  smoke(config)
  config.model.size = 2**21
  config.objective.fallback = (0.5, 1.0, 1.5)  # the vocabulary is too small for those of order 1
  return config
