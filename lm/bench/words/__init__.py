"""Codes that learn word vectors, each a module with `train(Work) -> Trained`."""

from typing import NamedTuple


class Work(NamedTuple):
  """What each code is to do with the same text."""

  text: str  # file of words between white space, maybe gzipped
  model: str  # skip_gram, cbow or glove
  seed: int
  threads: int
  out: str  # file for the vectors, in the text format of word2vec
  programs: str  # directory of the programs of Stanford's GloVe
  size: int = 100
  min_count: int = 5
  window: int = 5
  negatives: int = 5
  epochs: int = 5
  glove_window: int = 10
  glove_epochs: int = 15
  x_max: float = 10.0


class Trained(NamedTuple):
  """What it took, without the reading of the text; compilation and start count in `command`."""

  seconds: float  # of training alone
  counting: float  # of counting co-occurrences, for GloVe
  command: float  # from the start of the process to the vectors
  unit: str  # what was gone through: words of the text, or pairs
  amount: int  # how many of them, times the epochs
  version: str  # of the library, or where the programs are that tell none
