"""A source without duplicates and without the text of evaluation sets."""

import json
import sys

import pytest

from lm.config.base import base, evaluation, mixture, without_duplicates
from lm.config.resolve import ref
from lm.data import duplicates, encoding, pipeline
from lm.data.duplicates import distinct
from lm.errors import UserError

HELD = 'what a piece of work is a man how noble in reason how infinite in faculty'
POEM = (
  '金风玉露一相逢便胜却人间无数柔情似水佳期如梦忍顾鹊桥归路'
  '两情若是久长时又岂在朝朝暮暮纤云弄巧飞星传恨银汉迢迢暗度'
)
DOCUMENTS = [
  'A first document, about nothing in particular, of some fifty letters.',
  'A second one.',
  'a  FIRST document, about nothing in particular, of some fifty letters.',  # exact
  'A first document, about nothing in particular, of some fifty letters!?',  # near
  f'He said: {HELD.upper()}, and left.',  # overlaps in words
  f'词曰{POEM[:30]}、{POEM[30:]}。',  # overlaps in characters
  ' '.join(HELD.split()[:12]) + ' without its end, and thus without an overlap',
  POEM[:49] + '、差一字',
  'The last.',
]


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Returns a function that writes documents and returns the import path of their source."""
  monkeypatch.setenv('LM_CACHE', str(tmp_path / 'cache'))

  def lines(texts, name='corpus', **fields):
    file = tmp_path / f'{name}.jsonl'
    rows = ({'text': text, **fields} for text in texts)
    file.write_text('\n'.join(map(json.dumps, rows)), 'utf-8')
    return f'lm.data.sources:text(files={str(file)!r})'

  return lines


def held_out(write):
  sets = {'work': [HELD, 'too short'], 'poem': [POEM]}
  return {name: ('train', write(texts, name)) for name, texts in sets.items()}


def test_duplicates_and_overlap_are_removed_and_counted(write):
  found = distinct('train', write(DOCUMENTS), held_out=held_out(write))
  assert [x['text'] for x in found] == [DOCUMENTS[i] for i in (0, 1, 6, 7, 8)]
  report = found.report
  assert (report['documents'], report['kept']) == (9, 5)
  assert (report['exact_duplicates'], report['near_duplicates']) == (1, 1)
  keys = ('examples', 'compared', 'overlapping', 'documents')
  counts = {name: [of[key] for key in keys] for name, of in report['overlap'].items()}
  assert counts == {'work': [2, 2, 1, 1], 'poem': [1, 1, 1, 1]}
  (sample,) = report['overlap']['work']['samples']
  assert sample['document'].endswith('corpus.jsonl, line 5')
  assert HELD.startswith(sample['text'])
  assert found.place(4).endswith('line 9')
  assert '1 exact duplicates, 1 near duplicates and 2 that overlap' in found.note
  assert any('poem' in line for line in duplicates.report_lines(report))


def test_overlap_of_a_near_duplicate_counts(write):
  words = [f'word{n}' for n in range(26)]
  held = ' '.join(words)
  texts = [held.replace('word5', 'other'), held]
  report = distinct('train', write(texts), held_out={'x': ('train', write([held], 'x'))}).report
  assert (report['near_duplicates'], report['kept']) == (1, 0)
  assert [report['overlap']['x'][key] for key in ('overlapping', 'documents')] == [1, 2]


def test_overlap_is_that_of_a_naive_comparison(write):
  """Every run of 3 words of one text is looked up in every other text."""
  texts = [' '.join('abcdefg'[(i * k) % 7] for k in range(i % 5 + 1)) for i in range(80)]
  held = ['b d f a', 'c e g', 'g f e d', 'g b', 'c c c']
  runs = lambda x: {tuple(x.split()[i : i + 3]) for i in range(len(x.split()) - 2)}  # noqa: E731
  path = write(held, 'held')
  of = {'held': ('train', path)}
  report = distinct('train', write(texts), near=None, held_out=of, words=3).report
  unique = list(dict.fromkeys(texts))
  shared = [x for x in unique if any(runs(x) & runs(y) for y in held)]
  assert report['exact_duplicates'] == len(texts) - len(unique)
  assert report['overlap']['held']['documents'] == len(shared) > 2
  overlapping = [y for y in held if any(runs(x) & runs(y) for x in unique)]
  assert report['overlap']['held']['overlapping'] == len(overlapping) > 1


def test_result_is_cached_and_changes_with_its_inputs(write, monkeypatch):
  path = write(DOCUMENTS)
  first = distinct('train', path)
  monkeypatch.setattr(duplicates, 'find_repeats', None)
  again = distinct('train', path)
  assert (list(again), again.fingerprint) == (list(first), first.fingerprint)
  monkeypatch.undo()
  assert (
    len({first.fingerprint, *(distinct('train', path, near=n).fingerprint for n in (0.7, None))})
    == 3
  )


def test_sources_of_a_mixture_do_not_repeat_each_other(write):
  config = base()
  paths = {'b': write(DOCUMENTS[:3], 'b'), 'a': write(DOCUMENTS[1:2] + DOCUMENTS[4:], 'a')}
  mixture(config, paths)
  config.eval.sets = {name: evaluation(*pair) for name, pair in held_out(write).items()}
  without_duplicates(config)
  opened = {n: encoding.open_source(x.source, 'train') for n, x in config.data.mixture.items()}
  texts = {name: [x['text'] for x in examples] for name, examples in opened.items()}
  assert texts == {'a': [DOCUMENTS[i] for i in (1, 6, 7, 8)], 'b': DOCUMENTS[:1]}
  assert config.eval.sets.work.source == held_out(write)['work'][1], 'evaluation is as it was'


def test_evaluation_of_a_component_is_compared_with_the_text_of_the_others(write, tmp_path):
  config, own = base(), 'lm.data.sources:text(files={!r})'
  for split, text in (('train', 'Of a alone.'), ('validation', HELD)):
    (tmp_path / f'{split}.a.txt').write_text(text)
    (tmp_path / f'{split}.b.txt').write_text(f'Of b in {split}. ' + HELD * (split == 'train'))
  mixture(config, {name: own.format(f'{tmp_path}/{{split}}.{name}.txt') for name in 'ab'})
  config.eval.sets = {name: evaluation('validation', component=name) for name in 'ab'}
  without_duplicates(config, near=None)
  opened = encoding.open_source(config.data.mixture.b.source, 'train').report
  assert {name: of['documents'] for name, of in opened['overlap'].items()} == {'a': 1, 'b': 0}


def test_other_splits_and_examples_of_lists_are_read(write, tmp_path):
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('one\ntwo\none\ntwo\none\none\n')
  source = f"lm.data.sources:text(files='{corpus}', documents='line', validation=0.3)"
  path = ref(distinct, source=source, near=None, held_out={'own': ('validation', '')})
  assert [x['text'] for x in encoding.open_source(path, 'validation')] == ['one', 'one']
  assert [x['text'] for x in encoding.open_source(path, 'train')] == ['one', 'two']
  tagged = tmp_path / 'tagged.tsv'
  tagged.write_text('天\tO\n地\tO\n\n地\tO\n天\tO\n\n天\tB\n地\tO\n')
  words = f"lm.data.sources:conll(files='{tagged}', separator='')"
  assert len(distinct('train', words, near=None, fields='words')) == 2
  assert len(distinct('train', words, near=None, fields=('words', 'tags'))) == 3


def test_run_reports_what_its_text_is_without(write, section):
  data = section(ref(distinct, source=write(DOCUMENTS)))
  rows = pipeline.packed_rows(data, 'train', pipeline.tokenizer(data), 0)
  assert '1 exact duplicates, 1 near duplicates' in rows.note


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    ({'near': 0}, 'near=0'),
    ({'near': 1.5}, 'near=1.5'),
    ({'near': 'much'}, "near='much'"),
    ({'shingle': 0}, 'shingle=0'),
    ({'words': 0}, 'words=0'),
    ({'characters': 2.5}, 'characters=2.5'),
    ({'held_out': {'x': 'test'}}, "held_out['x']='test'"),
    ({'held_out': {'x': ('train', '')}}, "held_out['x'] is the split 'train'"),
    ({'fields': ('title',)}, "'title'"),
    ({'fields': ()}, 'fields=() names no text'),
    ({'held_out': ('validation', '')}, "held_out=('validation', '') must map"),
  ],
)
def test_wrong_arguments_are_an_error_with_key_and_value(write, arguments, named):
  with pytest.raises(UserError) as e:
    distinct('train', write(['one', 'two']), **arguments)
  assert named in str(e.value)
  assert 'data.source' in str(e.value)


def test_split_without_documents_left_is_an_error_that_says_why(write, section):
  data = section(ref(distinct, source=write([HELD, HELD]), held_out=held_out(write)))
  with pytest.raises(UserError, match=r'no text: of 2 documents, 1 exact .* and 1 that overlap'):
    pipeline.tokenizer(data | {'tokenizer': {'fn': 'lm.text.tokenizers:characters'}})
  with pytest.raises(UserError, match=r'no text: of 2 documents, 1 exact .* and 1 that overlap'):
    pipeline.packed_rows(data, 'train', pipeline.tokenizer(section(write(DOCUMENTS, 'other'))), 0)


def test_missing_library_is_named_with_its_extra(write, monkeypatch):
  path = write(['one', 'two'])
  monkeypatch.setitem(sys.modules, 'rensa', None)
  with pytest.raises(UserError, match=r'pip install .*\[dedup\]'):
    distinct('train', path)
  assert len(distinct('train', path, near=None)) == 2
