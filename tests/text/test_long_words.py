"""Training on words without end: DNA, base64, minified code."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from lm import progress
from lm.text import tokenizers

PLAIN = [f'the word {i} of a text that is plain' for i in range(300)]
BUILDERS = {
  'bpe': lambda texts: tokenizers.bpe(texts, 320),
  'unigram': lambda texts: tokenizers.unigram(texts, 280),
  'wordpiece': lambda texts: tokenizers.wordpiece(texts, 60),
}


def dna(size):
  return ''.join(random.Random(0).choices('ACGT', k=size))


def trained_on(kind, texts, monkeypatch):
  """Returns the lengths of all words that a trainer is given."""
  lengths = []

  class Spy:
    def __init__(self, model):
      self.__dict__['made'] = Tokenizer(model)

    def __getattr__(self, name):
      return getattr(self.made, name)

    def __setattr__(self, name, value):
      setattr(self.made, name, value)

    def train_from_iterator(self, texts, trainer):
      for text in texts:
        lengths.extend(len(word) for word, _ in self.pre_tokenizer.pre_tokenize_str(text))
      self.made.train_from_iterator(texts, trainer)

  monkeypatch.setattr(tokenizers.tokenizers, 'Tokenizer', Spy)
  BUILDERS[kind](texts)
  return lengths


@pytest.mark.parametrize(
  ('kind', 'longest', 'total'),
  [('bpe', 1024, 100_000), ('unigram', 256, 2**14), ('wordpiece', 100, 200_000)],
)
def test_trainers_get_pieces_of_bounded_length(kind, longest, total, monkeypatch):
  lengths = trained_on(kind, [*PLAIN, dna(100_000)], monkeypatch)
  plain = trained_on(kind, PLAIN, monkeypatch)
  assert max(lengths) == longest
  assert sum(lengths) - sum(plain) == total  # wordpiece reads the corpus twice


@pytest.mark.parametrize('kind', BUILDERS)
def test_training_keeps_ordinary_words(kind, monkeypatch):
  known = BUILDERS[kind](PLAIN).to_str()
  nothing = pre_tokenizers.Sequence([])
  monkeypatch.setattr(tokenizers, '_split_long', lambda *args, **kwargs: nothing)
  assert BUILDERS[kind](PLAIN).to_str() == known


@pytest.mark.parametrize('kind', ['bpe', 'unigram'])
def test_decoding_of_a_long_word_is_exact(kind):
  word = dna(20_000)
  tokenizer = BUILDERS[kind]([*PLAIN, word])
  assert tokenizer.decode(tokenizer.encode(word).ids) == word
  assert isinstance(tokenizer.model, models.BPE if kind == 'bpe' else models.Unigram)


def test_progress_ticks_after_the_last_document():
  shown = []
  with progress.ticking(lambda *line: shown.append(line), seconds=0.001) as report:
    report(256, 256, 'training')
    while len(shown) < 4:  # what a trainer does after the last document
      pass
  assert set(shown[:-1]) == {(255, 256, 'training')} and shown[-1] == (256, 256, 'training')


def test_failed_training_is_never_shown_as_done():
  shown = []
  with (
    pytest.raises(ValueError, match='no'),
    progress.ticking(lambda *t: shown.append(t)) as report,
  ):
    report(3, 3, 'training')
    raise ValueError('no')
  assert shown == [(2, 3, 'training')]
