"""The peer of recurrent shapes: torch's own LSTM layers under cross-entropy, with torch's Adam."""

import importlib.metadata
import os
import resource

from lm.bench.steps.shape import PRODUCT_SIZE, Shape, Subject
from lm.errors import UserError

try:
  import torch
except ImportError as e:
  raise UserError(f"--peer=torch needs torch: pip install -e '.[peers]' ({e})") from e


class Network(torch.nn.Module):
  """Embeddings, LSTM layers, and a linear map to the vocabulary."""

  def __init__(self, shape: Shape):
    super().__init__()
    self.embedding = torch.nn.Embedding(shape.vocab_size, shape.d_model)
    self.layers = torch.nn.LSTM(shape.d_model, shape.d_hidden, shape.depth, batch_first=True)
    self.out = torch.nn.Linear(shape.d_hidden, shape.vocab_size)

  def forward(self, inputs):
    return self.out(self.layers(self.embedding(inputs))[0])


def build(shape: Shape) -> Subject:
  """Returns the peer's step, on the CPU."""
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  tokens = torch.randint(shape.vocab_size, (shape.batch_size, shape.context + 1))
  inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
  network = Network(shape)
  optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
  size = PRODUCT_SIZE['cpu']
  square = torch.ones(size, size)

  def step(times: int) -> None:
    for _ in range(times):
      optimizer.zero_grad(set_to_none=True)
      torch.nn.functional.cross_entropy(network(inputs).flatten(0, 1), targets).backward()
      optimizer.step()

  def product(times: int) -> None:
    for _ in range(times):
      square @ square

  def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  versions = {'torch': importlib.metadata.version('torch')}
  return Subject(step, product, 2.0 * size**3, peak_bytes, versions)
