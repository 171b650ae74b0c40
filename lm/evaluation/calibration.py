"""Calibration by a temperature, a scalar fitted on a development set (Guo et al. 2017, 4.2).

A temperature divides the logits: it changes probabilities, and no prediction. Probabilities
determine the logits up to a constant, so they can be rescaled without the model.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.errors import UserError, did_you_mean

_LOW, _HIGH = -5.0, 5.0  # limits of the log of the temperature
_TOLERANCE = 1e-6
_GOLDEN = (5**0.5 - 1) / 2


def rescale(probabilities: Mapping[str, float], temperature: float) -> dict[str, float]:
  """Returns the softmax of the logits divided by `temperature`, given that of the logits."""
  scaled_C = _log_p(np.array([*probabilities.values()])) / temperature
  odds_C = np.exp(scaled_C - scaled_C.max())
  return dict(zip(probabilities, (odds_C / odds_C.sum()).tolist(), strict=True))


def fit_temperature(predictions: Sequence[Mapping[str, float]], references: Sequence[str]) -> float:
  """Returns the temperature that minimizes the mean of -log p(label), by golden-section search.

  The loss is convex in 1 / temperature, and so has one minimum. It is searched from e^-5 to e^5.

  Args:
    predictions: the probability of each label, for each example.
    references: the labels.

  Raises:
    UserError: there is no example, or a label has no probability.
  """
  if not references:
    raise UserError('calibration: no example to fit a temperature on')
  names = list(predictions[0])
  if unknown := [name for name in references if name not in predictions[0]]:
    near = did_you_mean(unknown[0], names)
    raise UserError(f'calibration: no label {unknown[0]!r}{near}; available: {", ".join(names)}')
  log_p_NC = _log_p(np.array([[found[name] for name in names] for found in predictions]))
  label_N1 = np.array([[names.index(name)] for name in references])

  def nll(log_temperature: float) -> float:
    scaled_NC = log_p_NC / np.exp(log_temperature)
    scaled_NC -= scaled_NC.max(1, keepdims=True)
    label_log_p_N1 = np.take_along_axis(scaled_NC, label_N1, axis=1)
    return float(np.mean(np.log(np.exp(scaled_NC).sum(1)) - label_log_p_N1[:, 0]))

  low, high = _LOW, _HIGH
  while high - low > _TOLERANCE:
    step = _GOLDEN * (high - low)
    if nll(high - step) < nll(low + step):
      high = low + step
    else:
      low = high - step
  return float(np.exp((low + high) / 2))


def _log_p(probabilities: np.ndarray) -> np.ndarray:
  return np.log(np.maximum(probabilities, np.finfo(float).tiny))
