"""Fine-tuning: what experiments/finetune.py takes from a workdir, and its benchmark."""

import pathlib

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm import components
from lm.bench import finetune, ours
from lm.bench.worker import serve
from lm.data import pipeline
from lm.errors import UserError
from lm.pretrained import checkpoint
from lm.text.tokenizers import vocabulary_size
from lm.training import warm_start
from lm.training.train_step import abstract_state
from lm.workdir import experiment
from lm.workdir.load import load

FILE = pathlib.Path(__file__).parent.parent / 'experiments/finetune.py'
CHECKPOINTS = pathlib.Path(__file__).parent / 'pretrained/checkpoints'
TASKS = ('rte', 'wnut17', 'squad', 'glue_stsb')


@pytest.fixture(scope='module')
def random_bert():
  """Returns the workdir of the random checkpoint of `:smoke`."""
  return experiment.load(f'{FILE}:smoke').warm_start.workdir


def started(config):
  """Returns the first parameters by path, those of the head as zeros, and what was taken."""
  tokenizer = experiment.read_tokenizer(pathlib.Path(config.warm_start.workdir))
  functions = components.build_components(config, vocabulary_size(tokenizer))
  abstract = abstract_state(functions)[0].params
  shapes = flatten_dict(abstract, sep='/')
  params, taken = warm_start.take(
    config.warm_start,
    lambda paths: {path: np.zeros(shapes[path].shape) for path in paths},
    abstract,
    tokenizer,
  )
  return flatten_dict(params, sep='/'), taken


@pytest.mark.parametrize('task', TASKS)
def test_encoder_is_that_of_the_workdir_and_the_head_is_new(task, random_bert):
  config = experiment.load(f'{FILE}:{task},{random_bert}')
  config.data.seq_len = 64  # of the random checkpoint
  params, taken = started(config)
  assert taken.fresh == ('head/bias', 'head/kernel')
  source = flatten_dict(load(random_bert).params, sep='/')
  classes = {'squad': 2, 'glue_stsb': 1}.get(task, len(config.data.labels))
  assert params['head/kernel'].shape == (classes, 32)
  for path in params.keys() - set(taken.fresh):
    np.testing.assert_array_equal(params[path], source[path], err_msg=path)
  pooled = config.model.pooling is not None
  assert pooled == (task not in ('wnut17', 'squad')) == ('pooler/kernel' in params)


def test_rows_have_the_template_of_the_workdir(random_bert):
  config = experiment.load(f'{FILE}:smoke')
  config.data.source = f'first_examples:first(source={config.data.source!r}, count=20)'
  tokenizer = pipeline.tokenizer(config.data)
  assert tokenizer.to_str() == experiment.read_tokenizer(pathlib.Path(random_bert)).to_str()
  rows = pipeline.packed_rows(config.data, 'validation', tokenizer, None)
  batch = rows.batch(np.arange(len(rows)))
  first = (batch['segments'] > 0) & (batch['positions'] == 0)
  names = np.vectorize(tokenizer.id_to_token)(batch['inputs'])
  assert set(names[first]) == {'[CLS]'} and not batch['types'].any()
  assert (names == '[SEP]').sum() == first.sum() == len(rows.example) > 9


def test_checkpoint_without_a_pooler_gets_a_new_one(tmp_path):
  checkpoint.import_checkpoint(CHECKPOINTS / 'bert_masked', tmp_path / 'masked')
  config = experiment.load(f'{FILE}:sst2,{tmp_path / "masked"}')
  config.data.seq_len = config.model.context
  _, taken = started(config)
  assert taken.fresh == ('head/bias', 'head/kernel', 'pooler/bias', 'pooler/kernel')
  tagged = experiment.load(f'{FILE}:wnut17,{tmp_path / "masked"}')
  tagged.data.seq_len = tagged.model.context
  assert started(tagged)[1].fresh == ('head/bias', 'head/kernel')


def test_dense_layer_of_an_imported_head_of_classes_is_kept(tmp_path):
  checkpoint.import_checkpoint(CHECKPOINTS / 'bert_classes', tmp_path / 'classes')
  config = experiment.load(f'{FILE}:sst2,{tmp_path / "classes"}')
  own = experiment.read_config(tmp_path / 'classes').model.head
  assert config.model.head == own and own.startswith('lm.nn.heads:pooled')
  config.data.seq_len = config.model.context
  assert started(config)[1].fresh == ('head/bias', 'head/kernel')


def test_layers_of_imported_decoders_and_encoder_decoders_are_taken(tmp_path):
  for name in ('gpt2', 't5'):
    checkpoint.import_checkpoint(CHECKPOINTS / name, tmp_path / name)
    config = experiment.load(f'{FILE}:sst2,{tmp_path / name}')
    assert config.model.fn == 'lm.models.transformer:Encoder'
    assert config.model.get('causal', False) == (name == 'gpt2')
    config.data.seq_len = config.model.context
    taken = started(config)[1]
    assert taken.fresh == ('head/bias', 'head/kernel', 'pooler/bias', 'pooler/kernel')
    # T5's decoder and its head are left out.
    assert any(path.startswith('decoder/') for path in taken.unread) == (name == 't5')


@pytest.mark.parametrize('name', ['roberta', 'bart'])
def test_tables_of_positions_stay_as_long_as_they_are(tmp_path, name):
  checkpoint.import_checkpoint(CHECKPOINTS / name, tmp_path / 'run')
  config = experiment.load(f'{FILE}:sst2,{tmp_path / "run"}')
  assert config.model.position == 'lm.nn.position:learned(offset=2)'
  config.data.seq_len = config.model.context - 5  # with rows that are shorter than the table
  assert 'encoder/position' not in started(config)[1].fresh


def test_workdir_that_does_not_fit_is_refused(tmp_path):
  with pytest.raises(UserError, match='--config: no imported workdir in the argument'):
    experiment.load(f'{FILE}:sst2')
  with pytest.raises(UserError, match=r'no run in .*nowhere.*lm\.convert from_hf'):
    experiment.load(f'{FILE}:sst2,{tmp_path / "nowhere"}')
  for name in (f'{FILE}:smoke,runs/a', f'{FILE.with_name("multi30k_de_en.py")}:joeynmt,runs/a'):
    with pytest.raises(UserError, match=r',runs/a. names a workdir'):
      experiment.load(name)


def fakes(steps):
  """Returns workers that count their steps, and the counts; a step takes 2 and 3 seconds."""
  made = dict.fromkeys(steps, 0)

  def worker(name, seconds):
    def ask(kind, times):
      assert kind == 'run' and times >= 1
      made[name] += times + 1  # the first is not timed
      return {'seconds': seconds}

    return ask

  return {name: worker(name, 2.0 + i) for i, name in enumerate(steps)}, made


@pytest.mark.parametrize('turns', [1, 4, 7])
def test_turns_make_all_steps(turns):
  steps = {'ours': 100, 'transformers': 37}
  workers, made = fakes(steps)
  seconds = finetune.train(workers, steps, turns)
  assert made == steps
  assert seconds == {'ours': [2.0] * turns, 'transformers': [3.0] * turns}
  with pytest.raises(UserError, match='--turns=20: transformers has only 37 steps'):
    finetune.train(workers, steps, 20)


def test_table_compares_times_of_the_entire_training():
  result = {'examples': 32.0, 'scores': {'eval/dev/accuracy': 0.5}, 'versions': {}}
  report = {
    'ours': result | {'steps': 100, 'seconds': [1.0, 3.0]},
    'transformers': result | {'steps': 50, 'seconds': [8.0, 8.0]},
  }
  lines = finetune.table(report).splitlines()
  assert '200 s after compilation, 2000.0 ms a step' in lines[0]
  assert '400 s after compilation, 8000.0 ms a step' in lines[2]
  assert 'eval/dev/accuracy 0.5000' in lines[1]
  assert lines[-1].startswith('time of ours / transformers: 0.50 (quartiles 0.38 to 0.62), 0.50')


def test_ours_trains_the_smoke_and_scores_it(monkeypatch):
  loaded = experiment.load(f'{FILE}:smoke')
  loaded.data.source = f'first_examples:first(source={loaded.data.source!r}, count=60)'
  loaded.eval.sets.validation.limit = 4
  monkeypatch.setattr(experiment, 'load', lambda path: loaded)
  training = ours.finetuning(f'{FILE}:smoke', 0, '')
  training.run(2)
  scores = training.scores()
  assert training.steps == 100 and training.examples > loaded.batch_size
  assert 0 <= scores['eval/validation/accuracy'] <= 1


def test_worker_describes_a_training_and_scores_it():
  requests = [
    '{"train": "test_finetune:countdown", "arguments": {"start": 5}}',
    '{"kind": "run", "times": 2}',
    '{"scores": true}',
  ]
  described, timed, scored = serve(requests)
  assert described == '{"steps": 5, "examples": 1.0, "versions": {}}'
  assert 'seconds' in timed and scored == '{"left": 2}'


def countdown(start):
  from lm.bench.worker import Training

  left = [start]

  def run(times):
    left[0] -= times

  return Training(run, start, 1.0, lambda: {'left': left[0]}, {})
