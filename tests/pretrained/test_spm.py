"""SentencePiece models become tokenizer.json with the ids of the package."""

import io
import itertools
import json
import pathlib
import random
import shutil
import sys

import in_process
import numpy as np
import pytest

from lm.errors import UserError
from lm.pretrained import checkpoint, pieces, safetensors, spm
from lm.text.tokenizers import end_id, text_reader

package = pytest.importorskip('sentencepiece')

LLAMA = pathlib.Path(__file__).parent / 'checkpoints' / 'llama'
LETTERS = 'abc ABC  é北京\uff11\uff12\ufb01\t👍.,!\u2581<s></s><unk><sep>😀0 '
T5 = {'model_type': 'unigram', 'pad_id': 0, 'eos_id': 1, 'unk_id': 2, 'bos_id': -1}
KINDS = {
  'unigram': T5,
  'unigram_bytes': {
    'model_type': 'unigram',
    'byte_fallback': True,
    'user_defined_symbols': '<sep>',
  },
  'unigram_plain': {
    'model_type': 'unigram',
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
  },
  'bpe': {'model_type': 'bpe'},
  'bpe_user': {
    'model_type': 'bpe',
    'user_defined_symbols': '<sep>',
    'add_dummy_prefix': False,
    'remove_extra_whitespaces': False,
  },
  'bpe_llama': {
    'model_type': 'bpe',
    'byte_fallback': True,
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
    'split_digits': True,
    'allow_whitespace_only_pieces': True,
  },
  'bpe_caseless': {
    'model_type': 'bpe',
    'normalization_rule_name': 'nmt_nfkc_cf',
    'add_dummy_prefix': False,
  },
}


@pytest.fixture(scope='module')
def lines():
  """Returns lines of Python's library."""
  files = sorted(pathlib.Path(io.__file__).parent.glob('a*.py'))
  texts = (file.read_text('utf-8').splitlines() for file in files)
  return [line for line in itertools.chain.from_iterable(texts) if line.strip()][:4000]


def trained(lines, **options):
  """Returns the file of a small model."""
  file = io.BytesIO()
  package.SentencePieceTrainer.train(
    sentence_iterator=iter(lines[:800]),
    model_writer=file,
    vocab_size=600,
    minloglevel=2,
    num_threads=1,
    hard_vocab_limit=False,
    **options,
  )
  return file.getvalue()


def generated():
  rng = random.Random(0)
  return [
    ''.join(rng.choices([*LETTERS, '<sep>', ' <sep> '], k=rng.randint(0, 50))) for _ in range(3000)
  ]


@pytest.mark.parametrize('name', KINDS)
def test_ids_are_those_of_sentencepiece(name, lines, tmp_path):
  file = tmp_path / 'spiece.model'
  file.write_bytes(trained(lines, **KINDS[name]))
  tokenizer = spm.convert(file, [])
  reference = package.SentencePieceProcessor(model_file=str(file))
  assert tokenizer.get_vocab_size() == reference.get_piece_size()
  texts = [*lines, *generated(), *(f'  {line.replace(" ", "  ", 2)} ' for line in lines)]
  found = text_reader(tokenizer).encode_batch(texts, add_special_tokens=False)
  ties, plain = 0, KINDS[name]['model_type'] == 'bpe'
  for text, ids, encoding in zip(texts, reference.encode(texts), found, strict=True):
    ties += ids != encoding.ids
    scores = [sum(map(reference.get_score, each)) for each in (ids, encoding.ids)]
    assert ids == encoding.ids or (not plain and np.isclose(*scores, rtol=1e-6)), text
  assert ties < 0.01 * len(texts)
  if KINDS[name].get('byte_fallback'):  # without it, the two print unknown pieces differently
    for text in texts[:4000:100]:
      ids = reference.encode(text)
      assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)


@pytest.fixture(scope='module')
def models(lines):
  """Returns a T5-like and a Llama-like model."""
  return {name: trained(lines, **KINDS[name]) for name in ('unigram', 'bpe_llama')}


@pytest.fixture
def folder(tmp_path):
  """A checkpoint of a Llama without tokenizer.json, with a larger embedding."""
  folder = pathlib.Path(shutil.copytree(LLAMA, tmp_path / 'llama'))
  (folder / 'tokenizer.json').unlink()
  tensors = {k: t.read() for k, t in safetensors.read_folder(folder).items()}
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    tensors[name] = tensors[name].repeat(20, 0)
  safetensors.write_file(folder / 'model.safetensors', tensors)
  config = json.loads((folder / 'config.json').read_text()) | {'vocab_size': 1200}
  (folder / 'config.json').write_text(json.dumps(config))
  return folder


def write(folder, name, value):
  (folder / name).write_text(json.dumps(value))


def test_a_llama_gets_its_first_token_and_its_added_ones(models, folder, tmp_path):
  (folder / 'tokenizer.model').write_bytes(models['bpe_llama'])
  size = package.SentencePieceProcessor(model_proto=models['bpe_llama']).get_piece_size()
  write(folder, 'added_tokens.json', {'<pad>': size})
  write(folder, 'tokenizer_config.json', {'tokenizer_class': 'LlamaTokenizer', 'bos_token': '<s>'})
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  for name in ('tokenizer.model', 'tokenizer_config.json'):
    assert (tmp_path / 'out' / name).read_bytes() == (folder / name).read_bytes()
  tokenizer = checkpoint.open_source(tmp_path / 'out').tokenizer
  assert tokenizer.token_to_id('<pad>') == size and end_id(tokenizer) == 2
  assert tokenizer.encode('a').tokens == ['<s>', '\u2581a']


def test_a_t5_gets_its_last_token_and_its_sentinels(models, folder):
  (folder / 'spiece.model').write_bytes(models['unigram'])
  size = package.SentencePieceProcessor(model_proto=models['unigram']).get_piece_size()
  write(folder, 'tokenizer_config.json', {'tokenizer_class': 'T5Tokenizer'})
  tokenizer = checkpoint.open_source(folder).tokenizer
  assert tokenizer.token_to_id('<extra_id_0>') == size + 99
  assert tokenizer.token_to_id('<extra_id_99>') == size
  assert tokenizer.encode('a').tokens[-1] == '</s>' and end_id(tokenizer) == 1


def refused(folder, tmp_path):
  result = in_process.run('convert', 'from_hf', str(folder), f'--workdir={tmp_path / "run"}')
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
  assert not (tmp_path / 'run').exists()
  return result.stderr


def test_what_is_not_supported_is_refused(models, folder, tmp_path, monkeypatch):
  assert 'tokenizer.json is missing, and so is tokenizer.model' in refused(folder, tmp_path)
  (folder / 'source.spm').write_bytes(models['unigram'])
  assert 'source.spm and target.spm segment sources and targets' in refused(folder, tmp_path)
  (folder / 'source.spm').unlink()
  (folder / 'tokenizer.model').write_bytes(models['bpe_llama'])
  write(folder, 'tokenizer_config.json', {'tokenizer_class': 'XLNetTokenizer'})
  assert "tokenizer_class='XLNetTokenizer' is not supported" in refused(folder, tmp_path)
  write(folder, 'tokenizer_config.json', {'bos_token': '<begin>'})
  assert "names '<begin>', which tokenizer.model lacks" in refused(folder, tmp_path)
  write(folder, 'tokenizer_config.json', {'added_tokens_decoder': {'x': {}}})
  assert 'its added tokens are damaged' in refused(folder, tmp_path)
  write(folder, 'tokenizer_config.json', {})
  write(folder, 'added_tokens.json', {'<pad>': 1100})
  assert "the added token '<pad>' has id 1100" in refused(folder, tmp_path)
  (folder / 'tokenizer.model').write_bytes(models['bpe_llama'][:1000])
  assert 'is no model of SentencePiece, or damaged' in refused(folder, tmp_path)
  monkeypatch.setitem(sys.modules, 'sentencepiece', None)
  assert 'pip install -e ".[spm]"' in refused(folder, tmp_path)


def test_kinds_without_subwords_are_refused(lines, tmp_path):
  (tmp_path / 'spiece.model').write_bytes(trained(lines, model_type='char'))
  with pytest.raises(UserError, match='its type is 4; it must be 1, unigram, or 2, BPE'):
    spm.convert(tmp_path / 'spiece.model', [])


def test_symbols_of_the_user_within_texts_that_change_around_them_are_refused(lines, tmp_path):
  """A tokenizer.json changes the parts between such symbols alone: spaces would be lost."""
  symbols = {'model_type': 'bpe', 'user_defined_symbols': '<sep>'}
  (tmp_path / 'spiece.model').write_bytes(trained(lines, **symbols))
  with pytest.raises(UserError, match='SentencePiece gives other ids'):
    spm.convert(tmp_path / 'spiece.model', [])


def test_a_conversion_that_disagrees_is_refused(models, tmp_path, monkeypatch):
  (tmp_path / 'spiece.model').write_bytes(models['bpe_llama'])
  merges = pieces.models.BPE
  monkeypatch.setattr(pieces.models, 'BPE', lambda v, m, **more: merges(v, m[::-1], **more))
  with pytest.raises(UserError, match='SentencePiece gives other ids'):
    spm.convert(tmp_path / 'spiece.model', [])
