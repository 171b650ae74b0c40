"""Framed texts equal those of the library `tokenizers`, which reads the same file."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lm.data.features import apply_length_policy
from lm.errors import UserError
from lm.tasks.classification import classifier, regressor, tagger
from lm.tasks.extractive_qa import converter, extraction
from lm.tasks.text import classification, regression, tagging, translation
from lm.text.framing import frame
from lm.text.tokenizers import SEPARATOR, bytes, existing, separated, with_special_tokens

TEXT = 'A film that is fun, and one that is not: the plot [is] <thin> and so are 3 of its ideas.'
# Texts that name special tokens, and texts without any token.
HOSTILE = (TEXT, 'a [SEP] film [CLS]', '</s> <s>', '[SEP][SEP]', '<|sep|> [PAD] ##s', '', ' ')
SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '<s>', '</s>')


def byte_level(post_processor):
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=300, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
  )
  tokenizer.train_from_iterator([TEXT] * 9, trainer)
  tokenizer.post_processor = post_processor(tokenizer.token_to_id)
  return tokenizer


def wordpiece(post_processor):
  tokenizer = Tokenizer(models.WordPiece(unk_token='[UNK]'))
  tokenizer.normalizer = normalizers.BertNormalizer()
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=[*SPECIAL], show_progress=False)
  tokenizer.train_from_iterator([TEXT] * 9, trainer)
  tokenizer.post_processor = post_processor(tokenizer.token_to_id)
  return tokenizer


def template(single, pair, *names):
  return lambda id_of: processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=[(name, id_of(name)) for name in names]
  )


BERT = '[CLS]:0 $A:0 [SEP]:0', '[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1', '[CLS]', '[SEP]'
KINDS = {
  'bert': lambda: wordpiece(template(*BERT)),
  'bert of old files': lambda: wordpiece(
    lambda id_of: processors.BertProcessing(('[SEP]', id_of('[SEP]')), ('[CLS]', id_of('[CLS]')))
  ),
  'roberta': lambda: byte_level(
    lambda id_of: processors.RobertaProcessing(('</s>', id_of('</s>')), ('<s>', id_of('<s>')))
  ),
  'sequence': lambda: byte_level(
    lambda id_of: processors.Sequence(
      [
        processors.ByteLevel(trim_offsets=True),
        template('<s> $A </s>', '<s> $A </s> $B:1 </s>:1', '<s>', '</s>')(id_of),
      ]
    )
  ),
}


@pytest.fixture(scope='module', params=[*KINDS])
def both(request, tmp_path_factory):
  """Returns the tokenizer of a run with an imported file, and the library's own of that file."""
  file = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  made = KINDS[request.param]()
  made.enable_truncation(8)
  made.enable_padding(length=8)
  made.save(str(file))
  reference = Tokenizer.from_file(str(file))
  reference.no_truncation()
  reference.no_padding()
  reference.encode_special_tokens = True
  return existing([], str(file)), reference


@pytest.mark.parametrize('first', HOSTILE)
@pytest.mark.parametrize('second', [None, *HOSTILE])
def test_template_is_that_of_the_file(both, first, second):
  tokenizer, reference = both
  texts = [first] if second is None else [first, second]
  found, expected = frame(tokenizer, 'template')(separated(texts)), reference.encode(*texts)
  assert found.ids.tolist() == expected.ids
  assert found.types is not None and found.types.tolist() == expected.type_ids
  assert [None if i < 0 else i for i in found.text.tolist()] == expected.sequence_ids
  assert [tuple(pair) for pair in found.offsets.tolist()] == expected.offsets


@pytest.mark.parametrize('limit', [5, 8, 13, 14, 23, 60])
def test_truncation_is_that_of_the_library(both, limit):
  tokenizer, reference = both
  reference = Tokenizer.from_str(reference.to_str())
  reference.encode_special_tokens = True
  reference.enable_truncation(limit)
  task = classification(fields=('a', 'b'))
  convert = classifier(task, special_tokens='template').features(tokenizer, ('x', 'y'), limit)
  for texts in ((TEXT, TEXT), (TEXT, 'fun'), ('fun', TEXT), (TEXT, 'a film that is')):
    (made,) = convert({'a': texts[0], 'b': texts[1], 'label': 'y'})
    cut = apply_length_policy(made, {'tokens': ('seq_len', limit)}, 'truncate')
    expected = reference.encode(*texts)
    assert cut is not None and cut.tokens['inputs'].tolist() == expected.ids
    assert cut.tokens['types'].tolist() == expected.type_ids
    assert cut.values == {'targets': 1, 'weights': 1}
  single = regressor(regression(), special_tokens='template').features(tokenizer, (), limit)
  (made,) = single({'text': TEXT, 'value': 2})
  cut = apply_length_policy(made, {'tokens': ('seq_len', limit)}, 'truncate')
  assert cut is not None and cut.tokens['inputs'].tolist() == reference.encode(TEXT).ids


def test_tags_are_at_the_first_token_of_words_and_survive_truncation(both):
  tokenizer, reference = both
  words = ['fun', '[SEP]', 'thin', 'ideas']
  example = {'words': words, 'tags': ['B', 'O', 'B', 'O'], 'separator': ' '}
  task = tagger(tagging(), special_tokens='template')
  (made,) = task.features(tokenizer, ('O', 'B'), 64)(example)
  expected = reference.encode(' '.join(words))
  assert made.tokens['inputs'].tolist() == expected.ids
  at = np.flatnonzero(made.tokens['weights'])
  starts = [expected.offsets[i][0] for i in at]
  assert [' '.join(words)[start:].strip().split()[0] for start in starts] == words
  assert made.tokens['targets'][at].tolist() == [1, 0, 1, 0]
  limit = int(at[2]) + 2
  cut = apply_length_policy(made, {'tokens': ('seq_len', limit)}, 'truncate')
  assert cut is not None and cut.tokens['inputs'][-1] == expected.ids[-1]
  piece = {f'tokens/{name}': values for name, values in cut.tokens.items()}
  piece |= {'tokens/tag': np.ones(limit, int), 'tokens/log_p': np.zeros(limit)}
  assert task.postprocess is not None
  found = task.postprocess(('O', 'B'), example, [piece])
  assert found['tags'] == ['B', 'B', 'B', 'O'] and found['probabilities'] == [1, 1, 1, 0]


def test_windows_keep_the_question_and_the_last_special_token(both):
  tokenizer, reference = both
  question, context = 'what [SEP] is?', TEXT
  answer = {'text': 'film', 'start': context.index('film')}
  example = {'id': '1', 'question': question, 'context': context, 'answers': [answer]}
  full = reference.encode(question, context)
  passage = [i for i, text in enumerate(full.sequence_ids) if text == 1]
  framed = len(full.ids) - len(passage)
  size = 20
  task = converter(extraction(), stride=7, special_tokens='template')
  made = task.features(tokenizer, (), framed + size)(example)
  for i, window in enumerate(made):
    inside = passage[7 * i : 7 * i + size]
    kept = [k for k, text in enumerate(full.sequence_ids) if text != 1 or k in inside]
    assert window.tokens['inputs'].tolist() == [full.ids[k] for k in kept]
    assert window.tokens['types'].tolist() == [full.type_ids[k] for k in kept]
    of_passage = window.tokens['char_stop'] > 0
    assert of_passage.tolist() == [k in inside for k in kept]
    start, stop = (int(window.values[name]) for name in ('start', 'stop'))
    if start:
      found = context[window.tokens['char_start'][start] : window.tokens['char_stop'][stop]]
      assert found.strip() == 'film'
  assert passage[-1] in inside and any(window.values['start'] for window in made)
  assert not all(window.values['start'] for window in made)


def test_template_needs_no_separator_token(both):
  tokenizer, _ = both
  for made in (
    classifier(classification(), special_tokens='template'),
    regressor(regression(), special_tokens='template'),
    tagger(tagging(), special_tokens='template'),
    converter(extraction(), special_tokens='template'),
  ):
    assert not made.needs_separator
  assert tokenizer.token_to_id(SEPARATOR) is None
  assert classifier(classification()).needs_separator


def test_framing_that_does_not_fit_is_refused(both):
  tokenizer, _ = both
  with pytest.raises(UserError, match=r"special_tokens='template' has places for one text or two"):
    frame(tokenizer, 'template')(separated(['a', 'b', 'c']))
  task = translation(languages=('de',))
  parts = task.inputs({'source': 'a', 'target_language': 'de'})
  with pytest.raises(UserError, match=r"not for the inputs '<\|to de\|>', 'a'"):
    frame(tokenizer, 'template')(parts)
  with pytest.raises(UserError, match=r"special_tokens='templat' must be one of .*'template'"):
    frame(tokenizer, 'templat')
  plain = with_special_tokens(bytes([]), [])
  plain.post_processor = None
  with pytest.raises(UserError, match=r'post-processor adds no special tokens'):
    frame(plain, 'template')
  with pytest.raises(UserError, match=r'data\.seq_len=3: special tokens take [34] of a row'):
    frame(tokenizer, 'template')(separated(['a', 'b'])).shortened(3)
