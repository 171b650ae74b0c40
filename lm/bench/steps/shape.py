"""What is measured: sizes of a model and of its batch, and the interface of those who run it."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Shape:
  """A language model without dropout, and rows of its tokens.

  It is a GPT-2 (Radford et al. 2019) with tied embeddings, or, where there is a `d_hidden`, LSTM
  layers of that width under a softmax of its own.
  """

  depth: int
  d_model: int
  heads: int
  vocab_size: int
  context: int  # tokens in a row
  batch_size: int  # rows
  dtype: str  # of activations and products; parameters and optimizer are float32
  d_hidden: int = 0

  @property
  def tokens(self) -> int:
    """Tokens in a step."""
    return self.batch_size * self.context


SHAPES = {
  'tiny': Shape(2, 32, 2, 65, 16, 2, 'float32'),
  # nanoGPT's recipe for Shakespeare's characters on a CPU: too small to keep products busy
  'nano': Shape(4, 128, 4, 65, 64, 12, 'float32'),
  'small': Shape(6, 384, 6, 65, 256, 8, 'float32'),
  'gpt2': Shape(12, 768, 12, 50304, 256, 2, 'float32'),
  # the program of the article (experiments/article_lstm.py)
  'article': Shape(2, 300, 0, 10_000, 40, 64, 'float32', d_hidden=128),
  'tiny_lstm': Shape(1, 16, 0, 65, 8, 2, 'float32', d_hidden=16),
  'gpt2_1k': Shape(12, 768, 12, 50304, 1024, 16, 'bfloat16'),
  'gpt2_medium_1k': Shape(24, 1024, 16, 50304, 1024, 8, 'bfloat16'),
}

DEFAULTS = {
  'cpu': ('small', 'gpt2'),
  'gpu': ('gpt2_1k', 'gpt2_medium_1k'),
  'tpu': ('gpt2_1k', 'gpt2_medium_1k'),
}

# Rows and columns of the matrix product whose rate the steps are measured against.
PRODUCT_SIZE = {'cpu': 2048, 'gpu': 8192, 'tpu': 8192}


class Subject(NamedTuple):
  """A code made ready to run a shape on one device. Its functions return when the work is done."""

  step: Callable[[int], None]  # takes so many train steps
  product: Callable[[int], None]  # multiplies two square matrices of PRODUCT_SIZE so many times
  product_flops: float  # FLOPs of one such product
  peak_bytes: Callable[[], int]  # most memory held so far: the device's, on a CPU the process's
  versions: dict[str, str]
  step_flops: float | None = None  # FLOPs of one step, from the code that knows its model
