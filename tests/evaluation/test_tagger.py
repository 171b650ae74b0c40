import dataclasses
import functools
import itertools
import pathlib

import pytest

from lm import components
from lm.data import pipeline
from lm.data.preprocess import tag_words
from lm.errors import UserError
from lm.evaluation import trained_model
from lm.evaluation.sets import Sets
from lm.evaluation.trained_model import tag
from lm.parallel.host import Never
from lm.tasks.classification import tagger
from lm.text import segment
from lm.text.segment import as_single_token
from lm.training import trainer
from lm.workdir import experiment
from lm.workdir.load import load

FILE = str(pathlib.Path(__file__).parents[2] / 'experiments/python_tags.py:smoke')


@pytest.fixture(scope='module')
def run(tmp_path_factory, small_library):
  workdir = tmp_path_factory.mktemp('tagger') / 'run'
  config = experiment.load(FILE)
  config.steps = 20
  config.eval.sets.validation.limit = 4
  trainer.train(config, FILE, workdir, Never())
  return workdir


# More than 5 seconds: the first test of the file trains the tagger.
def test_tags_are_those_of_the_evaluation(run):
  loaded = load(run)
  config = loaded.config
  functions = components.build_components(config, loaded.tokenizer.get_vocab_size())
  predictor = Sets(config, functions, loaded.tokenizer).predictors['validation']
  expected = predictor.predictions(loaded.params).outputs
  examples = pipeline.examples(config.data, 'validation')
  examples = list(itertools.islice(examples, len(expected)))
  separator = examples[0]['separator']
  found = [tag(e['words'], workdir=str(run), separator=separator) for e in examples]
  assert found == expected
  assert len({one for sentence in found for one in sentence}) > 1


def test_a_trained_tagger_works_with_segment(run):
  raw = 'x = f(1, y)'
  by = functools.partial(tag, workdir=str(run), separator=' ')
  text = segment.tag_words(segment.split_words(as_single_token(raw)), by)
  assert [raw[t.start : t.end] for t in text.tokens] == [t.text for t in text.tokens]
  labels = set(load(run).config.data.labels)
  assert {t.tag for t in text.tokens} <= labels
  (example,) = tag_words([{'text': raw}], tagger=by, separator=' ')
  assert example['tags'] == [t.tag for t in text.tokens]
  assert tag([], workdir=str(run)) == []


def my_tagger(task):
  """A converter of a user's own."""
  return dataclasses.replace(tagger(task))


def test_a_converter_says_whether_it_tags_words(run, monkeypatch):
  loaded = load(run)
  config = loaded.config.copy_and_resolve_references()
  words = ['x', '=', '1']
  expected = tag(words, workdir=str(run), separator=' ')

  def opened(*args):
    return trained_model.as_trained_model(dataclasses.replace(loaded, config=config))

  monkeypatch.setattr(trained_model, 'load', opened)
  monkeypatch.setattr(trained_model, '_tagger', trained_model._tagger.__wrapped__)
  config.data.converter = 'test_tagger:my_tagger'
  assert tag(words, workdir=str(run), separator=' ') == expected
  config.data.converter = 'lm.tasks.classification:classifier'
  with pytest.raises(UserError, match=r"data.converter='.*:classifier' does not tag words"):
    tag(words, workdir=str(run), separator=' ')


def test_mistakes_raise(run, tmp_path):
  with pytest.raises(UserError, match='no run there'):
    tag(['a'], workdir=str(tmp_path))
  with pytest.raises(
    UserError, match=r'a sentence of 5000 words: \d+ tokens, and the model reads 128'
  ):
    tag(['a'] * 5000, workdir=str(run), separator=' ')
