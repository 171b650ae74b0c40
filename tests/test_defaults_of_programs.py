"""Defaults of programs: the config's beam size, dependent model sizes, no objective."""

import types

import in_process
import pytest
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, gpt2
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
