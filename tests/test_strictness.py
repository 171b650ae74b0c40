"""The suite itself is strict: implicit broadcasts and warnings fail a test."""

import signal
import sys
import warnings

import in_process
import jax.numpy as jnp
import pytest
from absl import flags


def test_ranks_are_not_promoted():
  with pytest.raises(ValueError, match='rank_promotion'):
    jnp.ones((2, 3)) + jnp.ones(3)


def test_a_warning_is_an_error():
  with pytest.raises(UserWarning):
    warnings.warn('something is deprecated', stacklevel=1)


def test_a_program_in_the_process_leaves_streams_flags_and_handlers_as_they_were():
  before = (sys.stdout, sys.argv, signal.getsignal(signal.SIGTERM), set(flags.FLAGS))
  assert in_process.run('train', '--config=experiments/no.py').returncode == 2
  assert in_process.run('evaluate', '--help').stdout.startswith('Evaluate')
  assert before == (sys.stdout, sys.argv, signal.getsignal(signal.SIGTERM), set(flags.FLAGS))
