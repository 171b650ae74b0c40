import base64
import hashlib
import html.parser
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

from lm.errors import UserError
from lm.report import page
from lm.report.page import SECTIONS, render, write_report
from lm.workdir import run_data
from lm.workdir.metrics_writer import EventLog, Metrics
from lm.workdir.run_data import EvalExample, Series

_EMPTY = {'meta', 'link', 'img', 'br', 'input', 'hr'}


class _Page(html.parser.HTMLParser):
  """A parser that checks the nesting of tags, with the text and the scripts of the page."""

  def __init__(self, source):
    super().__init__()
    self.open, self.scripts, self.attributes, self.text = [], [], [], ''
    self.source = source if isinstance(source, str) else source.read_text('utf-8')
    self.feed(self.source)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.attributes += [(tag, name, value) for name, value in attrs]
    if tag not in _EMPTY:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] == 'script':
      self.scripts.append(data)
    elif self.open and self.open[-1] != 'style':
      self.text += data

  def lines(self):
    """Returns the lines of the curves by group, panel and name."""
    groups = json.loads(self.scripts[0])
    return {
      (group['title'], panel['title'], line['name']): line
      for group in groups
      for panel in group['panels']
      for line in panel['lines']
    }


def _run(workdir, steps=10, **metrics):
  (workdir / 'config.json').write_text(json.dumps({'steps': steps, 'model': {'depth': 2}}))
  directions = {'loss': False, 'accuracy': True, 'mse': False}
  run_data.write_directions(workdir, {f'eval/validation/{k}': d for k, d in directions.items()})
  log = Metrics(workdir, None)
  for step in range(1, steps + 1):
    log.write(step, {'train/loss': 4 / step} | {k: v(step) for k, v in metrics.items()})
  log.write(steps // 2, {'eval/validation/loss': 1.25, 'eval/validation/accuracy': 0.75})
  log.write(steps, {'eval/validation/loss': 1.5, 'eval/validation/accuracy': 0.5})
  log.close()
  return workdir


def _events(workdir, *names):
  events = EventLog(workdir)
  for name in names:
    events.write(name, **({} if name == 'start' else {'step': 10}))
  events.close()


def test_the_page_is_complete_and_loads_no_other_file(tmp_path):
  _events(_run(tmp_path), 'start', 'first_step', 'done')
  (tmp_path / 'environment.json').write_text('{"host": {"cpu": "Abacus 3"}}')
  (tmp_path / 'source').mkdir()
  (tmp_path / 'source/a.py').write_text('depth = 1 < 2\n')
  page = _Page(write_report(tmp_path))
  for text in ('model.depth', 'Abacus 3', 'depth = 1 < 2', 'first_step', 'done', 'step 10 of 10'):
    assert text in page.text
  assert not [a for a in page.attributes if a[1] in ('src', 'href', 'action')]
  assert not re.search(r'url\(|@import|https?://(?!www\.w3\.org/2000/svg)', page.source)


def test_results_show_the_last_and_the_best(tmp_path):
  page = _Page(write_report(_run(tmp_path)))
  cells = re.findall(r'<tr>(.*?)</tr>', page.source)
  rows = [re.findall(r'<td[^>]*>(.*?)</td>', row) for row in cells]
  assert ['validation', 'loss', '1.5', '10', '1.25', '5'] in rows
  assert ['validation', 'accuracy', '0.5', '10', '0.75', '5'] in rows


def test_model_output_is_escaped_and_one_script_is_allowed(tmp_path):
  hostile = '</pre><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\x1b[31m床前明月光'
  metrics = Metrics(_run(tmp_path), 10)
  metrics.text(10, hostile.replace('\x1b', ''), hostile, prompt='<b>')
  metrics.write(10, {'train/</script><script>alert(2)</script>': 1.0})
  metrics.close()
  (tmp_path / 'config.json').write_text(json.dumps({'steps': 10, hostile: hostile}))
  page = _Page(write_report(tmp_path))
  assert hostile.replace('\x1b', '␛') in page.text
  assert '\x1b' not in page.source
  assert len(page.scripts) == 2
  assert not [a for a in page.attributes if a[1].startswith('on')]
  (policy,) = [v for tag, name, v in page.attributes if tag == 'meta' and 'script-src' in (v or '')]
  digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in policy


def test_prompts_are_marked_and_the_latest_sample_is_first(tmp_path):
  metrics = Metrics(_run(tmp_path), 10)
  metrics.text(5, 'early', ' was', prompt='It')
  metrics.text(10, 'late', ' is', prompt='It')
  metrics.close()
  source = write_report(tmp_path).read_text('utf-8')
  assert '<mark>It</mark> is' in source
  assert source.index('<mark>It</mark> is') < source.index('<mark>It</mark> was')


def test_a_run_without_metrics_has_a_page(tmp_path):
  _events(tmp_path, 'start')
  page = _Page(write_report(tmp_path))
  assert 'No metrics have been written yet' in page.text
  assert 'running' in page.text


def test_a_single_point_and_points_that_are_not_finite_are_shown(tmp_path):
  metrics = Metrics(tmp_path, None)
  metrics.write(1, {'train/loss': float('nan'), 'alone': float('inf')})
  metrics.write(2, {'train/loss': 1.5})
  metrics.close()
  lines = _Page(write_report(tmp_path)).lines()
  line = lines['Loss', 'loss', 'train']
  assert (line['x'], line['y'], line['bad']) == ([1, 2], [None, 1.5], [1])
  assert lines['other', 'alone', 'alone']['y'] == [None]


def test_every_metric_appears_once_under_its_prefix(tmp_path):
  values = {'train/grad_norm': 1.0, 'eval/a/loss': 2.0, 'eval/a/bits_per_byte': 3.0, 'probe/x': 4.0}
  values |= {'eval/b/bits_per_byte': 5.0, 'train/loss': 6.0, 'train/learning_rate': 7.0}
  metrics = Metrics(tmp_path, None)
  metrics.write(1, values)
  metrics.close()
  lines = _Page(write_report(tmp_path)).lines()
  assert {key: line['y'] for key, line in lines.items()} == {
    ('Loss', 'loss', 'a'): [2.0],
    ('Loss', 'loss', 'train'): [6.0],
    ('Evaluation', 'bits per byte', 'a'): [3.0],
    ('Evaluation', 'bits per byte', 'b'): [5.0],
    ('Training', 'grad norm', 'grad_norm'): [1.0],
    ('Training', 'learning rate', 'learning_rate'): [7.0],
    ('probe', 'x', 'x'): [4.0],
  }


def test_a_long_run_is_thinned_without_losing_its_extremes(tmp_path):
  with open(tmp_path / 'metrics.jsonl', 'w') as file:
    for step in range(1, 100_001):
      loss = 99.0 if step == 54_321 else -9.0 if step == 77_777 else 2 + (step * 7919 % 100) / 1e3
      line = {'step': step, 'train/loss': loss, 'train/norm': 'NaN' if step == 31_313 else 1.0}
      file.write(json.dumps(line) + '\n')
  path = write_report(tmp_path)
  lines = _Page(path).lines()
  loss = lines['Loss', 'loss', 'train']
  points = dict(zip(loss['x'], loss['y'], strict=True))
  assert len(points) <= 2000
  assert (points[54_321], points[77_777]) == (99.0, -9.0)
  assert {1, 100_000} <= points.keys()
  assert lines['Training', 'norm', 'norm']['bad'] == [31_313]
  assert path.stat().st_size < 200_000


@pytest.mark.parametrize('count', [1, 2, 1999, 2000, 2001, 2500, 123_457])
def test_thinning_keeps_order_and_bound(count):
  steps = np.arange(count) * 3
  values = np.random.default_rng(0).normal(size=count)
  values[::7] = np.nan
  thin = page.thin(Series(steps, values))
  assert len(thin.steps) == min(count, len(thin.steps)) <= 2000
  assert np.all(np.diff(thin.steps) > 0)
  np.testing.assert_array_equal(values[thin.steps // 3], thin.values)
  if count > 1:
    assert (np.nanmin(thin.values), np.nanmax(thin.values)) == (
      np.nanmin(values),
      np.nanmax(values),
    )


@pytest.mark.parametrize(
  ('names', 'word'),
  [
    (('start',), 'done'),  # resumed at its last step
    (('start', 'eval'), 'running'),
    (('start', 'first_step', 'done'), 'done'),
    (('start', 'preempted'), 'preempted'),
    (('start', 'error'), 'failed'),
    (('start', 'preempted', 'start', 'restore', 'first_step'), 'running'),
  ],
)
def test_the_status_follows_the_last_event(tmp_path, names, word):
  _events(_run(tmp_path), *names)
  assert run_data.status(run_data.read_run(tmp_path)) == word


def test_a_run_that_ends_before_its_last_step_is_stopped(tmp_path):
  _events(_run(tmp_path), 'start', 'first_step', 'done')
  (tmp_path / 'config.json').write_text('{"steps": 20}')
  run = run_data.read_run(tmp_path)
  assert (run_data.status(run), run_data.step(run)) == ('stopped', 10)


def test_a_function_adds_a_section(tmp_path):
  def attention(run):
    return f'<section><h2>Attention of {run.name}</h2></section>'

  _run(tmp_path)
  page = _Page(render(run_data.read_run(tmp_path), (*SECTIONS, attention)))
  assert f'Attention of {tmp_path.name}' in page.text


def _outputs(workdir, examples, notes=None):
  """Returns the page of a run with outputs, and (index, rank, hidden, cells) of its rows."""
  run_data.write_predictions(_run(workdir), 10, {'validation': examples}, notes or {}, best=None)
  page = _Page(write_report(workdir))
  rows = re.findall(r'<tr data-index="(\d+)" data-rank="(\d+)"( hidden)?>(.*?)</tr>', page.source)
  cells = [re.findall(r'<td[^>]*>(.*?)</td>', row) for *_, row in rows]
  return page, [
    (int(i), int(rank), bool(h), c) for (i, rank, h, _), c in zip(rows, cells, strict=True)
  ]


def test_outputs_are_sorted_from_the_worst(tmp_path):
  # Scores 0, 1, ..., 199 in another order; one is NaN.
  scores = [float(i * 7 % 200) for i in range(200)]
  scores[20] = float('nan')
  examples = [
    EvalExample([f'in{i}'], f'out{i}', f'right{i}', {'bleu': s}) for i, s in enumerate(scores)
  ]
  page, rows = _outputs(tmp_path, examples)
  assert '200 examples, 50 shown' in page.text
  assert rows[0] == (20, 0, False, ['21', 'in20', 'out20', 'right20', 'not finite'])
  assert [c[4] for *_, c in rows[1:4]] == ['0', '1', '2']
  assert [rank for _, rank, *_ in rows] == sorted(rank for _, rank, *_ in rows)
  assert [hidden for *_, hidden, _ in rows] == [False] * 50 + [True] * (len(rows) - 50)
  # The page has the 50 worst, the 50 best and the first 50 examples for the other orders.
  assert {rank for _, rank, *_ in rows} >= {*range(50), *range(150, 200)}
  assert {i for i, *_ in rows} >= set(range(50))


def test_a_higher_error_rate_is_worse(tmp_path):
  examples = [EvalExample(['x'], 1.0, 1.0 + m, {'mse': m}) for m in (0.0, 9.0, 4.0)]
  _, rows = _outputs(tmp_path, examples)
  assert [i for i, *_ in rows] == [1, 2, 0]


def test_classes_are_right_or_wrong_and_answers_have_alternatives(tmp_path):
  examples = [
    EvalExample(['早上好', '<|sep|>', 'b'], '好', '坏', {'accuracy': 0.0}),
    EvalExample(['<b>'], '</td>', '</td>', {'accuracy': 1.0}),
    EvalExample(['who?'], 'me', ['me', 'myself'], {'accuracy': 1.0}),
  ]
  _, rows = _outputs(tmp_path, examples)
  assert rows[0][3][:4] == ['1', '早上好<br>b', '好', '坏'] and '>wrong<' in rows[0][3][4]
  assert rows[1][3][1:4] == ['&lt;b&gt;', '&lt;/td&gt;', '&lt;/td&gt;']
  assert '>right<' in rows[1][3][4]
  assert rows[2][3][3] == 'me / myself'


def test_tags_color_their_words(tmp_path):
  examples = [
    EvalExample(
      ['我在北京'], ['O', 'O', 'B-LOC', 'O'], ['O', 'O', 'B-LOC', 'I-LOC'], {'accuracy': 0.75}
    ),
    EvalExample(['Ann met Bo'], ['B-P', 'O', 'B-P'], ['B-P', 'O', 'B-P'], {'accuracy': 1.0}),
    # If the text does not split into one word for each tag, the page shows only the tags.
    EvalExample(['a-b'], ['X', 'Y'], ['X', 'Y'], {'accuracy': 1.0}),
  ]
  _, rows = _outputs(tmp_path, examples)
  loc, person = 'kind0', 'kind1'
  assert rows[0][3][2] == (
    f'我在<span class="tag {loc}">北<sub>LOC</sub></span><span class="wrong">京</span>'
  )
  assert rows[0][3][3] == f'我在<span class="tag {loc}">北京<sub>LOC</sub></span>'
  assert rows[1][3][2] == (
    f'<span class="tag {person}">Ann<sub>P</sub></span> met '
    f'<span class="tag {person}">Bo<sub>P</sub></span>'
  )
  assert rows[2][3][2] == 'X / Y'


def test_signatures_are_shown_with_the_results(tmp_path):
  signature = 'nrefs:1|case:mixed|eff:no|tok:zh'
  examples = [EvalExample(['a'], 'b', 'c', {'bleu': 1.0})]
  page, _ = _outputs(tmp_path, examples, {'eval/validation/bleu': signature})
  assert f'<td>validation/bleu</td><td>{signature}</td>' in page.source


def test_attention_maps_are_embedded_for_the_script(tmp_path):
  hostile = '</script><script>alert(1)</script>'
  weights = base64.b64encode(bytes([255, 0, 51, 204])).decode()
  example = {'queries': [hostile, '学习'], 'keys': ['the', 'dog'], 'of': [2, 2], 'weights': weights}
  maps = {'kind': 'cross_attention', 'layers': 1, 'heads': 1, 'examples': [example]}
  maps['set'] = 'validation'
  run_data.write_newest(_run(tmp_path), 'attention/validation', 5, maps)
  run_data.write_newest(tmp_path, 'attention/validation', 10, maps)
  page = _Page(write_report(tmp_path))
  assert 'validation, step 10.' in page.text and 'the decoder' in page.text
  assert len(page.scripts) == 3
  assert json.loads(page.scripts[1]) == {'step': 10} | maps
  assert [p.name for p in (tmp_path / 'attention').iterdir()] == ['validation-10.json']


def test_the_report_can_be_written_during_training(tmp_path):
  _run(tmp_path)
  stop = threading.Event()

  def append():
    metrics = Metrics(tmp_path, 10)
    step = 10
    while not stop.is_set():
      step += 1
      metrics.write(step, {'train/loss': 1.0})
    metrics.close()

  writer = threading.Thread(target=append)
  writer.start()
  try:
    seen = [len(_Page(write_report(tmp_path)).lines()) for _ in range(5)]
  finally:
    stop.set()
    writer.join()
  assert min(seen) >= 3
  assert not list(tmp_path.glob('*.tmp'))


def test_the_title_and_abstract_come_from_the_experiment(tmp_path):
  events = EventLog(_run(tmp_path))
  events.write('start', experiment='tiny:smoke')
  events.close()
  (tmp_path / 'source').mkdir()
  (tmp_path / 'source/tiny.py').write_text('"""A tiny model.\n\nMore."""\n')
  page = _Page(write_report(tmp_path))
  assert 'tiny:smoke' in page.text and 'A tiny model.' in page.text


@pytest.mark.parametrize(('arg', 'marked'), [('', False), (':best', False), (':write_smoke', True)])
def test_the_page_of_a_smoke_test_is_marked(tmp_path, arg, marked):
  events = EventLog(_run(tmp_path))
  events.write('start', experiment=f'tiny{arg}')
  events.close()
  (tmp_path / 'config.json').write_text('{"data": {"source": "mine:embedded"}}')
  page = _Page(write_report(tmp_path))
  smoke = (
    'A smoke test of tiny: few steps of a small model on embedded data, data.source=mine:embedded.'
  )
  assert (smoke in page.text) is marked


def test_a_directory_without_a_run_is_an_error_of_one_line(tmp_path):
  with pytest.raises(UserError, match='no such directory'):
    write_report(tmp_path / 'absent')
  with pytest.raises(UserError, match='holds no run'):
    write_report(tmp_path)
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match=r'config\.json: not a JSON file'):
    write_report(tmp_path)


def test_the_program_writes_the_page_and_prints_its_path(tmp_path):
  _run(tmp_path)
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}

  def program(*arguments):
    command = [sys.executable, '-m', 'lm.report', *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)

  done = program(f'--workdir={tmp_path}')
  assert (done.returncode, done.stdout) == (0, f'{tmp_path}/report.html\n')
  assert (tmp_path / 'report.html').exists()
  missing = program()
  assert (missing.returncode, missing.stderr.count('\n')) == (2, 1)
  assert '--workdir' in missing.stderr
