"""experiments/plots.py: what it reads from workdirs."""

import importlib.util
import json
import pathlib

import pytest

FILE = pathlib.Path(__file__).parent.parent / 'experiments/plots.py'


@pytest.fixture(scope='module')
def plots():
  spec = importlib.util.spec_from_file_location('plots', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def write(file, rows):
  file.parent.mkdir(exist_ok=True)
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_seconds_are_those_of_steps(plots, tmp_path):
  rows = [
    {'step': 10, 'train/step_seconds': 0.5},
    {'step': 30, 'train/step_seconds': 0.25},
    {'step': 30, 'eval/validation/bleu': 7.0},
    {'step': 40, 'train/step_seconds': 1.0},
    {'step': 40, 'eval/validation/bleu': 9.0},
  ]
  write(tmp_path / 'metrics.jsonl', rows)
  assert plots.seconds(tmp_path, 'eval/validation/bleu') == [(10.0, 7.0), (20.0, 9.0)]


def test_lengths_are_of_the_newest_predictions(plots, tmp_path):
  def example(size, right):
    return {'inputs': ['x' * size], 'output': 'a', 'reference': 'a' if right else 'b'}

  folder = tmp_path / 'predictions'
  write(folder / 'validation-90.jsonl', [example(3, False)])
  write(folder / 'validation-100.jsonl', [example(3, True), example(19, False), example(41, True)])
  assert plots.lengths(tmp_path, 'validation') == [(10.0, 0.5, 2), (50.0, 1.0, 1)]
