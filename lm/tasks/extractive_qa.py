"""Questions about a passage, answered by a stretch of it."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tokenizers

from lm.errors import UserError
from lm.task import Converter, Example, Features, Task, mismatch
from lm.text.tokenizers import SEPARATOR, Special, end_id, parts_encoder, text_reader

if TYPE_CHECKING:
  from lm.types import Apply, Array, Batch, Metric, Objective, Output, Params, Terms


def extraction() -> Task:
  """Finds the answer to a question in its context, or that there is none.

  Rajpurkar et al. 2016 and 2018. Examples have question, context, and answers, each with text and
  start. A head finds (start, stop) in characters of the context; a model that writes is taught the
  first of the answers, and to write nothing where there is none, which is what lm.metrics.answers
  expects.
  """

  def inputs(example: Example) -> list[str]:
    for field in ('question', 'context'):
      if not isinstance(example.get(field), str):
        raise mismatch(example, field, 'string')
    if not isinstance(example.get('answers'), list | tuple):
      raise mismatch(example, 'answers', 'list')
    return [example['question'], SEPARATOR, example['context']]

  def texts(example: Example) -> list[str]:
    return [answer['text'] for answer in example['answers']]

  def spans(example: Example) -> list[tuple[int, int]]:
    starts = [answer['start'] for answer in example['answers']]
    return [(s, s + len(text)) for s, text in zip(starts, texts(example), strict=True)]

  return Task(inputs, lambda example: (texts(example) or [''])[0], texts, spans)


def converter(
  task: Task, stride: int = 128, longest: int = 30, threshold: float | None = 0.0
) -> Converter:
  """Finds a stretch of the last part of what is read, the passage, or that there is none.

  After Devlin et al. 2019, 4.2 and 4.3: END, the other parts, and the passage, in overlapping
  windows where it is longer than a row. Two logits a token say how well an answer begins and ends
  there; END stands for no answer in this window, which is also the target where an answer is not
  whole in it. Of several answers the first that is whole in a window is its target.

  A prediction is the stretch of all windows with the best odds against no answer in its window:
  the logits of its two ends less those of END.

  Features have, along the row, `char_start` and `char_stop`, the characters of the passage that a
  token covers (0 and 0 for tokens that are not of it), and as values `start` and `stop`, the
  positions of the first and last token of the answer, and `weights`, 1.

  Args:
    task: its answer is a list of (start, stop) in characters of the passage.
    stride: tokens from the beginning of a window to that of the next, at most.
    longest: tokens of a predicted answer, at most.
    threshold: the log odds above which there is an answer; None where there always is one.

  Raises:
    UserError: stride or longest is no number of tokens; the task's answer is nothing to point at;
      later, what comes before the passage fills a row, or an answer has no token.
  """
  for name, value in (('stride', stride), ('longest', longest)):
    if value < 1:
      raise UserError(f'data.convert: {name}={value}: it is at least one token')
  find = task.answer
  if find is None:
    raise UserError(
      'data.convert: the task has no answer that a head could point at; '
      'lm.tasks.extractive_qa:extraction has'
    )

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del labels
    encode, end = parts_encoder(tokenizer), end_id(tokenizer)
    reader = text_reader(tokenizer)

    def convert(example: Example) -> list[Features]:
      *before, passage = task.inputs(example)
      read = [end, *encode(before)]
      room = context - len(read)
      if room < 1:
        raise UserError(
          f'data.context={context}: {" ".join(before)!r:.60} takes {len(read)} tokens of a row '
          'and leaves no room for its passage; raise it'
        )
      found = reader.encode(passage, add_special_tokens=False)
      ids, offsets = np.array(found.ids, int), np.array(found.offsets, int).reshape(-1, 2)
      answers = [_tokens_of(passage, offsets, *span) for span in find(example)]
      return [
        _window(read, ids[window], offsets[window], window.start, answers)
        for window in windows(len(ids), room, stride)
      ]

    return convert

  def predict(output: 'Output', batch: 'Batch') -> dict[str, 'Array']:
    del batch
    logits_BTC = output.unembed(output.hidden)
    return {'tokens/start': logits_BTC[..., 0], 'tokens/stop': logits_BTC[..., 1]}

  def read(labels: Sequence[str], example: Example, pieces: list[dict[str, np.ndarray]]) -> str:
    del labels
    passage = task.inputs(example)[-1]
    found = [best_span(piece, longest) for piece in pieces]
    odds, start, stop = max(found, default=(-np.inf, 0, 0))
    there = threshold is None or odds > threshold
    return passage[start:stop].strip() if there else ''

  def texts(example: Example) -> list[str]:
    return [part for part in task.inputs(example) if not isinstance(part, Special)]

  return Converter(texts, features, predict=predict, read=read)


def windows(length: int, room: int, stride: int) -> Iterator[slice]:
  """Yields overlapping stretches of at most `room` of `length` tokens that together hold them all.

  Each begins `stride` after the one before, or `room` where that is less, so that none is left out.
  """
  step = min(stride, room)
  for start in range(0, max(length - room, 0) + step, step):
    yield slice(start, start + room)


def token_span(offsets: np.ndarray, start: int, stop: int) -> tuple[int, int] | None:
  """Returns the first and the last token that hold a character of a stretch; None if none does.

  Args:
    offsets: (tokens, 2), where the characters of each token start and stop, in order.
    start: the first character.
    stop: the index after the last one.
  """
  first = int(np.searchsorted(offsets[:, 1], start, side='right'))
  last = int(np.searchsorted(offsets[:, 0], stop, side='left')) - 1
  return (first, last) if first <= last else None


def best_span(piece: dict[str, np.ndarray], longest: int) -> tuple[float, int, int]:
  """Returns the best stretch in a window: its log odds, and its characters, start and stop.

  Args:
    piece: (tokens,) arrays: 'tokens/start' and 'tokens/stop', the logits, and 'tokens/char_start'
      and 'tokens/char_stop'.
    longest: tokens of the stretch, at most.
  """
  start, stop = (piece[f'tokens/{end}'].astype(np.float64) for end in ('start', 'stop'))
  odds = (start - start[0])[:, None] + (stop - stop[0])[None, :]
  passage = piece['tokens/char_stop'] > 0
  ordered = np.triu(np.tril(np.ones(odds.shape, bool), longest - 1))
  odds = np.where(ordered & passage[:, None] & passage[None, :], odds, -np.inf)
  first, last = np.unravel_index(odds.argmax(), odds.shape)
  begins, ends = piece['tokens/char_start'][first], piece['tokens/char_stop'][last]
  return float(odds[first, last]), int(begins), int(ends)


def _tokens_of(passage: str, offsets: np.ndarray, start: int, stop: int) -> tuple[int, int]:
  span = token_span(offsets, start, stop)
  if span is None:
    raise UserError(
      f'data.tokenizer has no token for the answer {passage[start:stop]!r:.60} at character '
      f'{start} of {passage!r:.60}'
    )
  return span


def _window(
  read: list[int],
  ids: np.ndarray,
  offsets: np.ndarray,
  start: int,
  answers: Sequence[tuple[int, int]],
) -> Features:
  """Returns the features of a window.

  Args:
    read: the tokens before the passage.
    ids: the tokens of the window.
    offsets: (tokens, 2), their characters.
    start: the first token of the window, as an index into the passage.
    answers: the first and last token of each, likewise.
  """
  target = (0, 0)
  for first, last in reversed(answers):
    if start <= first and last < start + len(ids):
      target = (len(read) + first - start, len(read) + last - start)
  outside = np.zeros(len(read), int)
  tokens = {
    'inputs': np.concatenate([read, ids]),
    'char_start': np.concatenate([outside, offsets[:, 0]]),
    'char_stop': np.concatenate([outside, offsets[:, 1]]),
  }
  return Features(tokens, {}, {'start': target[0], 'stop': target[1], 'weights': 1})


class SpanStatistics(NamedTuple):
  """What a model says of the span of each example: both (B, P)."""

  nats: 'Array'  # float32, -log p(start) - log p(stop)
  correct: 'Array'  # float32, 1 where both tokens have the highest logit


def span_statistics(output: 'Output', batch: 'Batch') -> SpanStatistics:
  """Returns the negative log-likelihood of each span and whether it is the likeliest.

  Both ends are drawn from the tokens of the example's passage and its token at position 0, which
  stands for no answer; what else is read is no candidate.

  Args:
    output: of an encoder, two logits a token.
    batch: segments, positions and char_stop, (B, T), and start and stop, (B, P), as
      lm.tasks.extractive_qa makes them.

  Raises:
    UserError: the model has not two logits a token.
  """
  import jax
  import jax.numpy as jnp

  logits_BTC = output.unembed(output.hidden)
  B, T = batch['segments'].shape
  if logits_BTC.shape != (B, T, 2):
    raise UserError(
      f'model: spans need two logits a token, ({B}, {T}, 2), and it gives {logits_BTC.shape}; '
      'set model.classes=2 and leave model.pool empty'
    )
  candidate_BT = (batch['char_stop'] > 0) | (batch['positions'] == 0)
  segment_P = jnp.arange(1, batch['start'].shape[1] + 1)
  same_BPT = batch['segments'][:, None, :] == segment_P[None, :, None]
  among_BPT = same_BPT & candidate_BT[:, None, :]

  def point(end: str, logits_BT: 'Array') -> tuple['Array', 'Array']:
    is_target_BPT = batch['positions'][:, None, :] == batch[end][:, :, None]
    # Finite, so that a slot without an example gives finite gradients.
    logits_BPT = jnp.where(among_BPT, logits_BT[:, None, :], -1e9)
    picked_BP = jnp.sum(jnp.where(among_BPT & is_target_BPT, logits_BPT, 0), axis=-1)
    best_BP1 = logits_BPT.argmax(-1, keepdims=True)
    correct_BP = jnp.take_along_axis(among_BPT & is_target_BPT, best_BP1, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BPT, axis=-1) - picked_BP, correct_BP

  start_nats, start_correct = point('start', logits_BTC[..., 0])
  stop_nats, stop_correct = point('stop', logits_BTC[..., 1])
  correct = (start_correct & stop_correct).astype(jnp.float32)
  return SpanStatistics(start_nats + stop_nats, correct)


def objective() -> 'Objective':
  """Returns -log p(start) - log p(stop) in nats per window (Devlin et al. 2019, 4.2).

  The sum is the negative log-likelihood of the span; BERT's code halves it.
  """

  from lm.types import Objective

  def sums(
    apply: 'Apply', params: 'Params', batch: 'Batch', key: 'Array | None'
  ) -> dict[str, 'Array']:
    output = apply(params, batch, key=key)
    return {'loss': (batch['weights'] * span_statistics(output, batch).nats).sum()}

  return Objective(sums, weights=lambda batch: {'loss': batch['weights'].sum()})


def metric() -> 'Metric':
  """Returns loss, -log p(start) - log p(stop) in nats per window, and accuracy.

  Accuracy is the share of windows whose first and last token (or, for no answer, END) are both the
  likeliest ones; lm.metrics.answers compares the texts that are predicted from all windows.
  """

  from lm.types import Metric

  def terms(output: 'Output', batch: 'Batch') -> 'Terms':
    nats, correct = span_statistics(output, batch)
    weights = batch['weights']
    return {
      'loss': ((weights * nats).sum(), weights.sum()),
      'accuracy': ((weights * correct).sum(), weights.sum()),
    }

  return Metric(terms, higher_is_better={'loss': False, 'accuracy': True})
