"""Benchmarks: figures by hand, our work end to end, baselines, and messages."""

import contextlib
import json
import subprocess
import sys

import in_process
import jax
import numpy as np
import pytest

from lm.bench import interleaved, ours, worker
from lm.bench.__main__ import main
from lm.bench.interleaved import BENCHMARKS
from lm.bench.worker import Shape, start_worker
from lm.errors import UserError
from lm.progress import duration

TINY = {name: benchmark.shapes['tiny'] for name, benchmark in BENCHMARKS.items()}
IMPORTED = 'import sys, lm.bench.__main__; print(*sys.modules.keys() & {"jax", "torch"})'


@pytest.fixture
def small_limits(monkeypatch):
  """Makes the operations at the limit of the device cheap."""
  monkeypatch.setitem(worker.MATMUL_SIZE, 'cpu', 64)
  monkeypatch.setattr(ours, 'BUFFER_SIZE', 1 << 10)


def test_spread_has_the_quartiles_of_four_values():
  assert interleaved.spread([4.0, 1.0, 3.0, 2.0]) == {
    'min': 1.0,
    'low': 1.75,
    'median': 2.5,
    'high': 3.25,
    'max': 4.0,
  }
  assert set(interleaved.spread([7.0]).values()) == {7.0}


def test_decoding_that_stops_early_is_not_timed(monkeypatch):
  monkeypatch.setattr(ours, 'stream_tokens', lambda *arguments: iter([0] * 7))
  with pytest.raises(AssertionError):
    ours.decoding(TINY['decode'], 'cpu').run(1)  # 8 new tokens


def results(run, limit, amount=None):
  return {
    'run': run,
    'limit': limit,
    'disturbance': [0.01, 0.02, 0.01],
    'limit_amount': 1e9,
    'amount': amount,
    'peak_bytes': 2**30,
    'first_seconds': 3.0,
    'versions': {'package': '1.0'},
  }


def figures(shape=TINY['train']):
  # The machine was slow in the second round, for both: the ratio is not.
  measured = {
    'ours': results([0.5, 4.0, 0.4], [0.02, 0.01, 0.04], amount=20e9),
    'transformers': results([1.0, 12.0, 0.6], [0.01, 0.01, 0.02]),
  }
  return {'shape': 'tiny', **interleaved.figures(shape, measured)}


def test_figures_of_train_steps_equal_values_by_hand():
  found = figures()
  # The baseline has the faster matmul: 1e9 FLOPs in a median of 0.01 s.
  assert found['limit_per_second'] == pytest.approx(1e11)
  mine, baseline = found['implementations'].values()
  assert mine['limit_per_second'] == pytest.approx(5e10)
  assert mine['share_of_limit'] == pytest.approx(20e9 / 0.5 / 1e11)
  assert baseline['share_of_limit'] == pytest.approx(20e9 / 1.0 / 1e11)
  rates = mine['tokens_per_second']  # of 2 rows of 16 tokens
  assert (rates['min'], rates['median'], rates['max']) == pytest.approx((8, 64, 80))
  ratio = found['times_as_fast_as']['transformers']
  assert (ratio['min'], ratio['median'], ratio['max']) == pytest.approx((1.5, 2.0, 3.0))


def test_figures_of_decoding_count_a_new_token_in_each_row():
  shape = TINY['decode']
  mine = figures(shape)['implementations']['ours']
  assert (shape.batch_size, shape.max_tokens) == (2, 8)
  assert mine['step_seconds']['median'] == pytest.approx(0.5 / 8)
  assert mine['tokens_per_second']['median'] == pytest.approx(2 * 8 / 0.5)
  assert mine['share_of_limit'] == pytest.approx(20e9 / 0.5 / 1e11)


def test_table_has_the_ratio_and_warns_of_a_busy_machine():
  quiet = figures()
  device = {'platform': 'cpu', 'name': 'x'}
  report = {'device': device, 'threads': 2, 'limit': {'name': 'matmuls', 'unit': 'FLOP'}}
  shown = interleaved.table(report | {'shapes': [quiet]})
  for text in ('2.00 times as fast as transformers', '40.0%', 'matmuls at 100.0 GFLOP/s'):
    assert text in shown
  assert 'not reliable' not in shown
  quiet['implementations']['transformers']['disturbance'] = interleaved.spread([0.4, 0.5])
  *_, ratio = interleaved.table(report | {'shapes': [quiet]}).splitlines()
  assert '2.00 times' in ratio and 'not reliable: other programs used 45%' in ratio


@pytest.mark.usefixtures('small_limits')
def test_flops_of_a_train_step_are_those_of_gpt2():
  candidate = ours.train_step(TINY['train'], 'cpu')
  # 12 matrices of 32 x 32 and 13 vectors of 32 a layer, the embeddings and the last norm: each
  # parameter takes 6 FLOPs per token; attention takes 12 T D per layer.
  parameters = 2 * (12 * 32**2 + 13 * 32) + 65 * 32 + 2 * 32
  assert candidate.amount == 32 * (6 * parameters + 2 * 12 * 16 * 32)
  candidate.run(2)
  limit = candidate.limit()
  limit.run(1)
  assert limit.amount == 2 * 64**3
  assert candidate.peak_bytes() > 2**20


def test_flops_of_a_train_step_are_those_of_lstm_layers():
  candidate = ours.train_step(BENCHMARKS['train'].shapes['tiny_lstm'], 'cpu')
  # Four gates of 16 read 16 inputs, 16 states and a bias; the output layer has 65 x 16 and a bias.
  multiplied = 4 * 16 * (16 + 16 + 1) + 65 * 16
  assert candidate.amount == 16 * 6 * multiplied


def test_timed_train_step_learns_its_batch():
  config = ours.config_of(TINY['train'])
  functions = ours.builder.build_components(config, 65, jax.devices()[:1])
  state, _ = ours.init_train_state(functions, jax.random.key(0))
  step = ours.make_train_step(functions, 0, 1, state)
  batch = ours.batch_of(TINY['train'])
  losses = []
  for _ in range(20):
    state, metrics = step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.005


def test_bytes_of_decoding_are_parameters_and_cache_of_each_token():
  shape = Shape(2, 32, 2, 65, 32, 3, 'float32', prompt=5, max_tokens=2)
  # Keys and values of 5 and then of 6 tokens, of 32 elements in 2 layers, for each of 3 rows.
  cache = 3 * (5 + 6) * 2 * 2 * 32 * 4
  assert ours.decoding_bytes(shape, 1000) == 2 * 1000 + cache


@pytest.mark.usefixtures('small_limits')
def test_decoding_takes_the_token_of_the_highest_logit(monkeypatch):
  shape = TINY['decode']
  streamed = []

  def stream(*arguments):
    streamed.append((arguments, list(ours_stream(*arguments))))
    return iter(streamed[-1][1])

  ours_stream = ours.stream_tokens
  monkeypatch.setattr(ours, 'stream_tokens', stream)
  candidate = ours.decoding(shape, 'cpu')
  candidate.run(1)
  ((_, apply, params, prompts, *_), tokens) = streamed[0]
  assert np.shape(prompts) == (2, 4) and np.shape(tokens) == (8, 2)
  rows = np.concatenate([prompts, np.transpose(tokens)], axis=1)
  ones = np.ones_like(rows)
  batch = {'inputs': rows, 'segments': ones, 'positions': ones.cumsum(1) - 1}
  output = apply(params, batch)
  greedy = np.argmax(output.head(output.hidden), axis=-1)
  np.testing.assert_array_equal(rows[:, 4:], greedy[:, 3:-1])
  # 65 tokens and 32 positions of 32, two layers, the last norm; float32.
  parameters = 2 * (12 * 32**2 + 13 * 32) + (65 + 32) * 32 + 2 * 32
  assert candidate.amount == ours.decoding_bytes(shape, 4 * parameters)
  limit = candidate.limit()
  limit.run(2)
  assert limit.amount == 2 * 4 * (1 << 10)


@pytest.fixture
def torch_baselines(monkeypatch):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from lm.bench import torch_baselines

  monkeypatch.setattr(torch_baselines, 'BUFFER_SIZE', 1 << 10)
  return torch_baselines


@pytest.mark.usefixtures('small_limits')
@pytest.mark.parametrize(
  ('benchmark', 'baseline', 'shape'),
  [
    ('train', 'transformers', 'tiny'),
    ('train', 'torch', 'tiny_lstm'),
    ('decode', 'transformers', 'tiny'),
  ],
)
def test_baselines_run(benchmark, baseline, shape, torch_baselines):
  benchmark = BENCHMARKS[benchmark]
  build = getattr(torch_baselines, benchmark.builds[baseline].partition(':')[2])
  candidate = build(benchmark.shapes[shape], 'cpu')
  candidate.run(1)
  candidate.limit().run(1)
  assert 'torch' in candidate.versions and candidate.peak_bytes() > 2**20


def test_baselines_have_the_parameters_of_our_model(torch_baselines):
  shape = TINY['decode']
  model = torch_baselines._gpt2(shape, torch_baselines._device('cpu'))
  count = sum(x.numel() for x in model.parameters())
  assert ours.decoding(shape, 'cpu').amount == ours.decoding_bytes(shape, 4 * count)


def test_baseline_on_a_gpu_that_torch_lacks_is_a_user_error(torch_baselines):
  if torch_baselines.torch.cuda.is_available():
    pytest.skip('torch has a GPU')
  with pytest.raises(UserError, match='CUDA build'):
    torch_baselines.gpt2_train_step(TINY['train'], 'gpu')


@contextlib.contextmanager
def worker_in_process(name, threads):
  """A worker without a process of its own."""
  requests = []
  answers = worker.serve(iter(requests.pop, None))

  def ask(**request):
    requests.append(json.dumps(request))
    return json.loads(next(answers))

  yield ask


@pytest.mark.usefixtures('small_limits')
@pytest.mark.parametrize('benchmark', ['train', 'decode'])
def test_json_report_is_one_object_with_all_figures(benchmark, capsys, monkeypatch):
  monkeypatch.setattr(interleaved, 'TURN_SECONDS', 0.01)
  monkeypatch.setattr(interleaved, 'start_worker', worker_in_process)
  main(['bench', benchmark, '--shape=tiny', '--rounds=2', '--threads=1', '--json'])
  report = json.loads(capsys.readouterr().out)
  assert report['benchmark'] == benchmark and report['threads'] == 1
  assert report['device']['platform'] == 'cpu'
  (tiny,) = report['shapes']
  assert tiny['shape'] == 'tiny' and tiny['rounds'] == 2 and tiny['times_as_fast_as'] == {}
  mine = tiny['implementations']['ours']
  assert mine['share_of_limit'] > 0 and mine['peak_bytes'] > 2**20
  seconds = mine['step_seconds']
  assert 0 < seconds['min'] <= seconds['low'] <= seconds['median'] <= seconds['max']


def test_worker_answers_every_request_and_continues_after_a_failure():
  device = {'call': 'lm.bench.ours:device', 'arguments': {}}
  failing = {'build': 'lm.bench.ours:train_step', 'shape': {'depth': 1}, 'platform': 'cpu'}
  answers = worker.serve(map(json.dumps, [device, failing, device]))
  first, failure, again = map(json.loads, answers)
  assert first == again == {'platform': 'cpu', 'name': 'cpu'}
  assert 'missing' in failure['error'] and not failure['user']


def test_worker_process_answers_and_reports_failures():
  with start_worker('ours', 1) as ask:
    assert ask(call='lm.progress:duration', arguments={'seconds': 61}) == duration(61)
    with pytest.raises(UserError, match='nowhere'):
      ask(call='lm.nowhere:train', arguments={})
    with pytest.raises(RuntimeError, match=r'(?s)Traceback.*KeyError'):
      ask(kind='run', times=1)  # before a build
    assert ask(call='lm.progress:duration', arguments={'seconds': 5}) == duration(5)


def test_worker_that_dies_is_an_error_with_its_last_output():
  with (
    pytest.raises(RuntimeError, match=r'(?s)ours has ended:.*OSError'),
    start_worker('ours', 0) as ask,  # no core to run on
  ):
    ask(call='lm.bench.ours:device', arguments={})


@pytest.mark.parametrize(
  ('package', 'request_'),
  [
    ('torch', {'build': 'lm.bench.torch_baselines:gpt2_decoding', 'shape': {}, 'platform': 'cpu'}),
    (
      'gensim',
      {
        'call': 'lm.bench.vectors:train',
        'arguments': {
          'name': 'gensim', 'text': '', 'model': 'cbow', 'seed': 0, 'threads': 1, 'out': ''
        },
      },
    ),
  ],
)  # fmt: skip
def test_missing_package_of_a_baseline_is_a_user_error(package, request_, monkeypatch):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, 'lm.bench.torch_baselines', raising=False)
  answer = json.loads(next(worker.serve([json.dumps(request_)])))
  assert answer['user'] and package in answer['error']
  assert "pip install -e '.[baselines]'" in answer['error']


@pytest.mark.parametrize(
  ('argv', 'messages'),
  [
    ([], ['COMMAND']),
    (['trian'], ["'trian'", "'train', 'decode', 'corruption', 'finetune', 'vectors'"]),
    (['train', '--rounds=0'], ['--rounds', '0 is not a positive integer']),
    (['train', '--rounds=many'], ['--rounds', "'many'"]),
    (['train', '--fast'], ['--fast']),
    (['train', '--baseline=transformer'], ['--baseline', "'transformer'", "'transformers'"]),
    (['decode', '--baseline=torch'], ['--baseline', "'torch'", "'transformers'"]),
    (['decode', '--shape=gpt3'], ['--shape', "'gpt3'", "'gpt2_b8'"]),
    (['train', '--baseline=torch', '--shape=gpt2'], ['--shape=gpt2', '--baseline=transformers']),
    (['train', '--baseline=transformers', '--shape=article'], ['--baseline=torch']),
    (['train', '--baseline=torch'], ['--shape=article']),
    (['train', '--threads=0'], ['--threads', '0']),
    (['train', '--threads=9999'], ['--threads=9999']),
  ],
)
def test_wrong_arguments_are_one_line(argv, messages):
  with pytest.raises(UserError) as raised:
    main(['bench', *argv])
  assert all(message in str(raised.value) for message in messages)
  assert '\n' not in str(raised.value)


def test_program_exits_2_with_one_line_and_prints_help(monkeypatch):
  monkeypatch.delitem(sys.modules, 'lm.bench.__main__')  # runpy warns of a module in use
  assert in_process.mistake('bench', 'train', '--fast').startswith('lm.bench: ')
  for arguments, text in ((('--help',), 'decode'), (('train', '--help'), '--rounds')):
    result = in_process.run('bench', *arguments)
    assert result.returncode == 0 and text in result.stdout


def test_bench_loads_neither_jax_nor_torch_before_its_arguments_are_right():
  run = subprocess.run([sys.executable, '-c', IMPORTED], capture_output=True, text=True, check=True)
  assert run.stdout.strip() == ''


def test_default_shapes_exist():
  for benchmark in BENCHMARKS.values():
    defaults = {name for names in benchmark.defaults.values() for name in names}
    assert defaults and defaults <= benchmark.shapes.keys()
