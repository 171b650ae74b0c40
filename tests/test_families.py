"""experiments/families.py: every variant loads, and each family has the same budget of FLOPs."""

import pathlib

import pytest
from flax.traverse_util import flatten_dict

from lm import components
from lm.training.train_step import abstract_state
from lm.workdir import experiment

FILE = pathlib.Path(__file__).parent.parent / 'experiments/families.py'
FAMILIES = ('lstm', 'gpt', 'bert', 'electra', 't5', 'bart', 'gpt_bert')
# Tokens of a row of 128 that decoders read, and those that the head reads: 15 % are masked (19), or
# become 6 spans, each after its sentinel, and END.
TARGETS = {'t5': 26}
HEAD = {'bert': 19, 't5': 26}


def spent(name):
  """Returns the parameters of matmuls times the tokens that they read, over all steps."""
  config = experiment.load(f'{FILE}:{name}')
  functions = components.build_components(config, 8000)
  params = flatten_dict(abstract_state(functions)[0].params, sep='/')
  total = 0
  for path, x in params.items():
    if not path.startswith(('encoder/', 'decoder/')):
      total += x.size * HEAD.get(name, 128)
    elif x.ndim > 1 and not path.endswith('bias'):
      of_targets = path.startswith('decoder/') and '/cross_attention/kv/' not in path
      total += x.size * (TARGETS.get(name, 128) if of_targets else 128)
  return config.steps * config.batch_size * total


@pytest.mark.parametrize('name', ['lstm', 'bert', 't5', 'bart', 'gpt_bert'])
def test_each_family_spends_the_flops_of_the_decoder(name):
  assert spent(name) == pytest.approx(spent('gpt'), rel=0.01)


@pytest.mark.parametrize('prefix', ['', 'tpu_'])
def test_all_variants_load(prefix):
  for name in FAMILIES:
    assert experiment.load(f'{FILE}:{prefix}{name}').steps > 100
