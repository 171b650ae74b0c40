"""The peer: GPT-2 of Hugging Face transformers on torch, trained as its users do.

Attention is torch's fused one (sdpa, which is flash attention on a GPU), the optimizer torch's
fused AdamW behind clipping to norm 1. On a GPU the model is compiled and runs under autocast.
"""

import importlib.metadata
import os
import resource

from lm.bench.steps.shape import PRODUCT_SIZE, Shape, Subject
from lm.errors import UserError

try:
  import torch
  from transformers import AutoModelForCausalLM, GPT2Config
except ImportError as e:
  raise UserError(
    f"--peer=transformers needs torch and transformers: pip install -e '.[peers]' ({e})"
  ) from e


def build(shape: Shape) -> Subject:
  """Returns the peer's step, on the GPU in bfloat16 shapes and on the CPU otherwise.

  Raises:
    UserError: the shape is for a GPU, and this torch has none.
  """
  on_gpu = shape.dtype == 'bfloat16'
  if on_gpu and not torch.cuda.is_available():
    raise UserError(
      f'--peer=transformers: torch {torch.__version__} finds no GPU; install its CUDA build'
    )
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  target = torch.device('cuda' if on_gpu else 'cpu')
  dtype = getattr(torch, shape.dtype)
  torch.manual_seed(0)
  tokens = torch.randint(shape.vocab_size, (shape.batch_size, shape.context + 1)).to(target)
  train_step = _train_step(shape, target, tokens[:, :-1], tokens[:, 1:])
  size = PRODUCT_SIZE['gpu' if on_gpu else 'cpu']
  square = torch.ones(size, size, dtype=dtype, device=target)

  def wait() -> None:
    if on_gpu:
      torch.cuda.synchronize()

  def step(times: int) -> None:
    for _ in range(times):
      train_step()
    wait()

  def product(times: int) -> None:
    for _ in range(times):
      square @ square
    wait()

  def peak_bytes() -> int:
    if on_gpu:
      return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  versions = {name: importlib.metadata.version(name) for name in ('torch', 'transformers')}
  return Subject(step, product, 2.0 * size**3, peak_bytes, versions)


def _train_step(shape: Shape, target, inputs, targets):
  config = GPT2Config(
    vocab_size=shape.vocab_size,
    n_positions=shape.context,
    n_embd=shape.d_model,
    n_layer=shape.depth,
    n_head=shape.heads,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    bos_token_id=0,
    eos_token_id=0,
    use_cache=False,
  )
  model = AutoModelForCausalLM.from_config(config, attn_implementation='sdpa').to(target).train()
  forward = torch.compile(model) if target.type == 'cuda' else model
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )
  dtype = getattr(torch, shape.dtype)

  def step() -> None:
    with torch.autocast(target.type, dtype, enabled=dtype != torch.float32):
      logits = forward(inputs).logits
      loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step
