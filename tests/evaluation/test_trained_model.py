"""A model that is asked: predictions, embeddings and texts of rows, alone and among others."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.config import base as configs
from lm.decode.loop import DecodeConfig
from lm.decode.sampling import ban_unknown_token, sampler
from lm.decode.stream import stream_text
from lm.errors import UserError
from lm.models.ensemble import make_ensemble
from lm.nn import pooling
from lm.nn.hooks import with_hooks
from lm.text.tokenizers import end_id
from lm.types import apply_of

TEXTS = ['abc', 'h', 'deadbeef', 'a é', 'abcabcabcab', 'gg']


@pytest.fixture(scope='module')
def classes(asked):
  labels = {'data.labels': ('x', 'y', 'z')}
  return asked('lm.tasks.text:classification', 'lm.tasks.classification:classifier', **labels)


def logits_alone(run, text, special=True):
  """Returns the logits of a text in a padded row of its own."""
  ids = [end_id(run.tokenizer)] * special + run.tokenizer.encode(text).ids
  row = np.pad(ids, (0, 16 - len(ids)))[None]
  return np.asarray(run.logits(row, np.arange(16)[None] < len(ids)), np.float64)[0]


def encoder_states(run, batch):
  """Returns the hidden states of the encoder, (T, D), for a batch of one row."""
  reads = ('encoder/hidden',)
  states = jax.jit(lambda params, batch: with_hooks(run.model)(params, batch, reads)[1][reads[0]])
  return np.asarray(states(run.params, batch))[0]


def softmax(x):
  odds = np.exp(x - x.max())
  return odds / odds.sum()


def test_labels_and_probabilities_do_not_depend_on_the_batch(classes):
  together = classes.predict(TEXTS, batch_size=4)
  for text, found in zip(TEXTS, together, strict=True):
    (alone,) = classes.predict([{'text': text}])
    expected = softmax(logits_alone(classes, text)[0])
    assert found['label'] == alone['label'] == 'xyz'[expected.argmax()]
    assert list(found['probabilities'].values()) == pytest.approx(sorted(expected)[::-1], abs=1e-5)
    assert found['probabilities'] == pytest.approx(alone['probabilities'], abs=1e-6)
  assert len({round(found['probabilities']['x'], 6) for found in together}) == len(TEXTS)


def test_top_k_and_temperature_of_labels(classes):
  (found,) = classes.predict(['deadbeef'], temperature=2.5, top_k=2)
  expected = softmax(logits_alone(classes, 'deadbeef')[0] / 2.5)
  assert list(found['probabilities'].values()) == pytest.approx(sorted(expected)[:0:-1], abs=1e-5)


def test_calibration_minimizes_the_log_loss(classes):
  rows = [{'text': text, 'label': label} for text, label in zip(TEXTS, 'xyzxyz', strict=True)]
  logits = np.stack([logits_alone(classes, text)[0] for text in TEXTS])
  grid = np.exp(np.linspace(-4, 4, 801))
  losses = [-np.mean([np.log(softmax(z / t)[i % 3]) for i, z in enumerate(logits)]) for t in grid]
  assert classes.calibrate(rows) == pytest.approx(grid[np.argmin(losses)], rel=5e-3)


def test_windows_of_a_long_text_are_averaged_by_their_tokens(classes):
  text = 'abcdefghab' * 5  # windows of 23 letters, after END
  parts = [text[:23], text[23:46], text[46:]]
  pieces = [p['probabilities'] for p in classes.predict(parts)]
  (found,) = classes.predict([text], too_long='windows')
  for label, p in found['probabilities'].items():
    assert p == pytest.approx(np.average([x[label] for x in pieces], weights=[24, 24, 5]), abs=1e-6)
  (cut,) = classes.predict([text], too_long='truncate')
  assert cut['probabilities'] == pytest.approx(pieces[0], abs=1e-6)
  with pytest.raises(UserError, match=r'^row 2: 51 tokens, and the model reads 24'):
    classes.predict(['a', text])


def test_embeddings_are_the_pooled_hidden_states(classes):
  found = classes.embed(TEXTS, batch_size=4)
  normalized = classes.embed(TEXTS, normalize=True)
  first = classes.embed(TEXTS, pooling=pooling.first)
  assert found.dtype == np.float32 and found.shape == (len(TEXTS), 16)
  for i, text in enumerate(TEXTS[:2]):
    ids = np.array([[0, *classes.tokenizer.encode(text).ids]])
    batch = {'inputs': ids, 'segments': np.ones_like(ids), 'positions': np.arange(ids.size)[None]}
    batch['examples'] = np.ones((1, 1), int)
    states = encoder_states(classes, batch)
    assert np.allclose(found[i], states.mean(0), atol=1e-5)
    assert np.allclose(first[i], states[0], atol=1e-5)
    assert np.allclose(normalized[i], found[i] / np.linalg.norm(found[i]), atol=1e-5)


def test_tags_have_offsets_in_the_raw_text(asked):
  labels = {'data.labels': ('O', 'B-P', 'I-P'), 'model.pooling': None}
  run = asked('lm.tasks.text:tagging', 'lm.tasks.classification:tagger', **labels)
  raw = '  ab  c\tdé h'
  found, joined = run.predict([raw, {'words': ['ab', 'c', 'dé', 'h']}])
  assert [raw[start:stop] for start, stop in found['offsets']] == ['ab', 'c', 'dé', 'h']
  assert found['tags'] == joined['tags'] and joined['offsets'] == [[0, 2], [3, 4], [5, 7], [8, 9]]
  logits = logits_alone(run, 'ab c dé h', special=False)
  places = [0, 3, 5, 8]
  assert found['tags'] == [labels['data.labels'][i] for i in logits[places].argmax(-1)]
  expected = [softmax(logits[i]).max() for i in places]
  assert found['probabilities'] == pytest.approx(expected, abs=1e-5)
  for entity in found['entities']:
    assert raw[entity['start'] : entity['stop']].strip() and entity['label'] == 'P'
  assert bool(found['entities']) == any(tag != 'O' for tag in found['tags'])


def test_answers_have_offsets_in_the_raw_context(asked):
  changes = {'model.pooling': None, 'model.num_classes': 2}
  converter = 'lm.tasks.extractive_qa:converter(threshold=None)'
  run = asked('lm.tasks.extractive_qa:extraction', converter, **changes)
  rows = [{'question': 'a?', 'context': text} for text in ('abc defg h', 'deadbeef ' * 6)]
  for row, found in zip(rows, run.predict(rows), strict=True):
    assert row['context'][found['start'] : found['stop']] == found['answer'] != ''
    assert {'score', 'null_score'} <= found.keys()
  with pytest.raises(UserError, match=r"^row 1: a row is a text.*'question', 'context'"):
    run.predict(['a text alone'])


def test_labels_are_the_likely_ones(asked):
  labels = {'data.labels': ('x', 'y', 'z')}
  run = asked('lm.tasks.text:multilabel', 'lm.tasks.classification:multilabel', **labels)
  for text, found in zip(TEXTS, run.predict(TEXTS), strict=True):
    expected = 1 / (1 + np.exp(-logits_alone(run, text)[0]))
    assert found['labels'] == [name for name, p in zip('xyz', expected, strict=True) if p > 0.5]
    assert found['probabilities'] == pytest.approx(
      dict(zip('xyz', expected, strict=True)), abs=1e-5
    )


def test_masks_are_filled_by_the_likeliest_tokens(asked):
  run = asked(None, None, special=('<|mask|>',), **{'model.pooling': None})
  one, two = run.predict(['ab<|mask|>', '<|mask|>c<|mask|>'], top_k=3)
  p = softmax(logits_alone(run, 'ab<|mask|>')[3])
  best = np.argsort(-p)[:3]
  ((filled),) = one['masks']
  assert [each['token'] for each in filled] == [run.tokenizer.id_to_token(i) for i in best]
  assert [each['probability'] for each in filled] == pytest.approx(p[best], abs=1e-5)
  assert [len(fillers) for fillers in two['masks']] == [3, 3]
  with pytest.raises(UserError, match=r"^row 1: 'text' has no <\|mask\|> to fill"):
    run.predict(['ab'])
  members = run, asked(None, None, seed=4, special=('<|mask|>',), **{'model.pooling': None})
  model = make_ensemble([each.model for each in members])
  params = {f'members_{i}': each.params for i, each in enumerate(members)}
  both = dataclasses.replace(run, model=model, params=params, apply=apply_of(model))
  ((filled,),) = (each['masks'] for each in both.predict(['ab<|mask|>'], top_k=3))
  p = np.mean([softmax(logits_alone(each, 'ab<|mask|>')[3]) for each in members], axis=0)
  assert [each['probability'] for each in filled] == pytest.approx(-np.sort(-p)[:3], abs=1e-5)


def test_generated_texts_are_those_of_streaming(asked):
  run = asked(None, None, configs.gpt2)
  how = {'temperature': 1.5, 'seed': 3}
  found = run.generate(TEXTS, 6, **how, batch_size=4)
  assert run.generate(TEXTS[2:4], 6, **how, first=2) == found[2:4]
  config = DecodeConfig(0, 6, sample_fn=sampler(1.5))
  config = config._replace(logits_processors=ban_unknown_token(run.tokenizer))
  rows = range(len(TEXTS))
  pieces = stream_text(run.model, run.apply, run.params, run.tokenizer, TEXTS, config, rows, seed=3)
  assert found == [''.join(parts) for parts in zip(*pieces, strict=True)]
  assert any(found)
  with pytest.raises(UserError, match=r'top_p=0\.5 and min_p=0\.0 have no effect at temperature=0'):
    run.generate(TEXTS, 6, top_p=0.5)


def test_targets_are_generated_and_sources_embedded(asked):
  make = 'lm.tasks.seq2seq:encoder_decoder'
  run = asked('lm.tasks.text:text_to_text', make, configs.encoder_decoder)
  together = run.predict([{'source': text} for text in TEXTS])
  assert [each['text'] for each in together[:2]] == run.generate(TEXTS[:2])
  found = run.embed(TEXTS)
  ids = np.array([[*run.tokenizer.encode(TEXTS[0]).ids, 0]])
  ones, places = np.ones_like(ids), np.arange(ids.size)[None]
  batch = {'source': ids, 'source_segments': ones, 'source_positions': places}
  batch |= {'inputs': ids, 'segments': ones, 'positions': places, 'examples': ones[:, :1]}
  assert np.allclose(found[0], encoder_states(run, batch).mean(0), atol=1e-5)


def test_the_next_turn_of_a_dialogue_is_generated(asked):
  make = 'lm.tasks.dialogue:encoder_decoder'
  run = asked('lm.tasks.dialogue:replies', make, configs.encoder_decoder)
  assert run.generate(['abc'], 5) == run.generate([{'turns': ['abc']}], 5)
  assert len(run.generate([{'turns': ['abc', 'd']}], 5)) == 1


def test_steps_of_prepare_apply_to_the_field_they_name(asked):
  step = 'lm.data.preprocess:normalize(form="NFKC", case="lower")'
  make = ('lm.tasks.text:classification', 'lm.tasks.classification:classifier')
  labels = {'data.labels': ('x', 'y', 'z')}
  plain = asked(*make, **labels)
  run = asked(*make, **labels, **{'data.prepare': (step,)})
  assert run.predict(['DEAD']) == plain.predict(['dead']) != plain.predict(['DEAD'])


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (['a', ''], "row 2: 'text' is empty"),
    (['a', {'label': 'x'}], "row 2: an example has no string under 'text'"),
    ([{'text': 3}], "row 1: 'text' of an example is 3 and no string"),
    ([3], 'row 1: 3 is neither a text nor a dict of fields'),
    (['a \ud800'], 'row 1: a text of an example has the lone surrogate'),
  ],
)
def test_unsuitable_rows_are_named(classes, rows, message):
  with pytest.raises(UserError) as error:
    classes.predict(rows)
  assert str(error.value).startswith(message)


def test_what_a_run_cannot_do_is_refused(classes, asked):
  with pytest.raises(UserError, match='generates no text'):
    classes.generate(['a'])
  with pytest.raises(UserError, match="row 1: the model has no label 'w'"):
    classes.calibrate([{'text': 'a', 'label': 'w'}])
  numbers = {'model.num_classes': 1}
  run = asked('lm.tasks.text:regression', 'lm.tasks.classification:regressor', **numbers)
  assert run.predict(['abc'])[0]['value'] == pytest.approx(logits_alone(run, 'abc')[0, 0], abs=1e-5)
  with pytest.raises(UserError, match=r'temperature=2\.0: this run predicts no label'):
    run.predict(['a'], temperature=2.0)
  bare = asked(None, None, **{'model.pooling': None, 'model.head': 'lm.nn.heads:none'})
  with pytest.raises(UserError, match='fills no masks; --embed'):
    bare.predict(['a'])
  assert bare.embed(['a']).shape == (1, 16) and not jax.device_count() - 1
