import numpy as np
import pytest

from lm.decode.loop import bucket, pad_prompts
from lm.task import Features


def test_buckets_hold_lengths_and_are_few():
  found = [bucket(length) for length in range(1, 2000)]
  assert all(1 <= length <= slots for length, slots in enumerate(found, 1))
  powers = [base << n for base in (16, 24) for n in range(7)]
  assert sorted(set(found)) == sorted([1, 2048, *powers])
  # At most half too long, except for the shortest.
  assert all(slots <= 1.5 * length for length, slots in enumerate(found, 1) if length > 16)


@pytest.mark.parametrize('with_source', [True, False])
def test_each_prompt_is_a_row_with_padding_at_its_end(with_source):
  prompts = [
    Features(
      {'inputs': np.arange(1, n + 1), 'prefix': np.ones(n, int)},
      {'source': 10 + np.arange(2 * n)} if with_source else {},
      {},
    )
    for n in (2, 3)
  ]
  batch = pad_prompts(prompts, lambda longest: longest + 1)
  assert all(values.dtype == np.int32 for values in batch.values())
  expected = {
    'inputs': [[1, 2, 0, 0], [1, 2, 3, 0]],
    'prefix': [[1, 1, 0, 0], [1, 1, 1, 0]],
    'segments': [[1, 1, 0, 0], [1, 1, 1, 0]],
    'positions': [[0, 1, 0, 0], [0, 1, 2, 0]],
  }
  if with_source:
    expected |= {
      'source': [[10, 11, 12, 13, 0, 0, 0], [10, 11, 12, 13, 14, 15, 0]],
      'source_segments': [[1] * 4 + [0] * 3, [1] * 6 + [0]],
      'source_positions': [[0, 1, 2, 3, 0, 0, 0], [0, 1, 2, 3, 4, 5, 0]],
    }
  assert {name: values.tolist() for name, values in batch.items()} == expected
