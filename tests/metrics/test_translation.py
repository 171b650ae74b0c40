# ruff: noqa: RUF001
import json
import subprocess
import sys

import pytest

from lm.config import resolve
from lm.errors import UserError
from lm.metrics.translation import bleu, chrf, compare, ter

ENGLISH = (
  ['The cat sat on the mat.', "It is a well-known fact, isn't it?", 'He paid $3.50 for  "it".'],
  ['A cat sat on the mat.', 'This is a known fact, is it not?', 'He has paid $3.50 for it.'],
)
CHINESE = (
  ['我昨天去了北京图书馆。', '他说：今天天气很好，我们走吧！', '价格是3.5元。'],
  ['昨天我去了北京的图书馆。', '他说，今天天气真好，我们出发吧！', '价格为3.5元。'],
)


def command(tmp_path, predictions, streams, *options):
  """Returns the scores by metric that the sacrebleu command prints for a file."""
  files = [tmp_path / f'{i}.txt' for i in range(1 + len(streams))]
  for file, lines in zip(files, [predictions, *streams], strict=True):
    file.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  prediction, *references = map(str, files)
  arguments = [*references, '-i', prediction, '-f', 'json', '-w', '12', *options]
  run = subprocess.run(
    [sys.executable, '-m', 'sacrebleu', *arguments], capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  found = json.loads(run.stdout)
  return [(one['score'], one['signature']) for one in (found if type(found) is list else [found])]


def computed(metric, predictions, references):
  scores = metric(predictions, references)
  (name,) = scores.values
  return round(scores.values[name], 12), scores.notes[name]


def test_scores_and_signatures_are_those_of_the_command(tmp_path):
  predictions, first = ENGLISH
  second = ['The cat sat on a mat.', 'It is well known, is it not?', 'He paid $3.50.']
  several = [list(pair) for pair in zip(first, second, strict=True)]
  metrics = [bleu('en'), chrf(), ter()]
  printed = command(tmp_path, predictions, [first], '-m', 'bleu', 'chrf', 'ter')
  assert [computed(m, predictions, first) for m in metrics] == printed
  printed = command(tmp_path, predictions, [first, second], '-m', 'bleu', 'chrf', 'ter')
  assert [computed(m, predictions, several) for m in metrics] == printed
  printed = command(tmp_path, predictions, [first], '-m', 'chrf', '--chrf-word-order', '2')
  assert [computed(chrf(word_order=2), predictions, first)] == printed


def test_chinese_is_scored_by_its_own_tokenizer_as_by_the_command(tmp_path):
  printed = command(tmp_path, CHINESE[0], [CHINESE[1]], '-m', 'bleu', '-tok', 'zh')
  assert [computed(bleu('zh'), *CHINESE)] == printed
  asian = ('--ter-normalized', '--ter-asian-support')
  printed = command(tmp_path, CHINESE[0], [CHINESE[1]], '-m', 'ter', *asian)
  assert [computed(ter('zh'), *CHINESE)] == printed


def test_bleu_by_hand():
  # N-grams that match: 5 of 6, 3 of 5, 2 of 4, 1 of 3; the lengths are equal.
  scores = bleu('en')(['the cat sat on the mat'], ['the cat sat on a mat'])
  assert scores.values['bleu'] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_ter_by_hand():
  scores = ter()(['The cat sat on the mat'], ['the cat sat on a mat'])
  assert scores.values == {'ter': pytest.approx(100 / 6)}
  # Three characters of six are others; without asian_support it would be one word of one.
  scores = ter('zh-CN')(['红楼梦人物们'], ['红楼梦的故事'])
  assert scores.values == {'ter': pytest.approx(50)}


def test_each_sentence_may_have_its_own_number_of_references():
  scores = bleu('en')(
    ['one two three four', 'five six seven eight'],
    [['ten two three four', 'one two three four'], 'five six seven eight'],
  )
  assert scores.values['bleu'] == pytest.approx(100)
  assert 'nrefs:var' in scores.notes['bleu']


@pytest.mark.parametrize(
  ('language', 'tokenizer'),
  [('de', '13a'), ('pt-BR', '13a'), ('zh', 'zh'), ('zh_CN', 'zh'), ('zho_Hans', 'zh')],
)
def test_the_language_picks_the_tokenizer(language, tokenizer):
  note = bleu(language)(['x'], ['x']).notes['bleu']
  assert f'|tok:{tokenizer}|' in note


def test_another_tokenizer_can_be_named():
  assert '|tok:char|' in bleu('ja', tokenize='char')(['x'], ['x']).notes['bleu']


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'language': 'zh', 'tokenize': '13a'}, "tokenize='13a' .*language='zh'; use 'zh'"),
    ({'language': 'ja', 'tokenize': 'intl'}, "use 'ja-mecab', 'flores200' or 'char'"),
    ({'language': 'kor', 'tokenize': '13a'}, "use 'ko-mecab'"),
    ({'language': 'th'}, "tokenize='13a' .*language='th'; use 'flores200'"),
    ({'language': 'Chinese'}, "language='Chinese' is no ISO 639 code"),
    ({'language': 'en', 'tokenize': '13'}, r"tokenize='13' .*did you mean '13a'"),
  ],
)
def test_unsuitable_tokenizer_is_refused(arguments, message):
  with pytest.raises(UserError, match=message):
    bleu(**arguments)


@pytest.mark.parametrize('language', ['ja', 'ko'])
def test_a_tokenizer_that_is_not_installed_names_its_package(language, monkeypatch):
  monkeypatch.setattr(f'sacrebleu.tokenizers.tokenizer_{language}_mecab.MeCab', None)
  with pytest.raises(UserError, match=rf"pip install 'sacrebleu\[{language}\]', or .*'char'") as e:
    bleu(language)
  assert '\n' not in str(e.value)


def test_chrf_is_named_by_its_words_and_has_at_most_two():
  names = [next(iter(chrf(order)(['x'], ['x']).values)) for order in range(3)]
  assert names == ['chrf', 'chrf_plus', 'chrf_plus_plus']
  with pytest.raises(UserError, match='word_order=3'):
    chrf(3)


def test_ter_without_separated_words_is_refused():
  with pytest.raises(UserError, match=r"language='th'.*use chrf"):
    ter('th')


def test_example_scores_use_effective_order():
  name, scores = bleu('en').score_examples(
    ['a b', 'x y', 'the cat sat on the mat'], ['a b', ['c d', 'e f'], 'the cat sat on a mat']
  )
  by_hand = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
  assert name == 'bleu'
  assert scores == [pytest.approx(100), 0, pytest.approx(by_hand)]


@pytest.mark.parametrize('metric', [bleu('en'), chrf(), ter()])
def test_empty_set_is_refused(metric):
  with pytest.raises(UserError, match='metric on an empty set'):
    metric([], [])
  with pytest.raises(UserError, match=r'sentence 1 .* has no reference'):
    metric(['a', 'b'], [['a'], []])
  with pytest.raises(ValueError, match='2 predictions for 1 references'):
    metric(['a', 'b'], ['a'])


def test_a_config_names_a_metric_by_import_path():
  build = resolve.resolve("lm.metrics.translation:bleu(language='zh')", 'eval.sets.test.metrics')
  assert build()(['很好'], ['很好']).notes['bleu'].startswith('nrefs:1|case:mixed|eff:no|tok:zh|')


def test_two_systems_are_compared_as_the_command_does(tmp_path):
  references = [f'the {i} cats sat on the {i % 7} mats' for i in range(40)]
  worse = [line.replace('cats', 'dogs') if i % 3 else line for i, line in enumerate(references)]
  better = [r if i % 4 else w for i, (r, w) in enumerate(zip(references, worse, strict=True))]
  files = [tmp_path / name for name in ('references', 'worse', 'better')]
  for file, lines in zip(files, (references, worse, better), strict=True):
    file.write_text('\n'.join(lines) + '\n')
  arguments = [str(files[0]), '-i', *map(str, files[1:]), '-m', 'bleu', '--paired-bs']
  arguments += ['--paired-bs-n', '200', '-f', 'json']
  run = subprocess.run(
    [sys.executable, '-m', 'sacrebleu', *arguments], capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  one, other = (row['BLEU'] for row in json.loads(run.stdout))
  found = compare(worse, better, references, 'en', samples=200)
  assert found.values == {
    'baseline': pytest.approx(one['score']),
    'system': pytest.approx(other['score']),
    'p': pytest.approx(other['p_value']),
  }
  assert found.values['p'] < 0.05
  assert compare(worse, worse, references, 'en', samples=50).values['p'] == 1
  assert 'bs:200|' in found.notes['p']
  with pytest.raises(UserError, match='samples=0'):
    compare(worse, better, references, 'en', samples=0)
