"""Samples of different seeds have no keys in common, nor do those of one seed."""

import jax
import numpy as np
import pytest

from lm.decode.batch import generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.sampling import row_keys, sampler
from lm.decode.stream import stream_tokens
from lm.task import Features
from lm.types import apply_of

SEEDS, DRAWS, TOKENS = 4, 6, 8
END = 0
PROMPT = np.array([3, 1, 4])


@pytest.fixture(scope='module')
def model(decoder, params_of):
  model = decoder('llama', depth=1)
  return model, apply_of(model), params_of(model)


def test_samples_of_all_seeds_have_distinct_keys():
  found = [jax.random.key_data(row_keys(seed, np.arange(100))) for seed in range(20)]
  assert len(np.unique(np.concatenate(found), axis=0)) == 2000


# Uniform over 37 tokens, so that equal texts of 8 tokens mean equal keys.
UNIFORM = sampler(temperature=1e6)


CONFIG = DecodeConfig(END, TOKENS, sample_fn=UNIFORM)


def streamed(model, seed, prompt=PROMPT):
  tokens = stream_tokens(*model, [prompt] * DRAWS, CONFIG, range(DRAWS), seed)
  rows = np.stack(list(tokens), axis=1).tolist()
  return [tuple(token for token in row if token not in (END, -1)) for row in rows]


def generated(model, seed, prompt=PROMPT):
  prompts = [Features({'inputs': prompt}, {}, {})] * DRAWS
  texts = generate_batch(*model, prompts, CONFIG, seed=seed)
  return [tuple(best.tokens) for best, *_ in texts]


@pytest.mark.parametrize('texts_of', [streamed, generated])
def test_samples_of_different_seeds_are_disjoint(texts_of, model):
  found = [text for seed in range(SEEDS) for text in texts_of(model, seed) if len(text) > 3]
  assert len(found) > SEEDS * DRAWS // 2
  assert len(set(found)) == len(found)


def test_a_stream_and_a_batch_sample_the_same_texts(model):
  assert streamed(model, 1) == generated(model, 1)


def test_a_prompt_with_the_first_tokens_of_its_text_leads_to_the_same_text(model):
  (text, *_) = streamed(model, 1)
  assert len(text) == TOKENS
  longer = np.array([*PROMPT, *text[:3]])
  for texts_of in (streamed, generated):
    assert texts_of(model, 1, longer)[0][: TOKENS - 3] == text[3:]
