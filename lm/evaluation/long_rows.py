"""Features of rows that are longer than those of training: cut, or divided into windows."""

from collections.abc import Collection
from typing import Any

import numpy as np

from lm.errors import UserError
from lm.task import Features
from lm.tasks.extractive_qa import windows

POLICIES = ('error', 'truncate', 'windows')


def fit(
  features: Features, policy: str, limit: int, special: Collection[int], texts: int
) -> list[Features]:
  """Returns features within the length of a row: one, or several windows.

  Windows keep the special tokens at the beginning and at the end of the text.

  Args:
    features: of one row.
    policy: one of `POLICIES`.
    limit: tokens that the model reads, of the source if there is one.
    special: ids of special tokens.
    texts: the count of texts of the row.

  Raises:
    UserError: there are no tokens, or too many for the policy.
  """
  stream = 'source' if features.source else 'tokens'
  arrays = getattr(features, stream)
  size = len(next(iter(arrays.values())))
  if size < 1:
    raise UserError('the text has no tokens')
  if size <= limit:
    return [features]
  if policy == 'error' or 'mask' in features.values:
    remedy = '' if 'mask' in features.values else "; too_long='truncate' or 'windows' reads more"
    raise UserError(f'{size} tokens, and the model reads {limit}{remedy}')
  if policy == 'windows' and texts > 1:
    raise UserError(f"{size} tokens, and too_long='windows' does not divide several texts")
  if policy == 'truncate' and features.shortened is not None:
    kept = features.shortened(limit)
    return [features._replace(tokens={name: x[kept] for name, x in arrays.items()})]
  is_text = ~np.isin(arrays['inputs' if stream == 'tokens' else stream], list(special))
  first = int(np.argmax(is_text)) if is_text.any() else 0
  after = int(np.argmax(is_text[::-1])) if is_text.any() else 0
  last, free = size - after, limit - first - after
  parts = list(windows(last - first, free, free))[: 1 if policy == 'truncate' else None]

  def cut(x: np.ndarray, part: slice) -> np.ndarray:
    return np.concatenate([x[:first], x[first:last][part], x[last:]])

  found: list[Any] = [{name: cut(x, part) for name, x in arrays.items()} for part in parts]
  return [features._replace(**{stream: each}) for each in found]
