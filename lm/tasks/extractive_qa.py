"""Extractive question answering: the task, the converter, the objective and the metric.

The answer is a span of a passage (Rajpurkar et al. 2016, 2018); an encoder scores each token as its
start and as its stop (Devlin et al. 2019, 4.2 and 4.3). jax is imported inside functions, because
data preparation imports this module in worker processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError, check_range
from lm.task import Convert, Converter, Example, Features, Pieces, Task, mismatch, string_field
from lm.text.framing import Framed, frame
from lm.text.tokenizers import separated, text_parts

if TYPE_CHECKING:
  from lm.types import Apply, Array, Batch, Metric, Objective, Output, Params, WeightedSums


def extraction() -> Task:
  """Answers a question by a span of its context, or by nothing.

  Examples have `question`, `context` and `answers`, a list whose items have `text` and `start`. The
  target of a generative model is the first answer, or '' for a question without answers, as
  lm.metrics.answers expects.
  """

  fields = ('question', 'context')

  def inputs(example: Example) -> list[str]:
    return separated(string_field(example, field) for field in fields)

  def answers(example: Example) -> Sequence[Mapping]:
    found = example.get('answers')
    if not isinstance(found, list | tuple) or not all(map(_is_answer, found)):
      raise mismatch(example, 'answers', 'list of objects with a text and its start')
    return found

  def texts(example: Example) -> list[str]:
    return [answer['text'] for answer in answers(example)]

  def spans(example: Example) -> list[tuple[int, int]]:
    return [(a['start'], a['start'] + len(a['text'])) for a in answers(example)]

  return Task(inputs, lambda example: (texts(example) or [''])[0], texts, spans, fields=fields)


def converter(
  task: Task,
  stride: int = 128,
  longest: int = 30,
  threshold: float | None = 0.0,
  special_tokens: str = 'end',
) -> Converter:
  """Predicts a span of the passage, or no answer; the passage is the last part of the inputs.

  The model reads END, the other parts, and the passage, in overlapping windows if it is longer than
  a row. The first token, END, represents "no answer in this window". It is the target of a window
  that does not contain a complete answer. The first answer that a window contains is its target.

  The answer is the span with the best log odds among all windows: its start and stop logits minus
  those of the first token of its window. A prediction has the answer, its `start` and `stop` in
  characters of the passage, and the two sums of logits, `score` and `null_score`. No answer is '',
  without a start and a stop.

  Features have `char_start` and `char_stop` for each token: its characters in the passage, or 0
  outside it. For each window they have `weights` and the token positions of the answer, `start` and
  `stop`.

  Args:
    task: its head target is a list of (start, stop) in characters of the passage.
    stride: tokens between the starts of consecutive windows, at most.
    longest: maximum tokens of a predicted answer.
    threshold: log odds above which an answer is predicted; None predicts one in any case.
    special_tokens: 'end', or 'template' for those of a pretrained encoder: each window is then
      [CLS] question [SEP] window [SEP], and [CLS] takes the place of END (lm.text.framing).

  Raises:
    UserError: stride or longest is below 1; the task has no spans. When features are made: the
      inputs before the passage fill a row, or an answer has no token.
  """
  check_range('data.converter: stride', stride, 1)
  check_range('data.converter: longest', longest, 1)
  spans_of = task.head_target
  if spans_of is None:
    raise UserError(
      'data.converter: the task has no answer spans; use lm.tasks.extractive_qa:extraction'
    )

  def convert_with(
    tokenizer: Tokenizer,
    seq_len: int,
    answers_of: Callable[[Example], Sequence[tuple[int, int]]] | None,
  ) -> Convert:
    framed_of = frame(tokenizer, special_tokens)

    def convert(example: Example) -> list[Features]:
      *before, passage = task.inputs(example)
      framed = framed_of([*before, passage])
      (places,) = (framed.text == len(text_parts(before))).nonzero()
      free = seq_len - (len(framed.ids) - len(places))
      if free < 1:
        raise UserError(
          f'data.seq_len={seq_len}: {" ".join(before)!r:.60} takes {seq_len - free} tokens of a '
          'row and leaves none for the passage; raise data.seq_len'
        )
      answers = None
      if answers_of is not None:
        offsets = framed.offsets[places]
        answers = [_answer_tokens(passage, offsets, *span) for span in answers_of(example)]
      return [
        _window_features(framed, places, window.start, window.stop, answers)
        for window in windows(len(places), free, stride)
      ]

    return convert

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    logits_BTC = output.head(output.hidden)
    return {'tokens/start': logits_BTC[..., 0], 'tokens/stop': logits_BTC[..., 1]}

  def postprocess(labels: Sequence[str], example: Example, pieces: Pieces) -> dict[str, Any]:
    spans = [best_span(piece, longest) for piece in pieces]
    none = Span(-math.inf, 0.0, 0, 0)
    best = max(spans, key=lambda span: span.score - span.null_score, default=none)
    scores = {'score': best.score, 'null_score': best.null_score}
    found = task.inputs(example)[-1][best.start : best.stop]
    answer, start = found.strip(), best.start + len(found) - len(found.lstrip())
    if not answer or (threshold is not None and best.score - best.null_score <= threshold):
      return {'answer': '', 'start': None, 'stop': None, **scores}
    return {'answer': answer, 'start': start, 'stop': start + len(answer), **scores}

  return Converter(
    lambda example: text_parts(task.inputs(example)),
    lambda tokenizer, labels, seq_len: convert_with(tokenizer, seq_len, spans_of),
    inputs=lambda tokenizer, seq_len: convert_with(tokenizer, seq_len, None),
    predict=predict,
    postprocess=postprocess,
    answer='answer',
    mean_of_logits=True,
    needs_separator=special_tokens != 'template',
  )


def windows(length: int, size: int, stride: int) -> Iterator[slice]:
  """Yields windows of at most `size` tokens that cover `length` tokens.

  Consecutive windows start `stride` tokens apart, or `size` where that is less.
  """
  step = min(stride, size)
  for start in range(0, max(length - size, 0) + step, step):
    yield slice(start, start + size)


def token_span(offsets: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
  """Returns the indices of the first and last token that overlap a span; None if no token does.

  Args:
    offsets: (tokens, 2), the start and stop characters of each token, in order.
    start: first character of the span.
    stop: index after its last character.
  """
  first = int(np.searchsorted(offsets[:, 1], start, side='right'))
  last = int(np.searchsorted(offsets[:, 0], stop, side='left')) - 1
  return (first, last) if first <= last else None


class Span(NamedTuple):
  """A span of a window: sums of start and stop logits, of the span and of END; its characters."""

  score: float
  null_score: float
  start: int
  stop: int


def best_span(piece: Mapping[str, np.ndarray], longest: int) -> Span:
  """Returns the span of a window with the best log odds, `score - null_score`.

  Args:
    piece: (tokens,) arrays: 'tokens/start' and 'tokens/stop', the logits, and 'tokens/char_start'
      and 'tokens/char_stop'.
    longest: maximum tokens of the span.
  """
  start, stop = (piece[f'tokens/{end}'].astype(np.float64) for end in ('start', 'stop'))
  scores = start[:, None] + stop[None, :]
  passage = piece['tokens/char_stop'] > 0
  ordered = np.triu(np.tril(np.ones(scores.shape, bool), longest - 1))
  scores = np.where(ordered & passage[:, None] & passage[None, :], scores, -np.inf)
  first, last = np.unravel_index(scores.argmax(), scores.shape)
  char_start, char_stop = piece['tokens/char_start'][first], piece['tokens/char_stop'][last]
  null_score = float(start[0] + stop[0])
  return Span(float(scores[first, last]), null_score, int(char_start), int(char_stop))


def _is_answer(answer: Any) -> bool:
  if not isinstance(answer, Mapping):
    return False
  return isinstance(answer.get('text'), str) and isinstance(answer.get('start'), int)


def _answer_tokens(passage: str, offsets: np.ndarray, start: int, stop: int) -> tuple[int, int]:
  span = token_span(offsets, start, stop)
  if span is None:
    raise UserError(
      f'data.tokenizer has no token for the answer {passage[start:stop]!r:.60} at character '
      f'{start} of {passage!r:.60}'
    )
  return span


def _window_features(
  framed: Framed,
  places: np.ndarray,
  start: int,
  stop: int,
  answers: Sequence[tuple[int, int]] | None,
) -> Features:
  """Returns the features of a window.

  Args:
    framed: the tokens of an example.
    places: the indices of the tokens of its passage.
    start: the index of the window's first token in the passage.
    stop: the index after its last token, or a higher one.
    answers: the indices of the first and last token of each answer in the passage; None for
      features without targets.
  """
  before = int(places[0]) if len(places) else len(framed.ids)
  kept = np.delete(np.arange(len(framed.ids)), np.concatenate([places[:start], places[stop:]]))
  offsets = np.zeros_like(framed.offsets)
  offsets[places] = framed.offsets[places]
  tokens = framed.arrays() | {'char_start': offsets[:, 0], 'char_stop': offsets[:, 1]}
  tokens = {name: values[kept] for name, values in tokens.items()}
  if answers is None:
    return Features(tokens, {}, {})
  inside = [(a, b) for a, b in answers if start <= a and b < stop]
  # The first token of the row is the target of a window without an answer.
  answer_start, answer_stop = (x - start + before for x in inside[0]) if inside else (0, 0)
  return Features(tokens, {}, {'start': answer_start, 'stop': answer_stop, 'weights': 1})


def span_statistics(output: 'Output', batch: 'Batch') -> tuple['Array', 'Array']:
  """Returns two statistics of the target span of each example, float32 (B, P).

  P is the number of examples of a packed row. The first is -log p(start) - log p(stop), in nats.
  The second is 1 where both tokens have the highest logit, else 0. Start and stop have one softmax
  each, over the passage tokens of the example and its position 0 (no answer).

  Args:
    output: of an encoder, with two logits per token.
    batch: segments, positions and char_stop (B, T), and start and stop (B, P), as `converter`
      makes them.

  Raises:
    UserError: the model does not have two logits per token.
  """
  import jax
  import jax.numpy as jnp

  logits_BTC = output.head(output.hidden)
  B, T = batch['segments'].shape
  if logits_BTC.shape != (B, T, 2):
    raise UserError(
      f'model: spans need two logits per token, ({B}, {T}, 2), not {logits_BTC.shape}; set '
      'model.num_classes=2 and leave model.pooling empty'
    )
  candidate_BT = (batch['char_stop'] > 0) | (batch['positions'] == 0)
  segment_P = jnp.arange(1, batch['start'].shape[1] + 1)
  same_BPT = batch['segments'][:, None, :] == segment_P[None, :, None]
  candidate_BPT = same_BPT & candidate_BT[:, None, :]

  def score(end: str, logits_BT: 'Array') -> tuple['Array', 'Array']:
    is_target_BPT = batch['positions'][:, None, :] == batch[end][:, :, None]
    # Finite, so that a slot without an example has finite gradients.
    logits_BPT = jnp.where(candidate_BPT, logits_BT[:, None, :], -1e9)
    target_BP = jnp.sum(jnp.where(candidate_BPT & is_target_BPT, logits_BPT, 0), axis=-1)
    best_BP1 = logits_BPT.argmax(-1, keepdims=True)
    correct_BP = jnp.take_along_axis(candidate_BPT & is_target_BPT, best_BP1, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BPT, axis=-1) - target_BP, correct_BP

  start_nats, start_correct = score('start', logits_BTC[..., 0])
  stop_nats, stop_correct = score('stop', logits_BTC[..., 1])
  return start_nats + stop_nats, (start_correct & stop_correct).astype(jnp.float32)


def objective() -> 'Objective':
  """Returns the mean of -log p(start) - log p(stop), in nats per window.

  It is the negative log-likelihood of the span; BERT's code halves it.
  """
  from lm.types import Objective

  def loss_sums(
    apply: 'Apply', params: 'Params', batch: 'Batch', key: 'Array | None'
  ) -> dict[str, 'Array']:
    output = apply(params, batch, key=key)
    nats, _ = span_statistics(output, batch)
    return {'loss': (batch['weights'] * nats).sum(), **output.losses}

  return Objective(loss_sums, normalizers=lambda batch: {'loss': batch['weights'].sum()})


def metric() -> 'Metric':
  """Returns loss, -log p(start) - log p(stop) in nats per window, and accuracy.

  Accuracy is the share of windows whose start and stop are both the likeliest tokens.
  lm.metrics.answers scores the predicted texts.
  """
  from lm.types import Metric

  def terms(output: 'Output', batch: 'Batch') -> 'WeightedSums':
    nats, correct = span_statistics(output, batch)
    weights = batch['weights']
    return {
      'loss': ((weights * nats).sum(), weights.sum()),
      'accuracy': ((weights * correct).sum(), weights.sum()),
    }

  return Metric(terms, higher_is_better={'loss': False, 'accuracy': True})
