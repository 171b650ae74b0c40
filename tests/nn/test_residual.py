"""Block layouts on integers: f adds a constant, and each norm multiplies by its own constant."""

import pytest

from lm.nn.layers import mlp_pre_norm, parallel_block, post_norm, pre_norm, sandwich_norm

SUBLAYERS = (('attention', lambda x: x + 1), ('mlp', lambda x: x + 10))
FACTORS = {
  'norm': 2,
  'attention_norm': 2,
  'attention_post_norm': 3,
  'mlp_norm': 5,
  'mlp_post_norm': 7,
}


@pytest.mark.parametrize(
  ('order', 'expected'),
  [
    # x = 1: 1 + (2*1 + 1) = 4;          4 + (5*4 + 10) = 34
    (pre_norm, 34),
    # x = 1: 1 + (1 + 1) = 3;            3 + (5*3 + 10) = 28
    (mlp_pre_norm, 28),
    # x = 1: 2 * (1 + (1 + 1)) = 6;      5 * (6 + (6 + 10)) = 110
    (post_norm, 110),
    # x = 1: 1 + 3 * (2*1 + 1) = 10;     10 + 7 * (5*10 + 10) = 430
    (sandwich_norm, 430),
    # x = 1: 1 + (2*1 + 1) + (2*1 + 10) = 16
    (parallel_block, 16),
  ],
)
def test_block_layouts_by_hand(order, expected):
  asked = []

  def norm(name):
    asked.append(name)
    return lambda x: FACTORS[name] * x

  assert order(1, SUBLAYERS, norm) == expected
  # Each norm has its own parameters, so that no name occurs twice.
  assert len(asked) == len(set(asked))
