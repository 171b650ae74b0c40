"""Minimum Bayes risk decoding: the candidate most similar to the others, not the most probable one.

The candidates represent the distribution of the model, so samples are best (Eikema and Aziz 2020).
The n best hypotheses of a beam are another choice (Kumar and Byrne 2004).
"""

from collections import Counter
from collections.abc import Callable, Sequence

# utility(text, reference): how good the text is if the reference is right; higher is better
Utility = Callable[[str, str], float]


def mbr_rank(candidates: Sequence[str], utility: Utility) -> list[tuple[str, float]]:
  """Returns the distinct candidates, each with its mean utility against all others, best first.

  A text that occurs n times is also compared with itself, as n - 1 of the others. Ties keep
  the order of the candidates; a single candidate is compared with itself.

  Args:
    candidates: of one input, at least one.
    utility: is called once for each pair of distinct texts, so at most n^2 times.
  """
  counts = Counter(candidates)
  others = len(candidates) - 1
  ranked = []
  for text, own in counts.items():
    counted = {**counts, text: own - 1 if others else 1}
    total = sum(n * utility(text, reference) for reference, n in counted.items() if n)
    ranked.append((text, total / max(others, 1)))
  return sorted(ranked, key=lambda pair: -pair[1])
