"""How much of a run's time was training, read from its events."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

_Event = Mapping[str, Any]


def goodput(events: Sequence[_Event]) -> dict[str, float]:
  """Returns where the time of a run went, over all its starts.

  Time is useful from the first step after a start to the last event that names a step, less what
  saves and evaluations made training wait (their `seconds`), less the share of steps that the next
  start had to do again. What follows the last event of a killed process is unknown and not useful.
  The pause after a start that ended in `done` was wished for and counts nowhere; every other pause
  between two starts is lost time.

  Args:
    events: the lines of events.jsonl, in order.

  Returns:
    `starts`; `wall_seconds`; `useful_seconds`; `goodput`, their ratio (0 without events); and the
    losses `startup_seconds` (restore, compile), `save_seconds`, `eval_seconds`, `redone_seconds`
    and `down_seconds` (between starts).
  """
  times = dict.fromkeys(('wall', 'useful', 'startup', 'save', 'eval', 'redone', 'down'), 0.0)
  parts = _starts(events)
  for part, following in zip(parts, [*parts[1:], []], strict=False):
    begin, end = _time(part[0]), _time(part[-1])
    times['wall'] += end - begin
    if following and part[-1]['event'] != 'done':
      pause = _time(following[0]) - end
      times['wall'] += pause
      times['down'] += pause
    first = next((e for e in part if e['event'] == 'first_step'), None)
    times['startup'] += (end if first is None else _time(first)) - begin
    if first is not None:
      _share(times, part[part.index(first) :], _first_step_to_do(following))
  counts = {f'{name}_seconds': seconds for name, seconds in times.items()}
  ratio = times['useful'] / times['wall'] if times['wall'] > 0 else 0.0
  return {'starts': len(parts), 'goodput': ratio} | counts


def _share(times: dict[str, float], part: Sequence[_Event], restored: float):
  """Adds the time of a start from its first step on."""
  steps = [e for e in part if 'step' in e]
  training = _time(steps[-1]) - _time(part[0]) if steps else 0.0
  for kind in ('save', 'eval'):
    waited = sum(float(e.get('seconds', 0)) for e in steps if e['event'] == kind)
    times[kind] += waited
    training -= waited
  training = max(training, 0.0)
  redone = 0.0
  if steps and (done := steps[-1]['step'] - steps[0]['step']) > 0:
    redone = training * min(max(steps[-1]['step'] - restored, 0) / done, 1.0)
  times['redone'] += redone
  times['useful'] += training - redone


def _first_step_to_do(part: Sequence[_Event]) -> float:
  """Returns the step a start took up from; 0 if it restored nothing, infinity if there is none."""
  if not part:
    return float('inf')
  restored = [e['step'] for e in part if e['event'] == 'restore' and 'step' in e]
  return restored[-1] if restored else 0


def _starts(events: Sequence[_Event]) -> list[list[_Event]]:
  parts: list[list[_Event]] = []
  for event in events:
    if event['event'] == 'start':
      parts.append([])
    if parts:
      parts[-1].append(event)
  return parts


def _time(event: _Event) -> float:
  return datetime.datetime.fromisoformat(event['time']).timestamp()
