"""Runs that were not imported export in their family: config, tensors, labels and special tokens.

The models are those of the checkpoints of transformers in `checkpoints`, with other parameters.
"""

import json
import pathlib
import shutil

import flax.linen as nn
import jax
import numpy as np
import pytest
import tokenizers as reference
from tokenizers import models, pre_tokenizers, processors

import lm
from lm import components
from lm.config.base import base, bert
from lm.config.pretraining import masked
from lm.errors import UserError
from lm.pretrained import checkpoint, configs, families, safetensors, section
from lm.text import tokenizers
from lm.workdir.write import write_workdir

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
KINDS = {
  folder.name: json.loads((folder / 'config.json').read_text())['model_type']
  for folder in FOLDER.iterdir()
}
NAMES = sorted(name for name, kind in KINDS.items() if kind in configs.CONFIGS)
# test_export_encoder_decoders.py is about the others.
ONE_STACK = [
  name for name in NAMES if not name.startswith(('bart', 'marian', 'mbart', 'pegasus', 't5'))
]
# Their models are those of an earlier family, whose config says as much.
SAME = {'electra_tags': 'bert'}
MULTILABEL = {'problem_type': 'multi_label_classification'}
TEMPLATE = "(special_tokens='template')"
ENCODERS = ('bert', 'roberta', 'distilbert', 'electra', 'modernbert')
TEXTS = ['abc ba', 'c a b d']


def family_of(name):
  """Returns the family of a checkpoint, or of a multi-label one."""
  found = json.loads((FOLDER / name.removesuffix('_several') / 'config.json').read_text())
  return families.family_of(found | (MULTILABEL if name.endswith('_several') else {}))


def config_of(family):
  return configs.config_of(
    family.model, family.data.get('converter'), family.data.get('labels', ())
  )


@pytest.mark.parametrize('name', [*NAMES, 'bert_classes_several'])
def test_the_config_of_a_family_gives_the_family_back(name):
  family = family_of(name)
  found, same = config_of(family)
  again = families.family_of(found)
  kind = json.loads((FOLDER / name.removesuffix('_several') / 'config.json').read_text())
  assert found['model_type'] == SAME.get(name, kind['model_type'])
  if name not in SAME:
    assert found['architectures'] == kind.get('architectures', found['architectures'])
    assert [x[:2] for x in again.entries] == [x[:2] for x in family.entries]
  assert again.data == family.data and section.differences(again.model, family.model) == []
  assert [x[:2] for x in same.entries] == [x[:2] for x in again.entries]


def wordpieces(named, template):
  """Returns a tokenizer of the letters a to d, with special tokens at the first ids."""
  words = [x for letter in 'abcd' for x in (letter, f'##{letter}')]
  vocab = {word: i for i, word in enumerate([*named, *words])}
  unknown = next(name for name in named if 'unk' in name.lower())
  made = reference.Tokenizer(models.WordPiece(vocab, unk_token=unknown))
  made.pre_tokenizer = pre_tokenizers.Whitespace()
  made.add_special_tokens(list(named))
  made.post_processor = template(made)
  return made


def bert_template(made):
  return processors.BertProcessing(*((x, made.token_to_id(x)) for x in ('[SEP]', '[CLS]')))


def roberta_template(made):
  return processors.RobertaProcessing(*((x, made.token_to_id(x)) for x in ('</s>', '<s>')))


def tokenizer_of(name):
  if name.startswith('roberta'):
    return wordpieces(('<s>', '<pad>', '</s>', '<unk>', '<mask>'), roberta_template)
  if name.startswith(ENCODERS):
    return wordpieces(('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'), bert_template)
  return tokenizers.characters(['abcd '])


def write_run(workdir, name, head=None, converter=None):
  """Writes a run with the model of a checkpoint and random parameters; returns its config."""
  family, config = family_of(name), base()
  with config.unlocked():
    config.model = family.model
    config.eval.sets = {}
    if head is not None:
      config.model.head = head
  config.data.update({'seq_len': config.model.context, **family.data})
  if converter is not None:
    config.data.converter = converter
  tokenizer = tokenizer_of(name)
  model = components.model(config, tokenizers.vocabulary_size(tokenizer))
  rng = np.random.default_rng(0)
  init = components.init_of(model, config.model.context)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), shapes)
  write_workdir(workdir, config, tokenizer, params)
  return config


def read_json(file):
  return json.loads(file.read_text('utf-8'))


@pytest.mark.parametrize('name', ['bert_classes', 'roberta_tags'])
def test_an_exported_head_comes_in_again_with_equal_predictions(name, tmp_path):
  config = write_run(tmp_path / 'run', name)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  checkpoint.import_checkpoint(tmp_path / 'out', tmp_path / 'again')
  run, again = lm.load(tmp_path / 'run'), lm.load(tmp_path / 'again')
  for key in ('labels', 'task', 'converter'):
    assert again.config.data[key] == config.data[key]
  expected, found = (each.predict(TEXTS) for each in (run, again))
  assert found == expected and expected[0] != expected[1]


def test_the_special_tokens_are_those_of_the_template(tmp_path):
  config = write_run(tmp_path / 'run', 'bert_classes')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  found = read_json(tmp_path / 'out' / 'tokenizer_config.json')
  names = {f'{key}_token': f'[{key.upper()}]' for key in ('cls', 'sep', 'pad', 'mask', 'unk')}
  assert {key: found[key] for key in names} == names
  assert found['model_max_length'] == config.model.context == 24
  assert found['model_input_names'] == ['input_ids', 'token_type_ids', 'attention_mask']
  described = read_json(tmp_path / 'out' / 'config.json')
  assert (described['pad_token_id'], described['cls_token_id']) == (0, 2)
  assert described['id2label'] == dict(zip('012', config.data.labels, strict=True))
  assert (
    'BertForSequenceClassification.from_pretrained' in (tmp_path / 'out' / 'README.md').read_text()
  )
  assert not (tmp_path / 'out' / 'generation_config.json').exists()


@pytest.mark.parametrize(
  ('special_tokens', 'tokens'), [('end', ['[SEP]', 'a', '##b']), ('none', ['a', '##b'])]
)
def test_texts_are_framed_as_the_converter_of_the_run_frames_them(special_tokens, tokens, tmp_path):
  converter = f'lm.tasks.classification:tagger(special_tokens={special_tokens!r})'
  write_run(tmp_path / 'run', 'bert_tags', converter=converter)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  made = reference.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert made.encode('ab').tokens == tokens
  pair = made.encode('ab', 'c')
  assert pair.tokens == [*tokens, 'c'] and {*pair.type_ids} == {0}


def test_a_model_without_a_pooler_exports_without_it(tmp_path):
  write_run(tmp_path / 'run', 'bert', head='lm.nn.heads:none')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  source = checkpoint.open_source(tmp_path / 'out')
  assert len(source.names) == 37 and not any('pooler' in name for name in source.names)
  assert families.family_of(source.config, source.shapes).model.head == 'lm.nn.heads:none'


@pytest.mark.parametrize(
  ('name', 'changes', 'converter', 'message'),
  [
    ('bert_classes', {'pooling': 'lm.nn.pooling:mean'}, None, "='lm.nn.pooling:mean' (bert: "),
    ('bert_classes', {'head': None}, None, "model.head=None (bert: 'lm.nn.heads:pooled')"),
    ('bert_classes', {}, 'lm.tasks.classification:regressor', 'data.converter='),
    ('bert', {'embed_scale': 2.0}, None, 'model.embed_scale=2.0 (bert: 1.0): no family has it'),
  ],
)
def test_what_no_encoder_has_is_refused_by_key(name, changes, converter, message):
  family = family_of(name)
  with family.model.unlocked(), family.model.ignore_type():
    family.model.update(changes)
  with pytest.raises(UserError) as error:
    configs.config_of(family.model, converter, family.data.get('labels', ()))
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_position_before_the_first_must_be_that_of_padding(tmp_path):
  """Code of RoBERTa counts no position for the token `pad_token_id`, also within a text."""
  write_run(tmp_path / 'run', 'roberta')
  file = tmp_path / 'run' / 'tokenizer.json'
  changed = read_json(file)
  changed['added_tokens'] = [x for x in changed['added_tokens'] if x['content'] != '<pad>']
  file.write_text(json.dumps(changed))
  with pytest.raises(UserError, match="token 1 before its first row must be padding, and is '<"):
    checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('name', [*ONE_STACK, 'bert_classes_several'])
def test_transformers_loads_an_export_of_a_family_with_equal_outputs(name, tmp_path):
  torch, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  config = write_run(tmp_path / 'run', name)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  described = read_json(tmp_path / 'out' / 'config.json')
  loader = getattr(transformers, described['architectures'][0])
  model, report = loader.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not any(report.values()), report
  run = lm.load(tmp_path / 'run')
  ids = np.random.default_rng(1).integers(5, config.model.vocab_size, (2, 12))
  with torch.no_grad():
    found = model.eval()(torch.tensor(ids))
  if 'last_hidden_state' in found:
    expected = found.last_hidden_state.numpy()
    rows = {'segments': np.ones_like(ids), 'positions': np.arange(12)[None].repeat(2, 0)}
    examples = {'examples': np.ones((2, 1), int)}
    states = jax.jit(run.apply)(run.params, {'inputs': ids, **rows, **examples}).hidden
    np.testing.assert_allclose(states, expected, atol=2e-4)
  else:
    if 'start_logits' in found:
      expected = torch.stack([found.start_logits, found.end_logits], -1).numpy()
    else:
      expected = found.logits.numpy()
    np.testing.assert_allclose(
      run.logits(ids).reshape(expected.shape), expected, rtol=1e-4, atol=2e-4
    )
  card = (tmp_path / 'out' / 'README.md').read_text()
  of_texts = 'AutoTokenizer' if 'AutoTokenizer' in card else 'PreTrainedTokenizerFast'
  tokenizer = getattr(transformers, of_texts).from_pretrained(tmp_path / 'out')
  framed = reference.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  for texts in (['ab c'], ['ab c', 'd']):
    assert tokenizer(*texts)['input_ids'] == framed.encode(*texts).ids
  if 'id2label' in described and name not in ('electra_replaced',):
    assert [*model.config.id2label.values()] == [*described['id2label'].values()]


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('name', ['bert_classes', 'bert_classes_several', 'roberta_classes'])
def test_transformers_gives_texts_the_probabilities_of_the_run(name, tmp_path):
  _, transformers = map(pytest.importorskip, ('torch', 'transformers'))
  write_run(tmp_path / 'run', name)
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  classify = transformers.pipeline('text-classification', str(tmp_path / 'out'), top_k=None)
  for text, found, expected in zip(
    TEXTS,
    classify(TEXTS, batch_size=2),  # one row is padded
    lm.load(tmp_path / 'run').predict(TEXTS),
    strict=True,
  ):
    scores = {each['label']: each['score'] for each in found}
    assert scores == pytest.approx(expected['probabilities'], abs=1e-5), text
  tokenizer = classify.tokenizer
  ids = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
  assert ids == ((1, 0, 2) if name.startswith('roberta') else (0, 2, 3))
  assert tokenizer.model_max_length == classify.model.config.max_position_embeddings - 2 * (
    name.startswith('roberta')
  )
  assert ('token_type_ids' in tokenizer('ab', 'c')) == name.startswith('bert')


@pytest.mark.parametrize('name', ['bart', 't5'])
def test_a_fine_tuned_encoder_decoder_keeps_the_tokens_that_start_it(name, tmp_path):
  checkpoint.import_checkpoint(FOLDER / name, tmp_path / 'source')
  shutil.copytree(tmp_path / 'source', tmp_path / 'run', ignore=lambda *_: ['pretrained'])
  file = tmp_path / 'run' / 'config.json'
  config = read_json(file)
  config['warm_start']['workdir'] = str(tmp_path / 'source')
  file.write_text(json.dumps(config))
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  before, after = (safetensors.read_folder(each) for each in (FOLDER / name, tmp_path / 'out'))
  assert before.keys() == after.keys()
  assert all(t.read().tobytes() == after[k].read().tobytes() for k, t in before.items())
  kept = [
    (each / 'generation_config.json').read_bytes() for each in (FOLDER / name, tmp_path / 'out')
  ]
  assert kept[0] == kept[1]
  config['data']['converter'] = config['data']['converter'].replace('start=(', 'start=(5, 6, ')
  file.write_text(json.dumps(config))
  with pytest.raises(UserError, match='no family has it'):
    checkpoint.export_run(tmp_path / 'run', tmp_path / 'other')


def test_a_fine_tuned_run_with_another_frame_has_a_tokenizer_of_its_own(tmp_path):
  checkpoint.import_checkpoint(FOLDER / 'bert_tags', tmp_path / 'source')
  shutil.copytree(tmp_path / 'source', tmp_path / 'run', ignore=lambda *_: ['pretrained'])
  file = tmp_path / 'run' / 'config.json'
  config = read_json(file)
  config['warm_start']['workdir'] = str(tmp_path / 'source')
  config['data']['converter'] = 'lm.tasks.classification:tagger(special_tokens="end")'
  file.write_text(json.dumps(config))
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  made = reference.Tokenizer.from_file(str(tmp_path / 'out' / 'tokenizer.json'))
  assert made.encode('').tokens == ['<|endoftext|>'] == made.encode('XY').tokens[:1]
  assert made.encode('XY').tokens[1:] == ['X', 'Y']


def test_the_bert_that_experiments_pretrain_is_that_of_the_family():
  config = base()
  config.model = bert(depth=2, d_model=16, heads=2, context=32)
  model = masked(config).model
  model.vocab_size = 40
  found, _ = configs.config_of(model)
  assert found['architectures'] == ['BertForMaskedLM']
  assert section.differences(families.family_of(found).model, model) == []
