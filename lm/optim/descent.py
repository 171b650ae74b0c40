"""Optimizers of word vectors: plain descent and AdaGrad, which touch no row without a gradient."""

from collections.abc import Callable

import optax

from lm.optim import Optimizer, Schedule


def sgd(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 1e-4,
) -> Optimizer:
  """Stochastic gradient descent.

  Args:
    learning_rate: the peak of the schedule.
    schedule: `(peak, steps, warmup, final) -> (step -> rate)`.
    steps: length of the schedule.
    warmup: steps of linear rise from 0.
    final: the last rate as a fraction of the peak, for the schedules that decay.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  return Optimizer(optax.scale_by_learning_rate(rate), rate)


def adagrad(
  learning_rate: float,
  schedule: Callable[..., Schedule],
  steps: int,
  warmup: int = 0,
  final: float = 1.0,
  begin: float = 1.0,
) -> Optimizer:
  """AdaGrad: each number's rate falls with the squares of its gradients (Duchi et al. 2011).

  Args:
    learning_rate, schedule, steps, warmup, final: as in `sgd`.
    begin: what the sum of squares begins with; GloVe takes 1.
  """
  rate = schedule(learning_rate, steps, warmup, final)
  chain = optax.chain(optax.scale_by_rss(begin, eps=0.0), optax.scale_by_learning_rate(rate))
  return Optimizer(chain, rate)
