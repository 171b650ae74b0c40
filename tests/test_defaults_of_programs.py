"""Defaults of programs: the config's beam size, dependent model sizes, no objective."""

import types

import in_process
import pytest
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, gpt2
from lm.decode import sampling
from lm.errors import UserError
from lm.evaluation import ensembles, translate
from lm.parallel import mesh
from lm.parallel.host import Never
from lm.text import tokenizers
from lm.training import trainer
from lm.types import apply_of


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(20)]


@pytest.fixture
def strategy_of(monkeypatch):
  """Returns the strategy of lm.translate and its notes, for a run with decode.beam_size=3."""
  config = base()
  config.decode.update({'beam_size': 3, 'length_penalty': 1.25})
  loaded = types.SimpleNamespace(config=config, tokenizer=tokenizers.bytes([]), notes=())
  monkeypatch.setattr(ensembles, 'open_runs', lambda *args, **kwargs: loaded)

  def run(*flags):
    found = []
    monkeypatch.setattr(
      translate, 'Translator', lambda loaded, strategy, *args: found.append(strategy)
    )
    result = in_process.run('translate', '--workdir=x', *flags)
    assert result.returncode == 0, result.stderr
    return found[0], result.stderr

  return run


def test_the_beam_of_translate_is_that_of_the_config(strategy_of):
  strategy, notes = strategy_of()
  assert (strategy.beam_size, strategy.length_penalty) == (3, 1.25)
  assert 'decode.beam_size=3' in notes
  strategy, notes = strategy_of('--beam_size=2', '--length_penalty=0')
  assert (strategy.beam_size, strategy.length_penalty, notes) == (2, 0.0, '')
  assert strategy_of('--mbr=4')[0].beam_size == 1  # candidates are sampled


def test_translate_takes_a_sampler_and_logits_processors_by_path(strategy_of):
  common, repeats = 'lm.decode.sampling:sampler(top_k=2)', 'lm.decode.sampling:no_repeat_ngram(n=2)'
  given = [f'--sampler={common}', f'--logits_processor={repeats}', '--seed=3']
  for more in ([], ['--mbr=3']):
    strategy, notes = strategy_of(*given, *more)
    assert (strategy.beam_size, strategy.sample_fn) == (1, sampling.sampler(top_k=2))
    assert strategy.logits_processors == (sampling.no_repeat_ngram(n=2),) and not notes
  assert strategy_of('--sampler=', '--beam_size=2')[0].sample_fn is sampling.greedy


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--sampler=a:b', '--mbr=3', '--top_p=0.5'], '--top_p=0.5 has no effect with --sampler=a:b'),
    (['--sampler=a:b', '--beam_size=2'], '--sampler=a:b has no effect with --beam_size=2'),
    (['--seed=3', '--beam_size=2'], '--seed=3 has no effect without sampling'),
    (['--sampler=lm.decode.sampling:greedy'], 'decode.sampler: lm.decode.sampling:greedy: missing'),
    (['--logits_processor=lm.errors:no'], "decode.logits_processors[0]='lm.errors:no'"),
    (['--sampler=lm.config.base:base'], "='lm.config.base:base' returns ConfigDict, not a func"),
  ],
)
def test_wrong_samplers_are_one_line(strategy_of, flags, message):
  assert message in in_process.mistake('translate', '--workdir=x', *flags)


def test_a_sampler_and_a_beam_are_refused_before_a_run_begins():
  config = tiny()
  config.decode.update({'sampler': 'lm.decode.sampling:sampler', 'beam_size': 4})
  with pytest.raises(UserError, match=r'decode.sampler=.* decode.beam_size=4'):
    components.build_components(config, 257)


def tiny():
  config = base()
  config.batch_size = config.eval.batch_size = 4
  config.model = gpt2(depth=1, d_model=8, heads=2, context=8)
  config.data.update({'seq_len': 8, 'source': 'test_defaults_of_programs:lines'})
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.log.sample_prompts = ()
  return config


def test_sizes_that_follow_others_are_printed_at_the_start(tmp_path, monkeypatch, capsys):
  config = tiny()
  config.model.update({'d_model': 16, 'heads': 4})
  monkeypatch.setattr(trainer.Trainer, 'fit', lambda *args: None)
  trainer.train(config, 'x.txt', tmp_path / 'run', Never())
  (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('model: ')]
  sizes = dict(part.split('=') for part in line.split()[1:])
  expected = {'depth': 1, 'd_model': 16, 'heads': 4, 'kv_heads': 4, 'head_dim': 4, 'd_mlp': 64}
  assert {name: int(size) for name, size in sizes.items()} == expected


def test_inference_builds_neither_objective_nor_optimizer():
  config = tiny()
  config.objective.fn, config.optim.fn = 'nowhere:objective', 'nowhere:optimizer'
  with pytest.raises(UserError, match='nowhere'):
    components.build_components(config, 257)
  model = components.model(config, 257)
  functions = components.inference(config, model, apply_of(model), mesh.make_mesh({'data': -1}))
  assert functions.model is model and functions.mesh.size >= 1
