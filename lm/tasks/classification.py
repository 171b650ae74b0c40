"""Converters for encoders with a head: one label, several labels, a float, a tag per word.

Their argument `special_tokens` says how texts are framed (lm.text.framing): 'end', 'none', or
'template' for the special tokens of a pretrained encoder, such as [CLS] a [SEP] b [SEP]. With
`data.too_long='truncate'`, 'end' and 'none' lose their last tokens. 'template' keeps its special
tokens, and the longest text loses its last tokens.

The features of a long example may be several windows; their outputs are averaged, weighted by their
tokens.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError, check_range, did_you_mean
from lm.metrics.spans import entity_spans, is_entity_tag
from lm.task import Convert, Converter, Example, Features, Pieces, Task
from lm.text.framing import Framed, frame
from lm.text.tokenizers import text_parts

if TYPE_CHECKING:
  from lm.types import Array, Batch, Output


def classifier(task: Task, special_tokens: str = 'end') -> Converter:
  """Predicts the class of an example, one of `data.labels`; for an encoder with pooling.

  Poolers may take the state of the first token, which is END or that of the template. A prediction
  has the `label` and the `probabilities` of all labels, the highest first.

  Raises:
    UserError: when features are made, if the class of an example is not one of `data.labels`.
  """

  def target(labels: Sequence[str]) -> Callable[[Example], int]:
    head_target, label_id = _head_target(task), _label_ids(labels)
    return lambda example: label_id(head_target(example))

  return _pooled(task, special_tokens, target, class_prediction, 'label')


def class_prediction(labels: Sequence[str], example: Example, pieces: Pieces) -> dict[str, Any]:
  """Returns the likeliest label and the probabilities of all, from the 'values/logits' (C,)."""
  del example
  probabilities = _ranked(labels, _mean_over_windows(_softmax, pieces))
  return {'label': next(iter(probabilities)), 'probabilities': probabilities}


def multilabel(task: Task, threshold: float = 0.5, special_tokens: str = 'end') -> Converter:
  """Predicts all labels of an example, each on its own; for an encoder with pooling.

  Its objective is lm.objectives.supervised:binary_cross_entropy. A prediction has the `labels` and
  the `probabilities` of all labels, the highest first.

  Args:
    task: its head target is a list of labels.
    threshold: the probability above which a label is predicted.
    special_tokens: as in the other converters.

  Raises:
    UserError: threshold is not a probability. When features are made: a label of an example is not
      one of `data.labels`.
  """
  check_range('data.converter: threshold', threshold, 0, 1)

  def target(labels: Sequence[str]) -> Callable[[Example], np.ndarray]:
    head_target, label_id = _head_target(task), _label_ids(labels)

    def is_label(example: Example) -> np.ndarray:
      found_C = np.zeros(len(labels), int)
      found_C[[label_id(name) for name in head_target(example)]] = 1
      return found_C

    return is_label

  def postprocess(labels: Sequence[str], example: Example, pieces: Pieces) -> dict[str, Any]:
    probabilities = _ranked(labels, _mean_over_windows(_sigmoid, pieces))
    found = [name for name in labels if probabilities[name] > threshold]
    return {'labels': found, 'probabilities': probabilities}

  return _pooled(task, special_tokens, target, postprocess, 'labels', mean_of_logits=True)


def regressor(task: Task, special_tokens: str = 'end') -> Converter:
  """Predicts a number, the `value`, for an example; for an encoder with pooling and one class."""

  def target(labels: Sequence[str]) -> Callable[[Example], float]:
    head_target = _head_target(task)
    return lambda example: float(head_target(example))

  def postprocess(labels: Sequence[str], example: Example, pieces: Pieces) -> dict[str, Any]:
    return {'value': float(_mean_over_windows(np.asarray, pieces)[0])}

  return _pooled(task, special_tokens, target, postprocess, 'value', mean_of_logits=True)


def tagger(task: Task, special_tokens: str = 'none') -> Converter:
  """Predicts a tag for each word, one of `data.labels`, at the first token of the word.

  A word without a token of its own gets the first label, and so does a word that the truncation of
  a long example removes. A prediction has the `tags`, their `probabilities`, the `offsets` of the
  words in characters and, if all labels are BIO or IOBES tags, the `entities`.

  Raises:
    UserError: when features are made, if the tag of a word is not one of `data.labels`.
  """

  def inputs(tokenizer: Tokenizer, seq_len: int) -> Convert:
    framed_of, head_target = frame(tokenizer, special_tokens), _head_target(task)

    def convert(example: Example) -> list[Features]:
      framed = framed_of(task.inputs(example))
      (of_text,) = (framed.text == 0).nonzero()
      tokens = {name: np.zeros(len(framed.ids), int) for name in ('weights', 'words')}
      firsts = first_tokens(framed.offsets[of_text], [span[:2] for span in head_target(example)])
      for i, first in enumerate(firsts):
        if first is not None:
          tokens['weights'][of_text[first]], tokens['words'][of_text[first]] = 1, i
      return [_features(framed, tokens)]

    return convert

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    convert, head_target, label_id = (
      inputs(tokenizer, seq_len),
      _head_target(task),
      _label_ids(labels),
    )

    def with_targets(example: Example) -> list[Features]:
      (found,) = convert(example)
      tags = np.array([label_id(tag) for *_, tag in head_target(example)], int)
      targets = np.zeros(len(found.tokens['inputs']), int)
      first = found.tokens['weights'] > 0
      targets[first] = tags[found.tokens['words'][first]]
      return [found._replace(tokens={**found.tokens, 'targets': targets})]

    return with_targets

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    import jax  # data preparation imports this module in worker processes

    logits_BTC = output.head(output.hidden)
    log_p_BT = jax.nn.log_softmax(logits_BTC).max(-1)
    return {'tokens/tag': logits_BTC.argmax(-1), 'tokens/log_p': log_p_BT}

  def postprocess(labels: Sequence[str], example: Example, pieces: Pieces) -> dict[str, Any]:
    words = _head_target(task)(example)
    tags, probabilities = [labels[0]] * len(words), [0.0] * len(words)
    for piece in pieces:
      first = piece['tokens/weights'] > 0
      columns = (piece[f'tokens/{name}'][first] for name in ('words', 'tag', 'log_p'))
      for word, label, log_p in zip(*columns, strict=True):
        tags[word], probabilities[word] = labels[label], math.exp(log_p)
    offsets = example.get('offsets', [span[:2] for span in words])
    found = {'tags': tags, 'probabilities': probabilities, 'offsets': [*map(list, offsets)]}
    if not all(map(is_entity_tag, labels)):
      return found
    entities = [
      {'start': offsets[first][0], 'stop': offsets[end - 1][1], 'label': kind}
      for kind, first, end in sorted(entity_spans(tags), key=lambda span: span[1])
    ]
    return {**found, 'entities': entities}

  return Converter(
    lambda example: text_parts(task.inputs(example)),
    features,
    inputs=inputs,
    predict=predict,
    postprocess=postprocess,
    answer='tags',
    needs_separator=special_tokens != 'template',
  )


def first_tokens(
  offsets: Sequence[tuple[int, int]], words: Sequence[tuple[int, int]]
) -> list[int | None]:
  """Returns the index of the first token of each word; None for a word without one.

  A token across the border of two words belongs to the first of them.

  Args:
    offsets: (start, stop) of each token in characters, in order.
    words: (start, stop) of each word, in order.
  """
  firsts: list[int | None] = []
  at = 0
  for start, stop in words:
    while at < len(offsets) and offsets[at][1] <= start:
      at += 1
    is_inside = at < len(offsets) and offsets[at][0] < stop
    firsts.append(at if is_inside else None)
    at += is_inside
  return firsts


def _pooled(
  task: Task,
  special_tokens: str,
  target: Callable[[Sequence[str]], Callable[[Example], Any]],
  postprocess: Callable[[Sequence[str], Example, Pieces], dict[str, Any]],
  answer: str,
  mean_of_logits: bool = False,
) -> Converter:
  """Returns a converter with one target for each example; `target` is called with the labels."""

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    return _with_targets(inputs(tokenizer, seq_len), target(labels))

  inputs = functools.partial(_pooled_inputs, task, special_tokens)
  return Converter(
    lambda example: text_parts(task.inputs(example)),
    features,
    inputs=inputs,
    predict=_head_logits,
    postprocess=postprocess,
    answer=answer,
    mean_of_logits=mean_of_logits,
    needs_separator=special_tokens != 'template',
  )


def _pooled_inputs(task: Task, special_tokens: str, tokenizer: Tokenizer, seq_len: int) -> Convert:
  """Returns a function from an example to the features of its framed inputs."""
  framed = frame(tokenizer, special_tokens)
  return lambda example: [_features(framed(task.inputs(example)), {})]


def _with_targets(convert: Convert, target: Callable[[Example], Any]) -> Convert:
  """Returns a function from an example to features that have its target as a value."""
  return lambda example: [
    features._replace(values={'targets': target(example), 'weights': 1})
    for features in convert(example)
  ]


def _head_logits(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
  return {'values/logits': output.head(output.hidden)}


def _mean_over_windows(
  outputs_of: Callable[[np.ndarray], np.ndarray], pieces: Pieces
) -> np.ndarray:
  """Returns the mean of outputs (C,) over the windows of an example, weighted by their tokens."""
  outputs = [outputs_of(piece['values/logits'].astype(np.float64)) for piece in pieces]
  return np.average(outputs, axis=0, weights=[len(piece['tokens/inputs']) for piece in pieces])


def _softmax(logits_C: np.ndarray) -> np.ndarray:
  odds_C = np.exp(logits_C - logits_C.max())
  return odds_C / odds_C.sum()


def _sigmoid(logits_C: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -logits_C))


def _ranked(labels: Sequence[str], probabilities_C: np.ndarray) -> dict[str, float]:
  """Returns the probability of each label, the highest first, equal ones in their order."""
  order = np.argsort(-probabilities_C, kind='stable')
  return {labels[c]: float(probabilities_C[c]) for c in order}


def _features(framed: Framed, tokens: Mapping[str, np.ndarray]) -> Features:
  """Returns features whose truncation keeps the special tokens of a template.

  Args:
    framed: the inputs.
    tokens: further arrays along the row, by name.
  """
  shortened = None if framed.types is None else framed.shortened
  return Features(framed.arrays() | dict(tokens), {}, {}, shortened)


def _label_ids(labels: Sequence[str]) -> Callable[[str], int]:
  ids = {name: i for i, name in enumerate(labels)}
  if not ids:
    raise UserError('data.labels is empty; name the classes, in order')
  if len(ids) < len(labels):
    twice = next(name for i, name in enumerate(labels) if name in labels[:i])
    raise UserError(f'data.labels has {twice!r} twice; name each class once')

  def label_id(name: str) -> int:
    if name not in ids:
      raise UserError(
        f'data.labels: no label {name!r}{did_you_mean(name, ids)}; available: '
        f'{", ".join(map(repr, list(ids)[:20]))}'
      )
    return ids[name]

  return label_id


def _head_target(task: Task) -> Callable[[Example], Any]:
  if task.head_target is None:
    raise UserError(
      'data.converter: the task has no target for a head; use a converter of lm.tasks.seq2seq, '
      'such as lm.tasks.seq2seq:encoder_decoder'
    )
  return task.head_target
