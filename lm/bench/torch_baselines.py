"""Baselines on torch: GPT-2 of Hugging Face transformers, and LSTM layers of torch itself.

Attention is the fused kernel of torch (sdpa, which is flash attention on a GPU).
"""

import importlib.metadata
import itertools
from collections.abc import Callable
from typing import Any

import torch

from lm.bench.worker import BUFFER_SIZE, MATMUL_SIZE, Candidate, Limit, Shape
from lm.errors import UserError
from lm.parallel.host import available_cores


def gpt2_train_step(shape: Shape, platform: str) -> Candidate:
  """Returns a train step as users of transformers write it.

  The optimizer is the fused AdamW of torch, after clipping to norm 1. On a GPU the model is
  compiled. In bfloat16 it runs under autocast.

  Raises:
    UserError: torch cannot use the platform (`_device`).
  """
  device = _device(platform)
  inputs, targets = _batch(shape, device)
  model = _gpt2(shape, device).train()
  forward = torch.compile(model) if device.type == 'cuda' else model
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )
  dtype = getattr(torch, shape.dtype)

  def step() -> None:
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
      logits = forward(inputs, use_cache=False).logits
      loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return _candidate(step, lambda: _matmul(shape, device), device, 'torch', 'transformers')


def gpt2_decoding(shape: Shape, platform: str) -> Candidate:
  """Returns greedy decoding by `generate` of transformers, with its default KV cache.

  The model has no dropout, and parameters, activations and cache are float32.

  Raises:
    UserError: torch cannot use the platform (`_device`).
  """
  device = _device(platform)
  model = _gpt2(shape, device).train(False)
  # Without an end-of-text token every row gets all its new tokens.
  model.generation_config.eos_token_id = None
  model.generation_config.pad_token_id = 0
  prompts = _batch(shape, device)[0][:, : shape.prompt]
  mask = torch.ones_like(prompts)

  def generate() -> None:
    tokens = model.generate(
      prompts, attention_mask=mask, max_new_tokens=shape.max_tokens, do_sample=False
    )
    assert tokens.shape[1] == shape.prompt + shape.max_tokens

  return _candidate(generate, lambda: _memory(device), device, 'torch', 'transformers')


def lstm_train_step(shape: Shape, platform: str) -> Candidate:
  """Returns a train step of embeddings, LSTM layers and an output layer, with Adam.

  Raises:
    UserError: torch cannot use the platform (`_device`).
  """
  device = _device(platform)
  inputs, targets = _batch(shape, device)
  embedding = torch.nn.Embedding(shape.vocab_size, shape.d_model).to(device)
  lstm = torch.nn.LSTM(shape.d_model, shape.d_hidden, shape.depth, batch_first=True).to(device)
  output = torch.nn.Linear(shape.d_hidden, shape.vocab_size).to(device)
  parameters = itertools.chain.from_iterable(x.parameters() for x in (embedding, lstm, output))
  optimizer = torch.optim.Adam(parameters, lr=1e-4)

  def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    logits = output(lstm(embedding(inputs))[0])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).backward()
    optimizer.step()

  return _candidate(step, lambda: _matmul(shape, device), device, 'torch')


def _device(platform: str) -> torch.device:
  """Returns torch's device for a platform of JAX.

  Raises:
    UserError: the platform is a GPU that this torch cannot use.
  """
  if platform == 'gpu' and not torch.cuda.is_available():
    raise UserError(f'--baseline: torch {torch.__version__} has no GPU; install its CUDA build')
  torch.set_num_threads(available_cores())
  torch.manual_seed(0)
  return torch.device('cuda' if platform == 'gpu' else 'cpu')


def _batch(shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns random inputs (B, T) and the tokens after them (B * T,)."""
  tokens = torch.randint(shape.vocab_size, (shape.batch_size, shape.context + 1)).to(device)
  return tokens[:, :-1], tokens[:, 1:].flatten()


def _gpt2(shape: Shape, device: torch.device) -> Any:
  from transformers import AutoModelForCausalLM, GPT2Config

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
  )
  return AutoModelForCausalLM.from_config(config, attn_implementation='sdpa').to(device)


def _candidate(
  call: Callable[[], None], limit: Callable[[], Limit], device: torch.device, *packages: str
) -> Candidate:
  versions = {name: importlib.metadata.version(name) for name in packages}
  options = {'peak_bytes': torch.cuda.max_memory_allocated} if device.type == 'cuda' else {}
  return Candidate(_repeated(call, device), limit, versions, **options)


def _matmul(shape: Shape, device: torch.device) -> Limit:
  size = MATMUL_SIZE['gpu' if device.type == 'cuda' else 'cpu']
  square = torch.ones(size, size, dtype=getattr(torch, shape.dtype), device=device)
  return Limit(_repeated(lambda: square @ square, device), 2.0 * size**3)


def _memory(device: torch.device) -> Limit:
  buffer = torch.ones(BUFFER_SIZE, device=device)
  return Limit(_repeated(lambda: buffer.add_(1), device), 2.0 * buffer.nbytes)


def _repeated(call: Callable[[], Any], device: torch.device) -> Callable[[int], None]:
  """Returns `run(times)`, which returns when the device is done."""

  def run(times: int) -> None:
    for _ in range(times):
      call()
    if device.type == 'cuda':
      torch.cuda.synchronize()

  return run
