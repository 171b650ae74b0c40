"""Ensembles of runs, means of checkpoints, and minimum Bayes risk decoding."""

import dataclasses
import json
import pathlib
import shutil
import textwrap

import in_process
import jax
import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from lm.config.base import base
from lm.decode.batch import generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.sampling import sampler
from lm.errors import UserError
from lm.evaluation import ensembles
from lm.evaluation.ensembles import open_runs, parse_members
from lm.evaluation.translate import MBRConfig, Translator
from lm.metrics.translation import sentence_chrf
from lm.models import ensemble
from lm.parallel.host import Never
from lm.task import Features
from lm.tasks.classification import classifier, regressor
from lm.text.tokenizers import end_id
from lm.training import trainer
from lm.workdir import experiment
from lm.workdir.load import Loaded, load

PAIRS = {'eins': 'one', 'zwei': 'two', 'drei': 'three', 'ein Hund': 'a dog'}
SOURCE = f"""
  from lm.config import base as configs

  PAIRS = {PAIRS!r}

  def pairs(split):
    return [{{'source': a, 'target': b, 'text': a, 'value': 1.0}} for a, b in PAIRS.items()]

  def upper(split):
    return [pair | {{'target': pair['target'].upper()}} for pair in pairs(split)]

  def get_config(arg=''):
    config = configs.base()
    config.steps, config.batch_size = 31, 2  # the last one would be evaluated: runs stop at 30
    config.checkpoint.every, config.checkpoint.keep_last = 10, 3
    config.data.source = 'ensemble_tiny:upper' if arg == 'upper' else 'ensemble_tiny:pairs'
    config.data.task = 'lm.tasks.text:text_to_text'
    config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
    config.data.seq_len = config.data.source_len = 24
    with config.unlocked():
      config.data.tokenizer = {{'fn': 'lm.text.tokenizers:characters'}}
      config.model = configs.encoder_decoder(depth=1, d_model=32, heads=2, context=24)
      if arg == 'decoder':
        config.model = configs.gpt2(depth=1, d_model=16, heads=2, context=32)
      if arg == 'number':
        config.model = configs.encoder(depth=1, d_model=16, heads=2, context=24)
        config.objective = {{'fn': 'lm.objectives.supervised:squared_error'}}
      metrics = ('lm.metrics.tokens:targets',)
      config.eval.sets = {{'validation': configs.evaluation('train', metrics=metrics)}}
    config.eval.every = 100
    config.model.init_std = 0.1
    config.optim.update({{'learning_rate': 1e-2, 'warmup_steps': 5, 'weight_decay': 0.0}})
    config.log.sample_prompts = ()
    if arg == 'decoder':
      config.data.converter = 'lm.tasks.seq2seq:decoder'
    if arg == 'number':
      config.model.num_classes = 1
      config.data.task = 'lm.tasks.text:regression'
      config.data.converter = 'lm.tasks.classification:regressor'
      config.eval.sets.validation.metrics = ('lm.metrics.tokens:squared_error',)
    return config
"""


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Returns the workdir of a name, trained when it is first asked for: ARG and a seed."""
  folder = tmp_path_factory.mktemp('ensembles')
  (folder / 'ensemble_tiny.py').write_text(textwrap.dedent(SOURCE), 'utf-8')

  def of(arg='', seed=0):
    workdir = folder / f'{arg or "pairs"}{seed}'
    if not workdir.exists():
      path = str(folder / 'ensemble_tiny.py') + (f':{arg}' if arg else '')
      config = experiment.load(path)
      config.seed = seed
      # Of two runs only the names and the tokenizer are looked at.
      until_step = 10 if arg in ('upper', 'decoder') else 30
      trainer.train(config, path, workdir, Never(), until_step)
    return workdir

  return of


@pytest.mark.slow
def test_averaged_parameters_are_the_mean_of_those_of_the_newest_checkpoints(runs):
  workdir = runs()
  each = [load(workdir, step).params for step in (20, 30)]
  loaded = load(workdir, average=2)
  assert (loaded.step, loaded.steps) == (30, (20, 30))
  moved = []

  def check(found, one, other):
    expected = (np.asarray(one, np.float64) + np.asarray(other, np.float64)) / 2
    np.testing.assert_allclose(found, expected, atol=1e-7)
    moved.append(np.abs(np.asarray(one) - np.asarray(other)).max())

  jax.tree.map(check, loaded.params, *each)
  assert max(moved) > 1e-3


# More than 5 seconds: the first test of the file trains two members.
def test_an_ensemble_has_the_mean_loss_of_its_members_probabilities(runs):
  workdirs = runs(), runs(seed=1)
  loaded = [load(workdir) for workdir in workdirs]
  together = open_runs(','.join(map(str, workdirs)))
  assert together.steps == (30, 30)
  ids = np.array([[end_id(together.tokenizer), 3, 5]])
  ones, places = np.ones_like(ids), np.arange(3)[None]
  batch = {'inputs': ids, 'segments': ones, 'positions': places}
  batch |= {'source': ids + 1, 'source_segments': ones, 'source_positions': places}

  def probabilities(one):
    def of(params):
      output = one.apply(params, batch)
      return jax.nn.softmax(output.head(output.hidden))

    return np.asarray(jax.jit(of)(one.params))

  expected = (probabilities(loaded[0]) + probabilities(loaded[1])) / 2
  np.testing.assert_allclose(probabilities(together), expected, atol=1e-6)


@pytest.mark.slow
def test_regression_ensembles_average_logits(runs):
  workdirs = runs('number'), runs('number', seed=1)
  assert open_runs(','.join(map(str, workdirs))).model.mean is ensemble.logits
  result = in_process.run('evaluate', f'--workdir={workdirs[0]},{workdirs[1]}')
  assert result.returncode == 0, result.stderr
  # The outputs of the members err about 1 to either side; a mean of softmaxes over one is 0.
  assert json.loads(result.stdout)['eval/validation/absolute_error'] < 0.9


def my_regressor(task):
  """A converter of a user's own."""
  return dataclasses.replace(regressor(task), predict=lambda output, batch: {})


def my_classifier(task):
  return dataclasses.replace(classifier(task), predict=lambda output, batch: {})


@pytest.mark.parametrize(
  ('convert', 'mean'),
  [('my_regressor', ensemble.logits), ('my_classifier', ensemble.probabilities)],
)
def test_a_converter_decides_the_mean_of_an_ensemble(convert, mean, encoder):
  config = base()
  config.data.task = 'lm.tasks.text:regression'
  config.data.converter = f'test_ensembles:{convert}'
  loaded = Loaded(pathlib.Path(), config, None, encoder(), {}, {'kernel': np.ones(2)}, None, 1)
  together = ensembles._as_ensemble([loaded, dataclasses.replace(loaded, step=2)])
  assert together.model.mean is mean


@pytest.mark.slow
def test_the_programs_open_ensembles_steps_and_averages(runs):
  one, other = runs(), runs(seed=1)
  result = in_process.run('evaluate', f'--workdir={one},{other}', '--step=20,30')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  assert found['steps'] == [20, 30] and found['eval/validation/loss'] > 0
  mean = '--mean=lm.models.ensemble:logits'
  result = in_process.run('evaluate', f'--workdir={one},{other}', '--step=20,30', mean)
  assert json.loads(result.stdout)['eval/validation/loss'] != found['eval/validation/loss']
  result = in_process.run('evaluate', f'--workdir={one}', '--average_checkpoints=2')
  assert json.loads(result.stdout)['steps'] == [20, 30]
  for given in ([f'--workdir={one},{other}'], [f'--workdir={one}', '--step=20,30']):
    result = in_process.run('translate', *given, text='eins\n\nzwei\n')
    assert result.returncode == 0, result.stderr
    assert all(line.startswith('note: ') for line in result.stderr.splitlines())
    assert len(result.stdout.splitlines()) == 3 and result.stdout.splitlines()[1] == ''


@pytest.mark.slow
def test_a_sampler_takes_the_place_of_the_beam_of_a_run(runs, tmp_path):
  workdir = shutil.copytree(runs(), tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['decode']['beam_size'] = 3
  (workdir / 'config.json').write_text(json.dumps(config))
  sampler = '--sampler=lm.decode.sampling:sampler(temperature=3.0)'
  arguments = f'--workdir={workdir}', '--format=text', sampler
  texts = [in_process.run('predict', *arguments, f'--seed={n}', text='eins\n') for n in (1, 2)]
  assert texts[0].returncode == 0, texts[0].stderr
  assert texts[0].stdout != texts[1].stdout


# More than 5 seconds, the first time: two further runs are trained.
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir={pairs},{upper}'], 'form no ensemble: their tokenizers differ (of '),
    (
      ['--workdir={pairs},{decoder}'],
      "data.converter differs: 'lm.tasks.seq2seq:encoder_decoder' and 'lm.tasks.seq2seq:decoder'",
    ),
    (['--workdir={pairs},nowhere'], '--workdir=nowhere: no run there'),
    (['--workdir={pairs},'], 'nothing before or after one of the commas'),
    (['--workdir={pairs},{pairs}'], 'is named twice'),
    (['--workdir={pairs}', '--step=20,x'], '--step=20,x must be a step, or several'),
    (['--workdir={pairs}', '--step=20,25'], '--step=25: '),
    (['--workdir={pairs},{upper}', '--step=10,20,30'], 'names 3 steps for the 2 directories'),
    (['--workdir={pairs}', '--average_checkpoints=9'], '--average_checkpoints=9: '),
    (
      ['--workdir={pairs}', '--average_checkpoints=0'],
      '--average_checkpoints=0 is not a positive number',
    ),
    (
      ['--workdir={pairs}', '--average_checkpoints=2', '--step=20'],
      'takes the newest checkpoints, and --step',
    ),
    (['--workdir={pairs}', '--mbr=1'], '--mbr=1 must be 0, or 2 candidates'),
    (['--workdir={pairs}', '--mbr=6', '--beam_size=5'], '--mbr=6 is more than --beam_size=5'),
    (
      ['--workdir={pairs}', '--temperature=0.5'],
      'temperature=0.5 has no effect without sampling',
    ),
    (['--workdir={pairs}', '--mbr=3', '--n_best=4'], '--n_best=4 is more than --mbr=3'),
    (['--workdir={pairs}', '--mbr=3', '--top_p=2'], '--top_p=2.0 is not between 0 and 1'),
    (
      ['--workdir={pairs}', '--mbr=3', '--length_penalty=1'],
      'no effect, because --mbr draws samples',
    ),
  ],
)
def test_mistakes_are_one_line(arguments, message, runs):
  names = {name: runs('' if name == 'pairs' else name) for name in ('pairs', 'upper', 'decoder')}
  given = (a.format(**names) for a in arguments)
  assert message in in_process.mistake('translate', *given, text='eins\n')


def test_word_vectors_make_no_ensemble(runs, tmp_path):
  import lm.evaluation.vectors as word_vectors
  from lm.text.vectors import make_vectors

  vectors = make_vectors(['a', 'b'], np.eye(2))
  for name in 'xy':
    word_vectors.write_run(vectors, tmp_path / name)
  with pytest.raises(UserError, match='x has word vectors, which share no space with others'):
    open_runs(f'{tmp_path / "x"},{tmp_path / "y"}')


def test_workdirs_combine_with_steps():
  a, b = pathlib.Path('a'), pathlib.Path('b')
  assert parse_members('a', None) == [(a, None)]
  assert parse_members('a', '5') == [(a, 5)]
  assert parse_members('a', '5,7') == [(a, 5), (a, 7)]
  assert parse_members('a,b', '5') == [(a, 5), (b, 5)]
  assert parse_members('a,b', '5,7') == [(a, 5), (b, 7)]


def test_a_directory_with_a_comma_in_its_name_is_one(tmp_path):
  (tmp_path / 'a,b').mkdir()
  assert parse_members(str(tmp_path / 'a,b'), None) == [(tmp_path / 'a,b', None)]


SAMPLES = 6


def risky(loaded, **changes):
  sample_fn = sampler(temperature=1.5)
  strategy = DecodeConfig(end_id(loaded.tokenizer), 24, sample_fn=sample_fn, batch_size=4)
  given = {'utility': sentence_chrf(), 'samples': SAMPLES, 'seed': 7} | changes
  return Translator(loaded, strategy, mbr=MBRConfig(**given))


def test_mbr_chooses_the_sample_of_least_risk(runs):
  loaded = load(runs(), 10)
  lines = ['ein Hund', 'drei', 'zwei']
  found = list(risky(loaded, n_best=2)(lines))
  chrf, distinct = CHRF(), set()
  for line, texts in zip(lines, found, strict=True):
    source = np.array([*loaded.tokenizer.encode(line).ids, end_id(loaded.tokenizer)])
    prompt = Features({'inputs': source[-1:]}, {'source': source}, {})
    strategy = DecodeConfig(end_id(loaded.tokenizer), 24, sample_fn=sampler(temperature=1.5))
    model = loaded.model, loaded.apply, loaded.params
    drawn = generate_batch(*model, [prompt] * SAMPLES, strategy, seed=7)
    candidates = [' '.join(loaded.tokenizer.decode(t.tokens).split('\n')) for (t,) in drawn]
    distinct |= set(candidates)
    means = {}
    for i, one in enumerate(candidates):
      others = candidates[:i] + candidates[i + 1 :]
      scores = [100.0 if one == o else chrf.sentence_score(one, [o]).score for o in others]
      means[one] = np.mean(scores)
    expected = sorted(means.items(), key=lambda pair: -pair[1])[:2]
    assert [text for text, _ in texts] == [text for text, _ in expected]
    np.testing.assert_allclose([u for _, u in texts], [u for _, u in expected], rtol=1e-9)
  assert len(distinct) > 6, 'there was something to choose from'


def test_mbr_of_a_line_does_not_depend_on_other_lines(runs):
  loaded = load(runs(), 10)
  translate = risky(loaded)
  lines = ['ein Hund', 'drei', '', 'zwei', 'eins']
  together = dict(zip(lines, translate(lines), strict=True))
  assert together[''] == [('', 0.0)]
  assert [*translate(['zwei'])] == [together['zwei']]
  assert [*translate(['eins', 'zwei'], before=9)] == [together['eins'], together['zwei']]


@pytest.mark.slow
def test_the_program_ranks_samples_or_the_hypotheses_of_a_beam(runs):
  given = [f'--workdir={runs()}', '--step=10', '--n_best=2']
  drawn, again = (
    in_process.run('translate', *given, '--mbr=4', '--temperature=1.5', '--seed=1', text='drei\n\n')
    for _ in range(2)
  )
  assert drawn.returncode == 0, drawn.stderr
  assert drawn.stdout == again.stdout
  rows = [line.split(' ||| ') for line in drawn.stdout.splitlines()]
  assert [row[0] for row in rows] == ['1', '1', '2'] and 0 <= float(rows[0][2]) <= 100
  best = in_process.run('translate', *given, '--mbr=3', '--beam_size=3', text='drei\n')
  beam = in_process.run('translate', *given[:-1], '--n_best=3', '--beam_size=3', text='drei\n')
  candidates = [line.split(' ||| ')[1] for line in beam.stdout.splitlines()]
  chrf = CHRF()
  means = {
    one: np.mean([chrf.sentence_score(one, [o]).score for o in candidates if o != one])
    for one in candidates
  }
  expected = sorted(means, key=lambda text: -means[text])[:2]
  assert [line.split(' ||| ')[1] for line in best.stdout.splitlines()] == expected
