"""Samples of different seeds have no keys in common, nor do those of one seed."""

import jax
import numpy as np
import pytest

from lm.decode.sampling import keys_of, sampler
from lm.decode.stream import stream
from lm.decode.write import Strategy, write
from lm.task import Features
from lm.types import apply_of

SEEDS, DRAWS, TOKENS = 4, 6, 8
END = 0
PROMPT = np.array([3, 1, 4])


@pytest.fixture(scope='module')
def model(decoder, params_of):
  model = decoder('llama', depth=1)
  return model, apply_of(model), params_of(model)


def test_no_two_draws_of_any_seeds_have_one_key():
  found = [jax.random.key_data(keys_of(seed, np.arange(100))) for seed in range(20)]
  assert len(np.unique(np.concatenate(found), axis=0)) == 2000


# Uniform over 37 tokens, so that equal texts of 8 tokens mean equal keys.
UNIFORM = sampler(temperature=1e6)


def streamed(model, seed):
  tokens = stream(*model, [PROMPT] * DRAWS, UNIFORM, range(DRAWS), TOKENS, seed)
  return [tuple(row) for row in np.stack(list(tokens), axis=1).tolist()]


def written(model, seed):
  strategy = Strategy(END, TOKENS, choose=UNIFORM)
  prompts = [Features({'inputs': PROMPT}, {}, {})] * DRAWS
  return [tuple(texts[0].tokens) for texts in write(*model, prompts, strategy, seed=seed)]


@pytest.mark.parametrize('texts_of', [streamed, written])
def test_samples_of_different_seeds_are_disjoint(texts_of, model):
  found = [text for seed in range(SEEDS) for text in texts_of(model, seed) if len(text) > 3]
  assert len(found) > SEEDS * DRAWS // 2
  assert len(set(found)) == len(found)
