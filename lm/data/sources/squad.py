"""Questions about passages in the formats of SQuAD, also used by CMRC 2018."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.data.fingerprints import strings
from lm.data.sources.base import (
  ByteSpans,
  Example,
  LazySequence,
  check_choice,
  fingerprint,
  read_json,
  split_bounds,
  split_files,
  suffix,
)
from lm.errors import UserError
from lm.text.files import lone_surrogate

_KEYS = ('id', 'context', 'question', 'answers')
_ANSWER = ('text', 'answer_start')


def squad(
  split: str, files: str | Sequence[str], validation: float = 0.0, misplaced: str = 'error'
) -> Sequence[Example]:
  """Returns {'id', 'context', 'question', 'answers'} for each question.

  An answer is {'text', 'start'}, in characters from the beginning of the context. An unanswerable
  question has no answers (SQuAD v2.0). Files are .json as published (articles, paragraphs,
  questions), or .jsonl with one question per line; 'answer_start' is the position of an answer.
  Answers may also be one object of two lists, as in Hugging Face data sets. Rajpurkar et al. 2016,
  arXiv:1606.05250, and 2018, arXiv:1806.03822.

  Args:
    split: 'train', or 'validation' if `validation` is above 0. Where file names contain '{split}',
      any name that yields existing files.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    validation: the fraction of the contexts set aside, the last ones, with all their questions.
    misplaced: policy for answers that are not at 'answer_start': 'error' or 'skip'. 'skip' also
      skips questions without remaining answers, and the skipped answers are counted in `note`.

  Raises:
    UserError: files that are missing or in another format; an unknown split; an invalid question,
      context or answer; a misplaced answer.
  """
  check_choice('misplaced', misplaced, ('error', 'skip'))
  paths = split_files(split, files)
  skipped: list[str] = []
  everything = itertools.chain.from_iterable(
    _questions(file, skipped if misplaced == 'skip' else None) for file in paths
  )
  contexts = [list(group) for _, group in itertools.groupby(everything, lambda q: q['context'])]
  start, stop = split_bounds(split, files, len(contexts), validation, 'contexts')
  questions = list(itertools.chain.from_iterable(contexts[start:stop]))
  note = f'{len(skipped)} misplaced answers are skipped, the first: {skipped[0]}' if skipped else ''

  def place(index: int) -> str:
    return f'question {questions[index]["id"]!r:.60}'

  return LazySequence(len(questions), questions.__getitem__, fingerprint(paths), place, note)


def _questions(file: pathlib.Path, skipped: list[str] | None) -> Iterator[Example]:
  """Yields the questions of a file, without misplaced answers.

  A description of each misplaced answer is appended to `skipped`, if that is not None.

  Raises:
    UserError: an answer is misplaced and `skipped` is None; the file has another format.
  """
  try:
    yield from filter(None, (_question(record, file, skipped) for record in _records(file)))
  except (AttributeError, KeyError, TypeError) as e:
    raise UserError(
      f'{file} does not have the layout of SQuAD: data, paragraphs, context, qas in .json; {_KEYS} '
      f"in each line of .jsonl; answers as {{'text', 'answer_start'}}: {e!r}"
    ) from e


def _records(file: pathlib.Path) -> Iterator[Mapping[str, Any]]:
  """Yields each question as stored, with its context."""
  if suffix(file) == '.jsonl':
    lines = ByteSpans([file], ['line'])
    yield from (lines.json_object(i, _KEYS) for i in range(len(lines)))
  elif suffix(file) == '.json':
    try:
      articles = read_json(ByteSpans([file], ['file'])[0])['data']
    except ValueError as e:
      raise UserError(f'{file}: not JSON: {e}') from e
    paragraphs = itertools.chain.from_iterable(article['paragraphs'] for article in articles)
    yield from (q | {'context': p['context']} for p in paragraphs for q in p['qas'])
  else:
    raise UserError(f'data.source: {file}: its name must end in .json or .jsonl (or with .gz)')


def _question(
  record: Mapping[str, Any], file: pathlib.Path, skipped: list[str] | None
) -> Example | None:
  """Returns a question after checking its fields and answers; None if all answers are skipped."""
  place = f'{file}: question {record["id"]!r:.60}'
  for key in ('context', 'question'):
    if not isinstance(record[key], str):
      raise UserError(f'{place}: {key!r} is {record[key]!r:.60}, not a string')
  for half in filter(None, map(lone_surrogate, strings(dict(record)))):
    raise UserError(f'{place} {half}')
  context = record['context']
  given = _answers(record['answers'], place)
  answers = []
  for text, start in given:
    if text and start >= 0 and context[start : start + len(text)] == text:
      answers.append({'text': text, 'start': start})
      continue
    wrong = (
      f'{place}: the answer {text!r:.60} is not at character {start} of its context, which has '
      f'{context[max(start, 0) :][: len(text)]!r:.60} there'
    )
    if skipped is None:
      raise UserError(f"{wrong}; misplaced='skip' skips such answers")
    skipped.append(wrong)
  if given and not answers:
    return None
  example = {'id': str(record['id']), 'context': context, 'question': record['question']}
  return example | {'answers': answers}


def _answers(answers: Any, place: str) -> list[tuple[str, int]]:
  """Returns text and start of each answer, after checking their types."""
  columns: list[Any] = [answers.get(key) for key in _ANSWER] if isinstance(answers, dict) else []
  listed: Any = answers
  if columns and all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
    listed = [dict(zip(_ANSWER, pair, strict=True)) for pair in zip(*columns, strict=True)]
  if not isinstance(listed, list) or not all(
    isinstance(answer, dict) and set(_ANSWER) <= answer.keys() for answer in listed
  ):
    raise UserError(
      f"{place}: 'answers' is {answers!r:.60}, neither a list of {{'text', 'answer_start'}} nor an "
      'object of two lists of equal length under those names'
    )
  pairs = [(answer['text'], answer['answer_start']) for answer in listed]
  for text, start in pairs:
    if not isinstance(text, str):
      raise UserError(f"{place}: the 'text' of an answer is {text!r:.60}, not a string")
    if not isinstance(start, int) or isinstance(start, bool):
      raise UserError(
        f"{place}: the 'answer_start' of {text!r:.60} is {start!r:.60}, not an integer"
      )
  return pairs
