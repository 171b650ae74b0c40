"""Converters for encoders with a head: classification, regression and tagging.

Their argument `special_tokens` says how texts are framed (lm.text.framing): 'end', 'none', or
'template' for the special tokens of a pretrained encoder, such as [CLS] a [SEP] b [SEP]. With
`data.too_long='truncate'`, 'end' and 'none' lose their last tokens. 'template' keeps its special
tokens, and the longest text loses its last tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError, did_you_mean
from lm.task import Convert, Converter, Example, Features, Pieces, Task
from lm.text.framing import Frame, Framed, frame
from lm.text.tokenizers import text_parts


def classifier(task: Task, special_tokens: str = 'end') -> Converter:
  """Predicts the class of an example, one of `data.labels`; for an encoder with pooling.

  Poolers may take the state of the first token, which is END or that of the template.

  Raises:
    UserError: when features are made, if the class of an example is not one of `data.labels`.
  """

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    head_target, label_id = _head_target(task), _label_ids(labels)
    framed = frame(tokenizer, special_tokens)
    return _pooled_features(task, framed, lambda example: label_id(head_target(example)))

  return Converter(
    lambda example: text_parts(task.inputs(example)),
    features,
    predict=lambda output, batch: {'values/class': output.head(output.hidden).argmax(-1)},
    postprocess=lambda labels, example, pieces: labels[int(pieces[0]['values/class'])],
    needs_separator=special_tokens != 'template',
  )


def regressor(task: Task, special_tokens: str = 'end') -> Converter:
  """Predicts a number for an example; for an encoder with pooling and one class."""

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    head_target = _head_target(task)
    framed = frame(tokenizer, special_tokens)
    return _pooled_features(task, framed, lambda example: float(head_target(example)))

  return Converter(
    lambda example: text_parts(task.inputs(example)),
    features,
    predict=lambda output, batch: {'values/number': output.head(output.hidden)[..., 0]},
    postprocess=lambda labels, example, pieces: float(pieces[0]['values/number']),
    mean_of_logits=True,
    needs_separator=special_tokens != 'template',
  )


def tagger(task: Task, special_tokens: str = 'none') -> Converter:
  """Predicts a tag for each word, one of `data.labels`, at the first token of the word.

  A word without a token of its own gets the first label, and so does a word that the truncation of
  a long example removes.

  Raises:
    UserError: when features are made, if the tag of a word is not one of `data.labels`.
  """

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    framed_of = frame(tokenizer, special_tokens)
    head_target, label_id = _head_target(task), _label_ids(labels)

    def convert(example: Example) -> list[Features]:
      framed = framed_of(task.inputs(example))
      (of_text,) = (framed.text == 0).nonzero()
      words = head_target(example)
      tokens = {name: np.zeros(len(framed.ids), int) for name in ('targets', 'weights', 'words')}
      firsts = first_tokens(framed.offsets[of_text], [span[:2] for span in words])
      for i, (first, (_, _, tag)) in enumerate(zip(firsts, words, strict=True)):
        if first is not None:
          for name, value in (('targets', label_id(tag)), ('weights', 1), ('words', i)):
            tokens[name][of_text[first]] = value
      return [_features(framed, tokens, {})]

    return convert

  def postprocess(labels: Sequence[str], example: Example, pieces: Pieces) -> list[str]:
    tags = [labels[0]] * len(_head_target(task)(example))
    for piece in pieces:
      first = piece['tokens/weights'] > 0
      pairs = zip(piece['tokens/words'][first], piece['tokens/tag'][first], strict=True)
      for word, label in pairs:
        tags[word] = labels[label]
    return tags

  return Converter(
    lambda example: text_parts(task.inputs(example)),
    features,
    predict=lambda output, batch: {'tokens/tag': output.head(output.hidden).argmax(-1)},
    postprocess=postprocess,
    tags_words=True,
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


def _pooled_features(task: Task, framed: Frame, target: Callable[[Example], float]) -> Convert:
  """Returns a function from an example to its features: the framed inputs, and one target."""

  def convert(example: Example) -> list[Features]:
    values = {'targets': target(example), 'weights': 1}
    return [_features(framed(task.inputs(example)), {}, values)]

  return convert


def _features(
  framed: Framed, tokens: Mapping[str, np.ndarray], values: dict[str, float]
) -> Features:
  """Returns features whose truncation keeps the special tokens of a template.

  Args:
    framed: the inputs.
    tokens: further arrays along the row, by name.
    values: of the example.
  """
  arrays = framed.arrays() | dict(tokens)

  def shortened(limit: int) -> Features:
    kept = framed.shortened(limit)
    return Features({name: array[kept] for name, array in arrays.items()}, {}, values)

  return Features(arrays, {}, values, None if framed.types is None else shortened)


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
