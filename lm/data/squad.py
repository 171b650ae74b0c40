"""Questions about passages in the formats of SQuAD; CMRC 2018 has the same."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm.data import splits
from lm.data.examples import Computed, Example
from lm.data.pieces import Pieces, fingerprint, read_json, strings, suffix
from lm.errors import UserError, did_you_mean
from lm.text.files import lone_surrogate

_POLICIES = ('error', 'skip')
_KEYS = ('id', 'context', 'question', 'answers')


def squad(
  split: str, files: str | Sequence[str], validation: float = 0.0, misplaced: str = 'error'
) -> Sequence[Example]:
  """Returns {'id', 'context', 'question', 'answers'} for each question.

  An answer is {'text', 'start'}, in characters from the beginning of the context; a question that
  its context does not answer has none (SQuAD v2.0). Files are .json as published (articles,
  paragraphs, questions), or .jsonl with one question a line; 'answer_start' says where an answer
  begins. Answers may also be one object of two lists, as Hugging Face has them. Rajpurkar et al.
  2016, arXiv:1606.05250, and 2018, arXiv:1806.03822.

  Args:
    split: 'train' or, where a part is set aside, 'validation'; any that stands for '{split}'.
    files: names or glob patterns; ~, $VARIABLES and '{split}' are replaced. They may be gzipped.
    validation: the share of the contexts set aside, the last ones, with all their questions.
    misplaced: what becomes of an answer that is not where 'answer_start' says: 'error', or 'skip'
      to leave it out, and with it a question of which no answer is left; how many is reported.

  Raises:
    UserError: files that are missing or in another format; an unknown split; a question, a context
      or an answer that is none, or an answer that is not where it is said to be.
  """
  if misplaced not in _POLICIES:
    near = did_you_mean(misplaced, _POLICIES)
    raise UserError(f"data.source: misplaced={misplaced!r}{near}; there is 'error', 'skip'")
  found = splits.files(split, files, 'data.source: files')
  skipped: list[str] = []
  everything = itertools.chain.from_iterable(
    _questions(file, skipped if misplaced == 'skip' else None) for file in found
  )
  contexts = [list(group) for _, group in itertools.groupby(everything, lambda q: q['context'])]
  start, stop = splits.part(split, files, len(contexts), validation, 'contexts')
  questions = list(itertools.chain.from_iterable(contexts[start:stop]))
  note = (
    f'{len(skipped)} misplaced answers are left out, the first: {skipped[0]}' if skipped else ''
  )

  def place(index: int) -> str:
    return f'question {questions[index]["id"]!r:.60}'

  return Computed(len(questions), questions.__getitem__, fingerprint(found), place, note)


def _questions(file: pathlib.Path, skipped: list[str] | None) -> Iterator[Example]:
  """Yields the questions of a file.

  Misplaced answers are described in `skipped`, where it is a list; else they are errors.
  """
  try:
    for record in _records(file):
      question = _question(record, file, skipped)
      if question is not None:
        yield question
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
      found = read_json(Pieces([file], ['file'])[0])
    except ValueError as e:
      raise UserError(f'{file}: not JSON: {e}') from e
    for article in found['data']:
      for paragraph in article['paragraphs']:
        for record in paragraph['qas']:
          yield record | {'context': paragraph['context']}
  else:
    raise UserError(f'data.source: {file}: its name ends in none of .json, .jsonl (or with .gz)')


def _question(
  record: Mapping[str, Any], file: pathlib.Path, skipped: list[str] | None
) -> Example | None:
  """Returns a question after checking its fields and answers; None if all these are skipped."""
  place = f'{file}: question {record["id"]!r:.60}'
  for key in ('context', 'question'):
    if not isinstance(record[key], str):
      raise UserError(f'{place}: {key!r} is {record[key]!r:.60}, not a string')
  for half in filter(None, map(lone_surrogate, strings(dict(record)))):
    raise UserError(f'{place} {half}')
  context = record['context']
  answers = []
  given = _answers(record['answers'], place)
  for answer in given:
    found, wrong = _answer(answer, context, place)
    if not wrong:
      answers.append(found)
    elif skipped is None:
      raise UserError(f"{wrong}; misplaced='skip' leaves such answers out")
    else:
      skipped.append(wrong)
  if given and not answers:
    return None
  question = {'id': str(record['id']), 'context': context, 'question': record['question']}
  return question | {'answers': answers}


def _answers(found: Any, place: str) -> list[dict[str, Any]]:
  """Returns answers one by one, also where they are two lists side by side."""
  if isinstance(found, dict):
    texts, starts = found.get('text'), found.get('answer_start')
    if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
      return [{'text': t, 'answer_start': s} for t, s in zip(texts, starts, strict=True)]
  elif isinstance(found, list) and all(
    isinstance(answer, dict) and {'text', 'answer_start'} <= answer.keys() for answer in found
  ):
    return found
  raise UserError(
    f"{place}: 'answers' is {found!r:.60}, neither a list of {{'text', 'answer_start'}} nor an "
    'object of two lists as long as each other, under those names'
  )


def _answer(answer: Mapping[str, Any], context: str, place: str) -> tuple[dict[str, Any], str]:
  """Returns the text of an answer with its start, and what is wrong where it is not there."""
  text, start = answer['text'], answer['answer_start']
  if not isinstance(text, str):
    raise UserError(f"{place}: the 'text' of an answer is {text!r:.60}, not a string")
  if not isinstance(start, int) or isinstance(start, bool):
    raise UserError(
      f"{place}: the 'answer_start' of {text!r:.60} is {start!r:.60}, not a whole number"
    )
  wrong = ''
  if start < 0 or context[start : start + len(text)] != text or not text:
    wrong = (
      f'{place}: the answer {text!r:.60} is not at character {start} of its context, where there '
      f'is {context[max(start, 0) :][: len(text)]!r:.60}'
    )
  return {'text': text, 'start': start}, wrong
