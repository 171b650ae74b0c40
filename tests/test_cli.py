"""Flags, config overrides and exit codes of the programs."""

import pathlib
import re
import signal

import pytest
from in_process import mistake, run
from ml_collections import ConfigDict

from lm import cli, components
from lm.config.base import base, encoder_decoder
from lm.errors import Preempted, UserError
from lm.parallel import host

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = '--config=experiments/quickstart.py'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--config is required, for example --config=experiments/quickstart.py'),
    (['--config='], '--config is required'),
    ([QUICKSTART], '--workdir is required, for example --workdir='),
    (
      ['--config=experiments/quikstart.py'],
      '--config=experiments/quikstart.py: no such file (did you mean',
    ),
    ([f'{QUICKSTART}:smok'], "no argument 'smok' (did you mean 'smoke'?)"),
    (
      [QUICKSTART, '--config.stpes=3'],
      "unknown config key 'stpes' (did you mean 'steps'?)",
    ),
    ([QUICKSTART, '--config.model.dpeth=3'], "unknown config key 'dpeth' (did you mean 'depth'"),
    ([QUICKSTART, '--config.seed.x=3'], "unknown config key 'x'; config.seed has no keys"),
    ([QUICKSTART, '--config.steps=many'], '--config.steps=many'),
    ([QUICKSTART, '--config.model.bias=maybe'], '--config.model.bias=maybe'),
    ([QUICKSTART, '--config.model=3'], '--config.model=3'),
    ([QUICKSTART, '--config.steps', '3'], '--config.steps needs a value'),
    ([QUICKSTART, '--wrkdir=x'], "unknown flag --wrkdir (did you mean 'workdir'?)"),
    ([QUICKSTART, '--workdir=x', '--until_step=soon'], '--until_step=soon'),
    ([QUICKSTART, '--workdir=x', '--until_step=0'], '--until_step=0 must be a positive integer'),
    ([QUICKSTART, 'stray'], "unexpected argument 'stray'"),
  ],
)
def test_wrong_usage_is_an_error_of_one_line_with_exit_code_2(arguments, message):
  line = mistake('train', *arguments)
  assert line.startswith('lm.train: ') and message in line


@pytest.mark.parametrize(
  ('program', 'arguments', 'message'),
  [
    ('prepare', [], '--config is required'),
    ('prepare', [QUICKSTART, '--duplicates=2'], '--duplicates=2'),
    ('evaluate', [], '--workdir is required'),
    ('evaluate', ['--workdir=x', '--step=last'], '--step=last'),
    ('generate', ['--prompt=x'], '--workdir is required'),
    ('generate', ['--workdir=x'], '--prompt is required'),
    (
      'generate',
      ['--workdir=x', '--prompt=', '--max_tokens=0'],
      '--max_tokens=0 must be a positive',
    ),
    ('report', [], '--workdir is required'),
  ],
)
def test_missing_flags_are_an_error_of_one_line(program, arguments, message):
  line = mistake(program, *arguments)
  assert line.startswith(f'lm.{program}: ') and message in line


@pytest.mark.parametrize(
  ('program', 'flags'),
  [
    ('train', {'workdir', 'until_step', 'profile'}),
    ('evaluate', {'workdir', 'step'}),
    (
      'generate',
      {'workdir', 'prompt', 'max_tokens', 'temperature', 'top_k', 'top_p', 'min_p', 'seed'}
      | {'num_samples', 'step'},
    ),
    ('prepare', {'duplicates'}),
  ],
)
def test_help_shows_the_command_and_its_flags(program, flags):
  found = run(program, '--help')
  assert (found.returncode, found.stderr) == (0, '')
  assert f'python -m lm.{program} --' in found.stdout
  assert flags <= set(re.findall(r'^  --(\w+): \w', found.stdout, re.MULTILINE))


def test_overrides_reach_the_config_and_its_references():
  argv = ['lm.train', '--config.model.depth=7', QUICKSTART, '--config.steps=12', '--workdir=w']
  argv += [
    '--config.log.sample_prompts=("a", "b")',
    '--config.model.logit_soft_cap=30',
    '--until_step=3',
  ]
  config, path = cli.config(argv)
  assert path == 'experiments/quickstart.py'
  assert (config.model.depth, config.steps, config.optim.decay_steps) == (7, 12, 12)
  assert config.log.sample_prompts == ('a', 'b')
  assert config.model.logit_soft_cap == 30.0
  # The flags of the program remain.
  assert argv == ['lm.train', '--workdir=w', '--until_step=3']


def test_a_pattern_of_layers_and_positions_is_a_tuple_on_the_command_line():
  layers = 'lm.nn.layers:Attention(window=8)', 'lm.nn.layers:Attention'
  bases = 'lm.nn.position:rope(theta=1e4)', 'lm.nn.position:rope(theta=1e6)'
  argv = ['lm.train', QUICKSTART, f'--config.model.attention_layer={layers}']
  config, _ = cli.config([*argv, f'--config.model.position={bases}'])
  assert (config.model.attention_layer, config.model.position) == (layers, bases)
  model = components.model(config, 50)
  assert [f.keywords for f in model.position] == [{'theta': 1e4}, {'theta': 1e6}]
  assert [getattr(f, 'keywords', None) for f in model.attention_layer] == [{'window': 8}, None]
  config.model.position = bases[0]  # plain assignments, in a config file
  config.model.attention_layer = layers
  for wrong in ('3', "('lm.nn.position:rope', 3)"):
    config, _ = cli.config(['lm.train', QUICKSTART, f'--config.model.position={wrong}'])
    with pytest.raises(UserError, match=r'model.position(\[1\])?=3 must be an import path'):
      components.model(config, 50)


def test_an_argument_of_the_config_follows_a_colon(monkeypatch):
  monkeypatch.chdir(ROOT)
  config, path = cli.config(['lm.train', '--config', 'experiments/quickstart.py:smoke'])
  assert path == 'experiments/quickstart.py:smoke'
  assert config.model.d_model == 32


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
  monkeypatch.chdir(ROOT)


def _raise(error):
  raise error


@pytest.mark.parametrize(
  ('outcome', 'code', 'stderr'),
  [
    (lambda: None, 0, ''),
    (lambda: 75, 75, ''),
    (lambda: _raise(UserError('key=1: no')), 2, 'lm.train: key=1: no\n'),
    (lambda: _raise(Preempted('saved')), 75, 'lm.train: saved\n'),
    (lambda: _raise(KeyboardInterrupt()), 1, 'lm.train: interrupted\n'),
  ],
)
def test_exit_codes(outcome, code, stderr, capsys):
  assert cli._exit_code(lambda argv: outcome(), 'Doc.', ['/x/lm/train.py', '--a']) == code
  assert capsys.readouterr() == ('', stderr)


def test_a_bug_prints_a_stack_trace(capsys):
  assert cli._exit_code(lambda argv: 1 / 0, 'Doc.', ['train.py']) == 1
  assert 'Traceback' in (trace := capsys.readouterr().err) and 'ZeroDivisionError' in trace


def test_the_first_signal_stops_and_the_second_interrupts():
  signals = (signal.SIGTERM, signal.SIGINT)
  before = [signal.getsignal(each) for each in signals]
  try:
    early = host.Signals()
    with pytest.raises(Preempted, match='SIGTERM: stopped before the first step'):
      signal.raise_signal(signal.SIGTERM)
    assert early.signal == 'SIGTERM'
    stop = host.Signals()
    stop.begin()
    assert stop.signal is None
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  finally:
    for each, handler in zip(signals, before, strict=True):
      signal.signal(each, handler)


def override(config, *given):
  cli._override(config, argv := [f'--config.{one}' for one in given])
  assert argv == []
  return config


@pytest.mark.parametrize('nothing', ['None', ''])
def test_keys_that_accept_none_are_set_to_none(nothing):
  config = base()
  config.data.task, config.data.pair_counter = (
    'lm.tasks.text:classification',
    'lm.data.cooccurrence:count',
  )
  config.optim.freeze_until, config.model.logit_soft_cap = 5, 30.0
  config.warm_start.step = 7
  keys = (
    'data.task',
    'data.pair_counter',
    'optim.freeze_until',
    'model.logit_soft_cap',
    'warm_start.step',
  )
  override(config, *(f'{key}={nothing}' for key in keys), 'steps=9')
  assert (
    config.data.task is None and config.data.pair_counter is None and config.warm_start.step is None
  )
  assert config.optim.freeze_until is None and config.model.logit_soft_cap is None
  assert config.steps == config.optim.decay_steps == 9
  override(config, 'data.task=lm.tasks.text:tagging', 'model.logit_soft_cap=2')
  assert (config.data.task, config.model.logit_soft_cap) == ('lm.tasks.text:tagging', 2.0)


def test_arguments_with_default_none_are_set_to_none():
  config = base()
  with config.unlocked():
    config.model = encoder_decoder(2, 16, 2, 8)
  config.model.encoder_depth = 3  # no key of the base config
  override(config, 'model.encoder_depth=None')
  assert config.model.encoder_depth is None
  with config.unlocked():
    config.model = ConfigDict(
      {'fn': 'lm.models.transformer:Encoder', 'pooling': 'lm.nn.pooling:mean'}
    )
  override(config, 'model.pooling=None')
  assert config.model.pooling is None


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('steps=None', r'--config.steps=None: the key needs a value; it is 1000'),
    ('model.bias=None', r'--config.model.bias=None: the key needs a value; it is True'),
    ('log.sample_prompts=None', r"--config.log.sample_prompts=None: .* it is \('The ',\)"),
    ('optim=None', r'--config.optim=None: the key is a section'),
    ('steps=', r'--config.steps= must be an integer'),
  ],
)
def test_keys_that_need_a_value_keep_it(given, message):
  with pytest.raises(UserError, match=message) as e:
    override(base(), given)
  assert '\n' not in str(e.value)


def test_string_keys_accept_an_empty_text_and_the_text_none():
  config = override(base(), 'data.cache=', 'warm_start.workdir=None')
  assert (config.data.cache, config.warm_start.workdir) == ('', 'None')
