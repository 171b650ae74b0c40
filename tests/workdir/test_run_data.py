import pytest

from lm.workdir.run_data import goodput


def _event(second, event, **fields):
  return {
    'time': f'2026-01-01T00:{second // 60:02}:{second % 60:02}+00:00',
    'event': event,
  } | fields


def test_a_run_without_events_has_no_goodput():
  assert goodput([])['goodput'] == 0
  assert goodput([_event(0, 'start')])['wall_seconds'] == 0


def test_start_up_saves_and_evaluations_are_not_useful():
  shares = goodput([
    _event(0, 'start'),
    _event(20, 'first_step', step=1),
    _event(60, 'eval', step=50, seconds=7),
    _event(61, 'save', step=50, seconds=3),
    _event(100, 'done', step=100),
  ])  # fmt: skip
  assert shares['wall_seconds'] == 100
  assert shares['startup_seconds'] == 20
  assert (shares['eval_seconds'], shares['save_seconds']) == (7, 3)
  assert shares['useful_seconds'] == 70
  assert shares['goodput'] == pytest.approx(0.7)


def test_repeated_steps_count_once():
  shares = goodput([
    _event(0, 'start'),
    _event(10, 'first_step', step=0),
    _event(60, 'save', step=50),
    _event(110, 'eval', step=100),  # killed after this
    _event(200, 'start'),
    _event(205, 'restore', step=50),
    _event(210, 'first_step', step=51),
    _event(260, 'done', step=100),
  ])  # fmt: skip
  assert shares['starts'] == 2
  assert shares['wall_seconds'] == 260
  assert shares['down_seconds'] == 90
  assert shares['startup_seconds'] == 20
  assert shares['redone_seconds'] == 50
  assert shares['useful_seconds'] == 100
  parts = sum(v for k, v in shares.items() if k.endswith('_seconds') and k != 'wall_seconds')
  assert parts == shares['wall_seconds']


def test_a_start_that_restores_nothing_repeats_all_steps():
  shares = goodput([
    _event(0, 'start'),
    _event(10, 'first_step', step=1),
    _event(60, 'eval', step=100),
    _event(60, 'start'),
    _event(70, 'first_step', step=1),
    _event(90, 'preempted', step=40),
  ])  # fmt: skip
  assert shares['redone_seconds'] == 50
  assert shares['useful_seconds'] == 20


def test_the_pause_after_a_complete_run_is_not_lost_time():
  stop = [_event(0, 'start'), _event(10, 'first_step', step=1), _event(60, 'done', step=50)]
  again = [
    _event(3000, 'start'),
    _event(3001, 'restore', step=50),
    _event(3010, 'first_step', step=51),
    _event(3060, 'done', step=100),
  ]
  shares = goodput(stop + again)
  assert (shares['down_seconds'], shares['wall_seconds']) == (0, 120)
  assert shares['useful_seconds'] == 100
