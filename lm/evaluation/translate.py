"""Translation of lines of text by a trained sequence-to-sequence model."""

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lm.config import resolve
from lm.data import features
from lm.decode.batch import generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.mbr import Utility, mbr_rank
from lm.errors import UserError
from lm.task import Example, Features, Task
from lm.text.tokenizers import text_reader
from lm.workdir.load import Loaded

Texts = list[tuple[str, float]]  # generated texts with their scores, best first


def windows(lines: Iterable[bytes], size: int) -> Iterator[list[str]]:
  """Yields lists of `size` lines of a UTF-8 stream, decoded and without their line ends.

  Raises:
    UserError: a line is not UTF-8.
  """
  numbered = enumerate(lines, 1)
  while window := list(itertools.islice(numbered, size)):
    yield [_decode(line, index) for index, line in window]


def _decode(line: bytes, index: int) -> str:
  try:
    return line.decode('utf-8-sig' if index == 1 else 'utf-8').rstrip('\r\n')
  except UnicodeDecodeError as e:
    raise UserError(f'line {index} of the input is not UTF-8 at byte {e.start}') from e


class MBRConfig(NamedTuple):
  """Minimum Bayes risk decoding: the choice among candidates; see lm.decode.mbr.

  Attributes:
    utility: of a candidate, given another one as the reference.
    samples: per line; 1 if the decoding strategy itself returns several candidates.
    seed: of the samples.
    n_best: how many candidates of a line are returned.
  """

  utility: Utility
  samples: int = 1
  seed: int = 0
  n_best: int = 1


class Translator:
  """Generates targets for lines, each line independently of the others.

  Args:
    loaded: a model trained on a task whose examples have a 'source'.
    decode: the decoding strategy.
    language: the `target_language` of the examples, for a multilingual model.
    too_long: 'error', 'truncate' or 'split'. 'split' halves a line at a space until all parts fit,
      and joins the targets of the parts by spaces.
    prefix: the beginning of every text.
    mbr: chooses among the texts that `decode` finds. The samples of all lines have the same keys,
      so that equal lines have equal outputs.

  Raises:
    UserError: the run has no such task, or its converter does not generate.
  """

  def __init__(
    self,
    loaded: Loaded,
    decode: DecodeConfig,
    language: str | None = None,
    too_long: str = 'error',
    prefix: str = '',
    mbr: MBRConfig | None = None,
  ):
    data = loaded.config.data
    if data.task is None:
      raise UserError(
        f'--workdir={loaded.workdir}: the run has no data.task; lm.generate continues a prompt '
        'with a language model'
      )
    task, converter = features.build_task(data)
    if converter.encode_prompt is None:
      raise UserError(
        f'data.converter={data.converter!r} makes no prompt to generate from '
        '(Converter.encode_prompt is None)'
        + ('; lm.evaluate shows its predictions' if converter.predict else '')
      )
    steps = [resolve.resolve(path, 'data.prepare') for path in data.prepare]
    # A line has a source only, so that steps on other fields do not apply.
    self._steps = [s for s in steps if getattr(s, 'keywords', {}).get('field') == 'source']
    self._prompt = converter.encode_prompt(loaded.tokenizer)
    self._language = {} if language is None else {'target_language': language}
    _check_language(task, language)
    self._loaded, self._decode, self._too_long, self._mbr = loaded, decode, too_long, mbr
    self._prefix = text_reader(loaded.tokenizer).encode(prefix, add_special_tokens=False).ids

  def __call__(self, lines: list[str], before: int = 0) -> Iterator[Texts]:
    """Yields the texts and scores of each line, best first; `before` lines came before these.

    Raises:
      UserError: a line is too long, and the policy is 'error'.
    """
    parts = [self._parts(self._prepared(line), before + i) for i, line in enumerate(lines, 1)]
    texts = self._generated(list(itertools.chain.from_iterable(parts)))
    for of_line in parts:
      # The n-th texts of all parts are joined; an empty line has no parts.
      nth = list(zip(*[next(texts) for _ in of_line], strict=False)) or [()]
      yield [(' '.join(t for t, _ in each), sum((s for _, s in each), 0.0)) for each in nth]

  def _prepared(self, line: str) -> str:
    """Returns a line as `data.prepare` prepared the sources of training."""
    examples: Iterable[Example] = [{'source': line}]
    for step in self._steps:
      examples = step(examples)
    return ' '.join(example['source'] for example in examples)

  def _generated(self, prompts: list[Features]) -> Iterator[Texts]:
    """Yields the texts and scores of each prompt, best first."""
    if not prompts:
      return
    loaded, mbr = self._loaded, self._mbr
    samples = 1 if mbr is None else mbr.samples
    found = generate_batch(
      loaded.model,
      loaded.apply,
      loaded.params,
      [prompt for prompt in prompts for _ in range(samples)],
      self._decode,
      None if mbr is None else [*range(samples)] * len(prompts),
      [self._prefix] * (samples * len(prompts)) if self._prefix else None,
      0 if mbr is None else mbr.seed,
    )
    for start in range(0, len(found), samples):
      texts = [
        (' '.join(loaded.tokenizer.decode(each.tokens).splitlines()), each.score)
        for of_sample in found[start : start + samples]
        for each in of_sample
      ]
      yield texts if mbr is None else mbr_rank([t for t, _ in texts], mbr.utility)[: mbr.n_best]

  def _parts(self, line: str, index: int) -> list[Features]:
    """Returns the prompts of a line: one, or several if it is split; none if it is empty."""
    if not line.strip():
      return []
    prompt = self._prompt({'source': line, **self._language})
    data = self._loaded.config.data
    limit = data.source_len if prompt.source else data.seq_len
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
        f'line {index} has {size} tokens and the model reads {limit}; '
        'set --too_long=truncate or --too_long=split'
      )
    middle = len(words if len(words) > 1 else line) // 2
    halves = (line[:middle], line[middle:])
    if len(words) > 1:
      halves = (' '.join(words[:middle]), ' '.join(words[middle:]))
    return [part for half in halves for part in self._parts(half, index)]


def _check_language(task: Task, language: str | None) -> None:
  """Raises UserError if the task needs a language that is not given, or ignores the given one."""
  given = None if language is None else task.inputs({'source': '', 'target_language': language})
  try:
    default = task.inputs({'source': ''})
  except UserError as e:
    if language is None:
      raise UserError(f'--target_lang is not given, and the task needs it: {e}') from e
    return
  if given == default:
    raise UserError(f'--target_lang={language}: the task of this run has no target language')
