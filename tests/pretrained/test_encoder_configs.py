"""What else a config.json and a file of an encoder can say: each right, or refused in one line."""

import json
import pathlib

import numpy as np
import pytest

from lm.errors import UserError
from lm.pretrained import checkpoint, families, safetensors

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'


def config_of(name, **changes):
  return json.loads((FOLDER / name / 'config.json').read_text()) | changes


def without(name, *keys, **changes):
  return {k: x for k, x in config_of(name, **changes).items() if k not in keys}


def copied(name, folder, tensors, **changes):
  """Writes a checkpoint with the config and the tokenizer of another, and with these tensors."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config_of(name, **changes)))
  (folder / 'tokenizer.json').write_bytes((FOLDER / name / 'tokenizer.json').read_bytes())
  safetensors.write_file(folder / 'model.safetensors', tensors)


def tensors_of(name):
  return {k: t.read() for k, t in safetensors.read_folder(FOLDER / name).items()}


def round_trip(folder, tmp_path):
  """Returns the family of a checkpoint, and its parameters; checks that the tensors come back."""
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  before, after = (safetensors.read_folder(each) for each in (folder, tmp_path / 'out'))
  assert before.keys() == after.keys()
  assert all(t.read().tobytes() == after[k].read().tobytes() for k, t in before.items())
  return parameters_of(folder)


def parameters_of(folder):
  source = checkpoint.open_source(folder)
  family = families.family_of(source.config, source.shapes)
  params = checkpoint.read_parameters(family, source)
  return family, {path: x.read() for path, x in params.items()}


def equal(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[path], b[path]) for path in a)


def test_old_names_buffers_copies_and_heads_without_use_come_back(tmp_path):
  """BERT's first release: LayerNorm.gamma and beta, position ids, the head of next sentences."""
  new = tensors_of('bert_masked')
  old = {
    k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): x
    for k, x in new.items()
  }
  assert len([name for name in old if name.endswith('gamma')]) == 6
  old['bert.embeddings.position_ids'] = np.arange(24)[None]
  old['bert.pooler.dense.weight'] = np.ones((16, 16), np.float32)
  old['cls.seq_relationship.bias'] = np.zeros(2, np.float32)
  old['cls.predictions.decoder.weight'] = new['bert.embeddings.word_embeddings.weight']
  copied('bert_masked', tmp_path / 'old', old, architectures=['BertForPreTraining'])
  _, params = round_trip(tmp_path / 'old', tmp_path)
  assert equal(params, parameters_of(FOLDER / 'bert_masked')[1])


def test_a_model_without_its_head_may_have_the_prefix_and_lack_the_pooler(tmp_path):
  """The encoder of a masked language model: what its head has is kept, and not used."""
  tensors = tensors_of('bert_masked')
  tensors['cls.predictions.decoder.weight'] = tensors['bert.embeddings.word_embeddings.weight']
  copied('bert', tmp_path / 'bert', tensors)
  family, params = round_trip(tmp_path / 'bert', tmp_path)
  assert family.model.head == 'lm.nn.heads:none' and 'pooler/kernel' not in params
  kept = safetensors.read_file(tmp_path / 'run' / 'pretrained' / 'unused.safetensors')
  # A copy of a parameter is no tensor without use: it follows the parameter in training.
  assert 'cls.predictions.bias' in kept and 'cls.predictions.decoder.weight' not in kept


def test_the_rows_before_the_first_position_of_roberta_are_kept():
  family, params = parameters_of(FOLDER / 'roberta')
  assert family.model.context == 22 and params['encoder/position'].shape == (24, 16)
  assert family.model.position == 'lm.nn.position:learned(offset=2)'
  first = families.family_of(config_of('roberta', pad_token_id=0))
  assert first.model.context == 23 and first.model.position.endswith('(offset=1)')


@pytest.mark.parametrize(
  ('kind', 'prefix'), [('xlm-roberta', 'XLMRoberta'), ('camembert', 'Camembert')]
)
def test_the_relatives_of_roberta_have_its_layout(kind, prefix):
  for ending, head in (('', 'Model'), ('_masked', 'ForMaskedLM')):
    own = families.family_of(config_of('roberta' + ending))
    changes = {'model_type': kind, 'architectures': [prefix + head]}
    found = families.family_of(config_of('roberta' + ending, **changes))
    assert found.model == own.model
    assert [x[:2] for x in found.entries] == [x[:2] for x in own.entries]


def test_old_configs_of_modernbert_are_those_of_the_paper():
  old = without('modernbert', 'layer_types', 'rope_parameters', global_attn_every_n_layers=3)
  assert families.family_of(old).model == families.family_of(config_of('modernbert')).model
  model = families.family_of(old | {'num_hidden_layers': 22, 'local_attention': 128}).model
  near = 'lm.nn.layers:Attention(window=65)'  # 64 tokens on either side, and the token
  every = ['lm.nn.layers:Attention' if i % 3 == 0 else near for i in range(22)]
  assert list(model.attention_layer) == every
  thetas = ['lm.nn.position:rope(theta=160000.0)', 'lm.nn.position:rope(theta=10000.0)']
  assert list(model.position) == [thetas[layer == near] for layer in every]


def test_a_config_without_architectures_is_that_of_the_model_alone():
  named, found = config_of('electra'), without('electra', 'architectures')
  assert families.family_of(found).model == families.family_of(named).model


def test_labels_are_in_the_order_of_their_numbers():
  names = {'10': 'k', **{str(i): chr(97 + i) for i in range(10)}}
  family = families.family_of(config_of('bert_tags', id2label=names))
  assert family.data['labels'] == tuple('abcdefghijk')
  one = families.family_of(config_of('bert_classes', id2label={'0': 'score'}))
  assert one.data['task'] == 'lm.tasks.text:regression' and one.model.num_classes == 1
  count = families.family_of(without('bert_classes', 'id2label', num_labels=3))
  assert count.data['labels'] == ('LABEL_0', 'LABEL_1', 'LABEL_2')


@pytest.mark.parametrize(
  ('name', 'changes', 'message'),
  [
    ('bert', {'hidden_act': 'mish'}, "hidden_act='mish' is not supported (did you mean"),
    ('bert', {'hidden_act': ['gelu']}, "hidden_act=['gelu'] is not supported"),
    ('bert', {'layer_norm_eps': '1e-12'}, "layer_norm_eps='1e-12' must be at least 0"),
    ('bert', {'hidden_dropout_prob': -0.1}, 'hidden_dropout_prob=-0.1 must be at least 0'),
    ('bert', {'position_embedding_type': 'relative_key'}, "it must be 'absolute'"),
    ('bert', {'is_decoder': True}, 'is_decoder=True is not supported; it must be False'),
    ('bert', {'hidden_size': 18}, 'hidden_size=18 is not a multiple of num_attention_heads=4'),
    ('bert', {'architectures': ['BertModl']}, "is not supported (did you mean 'BertModel'"),
    ('bert', {'architectures': ['BertForMultipleChoice']}, 'is not supported'),
    ('bert_masked', {'tie_word_embeddings': False}, 'tie_word_embeddings=False'),
    ('bert_classes', {'problem_type': 'regression'}, "problem_type='regression' is not supported"),
    ('bert_classes', {'id2label': {'1': 'a', '2': 'b'}}, 'must have one name for each class'),
    ('bert_classes', {'id2label': ['a', 'b']}, "id2label=['a', 'b'] must be an object"),
    ('bert_classes', {'id2label': {'0': 'a', '1': 'a'}}, 'a different name for each class'),
    ('roberta', {'pad_token_id': 24}, 'max_position_embeddings=24 has no row from 25 on'),
    ('roberta', {'pad_token_id': '<pad>'}, "pad_token_id='<pad>' must be at least 0"),
    ('distilbert', {'dim': 18}, 'dim=18 is not a multiple of n_heads=4'),
    ('modernbert', {'norm_bias': True}, 'norm_bias, attention_bias and mlp_bias must be equal'),
    ('modernbert', {'layer_types': ['full_attention']}, 'num_hidden_layers=4'),
    ('modernbert', {'layer_types': 'full_attention'}, 'must be a list of strings'),
    ('modernbert', {'layer_types': 5}, 'layer_types=5 must be a list of strings'),
    ('modernbert', {'rope_parameters': 5}, 'rope_parameters=5 must be an object'),
    ('modernbert', {'rope_parameters': {'full_attention': [1]}}, 'full_attention=[1] must be an'),
    ('bert', {'hidden_dropout_prob': 1.5}, 'hidden_dropout_prob=1.5 must be below 1'),
    ('bert_classes', {'id2label': 5}, 'id2label=5 must be an object'),
    ('bart', {'architectures': {'a': 1}}, 'must be a list of strings'),
    ('t5', {'dropout_rate': 2}, 'dropout_rate=2.0 must be below 1'),
    ('modernbert', {'rope_scaling': {'type': 'yarn'}}, 'rope_scaling='),
    (
      'modernbert',
      {'rope_parameters': {'full_attention': {'rope_type': 'yarn'}}},
      'of full_attention is not supported',
    ),
    ('modernbert_masked', {'decoder_bias': False}, 'decoder_bias=False is not supported'),
    ('modernbert_classes', {'classifier_pooling': 'max'}, "classifier_pooling='max' is not"),
  ],
)
def test_what_is_not_supported_is_refused_in_one_line(name, changes, message):
  with pytest.raises(UserError) as error:
    families.family_of(config_of(name, **changes))
  assert message in str(error.value) and '\n' not in str(error.value)
