"""Minimum Bayes risk: not the likeliest text, but the one most like what else might be said.

The candidates stand for the distribution of the model, so drawn ones are best (Eikema and Aziz
2020); the best ones of a beam are another choice (Kumar and Byrne 2004).
"""

from collections import Counter
from collections.abc import Callable, Sequence

# utility(text, reference): how good a text is where the reference would be right; more is better
Utility = Callable[[str, str], float]


def rank(candidates: Sequence[str], utility: Utility) -> list[tuple[str, float]]:
  """Returns the different candidates, each with its mean utility against all others, best first.

  A text that is there twice is one of its own others. Of equal ones the first goes first; a single
  candidate is held against itself.

  Args:
    candidates: of one line, at least one.
    utility: called once for each pair of different texts, so n^2 times at the most.
  """
  counts = Counter(candidates)
  others = len(candidates) - 1
  ranked = []
  for text, own in counts.items():
    counted = {**counts, text: own - 1 if others else 1}
    total = sum(n * utility(text, reference) for reference, n in counted.items() if n)
    ranked.append((text, total / max(others, 1)))
  return sorted(ranked, key=lambda pair: -pair[1])
