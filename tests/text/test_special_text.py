"""Special tokens of every layout: their ids, their ends, and text that looks like them."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lm.data import encoding
from lm.errors import UserError
from lm.task import Task
from lm.tasks import classification, extractive_qa
from lm.text import tokenizers
from lm.text.tokenizers import SEPARATOR, end_id, text_reader, vocabulary_size

LETTERS = 'abcdefghijklmnopqrstuvwxyz '


@pytest.fixture(autouse=True)
def _no_child_process(monkeypatch):
  monkeypatch.setattr(tokenizers.probe, 'check', lambda *args: None)


SPECIALS = ['<unk>', '<s>', '</s>']


def by_words(special):
  words = [*special, 'a', 'b']
  made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=special[0]))
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return made


def by_pieces(special):
  """T5's and XLM-R's layout: the special tokens are pieces of the model, likelier than any."""
  made = Tokenizer(models.Unigram([(s, 0.0) for s in special] + [(c, -3.0) for c in '▁ab</s>'], 0))
  made.pre_tokenizer = pre_tokenizers.Metaspace()
  made.decoder = decoders.Metaspace()
  return made


def by_subwords(special):
  pieces = [*special, *'ab</s>', *('##' + c for c in 'ab</s>')]
  model = models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token=special[0])
  made = Tokenizer(model)
  made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return made


def by_merges(special):
  """A vocabulary whose merges lead to the name of a special token."""
  pieces = [*special, *'ab</s> ', '</', 's>', 'x</s>']
  merges = [('<', '/'), ('s', '>'), ('</', 's>')]
  model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token=special[0])
  return Tokenizer(model)


LAYOUTS = [by_words, by_pieces, by_subwords, by_merges]


@pytest.mark.parametrize('layout', LAYOUTS)
def test_end_lookalike_is_text_everywhere(layout):
  tokenizer = layout(SPECIALS)
  tokenizer.add_special_tokens(SPECIALS)
  end, text = end_id(tokenizer), 'a </s> b'
  assert end == 2
  encoded = encoding.text_encoder(tokenizer)([text, 'a </s>'])
  assert (np.flatnonzero(encoded['tokens'] == end) == np.cumsum(encoded['counts']) - 1).all()
  assert end not in tokenizers.parts_encoder(tokenizer)([text])
  task = Task(lambda e: [e['text']], lambda e: '', lambda e: '', lambda e: [(0, 1, 'x')])
  (tagged,) = classification.tagger(task).features(tokenizer, ['x'], 99)({'text': text})
  assert end not in tagged.tokens['inputs']
  task = Task(lambda e: [e['text']], lambda e: '', lambda e: '', lambda e: [(0, 1)])
  (window,) = extractive_qa.converter(task).features(tokenizer, [], 99)({'text': text})
  assert [*window.tokens['inputs']].count(end) == 1  # which the row begins with


@pytest.mark.parametrize('layout', LAYOUTS)
def test_other_text_keeps_its_tokens(layout):
  tokenizer = layout(SPECIALS)
  tokenizer.add_special_tokens(SPECIALS)
  for text in ('a b ba ab', 'a s / b', 'q a'):
    assert text_reader(tokenizer).encode(text).ids == tokenizer.encode(text).ids


def test_special_part_is_one_token():
  tokenizer = tokenizers.with_special_tokens(
    tokenizers.words(['a <|sep|> b'] * 2, pattern=r'\S+'), [SEPARATOR]
  )
  ids = tokenizers.parts_encoder(tokenizer)(['a <|sep|>', SEPARATOR, 'b'])
  names = [tokenizer.id_to_token(i) for i in ids]
  assert names == ['a', '<unk>', '<|sep|>', 'b']


def test_special_token_of_one_letter_is_refused():
  with pytest.raises(UserError, match=r"data\.special_tokens: 'a' is a token of texts"):
    tokenizers.with_special_tokens(tokenizers.bytes([]), ['a'])


def with_holes(highest=40):
  vocab = {'</s>': 0, '<unk>': 1} | {c: 2 + i for i, c in enumerate(LETTERS[:-1])} | {' ': highest}
  tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token='<unk>'))
  tokenizer.add_special_tokens(['</s>', '<unk>'])
  return tokenizer


def test_vocabulary_size_is_the_highest_id_plus_one():
  assert vocabulary_size(with_holes()) == 41 and with_holes().get_vocab_size() == 29
  assert vocabulary_size(tokenizers.bytes([])) == 257
  # One more id than uint16 holds.
  assert encoding.text_encoder(with_holes(70_000))(['a b'])['tokens'].tolist() == [2, 70_000, 3, 0]


def test_special_tokens_get_free_ids():
  # The library would number them from 29 on, the count of entries.
  tokenizer = tokenizers.with_special_tokens(with_holes(30), [SEPARATOR, '<|a|>', '<|b|>'])
  assert [tokenizer.token_to_id(t) for t in (SEPARATOR, '<|a|>', '<|b|>', ' ')] == [31, 32, 33, 30]
  assert {31, 32, 33} <= tokenizer.get_added_tokens_decoder().keys()
  assert tokenizers.parts_encoder(tokenizer)(['a ', SEPARATOR]) == [2, 30, 31]
  assert not {31, 32, 33} & {*text_reader(tokenizer).encode('<|sep|><|a|>').ids}


def saved(tmp_path, special=(), ordinary=(), processor=None):
  vocab = {c: i for i, c in enumerate(['<unk>', *LETTERS, *special, *ordinary])}
  tokenizer = Tokenizer(models.BPE(vocab, merges=[], unk_token='<unk>'))
  tokenizer.add_special_tokens([*special])
  tokenizer.add_tokens([*ordinary])
  if processor is not None:
    tokenizer.post_processor = processor(tokenizer)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  return str(tmp_path / 'tokenizer.json')


def template(single, *names):
  return lambda t: processors.TemplateProcessing(
    single=single, special_tokens=[(name, t.token_to_id(name)) for name in names]
  )


def in_sequence(processor):
  return lambda t: processors.Sequence([processors.ByteLevel(), processor(t)])


ENDS = {
  'Gemma': ((['<eos>', '<bos>'], ['</s>', '<s>']), None, '<eos>'),
  'Phi-3': ((['<|end|>', '<|endoftext|>'], ['</s>']), None, '<|endoftext|>'),
  'Llama 3': (
    (['<|end_of_text|>', '<|eot_id|>', '<b>'],),
    template('<b> $A', '<b>'),
    '<|end_of_text|>',
  ),
  'BERT': ((['[CLS]', '[SEP]'],), template('[CLS] $A [SEP]', '[CLS]', '[SEP]'), '[SEP]'),
  'NLLB': ((['</s>', 'eng_Latn'],), template('$A </s> eng_Latn', '</s>', 'eng_Latn'), '</s>'),
  'RoBERTa': (
    (['<s>', '</s>'],),
    lambda t: processors.RobertaProcessing(('</s>', t.token_to_id('</s>')), ('<s>', 28)),
    '</s>',
  ),
  'stated': ((['<eos>', '<z>'],), in_sequence(template('$A <z>', '<z>')), '<z>'),
  'none': (([], ['</s>']), None, '<|end|>'),
}


@pytest.mark.parametrize('family', ENDS)
def test_end_is_that_of_the_post_processor(family, tmp_path):
  tokens, processor, expected = ENDS[family]
  tokenizer = tokenizers.existing([], saved(tmp_path, *tokens, processor=processor))
  assert tokenizer.id_to_token(end_id(tokenizer)) == expected
  # Whatever special tokens a config adds.
  more = tokenizers.with_special_tokens(tokenizer, ['<|endoftext|>', '[SEP]', '<|sep|>'])
  again = Tokenizer.from_str(more.to_str())
  assert again.id_to_token(end_id(again)) == expected
  text = 'old <s>price</s> new'
  assert end_id(tokenizer) not in text_reader(tokenizer).encode(text).ids


def test_end_by_name(tmp_path):
  file = saved(tmp_path, ['<eos>', '<|eot|>'], ['z'])
  tokenizer = tokenizers.existing([], file, end='<|eot|>')
  assert tokenizer.id_to_token(end_id(Tokenizer.from_str(tokenizer.to_str()))) == '<|eot|>'
  with pytest.raises(UserError, match=r"data\.tokenizer\.end='<eot>': .* has no such token"):
    tokenizers.existing([], file, end='<eot>')


def test_end_of_trained_tokenizers_is_token_0():
  tokenizer = tokenizers.with_special_tokens(tokenizers.bytes([]), ['</s>', '<|endoftext|>'])
  assert end_id(tokenizer) == 0


def test_id_beyond_int32_is_refused(tmp_path):
  (tmp_path / 't.json').write_text(with_holes(40).to_str().replace(':40', f':{2**31}'))
  with pytest.raises(UserError, match='its highest id is 2147483648'):
    tokenizers.existing([], str(tmp_path / 't.json'))


def llama():
  """Llama's and Gemma's layout: words begin with ▁, and bytes stand for what is not known."""
  vocab = {s: i for i, s in enumerate(SPECIALS)} | {f'<0x{b:02X}>': 3 + b for b in range(256)}
  for character in '▁' + LETTERS[:-1] + '.,':
    vocab[character] = len(vocab)
  model = models.BPE(vocab, [], unk_token='<unk>', byte_fallback=True, fuse_unk=True)
  made = Tokenizer(model)
  made.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  made.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  made.add_special_tokens(SPECIALS)
  return made


def test_special_token_behind_the_vocabulary_is_not_text():
  """Llama 3's layout: the model has no entry of the name, the added token alone has."""
  letters = [*'ab</s>']
  tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
  tokenizer.add_special_tokens(['</s>'])
  end = tokenizer.token_to_id('</s>')
  assert end == len(letters) and end in tokenizer.encode('a</s>b').ids
  assert text_reader(tokenizer).encode('a</s>b').ids == [letters.index(c) for c in 'a</s>b']
