"""A map of word vectors for a report: a dot for each word, with a label if there is space for it.

The other labels appear under the pointer. The map is HTML and CSS and needs no script.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.report.html import escaped, section

_WIDTH = 984  # pixels, of the widest page; the positions of labels fit this width
_MIN_HEIGHT, _MAX_HEIGHT = 320, 760  # pixels
_MARGIN = 24  # pixels, around the points
_LINE = 13  # pixels, the height of a label
_DOT = 2  # pixels around a point that no label covers
_GAP = 7  # pixels, from a point to its label
_LONGEST = 40  # characters of a label
_STYLE = """
.words { position: relative; width: 100%; border: 1px solid var(--rule); overflow: hidden; }
.words i { position: absolute; width: 7px; height: 7px; margin: -3.5px; border-radius: 50%;
  background: color-mix(in srgb, var(--accent) 75%, transparent); }
.words i::after { content: ''; position: absolute; inset: -5px; }
.words b { position: absolute; left: 10px; top: -4px; font: 12px/15px var(--sans); display: none;
  color: var(--ink); white-space: pre; unicode-bidi: isolate; pointer-events: none; }
.words .left b { left: auto; right: 10px; }
.words .named b { display: block; }
.words i:hover { z-index: 1; background: var(--ink); }
.words i:hover b { display: block; font-weight: 600; background: var(--paper);
  box-shadow: 0 0 0 3px var(--paper), 0 0 0 4px var(--rule); }
@media (max-width: 800px) { .words .named:not(:hover) b { display: none; } }
"""


def show(found: Mapping[str, Any]) -> str:
  """Returns the section of a map by `lm.evaluation.vectors.word_map`; '' for an empty map.

  Args:
    found: the map, with or without its `step`.
  """
  if not found:
    return ''
  words, shares = found['words'], found['shares']
  step = f'Step {found["step"]:,}. ' if 'step' in found else ''
  names = [word if len(word) <= _LONGEST else f'{word[:_LONGEST]}…' for word in words]
  count = f'{len(words):,} word{"s" if len(words) != 1 else ""}'
  x, y, height = _places(np.array(found['points']))
  marks = []
  for name, left, top, (side, named) in zip(names, x, y, _sides(names, x, y), strict=True):
    kinds = ' '.join(kind for kind, is_so in (('left', side), ('named', named)) if is_so)
    at = f'left:{left / _WIDTH:.2%};top:{top / height:.2%}'
    marks.append(f'<i class="{kinds}" style="{at}"><b dir="auto">{escaped(name)}</b></i>')
  return section(
    'Words',
    f'<p class="none">{step}{count} along the two directions in which their vectors '
    f'vary most: {shares[0]:.0%} of the variance across, {shares[1]:.0%} down. Point at a dot for '
    f'its word.</p><style>{_STYLE}</style>'
    f'<div class="words" style="aspect-ratio:{_WIDTH}/{height:.0f}">{"".join(marks)}</div>',
  )


def _places(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns x (N,) and y (N,) and the height of the map, in pixels; both axes have one scale."""
  low, spread = points.min(axis=0), np.ptp(points, axis=0)
  inner = np.array([_WIDTH, _MAX_HEIGHT]) - 2 * _MARGIN
  scale = np.min(inner / np.maximum(spread, 1e-9))
  height = max(_MIN_HEIGHT, scale * spread[1] + 2 * _MARGIN)
  middle = low + spread / 2
  x = _WIDTH / 2 + (points[:, 0] - middle[0]) * scale
  y = height / 2 - (points[:, 1] - middle[1]) * scale
  return x, y, height


def _sides(names: Sequence[str], x: np.ndarray, y: np.ndarray) -> list[tuple[bool, bool]]:
  """Returns for each label whether it is on the left of its dot, and whether it is visible.

  Earlier labels have priority. A visible label covers no other label and no dot.
  """
  dots = np.stack([x - _DOT, y - _DOT, x + _DOT, y + _DOT], axis=1)
  taken = dots  # later also the boxes of visible labels
  sides = []
  for name, at, height in zip(names, x.tolist(), y.tolist(), strict=True):
    width = sum(13 if unicodedata.east_asian_width(c) in 'WF' else 7 for c in name)
    beyond = at + _GAP + width > _WIDTH
    for left in (beyond, not beyond):
      start = at - _GAP - width if left else at + _GAP
      box = np.array([start, height - _LINE / 2, start + width, height + _LINE / 2])
      crossed = np.all((taken[:, :2] < box[2:]) & (taken[:, 2:] > box[:2]), axis=1)
      inside = start >= 0 and start + width <= _WIDTH
      if inside and not crossed.any():
        taken = np.concatenate([taken, box[None]])
        sides.append((left, True))
        break
    else:
      sides.append((beyond, False))
  return sides
