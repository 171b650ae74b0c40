"""From lines of text to what a trained model writes for them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lm.config import resolve
from lm.data import features
from lm.decode.batch import Generation, generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.mbr import Utility, mbr_rank
from lm.errors import UserError
from lm.task import Example, Features, Task
from lm.text.tokenizers import text_reader
from lm.workdir.load import Loaded


def windows(lines: Iterable[bytes], size: int) -> Iterator[list[str]]:
  """Yields the lines of a UTF-8 stream without their ends, `size` at a time.

  Raises:
    UserError: a line is not UTF-8.
  """
  numbered = enumerate(lines, 1)
  while window := list(itertools.islice(numbered, size)):
    yield [_decoded(number, line) for number, line in window]


def _decoded(number: int, line: bytes) -> str:
  try:
    return line.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
  except UnicodeDecodeError as e:
    raise UserError(f'line {number} of the input is not UTF-8 at byte {e.start}') from e


class MBRConfig(NamedTuple):
  """How to choose among candidates the one of least risk; see lm.decode.mbr."""

  utility: Utility
  draws: int = 1  # of each text; 1 where the strategy finds several candidates by itself
  seed: int = 0
  n_best: int = 1


class Translator:
  """Writes targets for lines, each on its own.

  Args:
    loaded: a model trained on a task whose examples have a 'source'.
    strategy: how to decode.
    language: `target_language` of the examples, for a model that knows several.
    too_long: 'error', 'truncate' or 'split' (at the space nearest to the middle, until all parts
      fit; what is written for the parts is joined by spaces).
    prefix: what every text begins with.
    risk: what the strategy writes are candidates, of which these are the best by utility. The draws
      of every line have the same keys, so that equal lines have equal outputs.

  Raises:
    UserError: the run is of no such task, or the model takes the strategy not.
  """

  def __init__(
    self,
    loaded: Loaded,
    strategy: DecodeConfig,
    language: str | None = None,
    too_long: str = 'error',
    prefix: str = '',
    risk: MBRConfig | None = None,
  ):
    data = loaded.config.data
    if data.task is None:
      raise UserError(
        f'--workdir={loaded.workdir}: the run has no data.task; a model of text continues a prompt '
        'with lm.generate'
      )
    task, converter = features.build_task(data)
    if converter.encode_prompt is None:
      raise UserError(
        f'data.convert={data.convert!r} makes no prompt for a model to write after '
        '(Converter.encode_prompt is None)'
        + ('; it predicts, see lm.evaluate' if converter.predict else '')
      )
    steps = [resolve.resolve(path, 'data.prepare') for path in data.prepare]
    # Those of other fields are of no concern where there is a source and nothing else.
    self._steps = [s for s in steps if getattr(s, 'keywords', {}).get('field') == 'source']
    self._loaded = loaded
    self._prompt = converter.encode_prompt(loaded.tokenizer)
    self._language = {} if language is None else {'target_language': language}
    _check_language(task, language)
    self._too_long = too_long
    self._strategy = strategy
    self._risk = risk
    self._prefix = text_reader(loaded.tokenizer).encode(prefix, add_special_tokens=False).ids

  def __call__(self, lines: list[str], before: int = 0) -> Iterator[list[tuple[str, float]]]:
    """Yields the texts and scores of each line, best first; `before` lines came before these.

    Raises:
      UserError: a line is too long, and the policy is 'error'.
    """
    parts = [self._parts(self._prepared(line), before + i) for i, line in enumerate(lines, 1)]
    written = self._written(list(itertools.chain.from_iterable(parts)))
    for own in parts:
      yield self._joined([next(written) for _ in own])

  def _prepared(self, line: str) -> str:
    """Returns a line as `data.prepare` has made the sources that the model was trained on."""
    examples: Iterable[Example] = [{'source': line}]
    for step in self._steps:
      examples = step(examples)
    return ' '.join(example['source'] for example in examples)

  def _written(self, prompts: list[Features]) -> Iterator[list[tuple[str, float]]]:
    """Yields the texts and scores of each prompt, best first."""
    if not prompts:
      return
    draws = 1 if self._risk is None else self._risk.draws
    found = generate_batch(
      self._loaded.model,
      self._loaded.apply,
      self._loaded.params,
      [prompt for prompt in prompts for _ in range(draws)],
      self._strategy,
      None if self._risk is None else [*range(draws)] * len(prompts),
      [self._prefix] * (draws * len(prompts)) if self._prefix else None,
      0 if self._risk is None else self._risk.seed,
    )
    for start in range(0, len(found), draws):
      texts = [self._text(one) for several in found[start : start + draws] for one in several]
      if self._risk is None:
        yield texts
      else:
        ranked = mbr_rank([text for text, _ in texts], self._risk.utility)
        yield ranked[: self._risk.n_best]

  def _text(self, written: Generation) -> tuple[str, float]:
    return ' '.join(self._loaded.tokenizer.decode(written.tokens).splitlines()), written.score

  def _joined(self, of_parts: list[list[tuple[str, float]]]) -> list[tuple[str, float]]:
    """Returns the n-th texts of all parts of a line as one, and the sum of their scores."""
    if not of_parts:  # an empty line
      return [('', 0.0)]
    return [
      (' '.join(text for text, _ in nth), sum(score for _, score in nth))
      for nth in zip(*of_parts, strict=False)
    ]

  def _parts(self, line: str, number: int) -> list[Features]:
    if not line.strip():
      return []
    prompt = self._prompt({'source': line, **self._language})
    data = self._loaded.config.data
    limit = data.source_context if prompt.source else data.context
    size = len(next(iter((prompt.source or prompt.tokens).values())))
    if size <= limit or (self._too_long == 'error' and self._loaded.model.reads_on):
      return [prompt]
    if self._too_long == 'truncate':
      cut = features.apply_prompt_length_policy(prompt, features.length_limits(data), 'truncate')
      assert cut is not None
      return [cut]
    words = line.split()
    if self._too_long == 'error' or (len(words) < 2 and len(line) < 2):
      raise UserError(
        f'line {number} has {size} tokens and the model reads {limit}; '
        'set --too_long=truncate or --too_long=split'
      )
    if len(words) < 2:
      middle = len(line) // 2
      return self._parts(line[:middle], number) + self._parts(line[middle:], number)
    middle = len(words) // 2
    halves = (' '.join(words[:middle]), ' '.join(words[middle:]))
    return self._parts(halves[0], number) + self._parts(halves[1], number)


def _check_language(task: Task, language: str | None) -> None:
  """Raises UserError when the task needs a language and has none, or takes none and has one."""
  if language is not None:
    told = task.inputs({'source': '', 'target_language': language})
  try:
    untold = task.inputs({'source': ''})
  except UserError as e:
    if language is None:
      raise UserError(f'--to is not given, and a line alone is not enough: {e}') from e
    return
  if language is not None and told == untold:
    raise UserError(f'--to={language}: the task of this run is not told which language to write')
