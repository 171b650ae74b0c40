"""`lm.predict` and `lm.evaluate --data` on files and streams, and the one line of each mistake."""

import json

import jax
import numpy as np
import pytest
from in_process import mistake, run

import lm
from lm import components
from lm.config import base as configs
from lm.config.tasks import classification
from lm.text.tokenizers import SEPARATOR, characters, with_special_tokens
from lm.workdir.write import write_workdir

TEXTS = ['abc', 'h', 'deadbeef', 'a é', 'abcabcabcab', 'gg']
LABELS = ('x', 'y')


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, params_of):
  """Two runs of a classifier with random parameters, which may form an ensemble."""
  folder = tmp_path_factory.mktemp('predict')
  for seed in (1, 2):
    config = configs.base()
    with config.unlocked():
      config.model = configs.encoder(depth=1, d_model=16, heads=2, context=24)
    config.data.seq_len = config.data.source_len = 24
    classification(config, LABELS, 'validation')
    tokenizer = with_special_tokens(characters(['abcdefgh é?'] * 2), [SEPARATOR])
    params = params_of(components.model(config, tokenizer.get_vocab_size()), seed=seed)
    write_workdir(folder / f'run{seed}', config, tokenizer, params)
  return folder / 'run1', folder / 'run2'


def jsonl(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


def lines(text):
  return [json.loads(line) for line in text.splitlines()]


def test_every_format_gives_the_predictions_of_python(workdirs, tmp_path):
  model = lm.load(workdirs[0])
  expected = model.predict(TEXTS)
  flag = f'--workdir={workdirs[0]}'
  from_stdin = run('predict', flag, '--window=4', text=jsonl({'text': text} for text in TEXTS))
  assert from_stdin.returncode == 0, from_stdin.stderr
  (tmp_path / 'in.tsv').write_text('label\ttext\n' + ''.join(f'x\t{t}\n' for t in TEXTS), 'utf-8')
  run('predict', flag, f'--input={tmp_path}/in.tsv', f'--output={tmp_path}/out.jsonl')
  from_text = run('predict', flag, '--format=text', '--top_k=1', text='\n'.join(TEXTS))
  for found in (lines(from_stdin.stdout), lines((tmp_path / 'out.jsonl').read_text('utf-8'))):
    assert [row['label'] for row in found] == [row['label'] for row in expected]
    for row, other in zip(found, expected, strict=True):
      assert row['probabilities'] == pytest.approx(other['probabilities'], abs=1e-6)
  assert [len(row['probabilities']) for row in lines(from_text.stdout)] == [1] * len(TEXTS)
  embedded = run('predict', flag, '--embed', '--normalize', '--format=text', text='\n'.join(TEXTS))
  vectors = [row['embedding'] for row in lines(embedded.stdout)]
  assert np.allclose(vectors, model.embed(TEXTS, normalize=True), atol=1e-6)


def test_an_ensemble_averages_probabilities(workdirs):
  both = f'--workdir={workdirs[0]},{workdirs[1]}'
  (found,) = lines(run('predict', both, text='{"text": "abc"}\n').stdout)
  members = [lm.load(workdir).predict(['abc'])[0]['probabilities'] for workdir in workdirs]
  for label in LABELS:
    mean = np.mean([each[label] for each in members])
    assert found['probabilities'][label] == pytest.approx(mean, abs=1e-5)


def test_a_file_calibrates_and_is_scored(workdirs, tmp_path):
  labels = ['x', 'x', 'y', 'x', 'y', 'y']
  rows = [{'text': text, 'label': label} for text, label in zip(TEXTS, labels, strict=True)]
  (tmp_path / 'dev.jsonl').write_text(jsonl(rows), 'utf-8')
  flag, model = f'--workdir={workdirs[0]}', lm.load(workdirs[0])
  result = run('evaluate', flag, f'--data={tmp_path}/dev.jsonl')
  assert result.returncode == 0, result.stderr
  found, predictions = json.loads(result.stdout), model.predict(TEXTS)
  correct = [p['label'] == label for p, label in zip(predictions, labels, strict=True)]
  nats = [-np.log(p['probabilities'][label]) for p, label in zip(predictions, labels, strict=True)]
  assert found['eval/data/accuracy'] == pytest.approx(np.mean(correct))
  assert found['eval/data/loss'] == pytest.approx(np.mean(nats), rel=1e-4)
  assert 0 <= found['eval/data/calibration_error'] <= 1
  result = run('predict', flag, f'--calibration={tmp_path}/dev.jsonl', text=jsonl(rows))
  assert f'temperature {model.calibrate(rows):.4g}, fitted on 6 rows' in result.stderr
  again = run('predict', flag, f'--calibration={model.calibrate(rows)}', text=jsonl(rows))
  for one, other in zip(lines(result.stdout), lines(again.stdout), strict=True):
    assert one['probabilities'] == pytest.approx(other['probabilities'], abs=1e-6)


@pytest.mark.parametrize(
  ('arguments', 'text', 'message'),
  [
    ([], '', 'stdin: no row in it'),
    ([], '{"text": "a"}\n\n', 'stdin, line 2 is blank'),
    ([], '{"text": "a"}\n{"text": \n', 'stdin, line 2: not a line of JSON'),
    ([], '["a"]\n', 'stdin, line 1: not a JSON object'),
    ([], '{"text": "a"}\n{"txt": "a"}\n', 'stdin, line 2: an example has no string'),
    ([], '{"text": ["a"]}\n', "stdin, line 1: 'text' of an example is ['a']"),
    ([], '{"text": " "}\n', "stdin, line 1: 'text' is empty"),
    ([], jsonl([{'text': 'a' * 50}]), 'stdin, line 1: 51 tokens, and the model reads 24'),
    ([], b'{"text": "\xe9"}\n', 'stdin, line 1 is not UTF-8 at byte 10'),
    (['--format=tsv'], 'text\tlabel\na\n', 'stdin, line 2: 1 columns, but the header has 2'),
    (['--format=tsv'], 'text\ttext\na\tb\n', "stdin, line 1: the header has the column 'text'"),
    (['--input=nowhere.jsonl'], '', '--input=nowhere.jsonl: no such file'),
    (['--max_tokens=3'], '', "--max_tokens=3 has no effect: the answers are 'label'"),
    (['--calibration=nowhere'], '', '--calibration=nowhere is neither a number nor a file'),
    (['--embed', '--pooling=lm.nn.pooling:meen'], '', "has no function 'meen'"),
  ],
)
def test_mistakes_are_named_by_their_line(workdirs, arguments, text, message):
  assert message in mistake('predict', f'--workdir={workdirs[0]}', *arguments, text=text)


def test_a_mistake_leaves_no_output(workdirs, tmp_path):
  arguments = (f'--workdir={workdirs[0]}', f'--output={tmp_path}/out.jsonl', '--window=1')
  result = run('predict', *arguments, text='{"text": "a"}\n{"text": ""}\n')
  assert (result.returncode, result.stdout) == (2, '') and not list(tmp_path.iterdir())
  assert result.stderr.endswith("lm.predict: stdin, line 2: 'text' is empty\n")


def test_mistakes_of_scored_files(workdirs, tmp_path):
  flag = f'--workdir={workdirs[0]}'
  (tmp_path / 'dev.jsonl').write_text(jsonl([{'text': 'a', 'label': 'z'}]), 'utf-8')
  line = mistake('evaluate', flag, f'--data={tmp_path}/dev.jsonl')
  assert f"({tmp_path}/dev.jsonl, line 1): data.labels: no label 'z'" in line
  (tmp_path / 'dev.txt').write_text('a\n')
  assert 'lines of text have no targets' in mistake('evaluate', flag, f'--data={tmp_path}/dev.txt')
  assert '--data=nowhere.tsv: no such file' in mistake('evaluate', flag, '--data=nowhere.tsv')
  assert jax.device_count() == 1
