"""The evaluations of a run, by the functions of `eval.evaluators`, every `eval.every` steps.

Each import path of `eval.evaluators` names `(config, functions, tokenizer) -> Evaluator`, such as
`lm.evaluation.sets:sets` or a function of an experiment file.
"""

import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers
from ml_collections import ConfigDict

from lm.components import Inference
from lm.config import resolve
from lm.errors import UserError
from lm.evaluation.host_memory import Program
from lm.parallel import multihost
from lm.progress import Progress
from lm.types import Params
from lm.workdir import run_data
from lm.workdir.metrics_writer import Metrics
from lm.workdir.run_data import EvalExample, losses_by_step

_KEY = 'eval.evaluators'


@dataclass(frozen=True)
class Evaluation:
  """The results of an evaluator at one step.

  Attributes:
    values: by name, 'eval/SET/METRIC'.
    notes: remarks on values, by the same names.
    examples: inputs, outputs and scores, by set.
    files: JSON content by 'FOLDER/NAME', such as 'attention/validation'. The workdir keeps the
      content of the newest step.
    texts: (prompt, text) of each sample.
  """

  values: dict[str, float] = field(default_factory=dict)
  notes: dict[str, str] = field(default_factory=dict)
  examples: dict[str, list[EvalExample]] = field(default_factory=dict)
  files: dict[str, Mapping[str, Any]] = field(default_factory=dict)
  texts: Sequence[tuple[str, str]] = ()


def _no_directions(params: Params) -> dict[str, bool | None]:
  del params
  return {}


def _no_programs(params: Params) -> Iterable[Program]:
  del params
  return ()


@dataclass(frozen=True)
class Evaluator:
  """An evaluation; all processes call its functions together.

  Attributes:
    run: `(step, params) -> Evaluation`.
    directions: `params -> {name: whether the highest value is the best}` of every value of `run`;
      None is for a value without a direction. `params` may be shapes, and nothing is computed. The
      trainer calls `directions` before the first step, so that errors of the model surface early.
    programs: `params -> programs` whose memory is checked at start-up.
    notes: remarks for the user by subject, such as how many examples were skipped.
  """

  run: Callable[[int, Params], Evaluation]
  directions: Callable[[Params], dict[str, bool | None]] = _no_directions
  programs: Callable[[Params], Iterable[Program]] = _no_programs
  notes: Mapping[str, str] = field(default_factory=dict)


def check_disjoint(names: Collection[str], others: Iterable[str], where: str) -> None:
  """Raises UserError if two values have the same name; `where` names their owners in the plural."""
  for name in others:
    if name in names:
      raise UserError(f'two {where} have a value {name!r}; leave one of them out')


class Evaluators:
  """The evaluators of a config, in order.

  Attributes:
    notes: of all evaluators.

  Raises:
    UserError: a path does not name an evaluator, or an evaluator raises it.
  """

  def __init__(self, config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer):
    self._monitor = config.checkpoint.monitor
    self._evaluators = []
    for path in config.eval.evaluators:
      fn = resolve.resolve(path, _KEY)
      evaluator = resolve.call(fn, _KEY, config, functions, tokenizer)
      if not isinstance(evaluator, Evaluator):
        raise UserError(
          f'{_KEY}={path!r} returns {type(evaluator).__name__}; it must name a function '
          '(config, functions, tokenizer) -> lm.evaluation.evaluators.Evaluator'
        )
      self._evaluators.append(evaluator)
    self.notes = {k: v for evaluator in self._evaluators for k, v in evaluator.notes.items()}

  def directions(self, params: Params) -> dict[str, bool | None]:
    """Returns whether the highest value is the best, by the name of each value; computes none.

    Raises:
      UserError: two values have the same name, or a function of the config raises it.
    """
    found: dict[str, bool | None] = {}
    for evaluator in self._evaluators:
      new = evaluator.directions(params)
      check_disjoint(found, new, 'evaluators')
      found |= new
    return found

  def programs(self, params: Params) -> Iterator[Program]:
    """Yields the programs of all evaluators, not yet traced; `params` may be shapes."""
    for evaluator in self._evaluators:
      yield from evaluator.programs(params)

  def evaluate(self, step: int, params: Params) -> Evaluation:
    """Returns the values of all evaluators that have some, with their notes and examples.

    Raises:
      UserError: a metric is undefined, such as that of an empty set.
    """
    total = Evaluation()
    for evaluator in self._evaluators:
      if evaluator.directions(params):  # samples and attention maps have none
        found = evaluator.run(step, params)
        total.values.update(found.values)
        total.notes.update(found.notes)
        total.examples.update(found.examples)
    return total

  def run(
    self, step: int, params: Params, workdir: pathlib.Path, metrics: Metrics, progress: Progress
  ) -> dict[str, float]:
    """Evaluates a step of a run; writes values, outputs, files and samples as they are ready.

    Returns:
      The values.
    """
    values: dict[str, float] = {}
    for evaluator in self._evaluators:
      found = evaluator.run(step, params)
      values |= found.values
      if found.values:
        metrics.write(step, found.values)
        items = (f'{name.removeprefix("eval/")} {v:.4g}' for name, v in found.values.items())
        progress.message(f'step {step}: {"  ".join(items)}')
      if multihost.is_primary():
        try:
          self._write_files(step, found, workdir)
        except OSError as e:  # a full disk must not end the run
          progress.message(f'warning: the outputs of step {step} are not written: {e}')
      for name, value in found.values.items():
        if value != value:
          cause = 'its weights sum to 0, or the model outputs NaN'
          progress.message(f'warning: {name} of step {step} is not a number: {cause}')
      for i, (prompt, text) in enumerate(found.texts):
        metrics.text(step, f'sample {i + 1}', text, prompt)
        progress.message(f'  | {prompt}{text}'.replace('\n', '\n  | '))
    if not values:
      progress.message(f'step {step}: nothing to evaluate')
    return values

  def _write_files(self, step: int, found: Evaluation, workdir: pathlib.Path) -> None:
    if found.examples:
      losses = losses_by_step(workdir, self._monitor)
      known = [(loss, at) for at, loss in losses.items() if at <= step]
      best = min(known)[1] if known else None
      run_data.write_predictions(workdir, step, found.examples, found.notes, best)
    for name, content in found.files.items():
      run_data.write_newest(workdir, name, step, content)
