"""Questions about passages in the formats of SQuAD; CMRC 2018 has the same."""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.data import splits
from lm.data.examples import Computed, Example
from lm.data.pieces import Pieces, fingerprint, suffix
from lm.errors import UserError

_KEYS = ('id', 'context', 'question', 'answers')


def squad(split: str, files: str | Sequence[str], validation: float = 0.0) -> Sequence[Example]:
  """Returns {'id', 'context', 'question', 'answers'} for each question.

  An answer is {'text', 'start'}, in characters from the beginning of the context; a question that
  its context does not answer has none (SQuAD v2.0). Files are .json as published (articles,
  paragraphs, questions), or .jsonl with one question a line; 'answer_start' says where an answer
  begins. Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    validation: the share of the contexts set aside, the last ones, with all their questions.

  Raises:
    UserError: files that are missing or in another format; an unknown split; an answer that is not
      where it is said to be.
  """
  found = splits.files(split, files, 'data.source: files')
  everything = itertools.chain.from_iterable(map(_questions, found))
  contexts = [list(group) for _, group in itertools.groupby(everything, lambda q: q['context'])]
  start, stop = splits.part(split, files, len(contexts), validation, 'contexts')
  questions = list(itertools.chain.from_iterable(contexts[start:stop]))
  return Computed(len(questions), questions.__getitem__, fingerprint(found))


def _questions(file: pathlib.Path) -> Iterator[Example]:
  """Yields the questions of a file."""
  try:
    for record in _records(file):
      yield _question(record, file)
  except (AttributeError, KeyError, TypeError) as e:
    raise UserError(
      f'{file} is not laid out as SQuAD: data, paragraphs, context, qas in .json; {_KEYS} in each '
      f"line of .jsonl; answers as {{'text', 'answer_start'}}: {e!r}"
    ) from e


def _records(file: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields each question as it stands, with its context."""
  if suffix(file) == '.jsonl':
    lines = Pieces([file], ['line'])
    for i in range(len(lines)):
      yield lines.json_object(i, _KEYS)
  elif suffix(file) == '.json':
    try:
      articles = json.loads(Pieces([file], ['file'])[0])['data']
    except json.JSONDecodeError as e:
      raise UserError(f'{file}: not JSON: {e}') from e
    for article in articles:
      for paragraph in article['paragraphs']:
        for record in paragraph['qas']:
          yield record | {'context': paragraph['context']}
  else:
    raise UserError(f'data.source: {file}: its name ends in none of .json, .jsonl (or with .gz)')


def _question(record: Mapping[str, Any], file: pathlib.Path) -> Example:
  """Returns a question after checking its answers."""
  context = record['context']
  answers = []
  for answer in record['answers']:
    text, start = answer['text'], answer['answer_start']
    if start < 0 or context[start : start + len(text)] != text or not text:
      raise UserError(
        f'{file}: question {record["id"]!r}: the answer {text!r:.60} is not at character {start} '
        f'of its context, where there is {context[max(start, 0) :][: len(text)]!r:.60}'
      )
    answers.append({'text': text, 'start': start})
  question = {'id': str(record['id']), 'context': context, 'question': record['question']}
  return question | {'answers': answers}
