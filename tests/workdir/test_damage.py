"""A resume notices damage of checkpoints and of the cache."""

import itertools
import random

import damage
import pytest


# More than 5 seconds: it trains, and restores for each damage; tests/damage.py makes hundreds.
@pytest.mark.slow
# Orbax leaves open files and coroutines behind where it fails.
@pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning'
)
def test_no_damage_is_silent(tmp_path):
  run = damage.Run(tmp_path)
  rng = random.Random(0)
  known = list(itertools.islice(damage.damages(run, rng), 400))
  found = {name: damage.outcome(run, name, change) for name, change in rng.sample(known, 25)}
  assert set(found.values()) <= {'recognized', 'refused', 'harmless'}, found
  assert list(found.values()).count('recognized') > 5, found
