"""Tables whose rows are words, from one vocabulary to another."""

from typing import NamedTuple

import numpy as np
import tokenizers

from lm.text.tokenizers import word_ids
from lm.types import Array


class Alignment(NamedTuple):
  """Which rows of a new table have a row in an old one, by the words of both vocabularies.

  Attributes:
    new: (N,) rows of the new table.
    old: (N,) rows of the old one, of the same words.
    missing: words of the new vocabulary that the old one lacks, in order.
  """

  new: np.ndarray
  old: np.ndarray
  missing: tuple[str, ...]


def align(there: tokenizers.Tokenizer, here: tokenizers.Tokenizer) -> Alignment:
  """Returns where the words of a vocabulary are in another one."""
  old, words = there.get_vocab(), word_ids(here)
  pairs = [(i, old[word]) for word, i in words.items() if word in old]
  new_N, old_N = np.array(pairs, np.int32).reshape(-1, 2).T
  return Alignment(new_N, old_N, tuple(word for word in words if word not in old))


def placed(read_VD: Array, drawn_VD: Array, rows: Alignment) -> np.ndarray:
  """Returns a drawn table with the rows that were read in the places of their words.

  They are scaled together to the root mean square of the rows that they replace: the model was made
  for vectors of that length, and directions are what was learned.
  """
  taken_ND = np.asarray(read_VD, np.float32)[rows.old]
  table_VD = np.array(drawn_VD)
  length = np.sqrt(np.mean(np.square(taken_ND, dtype=np.float64))) or 1.0
  wanted = np.sqrt(np.mean(np.square(table_VD[rows.new], dtype=np.float64)))
  table_VD[rows.new] = taken_ND * np.float32(wanted / length)
  return table_VD
