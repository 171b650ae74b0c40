"""The bench: arithmetic by hand, our step end to end, and one line for each wrong argument."""

import io
import json
import subprocess
import sys

import jax
import pytest

from lm.bench.__main__ import main, subcommands
from lm.bench.steps import ours, summary, turns, worker
from lm.bench.steps.shape import DEFAULTS, PRODUCT_SIZE, SHAPES, Shape
from lm.errors import UserError


def test_spread_is_that_of_four_values_by_hand():
  assert summary.spread([4.0, 1.0, 3.0, 2.0]) == {
    'min': 1.0,
    'low': 1.75,
    'median': 2.5,
    'high': 3.25,
    'max': 4.0,
  }
  assert set(summary.spread([7.0]).values()) == {7.0}


def test_ratios_are_within_a_round():
  # The machine was slow in the second round, for both: the ratio is not.
  assert summary.ratios([1.0, 10.0, 2.0], [3.0, 20.0, 5.0]) == [3.0, 2.0, 2.5]


def results(steps, products, flops=None):
  return {
    'steps': steps,
    'products': products,
    'disturbance': [0.01, 0.02, 0.01],
    'product_flops': 1e9,
    'step_flops': flops,
    'peak_bytes': 2**30,
    'first_step_seconds': 3.0,
    'versions': {'code': '1.0'},
  }


def figures():
  measured = {
    'ours': results([0.5, 0.4, 0.6], [0.02, 0.01, 0.04], flops=20e9),
    'transformers': results([1.0, 1.2, 0.9], [0.01, 0.01, 0.02]),
  }
  return summary.of_shape('two', Shape(2, 32, 2, 65, 16, 2, 'float32'), measured)


def test_figures_of_a_shape_by_hand():
  found = figures()
  # The peer's product is the faster: 1e9 FLOPs in a median of 0.01 s.
  assert found['machine_product_flops_per_second'] == pytest.approx(1e11)
  assert found['codes']['ours']['product_flops_per_second'] == pytest.approx(5e10)
  assert found['codes']['ours']['product_share'] == pytest.approx(20e9 / 0.5 / 1e11)
  assert found['codes']['transformers']['product_share'] == pytest.approx(20e9 / 1.0 / 1e11)
  assert found['codes']['ours']['tokens_per_second'] == pytest.approx(32 / 0.5)
  # Round by round: 2, 3, 1.5.
  ratio = found['times_faster_than']['transformers']
  assert (ratio['min'], ratio['median'], ratio['max']) == pytest.approx((1.5, 2.0, 3.0))


def test_table_tells_the_ratio_and_whether_the_machine_was_busy():
  quiet = figures()
  report = {'device': {'platform': 'cpu', 'name': 'x'}, 'threads': 2, 'precision': 'float32'}
  shown = summary.table(report | {'shapes': [quiet]})
  assert '2.00 times as fast as transformers' in shown
  assert '40.0%' in shown
  assert 'not reliable' not in shown
  quiet['codes']['transformers']['disturbance'] = summary.spread([0.4, 0.5])
  assert 'other programs used 45%' in summary.table(report | {'shapes': [quiet]})


def test_flops_of_a_step_are_those_of_gpt2(monkeypatch):
  monkeypatch.setitem(PRODUCT_SIZE, 'cpu', 64)
  subject = ours.build(SHAPES['tiny'])
  # 12 matrices of 32 x 32 and 13 vectors of 32 a layer, the table and the last norm: each is
  # multiplied in 6 FLOPs a token; attention takes 12 T D a layer.
  parameters = 2 * (12 * 32**2 + 13 * 32) + 65 * 32 + 2 * 32
  assert subject.step_flops == 32 * (6 * parameters + 2 * 12 * 16 * 32)
  subject.step(2)
  subject.product(1)
  assert subject.product_flops == 2 * 64**3
  assert subject.peak_bytes() > 2**20


def test_flops_of_a_step_are_those_of_lstm_layers():
  subject = ours.build(SHAPES['tiny_lstm'])
  # Four gates of 16 read 16 inputs and 16 states and a bias; 65 logits of 16 and a bias.
  multiplied = 4 * 16 * (16 + 16 + 1) + 65 * 16
  assert subject.step_flops == 16 * 6 * multiplied


def test_step_learns_its_batch():
  """What is timed is a train step: on one batch again and again the loss falls."""
  config = ours.config_of(SHAPES['tiny'])
  functions = ours.builder.functions(config, 65, jax.devices()[:1])
  state, _ = ours.init_state(functions, jax.random.key(0))
  step = ours.make_train_step(functions, 0, 1, state)
  batch = ours.batch_of(SHAPES['tiny'])
  losses = []
  for _ in range(20):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.005


def test_json_is_one_object_with_all_figures(capsys, monkeypatch):
  monkeypatch.setattr(turns, 'TURN_SECONDS', 0.01)
  assert main(['bench', 'train', '--shape=tiny', '--rounds=2', '--threads=1', '--json']) is None
  report = json.loads(capsys.readouterr().out)
  assert report['threads'] == 1
  assert report['device']['platform'] == 'cpu'
  (tiny,) = report['shapes']
  assert tiny['shape'] == 'tiny' and tiny['rounds'] == 2 and tiny['times_faster_than'] == {}
  code = tiny['codes']['ours']
  assert 0 < code['product_share'] < 1
  assert code['peak_bytes'] > 2**20
  seconds = code['step_seconds']
  assert 0 < seconds['min'] <= seconds['low'] <= seconds['median'] <= seconds['max']


def test_worker_answers_every_request_and_goes_on_after_a_mistake():
  requests = [{'device': True}, {'build': {'depth': 1}}, {'device': True}]
  answers = io.StringIO()
  worker.serve('ours', io.StringIO('\n'.join(map(json.dumps, requests))), answers)
  device, mistake, again = map(json.loads, answers.getvalue().splitlines())
  assert device == again == {'platform': 'cpu', 'name': 'cpu'}
  assert 'missing' in mistake['error'] and not mistake['user']


def test_code_that_dies_is_an_error_with_its_last_words():
  with (
    pytest.raises(RuntimeError, match=r'(?s)ours has ended:.*OSError'),
    turns.started(['ours'], 0) as (code,),  # no core to run on
  ):
    code({'device': True})


def test_peer_that_is_not_installed_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  monkeypatch.delitem(sys.modules, 'lm.bench.steps.transformers', raising=False)
  answers = io.StringIO()
  request = json.dumps(worker.request_build(SHAPES['tiny']))
  worker.serve('transformers', io.StringIO(request), answers)
  answer = json.loads(answers.getvalue())
  assert answer['user'] and "pip install -e '.[peers]'" in answer['error']


@pytest.mark.parametrize(
  ('argv', 'message'),
  [
    ([], "no subcommand ''; there is train"),
    (['trian'], "no subcommand 'trian' (did you mean 'train'?)"),
    (['train', '--rounds=0'], '--rounds=0 is not a positive number'),
    (['train', '--rounds=many'], 'invalid int value'),
    (['train', '--fast'], 'unrecognized arguments: --fast'),
    (['train', '--peer=transformer'], "did you mean 'transformers'?"),
    (['train', '--shape=gpt3'], "did you mean 'gpt2'"),
    (['train', '--peer=torch', '--shape=gpt2'], 'the peer of it is --peer=transformers'),
    (['train', '--peer=transformers', '--shape=article'], 'the peer of it is --peer=torch'),
    (['train', '--peer=torch'], '--shape=article'),
    (['train', '--threads=0'], '--threads=0'),
  ],
)
def test_wrong_arguments_are_one_line(argv, message):
  with pytest.raises(UserError) as raised:
    main(['bench', *argv])
  assert message in str(raised.value)
  assert '\n' not in str(raised.value)


def test_program_exits_2_with_one_line_and_helps():
  def run(*argv):
    command = [sys.executable, '-m', 'lm.bench', *argv]
    return subprocess.run(command, capture_output=True, text=True)

  wrong = run('train', '--fast')
  assert (wrong.returncode, wrong.stdout) == (2, '')
  assert wrong.stderr.startswith('lm.bench: ') and wrong.stderr.count('\n') == 1
  helped = run('train', '--help')
  assert helped.returncode == 0 and '--rounds' in helped.stdout
  assert run('--help').stdout.startswith('Measure this code')


def test_bench_loads_neither_jax_nor_torch_before_its_arguments_are_right():
  code = 'import sys, lm.bench.train; print(*sys.modules.keys() & {"jax", "torch"})'
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == ''


def test_every_platform_has_shapes_and_every_file_is_a_subcommand():
  assert {name for names in DEFAULTS.values() for name in names} <= set(SHAPES)
  assert 'train' in subcommands() and not any(name.startswith('_') for name in subcommands())
