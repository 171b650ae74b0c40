"""Dialogues of several turns: the next turn is written, given those before it.

Training and evaluation see the same examples, those of `unroll`: one for each reply, so that every
reply is predicted from the turns that really came before it. A decoder is nevertheless trained on
whole dialogues, each turn of which it reads once (`decoder`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers

from lm.errors import UserError
from lm.task import Converter, Example, Features, Task, mismatch
from lm.tasks import seq2seq
from lm.text.tokenizers import SEPARATOR, Special, end_id, parts_encoder


def expand_turns(examples: Iterable[Example], first: int = 1, every: int = 1) -> Iterator[Example]:
  """Yields an example for each reply of dialogues; name it in data.prepare.

  Dialogues have turns, a list of texts. What is yielded has `turns`, which ends with the reply,
  `replies`, the indices of all replies among them, and `last`, whether no reply of the dialogue
  follows. Dialogues without a reply are left out.

  Args:
    examples: the dialogues.
    first: the index of the first turn that is a reply; 1 for the first answer to the opening turn.
    every: from a reply to the next; 2 where two speakers alternate and one of them replies.

  Raises:
    UserError: there is no such turn or step; an example is no dialogue.
  """
  if first < 1 or every < 1:
    raise UserError(f'data.prepare: first={first}, every={every}: both are at least 1')
  for example in examples:
    turns = example.get('turns')
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, str) for turn in turns):
      raise mismatch(example, 'turns', 'list of strings')
    replies = list(range(first, len(turns), every))
    for nth, reply in enumerate(replies, 1):
      yield {
        'turns': list(turns[: reply + 1]),
        'replies': replies[:nth],
        'last': nth == len(replies),
      }


def replies() -> Task:
  """Writes the last turn, given those before it; examples are those of `unroll`."""

  def history(example: Example) -> list[str]:
    parts: list[str] = []
    for turn in _unrolled(example)['turns'][:-1]:
      parts += [SEPARATOR, turn] if parts else [turn]
    return parts

  def reply(example: Example) -> str:
    return _unrolled(example)['turns'][-1]

  return Task(history, reply, reply)


def encoder_decoder(task: Task, longest: int = 128) -> Converter:
  """Gives an encoder the turns before a reply and a decoder the reply.

  Args:
    task: `replies`.
    longest: tokens of the history, END included; the oldest turns are left out, whole, until the
      rest fits, and of a last turn that is longer alone its beginning.
  """
  _check(longest)
  whole = seq2seq.encoder_decoder(task)

  def recent(separator: int, features: Features) -> Features:
    source = _recent(features.source['source'], separator, longest)
    return features._replace(source={'source': source})

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    convert, separator = whole.features(tokenizer, labels, context), _separator(tokenizer)
    return lambda example: [recent(separator, each) for each in convert(example)]

  def prompt(tokenizer: tokenizers.Tokenizer) -> Callable[[Example], Features]:
    assert whole.prompt is not None
    convert, separator = whole.prompt(tokenizer), _separator(tokenizer)
    return lambda example: recent(separator, convert(example))

  return Converter(_texts(task), features, prompt)


def decoder(task: Task, longest: int = 128) -> Converter:
  """Gives one sequence of all turns of a dialogue, with the loss on its replies alone.

  It reads END, a turn, a separator, a turn, a separator, and so on; what it is to write after a
  reply is END, though the separator is read there (Zhang et al. 2020, DialoGPT, have one token for
  both). The sequence is made of the example of its last reply; the others have one token each, and
  no loss. A dialogue longer than a row is cut between turns, and each further part begins with
  turns that were there before, on which there is no loss again.

  Args:
    task: `replies`.
    longest: tokens of the history that a prompt, or a further part of a dialogue, begins with; the
      oldest turns are left out as in `encoder_decoder`. A row has to have room for a reply beside.
  """
  _check(longest)
  whole = seq2seq.decoder(task, both_ways=False)

  def features(
    tokenizer: tokenizers.Tokenizer, labels: Sequence[str], context: int
  ) -> Callable[[Example], list[Features]]:
    del labels
    encode, end, separator = parts_encoder(tokenizer), end_id(tokenizer), _separator(tokenizer)

    def convert(example: Example) -> list[Features]:
      if not _unrolled(example)['last']:
        # Its turns are in a longer example; one without features would count as skipped.
        return [_sequence([[]], [False], end, separator)]
      read = [part for part in task.inputs(example) if not isinstance(part, Special)]
      turns = [encode([turn]) for turn in (*read, task.target(example))]
      found = []
      for start, new, stop in parts([len(turn) + 1 for turn in turns], longest, context):
        learnt = [i in example['replies'] and i >= new for i in range(start, stop)]
        if any(learnt):
          found.append(_sequence(turns[start:stop], learnt, end, separator))
      return found

    return convert

  def prompt(tokenizer: tokenizers.Tokenizer) -> Callable[[Example], Features]:
    assert whole.prompt is not None
    convert, separator = whole.prompt(tokenizer), _separator(tokenizer)

    def recent(example: Example) -> Features:
      end, *history = convert(example).tokens['inputs']
      inputs = np.array([end, *_recent(np.array(history), separator, longest - 1)])
      return Features({'inputs': inputs}, {}, {})

    return recent

  return Converter(_texts(task), features, prompt)


def parts(sizes: Sequence[int], longest: int, room: int) -> Iterator[tuple[int, int, int]]:
  """Yields parts of a dialogue that fit in a row: (first turn, first new turn, end).

  Every turn is new in one part. Before its new ones a part has as many turns as take no more than
  `longest` and leave room for one that is new.

  Args:
    sizes: tokens of each turn.
    longest: tokens of turns that are not new, at most.
    room: tokens of a row. A turn that is longer is a part of its own.
  """
  ends = np.cumsum([0, *sizes])
  new = 0
  while new < len(sizes):
    before = max(0, min(longest, room - sizes[new]))
    start = int(np.searchsorted(ends, ends[new] - before))
    fitting = int(np.searchsorted(ends, ends[start] + room, side='right')) - 1
    stop = max(new + 1, fitting)
    yield start, new, stop
    new = stop


def _sequence(
  turns: Sequence[list[int]], learnt: Sequence[bool], end: int, separator: int
) -> Features:
  tokens: dict[str, list[int]] = {'inputs': [], 'targets': [], 'weights': []}
  for turn, weight in zip(turns, learnt, strict=True):
    tokens['inputs'] += [separator if tokens['inputs'] else end, *turn]
    tokens['targets'] += [*turn, end]
    tokens['weights'] += [int(weight)] * (len(turn) + 1)
  return Features({name: np.array(values) for name, values in tokens.items()}, {}, {})


def _recent(ids: np.ndarray, separator: int, longest: int) -> np.ndarray:
  """Returns the last turns that fit in `longest` tokens, whole, or else the end of the last one."""
  starts = np.concatenate([[0], np.flatnonzero(ids[:-1] == separator) + 1])
  fitting = starts[starts >= len(ids) - longest]
  return ids[fitting[0] :] if len(fitting) else ids[-longest:]


def _texts(task: Task) -> Callable[[Example], list[str]]:
  """Returns what a tokenizer is trained on: every dialogue once, by its last reply."""

  def texts(example: Example) -> list[str]:
    if not _unrolled(example)['last']:
      return []
    read = [part for part in task.inputs(example) if not isinstance(part, Special)]
    return [*read, task.target(example)]

  return texts


def _unrolled(example: Example) -> Example:
  if 'last' not in example:
    raise UserError(
      'data.prepare: replies are written one at a time; it needs lm.tasks.dialogue:expand_turns'
    )
  return example


def _separator(tokenizer: tokenizers.Tokenizer) -> int:
  (separator,) = parts_encoder(tokenizer)([SEPARATOR])
  return separator


def _check(longest: int) -> None:
  if longest < 2:
    raise UserError(f'data.convert: longest={longest}: a history has at least two tokens')
