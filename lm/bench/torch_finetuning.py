"""The baseline for fine-tuning: Hugging Face transformers on torch, as its users write it.

Examples, their tokens, the predictions from logits, and the scores are those of our converters and
metrics, so that the comparison is of models, training and batches.
"""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from lm.bench.worker import Training
from lm.config import resolve
from lm.data import features, pipeline
from lm.errors import UserError
from lm.evaluation.predict import Predictions
from lm.parallel.host import available_cores
from lm.task import Converter
from lm.types import Output
from lm.workdir import experiment

_MEGABATCH = 50  # batches that are sorted by length together, as transformers does
_EVALUATED = 64  # examples of a batch without gradients
_Row = dict[str, np.ndarray]  # features of an example: 'tokens/NAME' (N,), 'values/NAME' ()


def finetuning(config: str, seed: int, folder: str) -> Training:
  """Returns the training of a config on torch, with the fused AdamW in float32.

  Args:
    config: FILE.py[:ARG] of an experiment with an encoder and its head.
    seed: of dropout, of the head, and of the order of examples.
    folder: of the checkpoint, which `from_pretrained` loads.

  Raises:
    UserError: the optimizer is another one.
  """
  found = experiment.load(config)
  optim = found.optim
  if optim.fn != 'lm.optim.optimizers:adamw' or optim.weight_decay_mask != '.':
    raise UserError(
      f'--baseline=transformers has AdamW with decay of all parameters, not optim.fn={optim.fn!r} '
      f'with weight_decay_mask={optim.weight_decay_mask!r}'
    )
  torch.set_num_threads(available_cores())
  torch.manual_seed(seed)
  tokenizer = pipeline.tokenizer(found.data)
  packed: Any = pipeline.packed_rows(found.data, found.data.train_split, tokenizer, seed)
  _, rows = _rows(found, tokenizer, found.data.train_split)
  epochs = found.steps * found.batch_size / len(packed)
  size = round(found.batch_size * len(rows) / len(packed))
  steps = round(epochs * len(rows) / size)
  make = resolve.resolve(optim.schedule, 'optim.schedule')
  schedule = make(optim.learning_rate, steps, optim.warmup_steps, optim.final_lr_fraction)
  rates = np.asarray(jax.vmap(schedule)(np.arange(steps))).tolist()
  model = _model(found, folder).train()
  optimizer = torch.optim.AdamW(
    model.parameters(), betas=(optim.b1, optim.b2), eps=optim.eps,
    weight_decay=optim.weight_decay, fused=True,
  )  # fmt: skip
  ahead = zip(rates, _batches(rows, size, seed), strict=False)
  clip = optim.clip_norm / (2 if _has_spans(found) else 1)  # transformers averages the two losses

  def run(times: int) -> None:
    for _ in range(times):
      optimizer.param_groups[0]['lr'], batch = next(ahead)
      model(**_arrays(batch), **_targets(found, batch)).loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)

  def scores() -> dict[str, float]:
    model.train(False)
    return {
      f'eval/{name}/{score}': value
      for name in found.eval.sets
      for score, value in _scores(found, name, tokenizer, model).items()
    }

  versions = {name: importlib.metadata.version(name) for name in ('torch', 'transformers')}
  return Training(run, steps, float(size), scores, versions)


def _has_spans(config: ConfigDict) -> bool:
  return config.objective.fn.startswith('lm.tasks.extractive_qa:')


def _model(config: ConfigDict, folder: str) -> Any:
  if _has_spans(config):
    kind, classes = transformers.AutoModelForQuestionAnswering, {}
  else:
    pooled = config.model.pooling is not None
    kind = (
      transformers.AutoModelForSequenceClassification
      if pooled
      else transformers.AutoModelForTokenClassification
    )
    classes = {'num_labels': len(config.data.labels) or 1}
  return kind.from_pretrained(folder, attention_probs_dropout_prob=0.0, **classes)


def _rows(
  config: ConfigDict, tokenizer: Any, split: str, source: str = ''
) -> tuple[list[Any], list[_Row]]:
  """Returns the examples of a split and their features, each with the index of its example."""
  examples = list(pipeline.examples(config.data, split, source or None))
  encode = features.encoder(config.data, tokenizer, lambda i: f'example {i} of split {split!r}')
  arrays = encode(examples, 0)
  cuts = np.cumsum(arrays['tokens'])[:-1]
  columns: dict[str, Any] = {
    k: np.split(x, cuts) for k, x in arrays.items() if k.startswith('tokens/')
  }
  columns |= {k: x for k, x in arrays.items() if k.startswith('values/')}
  columns['example'] = arrays['example']
  rows = zip(*columns.values(), strict=True)
  return examples, [dict(zip(columns, row, strict=True)) for row in rows]


def _batches(rows: Sequence[_Row], size: int, seed: int) -> Iterator[list[_Row]]:
  """Yields batches of examples of similar length, epoch after epoch."""
  rng = np.random.default_rng(seed)
  lengths = np.array([len(row['tokens/inputs']) for row in rows])
  while True:
    order = rng.permutation(len(rows))
    chunks = [order[i : i + _MEGABATCH * size] for i in range(0, len(order), _MEGABATCH * size)]
    order = np.concatenate([c[np.argsort(-lengths[c], kind='stable')] for c in chunks])
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    for i in rng.permutation(len(batches)):
      yield [rows[j] for j in batches[i]]


def _padded(batch: Sequence[_Row], name: str, fill: int = 0) -> torch.Tensor:
  width = max(len(row['tokens/inputs']) for row in batch)
  out = np.full((len(batch), width), fill, np.int64)
  for line, row in zip(out, batch, strict=True):
    line[: len(row[name])] = row[name]
  return torch.from_numpy(out)


def _arrays(batch: Sequence[_Row]) -> dict[str, torch.Tensor]:
  mask = _padded([row | {'mask': np.ones_like(row['tokens/inputs'])} for row in batch], 'mask')
  arrays = {'input_ids': _padded(batch, 'tokens/inputs'), 'attention_mask': mask}
  return arrays | {'token_type_ids': _padded(batch, 'tokens/types')}


def _targets(config: ConfigDict, batch: Sequence[_Row]) -> dict[str, torch.Tensor]:
  if _has_spans(config):
    ends = {'start_positions': 'values/start', 'end_positions': 'values/stop'}
    return {k: torch.tensor([int(row[v]) for row in batch]) for k, v in ends.items()}
  if 'values/targets' in batch[0]:
    return {'labels': torch.tensor([row['values/targets'].item() for row in batch])}
  ignored = [
    row | {'labels': np.where(row['tokens/weights'] > 0, row['tokens/targets'], -100)}
    for row in batch
  ]
  return {'labels': _padded(ignored, 'labels', -100)}


def _scores(config: ConfigDict, name: str, tokenizer: Any, model: Any) -> dict[str, float]:
  """Returns the corpus metrics of a set."""
  section = config.eval.sets[name]
  task, converter = features.build_task(config.data)
  examples, rows = _rows(config, tokenizer, section.split, section.source)
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]['tokens/inputs']))
  for i in range(0, len(order), _EVALUATED):
    batch = [rows[j] for j in order[i : i + _EVALUATED]]
    with torch.no_grad():
      output = model(**_arrays(batch))
    for k, row in enumerate(batch):
      row.update(_prediction(converter, output, k, row))
  pieces: dict[int, list[Mapping[str, np.ndarray]]] = {}
  for row in rows:
    pieces.setdefault(int(row['example']), []).append(row)
  assert converter.postprocess is not None
  labels = tuple(config.data.labels)
  full = [converter.postprocess(labels, examples[i], found) for i, found in pieces.items()]
  answers = [prediction[converter.answer] for prediction in full]
  predictions = Predictions([], answers, [task.reference(examples[i]) for i in pieces], full)
  values: dict[str, float] = {}
  for path in section.scores:
    metric = resolve.call(resolve.resolve(path, 'scores'), 'scores')
    values |= metric(metric.scored(predictions), predictions.references).values
  return values


def _prediction(converter: Converter, output: Any, k: int, row: _Row) -> _Row:
  """Returns the arrays that the converter makes of the logits for the k-th example of a batch."""
  if 'start_logits' in output:
    logits = torch.stack([output.start_logits, output.end_logits], dim=-1)[k]
  else:
    logits = output.logits[k]
  # (1, T, C) for a head on each token, (1, 1, C) for one on each example.
  per_token = logits.ndim == 2
  found = logits[: len(row['tokens/inputs'])] if per_token else logits[None]
  identity: Any = lambda logits: logits  # noqa: E731
  assert converter.predict is not None
  arrays = converter.predict(Output(jnp.asarray(found.numpy())[None], identity, {}), {})
  return {
    name: np.asarray(x)[0] if per_token else np.asarray(x)[0, 0] for name, x in arrays.items()
  }
