"""Artifacts of evaluations besides metrics: outputs, notes, attention maps; and lm.evaluate."""

import base64
import contextlib
import io
import json
import shutil

import flax.linen as nn
import in_process
import jax
import numpy as np
import pytest

from lm import components
from lm.config import resolve
from lm.data import pipeline
from lm.evaluation import attention_maps
from lm.evaluation.attention_maps import AttentionMaps
from lm.parallel.host import Never
from lm.training import trainer
from lm.workdir import experiment, run_data
from lm.workdir.run_data import EvalExample

SOURCE = """
import itertools
from ml_collections import ConfigDict
from lm.config.base import base, encoder, encoder_decoder, evaluation, gpt2
from lm.metrics.scores import CorpusMetric, Scores
from lm.parallel.host import Never

TEXTS = [f'ab{i % 7} cd{i % 5}' for i in range(40)]

def pairs(split):
  return [{'source': t, 'target': t.upper()} for t in TEXTS[: 30 if split == 'train' else 6]]

def classes(split):
  names = ('low', 'high') if split != 'strange' else ('low', 'hihg')
  return [{'text': t, 'label': names[i % 2]} for i, t in enumerate(TEXTS[:12])]

def uniform(q_BTHK, k_BSGK, v_BSGK, mask):
  # No softmax attention at all: all keys count the same.
  return 0 * q_BTHK + v_BSGK.mean(1, keepdims=True)

calls = itertools.count(1)

def falling():
  # Whatever is learned, the first evaluation is the best.
  return CorpusMetric(lambda outputs, references: Scores({'f1': 1 / next(calls)}), {'f1': True})

def get_config(arg='pairs'):
  config = base()
  config.steps = 4
  config.batch_size = 2
  config.eval.every = 2
  config.checkpoint.every = 2
  config.optim.warmup_steps = 1
  config.log.sample_prompts = ()
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.data.seq_len = config.data.source_len = 32
  config.decode.max_tokens = 12
  sizes = {'depth': 2, 'd_model': 16, 'heads': 2, 'context': 32}
  metrics = ('lm.metrics.tokens:cross_entropy',)
  scores = ('lm.metrics.translation:bleu(language="en")', 'kept_runs:falling')
  config.data.source = 'kept_runs:pairs'
  config.data.task = 'lm.tasks.text:text_to_text'
  if arg == 'pairs':
    config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
    config.model = encoder_decoder(**sizes)
  elif arg == 'decoder':
    config.data.converter = 'lm.tasks.seq2seq:decoder'
    config.model = gpt2(**sizes)
  else:
    config.data.source = 'kept_runs:classes'
    config.data.task = 'lm.tasks.text:classification'
    config.data.converter = 'lm.tasks.classification:classifier'
    config.data.labels = ('low', 'high')
    config.model = encoder(**sizes)
    scores = ('lm.metrics.labels:classification',)
  config.model.init_std = 0.3
  config.eval.sets = {'dev': evaluation('dev', metrics=metrics, scores=scores)}
  config.checkpoint.monitor = 'eval/dev/f1'
  return config
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('kept')
  (folder / 'kept_runs.py').write_text(SOURCE)
  return folder


def load(folder, variant):
  path = f'{folder}/kept_runs.py:{variant}'
  return experiment.load(path), path


@pytest.fixture(scope='module')
def pairs(folder):
  config, path = load(folder, 'pairs')
  trainer.train(config, path, folder / 'pairs', Never())
  return folder / 'pairs'


@pytest.fixture(scope='module')
def classes(folder):
  """A run without disk space for outputs, and its stderr."""
  config, path = load(folder, 'classes')

  def full(*args):
    raise OSError(28, 'No space left on device')

  said = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
    patch.setattr(run_data, 'write_predictions', full)
    trainer.train(config, path, folder / 'classes', Never())
  return folder / 'classes', said.getvalue()


def evaluate(workdir, *arguments):
  return in_process.run('evaluate', f'--workdir={workdir}', *arguments)


def mistake(workdir, *arguments):
  return in_process.mistake('evaluate', f'--workdir={workdir}', *arguments)


# More than 5 seconds: the first test of the file trains a run and evaluates it twice.
def test_outputs_of_the_newest_and_the_best_evaluation_are_kept(pairs):
  assert {p.name for p in (pairs / 'predictions').glob('*.jsonl')} == {'dev-2.jsonl', 'dev-4.jsonl'}
  lines = (pairs / 'predictions/dev-4.jsonl').read_text('utf-8').splitlines()
  found = [json.loads(line) for line in lines]
  assert [row['inputs'] for row in found] == [[f'ab{i} cd{i % 5}'] for i in range(6)]
  assert [row['reference'] for row in found] == [f'AB{i} CD{i % 5}' for i in range(6)]
  assert all(isinstance(row['output'], str) and row['scores'].keys() == {'bleu'} for row in found)
  notes = json.loads((pairs / 'predictions/notes.json').read_text())
  assert notes.keys() == {'eval/dev/bleu'} and 'tok:13a' in notes['eval/dev/bleu']


def test_only_the_step_and_the_best_one_stay(tmp_path):
  example = EvalExample(['a'], 'b', 'c', {'f1': 0.5})

  def kept_after(step, best):
    run_data.write_predictions(tmp_path, step, {'x-1': [example], 'y': [example]}, {}, best)
    return {name: list(by_step) for name, by_step in run_data.read_predictions(tmp_path).items()}

  assert kept_after(100, None) == {'x-1': [100], 'y': [100]}
  assert kept_after(200, 100) == {'x-1': [100, 200], 'y': [100, 200]}
  assert kept_after(300, 100) == {'x-1': [100, 300], 'y': [100, 300]}
  assert kept_after(400, 400) == {'x-1': [400], 'y': [400]}
  # Taken up from before step 400, the run is at 350 now.
  assert kept_after(350, 350) == {'x-1': [350], 'y': [350]}
  assert run_data.read_predictions(tmp_path)['y'][350] == [example]
  assert not list(tmp_path.rglob('*.tmp'))


def test_texts_no_file_could_hold_are_kept():
  text = run_data.example_lines(
    [EvalExample(['\ud800'], float('nan'), 1.0, {'mse': float('inf')})], set='x'
  )
  (line,) = text.decode('utf-8').splitlines()
  assert json.loads(line) == {
    'set': 'x',
    'inputs': ['\ud800'],
    'output': 'NaN',
    'reference': 1.0,
    'scores': {'mse': 'Infinity'},
  }


def test_a_full_disk_does_not_end_the_run(classes):
  workdir, said = classes
  assert 'the outputs of step 4 are not written: [Errno 28] No space left' in said
  assert 'eval/dev/accuracy' in (workdir / 'metrics.jsonl').read_text()


@pytest.mark.parametrize(
  ('path', 'outputs', 'references', 'expected'),
  [
    (
      'lm.metrics.labels:classification(positive="b")',
      ['a', 'b'],
      ['a', 'a'],
      ('accuracy', [1, 0]),
    ),
    (
      'lm.metrics.spans:entities',
      [['O', 'B-X'], ['O', 'O']],
      [['O', 'O'], ['O', 'O']],
      ('accuracy', [0.5, 1]),
    ),
    # One of two words is shared: P = R = 1/2.
    ('lm.metrics.answers:squad', ['red dog', ''], [['red cat'], []], ('f1', [50, 100])),
    ('lm.metrics.labels:regression', [1.0, 2.0], [1.0, 5.0], ('mse', [0, 9])),
    ('lm.metrics.labels:exact_match', ['a', 'b'], ['a', 'a'], ('exact_match', [1, 0])),
    # Without effective order a sentence of two words has no 4-grams, and the score 0.
    ('lm.metrics.translation:bleu(language="en")', ['two words'], ['two words'], ('bleu', [100])),
  ],
)
def test_each_example_has_a_score_of_its_own(path, outputs, references, expected):
  metric = resolve.call(resolve.resolve(path, 'scores'), 'scores')
  name, scores = metric.score_examples(outputs, references)
  assert (name, scores) == (expected[0], pytest.approx(expected[1]))


def test_evaluate_finds_the_same_and_writes_the_outputs(pairs, tmp_path):
  file = tmp_path / 'outputs.jsonl'
  result = evaluate(pairs, '--step=4', f'--predictions={file}')
  assert result.returncode == 0, result.stderr
  found = json.loads(result.stdout)
  rows = [json.loads(line) for line in (pairs / 'metrics.jsonl').read_text().splitlines()]
  logged = next(r for r in rows if r['step'] == 4 and 'eval/dev/bleu' in r)
  assert found.pop('notes') == json.loads((pairs / 'predictions/notes.json').read_text())
  assert found | {'eval/dev/f1': 0} == pytest.approx(logged | {'eval/dev/f1': 0}, rel=1e-5)
  lines = [json.loads(line) for line in file.read_text('utf-8').splitlines()]
  kept_lines = (pairs / 'predictions/dev-4.jsonl').read_text('utf-8').splitlines()
  assert lines == [{'set': 'dev'} | json.loads(line) for line in kept_lines]


def test_mistakes_about_outputs_are_one_line(pairs, classes, tmp_path):
  assert '--beam_size=400 is not between 1 and' in mistake(pairs, '--beam_size=400')
  workdir, _ = classes
  line = mistake(workdir, '--length_penalty=1')
  assert '--length_penalty=1.0: no evaluation set of this run generates text' in line
  folder = f'--predictions={tmp_path}'
  assert f'{folder} is a directory' in mistake(workdir, folder)
  nowhere = f'--predictions={tmp_path}/nowhere/file'
  assert f'{nowhere}: there is no such directory' in mistake(workdir, nowhere)


def test_labels_that_the_config_lacks_are_one_line(classes, tmp_path):
  workdir = shutil.copytree(classes[0], tmp_path / 'run')
  config = json.loads((workdir / 'config.json').read_text())
  config['eval']['sets']['dev']['split'] = 'strange'
  (workdir / 'config.json').write_text(json.dumps(config))
  line = mistake(workdir)
  assert "data.labels: no label 'hihg' (did you mean 'high'?)" in line


def arrays_of(maps):
  """Returns the weights of each example, (layers, heads, queries, keys)."""
  found = []
  for example in maps['examples']:
    shape = maps['layers'], maps['heads'] or 1, len(example['queries']), len(example['keys'])
    cells = np.frombuffer(base64.b64decode(example['weights']), np.uint8)
    found.append(cells.reshape(shape) / 255)
  return found


def maps_of(folder, variant, **changes):
  """Returns the attention maps of a model with random parameters."""
  config, _ = load(folder, variant)
  with config.ignore_type():
    config.model.update(changes)
  tokenizer = pipeline.tokenizer(config.data)
  functions = components.build_components(config, tokenizer.get_vocab_size())
  params = nn.unbox(jax.jit(functions.init)(jax.random.key(0)))
  return AttentionMaps(config, 'dev', functions, tokenizer)(params)


def test_cross_attention_is_kept_word_by_word(pairs):
  (path,) = (pairs / 'attention').glob('*.json')
  maps = json.loads(path.read_text('utf-8'))
  assert (path.name, maps['set'], maps['step']) == ('dev-4.json', 'dev', 4)
  assert (maps['kind'], maps['layers'], maps['heads']) == ('cross_attention', 2, 2)
  assert len(maps['examples']) == 4
  for i, (example, weights) in enumerate(zip(maps['examples'], arrays_of(maps), strict=True)):
    assert example['queries'] == [f'AB{i}', f'CD{i}', '<|end|>']
    assert example['keys'] == [f'ab{i}', f'cd{i}', '<|end|>']
    assert example['of'] == [3, 3]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=3 / 255)


def test_self_attention_of_a_decoder_is_causal(folder):
  maps = maps_of(folder, 'decoder', attention_fn='lm.nn.attention:blockwise(block=4)')
  assert maps['kind'] == 'attention'
  words = maps['examples'][1]['queries']
  assert words == maps['examples'][1]['keys']
  assert words == ['<|end|>', 'ab1', 'cd1', '<|sep|>', 'AB1', 'CD1']
  weights = arrays_of(maps)[1].max((0, 1))
  assert (weights[:4, 4:] == 0).all() and (weights[0, 1:4] > 0).any()  # a prefix, both ways
  assert weights[4, 5] == 0 and (weights[4:, :4] > 0).any()


def test_layers_are_in_order_and_many_heads_are_averaged(folder, monkeypatch):
  # Windows of one token in the first layer of each of two periods: it looks at itself alone.
  period = ('lm.nn.layers:Attention(window=1)', 'lm.nn.layers:Attention')
  maps = maps_of(folder, 'classes', attention_layer=period, depth=4)
  first = arrays_of(maps)[0]
  alone = np.isclose(first.min(1), np.eye(first.shape[-1]), atol=0.01).all((1, 2))
  assert alone.tolist() == [True, False, True, False]
  monkeypatch.setattr('lm.evaluation.attention_maps._CELLS', 10)
  means = maps_of(folder, 'classes', attention_layer=period, depth=4)
  assert means['heads'] == 0
  np.testing.assert_allclose(arrays_of(means)[0][:, 0], first.mean(1), atol=1 / 255)


def test_attention_other_than_softmax_has_no_map(folder):
  assert maps_of(folder, 'pairs', attention_fn='lm.nn.attention:dot_product') is not None
  assert maps_of(folder, 'pairs', attention_fn='kept_runs:uniform') is None


def test_map_of_running_text_is_that_of_the_first_text_with_a_span():
  # Span corruption leaves out texts without a span: here the first.
  batch = {'inputs': [[4, 5, 6, 0]], 'targets': [[5, 4, 6, 0]], 'segments': [[2, 2, 3, 0]]}
  batch |= {'source': [[7, 8, 9, 0]], 'source_segments': [[2, 3, 3, 0]]}
  found = attention_maps._first_text({name: np.array(rows) for name, rows in batch.items()})
  assert [side.tolist() for side in found.tokens.values()] == [[4, 5], [5, 4]]
  assert found.source['source'].tolist() == [7]
