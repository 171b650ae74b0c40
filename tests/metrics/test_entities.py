import numpy as np
import pytest

from lm.errors import UserError
from lm.metrics.spans import entities, entity_spans


@pytest.mark.parametrize(
  ('tags', 'found'),
  [
    ('B-PER I-PER O B-LOC', {('PER', 0, 2), ('LOC', 3, 4)}),
    ('B-PER B-PER I-PER', {('PER', 0, 1), ('PER', 1, 3)}),
    ('O I-PER I-PER I-LOC', {('PER', 1, 3), ('LOC', 3, 4)}),  # an I may begin, and changes of type
    ('B-A-B I-A-B O O', {('A-B', 0, 2)}),
    ('S-PER B-LOC I-LOC E-LOC E-LOC', {('PER', 0, 1), ('LOC', 1, 4), ('LOC', 4, 5)}),
    ('B-LOC O E-LOC I-LOC', {('LOC', 0, 1), ('LOC', 2, 3), ('LOC', 3, 4)}),
    ('B I O S', {('', 0, 2), ('', 3, 4)}),
    ('O O', set()),
  ],
)
def test_entities_of_a_sentence(tags, found):
  assert entity_spans(tags.split()) == found


def test_scores_by_hand():
  # Two of three predicted entities are among the five right ones; 6 of 9 tags are right.
  predictions = ['B-PER I-PER O O', 'B-LOC O B-LOC O O']
  references = ['B-PER I-PER O B-ORG', 'B-LOC I-LOC B-LOC O B-PER']
  scores = entities()([one.split() for one in predictions], [one.split() for one in references])
  assert scores.values == {
    'precision': pytest.approx(2 / 3),
    'recall': pytest.approx(2 / 5),
    'f1': pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5)),
    'accuracy': pytest.approx(6 / 9),
  }


@pytest.mark.parametrize('prefixes', ['BI', 'BIES'])
def test_scores_are_those_of_seqeval(prefixes):
  seqeval = pytest.importorskip('seqeval.metrics')
  rng = np.random.default_rng(0)
  tags = ['O', *(f'{prefix}-{kind}' for prefix in prefixes for kind in ('PER', 'LOC', 'A-B'))]
  for _ in range(1000):
    sizes = rng.integers(1, 12, rng.integers(1, 4))
    references = [rng.choice(tags, size).tolist() for size in sizes]
    # Half of the tags are kept, so that entities match.
    predictions = [
      [tag if rng.random() < 0.5 else str(rng.choice(tags)) for tag in one] for one in references
    ]
    shares = (seqeval.precision_score, seqeval.recall_score, seqeval.f1_score)
    wanted = [share(references, predictions, zero_division=0) for share in shares]
    wanted.append(seqeval.accuracy_score(references, predictions))
    assert list(entities()(predictions, references).values.values()) == pytest.approx(wanted)


def test_scores_without_entities_are_zero():
  found = entities()([['O', 'O']], [['O', 'O']]).values
  assert found == {'precision': 0, 'recall': 0, 'f1': 0, 'accuracy': 1}


@pytest.mark.parametrize('tag', ['PER', 'M-PER', 'O-PER', 'B-', 'b-PER', ''])
def test_a_tag_of_another_scheme_is_refused(tag):
  with pytest.raises(UserError, match=f'tag {tag!r} is neither BIO nor IOBES'):
    entities()([['O']], [[tag]])


def test_empty_sentences_and_unequal_lengths_are_errors():
  with pytest.raises(UserError, match='metric on an empty set'):
    entities()([], [])
  with pytest.raises(UserError, match='metric on an empty set'):
    entities()([[]], [[]])
  with pytest.raises(ValueError, match='1 predictions for 2 tags'):
    entities()([['O']], [['O', 'O']])
