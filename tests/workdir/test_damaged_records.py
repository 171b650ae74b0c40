"""Damaged files of a workdir: readers skip a damaged line, or report a damaged file in one line."""

import json

import numpy as np
import pytest

from lm.errors import UserError
from lm.report import page
from lm.workdir import metrics_writer, run_data
from lm.workdir.run_data import goodput

DEEP = '[' * 100_000
EVENTS = (
  '{"time": "2026-01-01T00:00:00+00:00", "event": "start"}',
  '{"time": "2026-01-01T00:00:05+00:00", "event": "first_step", "step": 1}',
  '{"time": "2026-01-01T00:00:09+00:00", "event": "done", "step": 2}',
)
METRICS = (
  '{"step": 1, "eval/a/loss": 2.0}',
  '{"step": 2, "eval/a/loss": 1.5, "train/loss": "NaN"}',
)
BAD_METRICS = (
  '{"step": 2, "eval/a/loss": ',
  '{"step": "2", "eval/a/loss": 7}',
  '{"step": true, "eval/a/loss": 7}',
  '{"step": -1, "eval/a/loss": 7}',
  '{"step": 1e3, "eval/a/loss": 7}',
  '{"step": 99999999999999999999, "eval/a/loss": 7}',
  '{"step": [2], "eval/a/loss": 7}',
  '{"eval/a/loss": 7}',
  '{"step": 2, "eval/a/loss": "low"}',
  '{"step": 2, "eval/a/loss": null}',
  '{"step": 2, "eval/a/loss": [7]}',
  '{"step": 2, "eval/a/loss": {"x": 7}}',
  '{"step": 2, "eval/a/loss": true}',
  '{"step": 2, "eval/a/loss": 1' + '0' * 400 + '}',
  '{"step": 2, "eval/a/loss": 1' + '0' * 5000 + '}',
  '[2, 7]',
  'null',
  DEEP,
  '\x00\x01',
)
BAD_EVENTS = (
  '{"time": 5, "event": "done"}',
  '{"time": "yesterday", "event": "done"}',
  '{"time": "2026-01-01T00:00:09+00:00", "event": ["done"]}',
  '{"time": "2026-01-01T00:00:09+00:00", "event": "done", "step": "x"}',
  '{"time": "2026-01-01T00:00:09+00:00", "event": "save", "step": 2, "seconds": "x"}',
  '{"event": "done"}',
  '7',
  DEEP,
)


def write(workdir, metrics=METRICS, events=EVENTS):
  workdir.mkdir(exist_ok=True)
  (workdir / 'metrics.jsonl').write_text('\n'.join(metrics) + '\n')
  (workdir / 'events.jsonl').write_text('\n'.join(events) + '\n')
  run_data.write_directions(workdir, {'eval/a/loss': False})
  return workdir


def assert_same_run(one, other):
  assert one.series.keys() == other.series.keys()
  for name, series in one.series.items():
    np.testing.assert_array_equal(series, other.series[name])
  assert one.events == other.events and goodput(one.events) == goodput(other.events)
  assert run_data.status(one) == run_data.status(other)


@pytest.mark.parametrize('line', range(len(BAD_METRICS)))
def test_only_the_damaged_line_of_metrics_is_lost(line, tmp_path):
  good = run_data.read_run(write(tmp_path / 'good'))
  bad = write(tmp_path / 'bad', (METRICS[0], BAD_METRICS[line], METRICS[1]))
  assert_same_run(run_data.read_run(bad), good)
  assert run_data.metrics_at(bad, 2)['eval/a/loss'] == 1.5
  # A resume keeps the intact lines.
  metrics_writer.Metrics(bad, 2).close()
  assert_same_run(run_data.read_run(bad), good)


@pytest.mark.parametrize('line', range(len(BAD_EVENTS)))
def test_only_the_damaged_line_of_events_is_lost(line, tmp_path):
  good = run_data.read_run(write(tmp_path / 'good'))
  bad = run_data.read_run(
    write(tmp_path / 'bad', events=(*EVENTS[:2], BAD_EVENTS[line], EVENTS[2]))
  )
  assert_same_run(bad, good)
  page.render(bad)


def test_damaged_samples_are_shown_as_text(tmp_path):
  workdir = write(tmp_path)
  metrics = metrics_writer.Metrics(workdir, 2)
  metrics.text(2, 'sample 1', ' text', 'prompt')
  metrics.close()
  (workdir / 'samples/3.txt').mkdir()
  (workdir / 'samples/4.txt').write_bytes(b'\xff\xfe\n')
  (workdir / 'samples/5.txt').write_text(
    f'── a · {"9" * 5000} characters, 0 of them the prompt ──\nx'
  )
  (workdir / 'samples/x.txt').write_text('x')
  found = dict(run_data.read_run(workdir).samples)
  assert found[2] == [('sample 1', 'prompt', ' text')] and sorted(found) == [2, 4, 5]
  page.render(run_data.read_run(workdir))
  metrics_writer.Metrics(workdir, 2).close()  # removes files of later steps, but no folder
  assert sorted(p.name for p in (workdir / 'samples').iterdir()) == ['2.txt', '3.txt', 'x.txt']


@pytest.mark.parametrize(
  'row',
  [
    {'inputs': 'x', 'output': 1, 'reference': 1, 'scores': {'f1': 1}},
    {'inputs': ['x'], 'output': 1, 'reference': 1, 'scores': {}},
    {'inputs': ['x'], 'output': 1, 'reference': 1, 'scores': {'f1': 'good'}},
    {'inputs': ['x'], 'output': 1, 'reference': 1, 'scores': [1]},
    {'inputs': [3], 'output': 1, 'reference': 1, 'scores': {'f1': 1}},
    {'output': 1},
  ],
)
def test_only_the_damaged_line_of_outputs_is_lost(row, tmp_path):
  workdir = write(tmp_path)
  good = run_data.EvalExample(['a b'], ['X', 'Y'], ['X', 3], {'f1': 0.5})
  run_data.write_predictions(workdir, 2, {'a': [good]}, {}, None)
  with open(workdir / 'predictions/a-2.jsonl', 'a') as file:
    file.write(json.dumps(row) + '\n')
  (workdir / 'predictions/a-1.jsonl').mkdir()
  found = run_data.read_run(workdir)
  assert found.predictions == {'a': {2: [good]}}
  page.render(found)


@pytest.mark.parametrize(
  ('folder', 'name'), [('attention', 'a-2.json'), ('word_map', 'embedding-2.json')]
)
@pytest.mark.parametrize(
  'content',
  [
    {'x': 1},
    {'kind': 'attention', 'heads': 1, 'set': 3, 'step': 'x'},
    {'kind': 'attention', 'heads': 1, 'set': 'a', 'step': 1, 'examples': float('nan')},
    {'words': ['x'], 'shares': [1], 'points': [[1, 2]]},
    {'words': 3, 'shares': [1, 2], 'points': 'x'},
  ],
)
def test_a_damaged_file_of_maps_is_reported_on_the_page(folder, name, content, tmp_path):
  workdir = write(tmp_path)
  (workdir / folder).mkdir()
  (workdir / folder / name).write_text(json.dumps(content))
  assert 'is damaged' in page.render(run_data.read_run(workdir))


@pytest.mark.parametrize(
  'content', [{'steps': 'many'}, {'steps': -1}, {'data': 3}, {'data': {'source': 3}, 'model': 'x'}]
)
def test_a_config_of_another_structure_has_a_page(content, tmp_path):
  workdir = write(tmp_path)
  (workdir / 'config.json').write_text(json.dumps(content))
  run = run_data.read_run(workdir)._replace(name='x:smoke')
  assert run.steps is None and 'step 2' in page.render(run)


@pytest.mark.parametrize('name', ['metrics.jsonl', 'events.jsonl', 'config.json', 'metrics.json'])
def test_a_folder_in_place_of_a_file_is_one_line(name, tmp_path):
  workdir = write(tmp_path)
  (workdir / name).unlink(missing_ok=True)
  (workdir / name).mkdir()
  with pytest.raises(UserError, match='cannot be read: Is a directory') as error:
    run_data.read_run(workdir)
  assert name in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('content', ['{"eval/a/loss": 1}', '[]', '{', DEEP])
def test_damaged_directions_are_one_line(content, tmp_path):
  workdir = write(tmp_path)
  (workdir / 'metrics.json').write_text(content)
  with pytest.raises(UserError, match=r'metrics\.json') as error:
    run_data.read_run(workdir)
  assert '\n' not in str(error.value)
