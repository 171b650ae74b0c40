"""What hidden states are compared with: tables of classes."""

import flax.linen as nn

from lm.mesh import named
from lm.types import Table, Unembed


class ClassTable(nn.Module):
  """What classes look like: a learned vector and a bias for each."""

  classes: int
  d_model: int
  init_std: float

  @nn.compact
  def __call__(self) -> Unembed:
    init = named(nn.initializers.normal(self.init_std), None, 'embed')
    kernel_CD = self.param('kernel', init, (self.classes, self.d_model))
    bias_C = self.param('bias', named(nn.initializers.zeros, None), (self.classes,))
    return Unembed(Table(kernel_CD), bias_C, self.classes, axes=(None, 'embed'))
