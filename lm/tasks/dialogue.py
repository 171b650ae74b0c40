"""Dialogues of several turns: the next turn is generated from those before it.

Training and evaluation use the examples of `expand_turns`, one per reply, so that every reply is
predicted from the true turns before it. A decoder still trains on one sequence per dialogue
(`decoder`), which contains each turn once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from lm.errors import UserError, check_range
from lm.task import Convert, Converter, Example, Features, Task, strings_field
from lm.tasks import seq2seq
from lm.text.tokenizers import SEPARATOR, end_id, parts_encoder, separated


def expand_turns(examples: Iterable[Example], first: int = 1, every: int = 1) -> Iterator[Example]:
  """Yields one example per reply of the dialogues; use it in data.prepare.

  Dialogues have turns, a list of texts. The examples have three fields: `turns`, up to and
  including the reply; `replies`, the indices of all replies among them; and `last`, whether the
  dialogue has no later reply. A dialogue without a reply yields nothing.

  Args:
    examples: the dialogues.
    first: index of the first turn that is a reply; 1 for the answer to the opening turn.
    every: turns from one reply to the next; 2 if two speakers alternate and one of them replies.

  Raises:
    UserError: first or every is below 1; an example is not a dialogue.
  """
  check_range('data.prepare: first', first, 1)
  check_range('data.prepare: every', every, 1)
  for example in examples:
    turns = strings_field(example, 'turns')
    replies = list(range(first, len(turns), every))
    for n, reply in enumerate(replies, 1):
      last = n == len(replies)
      yield {'turns': turns[: reply + 1], 'replies': replies[:n], 'last': last}


def replies() -> Task:
  """Generates the last turn from those before it; examples are those of `expand_turns`."""

  def history(example: Example) -> list[str]:
    return separated(_expanded(example)['turns'][:-1])

  def reply(example: Example) -> str:
    return _expanded(example)['turns'][-1]

  def question(row: Example) -> Example:
    turns = strings_field(row, 'turns')
    return row if 'last' in row else {'turns': [*turns, ''], 'replies': [len(turns)], 'last': True}

  return Task(history, reply, reply, fields=('turns',), question=question)


def encoder_decoder(task: Task, longest: int = 128) -> Converter:
  """Converts for an encoder that reads the turns before a reply and a decoder that generates it.

  Args:
    task: `replies`.
    longest: maximum tokens of the history, END included. The oldest turns are dropped until the
      rest fits; a single turn that does not fit is truncated from the left.
  """
  check_range('data.converter: longest', longest, 2)  # END and a token
  base = seq2seq.encoder_decoder(task)
  assert base.encode_prompt is not None
  base_prompt = base.encode_prompt

  def truncated(features: Features, separator: int) -> Features:
    source = _recent_turns(features.source['source'], separator, longest)
    return features._replace(source={'source': source})

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    convert, separator = base.features(tokenizer, labels, seq_len), _separator_id(tokenizer)
    return lambda example: [truncated(each, separator) for each in convert(example)]

  def encode_prompt(tokenizer: Tokenizer) -> Callable[[Example], Features]:
    convert, separator = base_prompt(tokenizer), _separator_id(tokenizer)
    return lambda example: truncated(convert(example), separator)

  return Converter(_tokenizer_texts(task), features, encode_prompt)


def decoder(task: Task, longest: int = 128) -> Converter:
  """Converts to one sequence per dialogue, with the loss on its replies alone.

  The inputs are END, a turn, a separator, a turn, a separator and so on. The target after a reply
  is END, although the next input is the separator (DialoGPT, Zhang et al. 2020, uses one token for
  both). Only the example of the last reply becomes this sequence. The example of any other reply
  becomes a placeholder of one token without loss, and thus does not count as skipped. A dialogue
  longer than a row is split between turns. Each further part starts with earlier turns as context,
  without loss.

  Args:
    task: `replies`.
    longest: maximum tokens of history in a prompt, or of context in a further part; the oldest
      turns are dropped as in `encoder_decoder`. A row needs space for a reply as well.
  """
  check_range('data.converter: longest', longest, 2)  # END and a token
  base_prompt = seq2seq.decoder(task, prefix_lm=False).encode_prompt
  assert base_prompt is not None

  def features(tokenizer: Tokenizer, labels: Sequence[str], seq_len: int) -> Convert:
    encode, end, separator = parts_encoder(tokenizer), end_id(tokenizer), _separator_id(tokenizer)
    texts = seq2seq.tokenizer_texts(task)

    def convert(example: Example) -> list[Features]:
      if not _expanded(example)['last']:
        # The example of the last reply has these turns. Without features, this one would count as
        # skipped.
        return [_sequence([[]], [False], end, separator)]
      turns = [encode([text]) for text in texts(example)]
      sequences = []
      for start, new, stop in split_turns([len(turn) + 1 for turn in turns], longest, seq_len):
        in_loss = [i in example['replies'] and i >= new for i in range(start, stop)]
        if any(in_loss):
          sequences.append(_sequence(turns[start:stop], in_loss, end, separator))
      return sequences

    return convert

  def encode_prompt(tokenizer: Tokenizer) -> Callable[[Example], Features]:
    convert, separator = base_prompt(tokenizer), _separator_id(tokenizer)

    def prompt(example: Example) -> Features:
      end, *history = convert(example).tokens['inputs']
      recent = _recent_turns(np.array(history), separator, longest - 1)
      return Features({'inputs': np.array([end, *recent])}, {}, {})

    return prompt

  return Converter(_tokenizer_texts(task), features, encode_prompt)


def split_turns(sizes: Sequence[int], longest: int, seq_len: int) -> Iterator[tuple[int, int, int]]:
  """Yields the parts of a dialogue that fit in a row: (start, new, stop).

  Turns `start` to `stop`, exclusive, are in the part; those before `new` are its context.
  Every turn is new in exactly one part. The context of a part is as many turns as fit in `longest`
  tokens and leave space for a new turn.

  Args:
    sizes: tokens of each turn.
    longest: maximum tokens of the context.
    seq_len: tokens of a row. A longer turn is a part of its own.
  """
  ends = np.cumsum([0, *sizes])
  new = 0
  while new < len(sizes):
    context = max(0, min(longest, seq_len - sizes[new]))
    start = int(np.searchsorted(ends, ends[new] - context))
    fitting = int(np.searchsorted(ends, ends[start] + seq_len, side='right')) - 1
    stop = max(new + 1, fitting)
    yield start, new, stop
    new = stop


def _sequence(
  turns: Sequence[list[int]], in_loss: Sequence[bool], end: int, separator: int
) -> Features:
  """Returns the features of turns; `in_loss` says for each whether it is in the loss."""
  inputs = [i for turn in turns for i in (separator, *turn)]
  targets = [i for turn in turns for i in (*turn, end)]
  weights = np.repeat(np.array(in_loss, int), [len(turn) + 1 for turn in turns])
  tokens = {'inputs': np.array([end, *inputs[1:]]), 'targets': np.array(targets)}
  return Features({**tokens, 'weights': weights}, {}, {})


def _recent_turns(ids: np.ndarray, separator: int, longest: int) -> np.ndarray:
  """Returns the last turns that fit in `longest` tokens, or else the end of the last turn."""
  starts = np.concatenate([[0], np.flatnonzero(ids[:-1] == separator) + 1])
  fitting = starts[starts >= len(ids) - longest]
  return ids[fitting[0] :] if len(fitting) else ids[-longest:]


def _tokenizer_texts(task: Task) -> Callable[[Example], list[str]]:
  """Returns a function from an example to its texts; only the example of the last reply has any."""
  texts = seq2seq.tokenizer_texts(task)
  return lambda example: texts(example) if _expanded(example)['last'] else []


def _expanded(example: Example) -> Example:
  if 'last' not in example:
    raise UserError(
      'data.prepare: the task lm.tasks.dialogue:replies needs examples of '
      'lm.tasks.dialogue:expand_turns; add it to data.prepare'
    )
  return example


def _separator_id(tokenizer: Tokenizer) -> int:
  return parts_encoder(tokenizer)([SEPARATOR])[0]
