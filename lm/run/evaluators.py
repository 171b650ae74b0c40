"""The evaluations of a run: every named set, and samples."""

import jax
import tokenizers
from ml_collections import ConfigDict

from lm import mesh as meshes
from lm.data import batches, prepare
from lm.data.rows import FeatureRows, Rows
from lm.decode.sampling import sampler
from lm.decode.text import continuations
from lm.run import build
from lm.run.build import Functions
from lm.run.evaluate import EvalStep, evaluate, make_eval_step
from lm.run.predict import Predictor
from lm.run.watch import Watch
from lm.types import Metric, Params


class Evaluators:
  """The sets of `config.eval.sets`, each with its rows, metrics and compiled step."""

  def __init__(self, config: ConfigDict, functions: Functions, tokenizer: tokenizers.Tokenizer):
    self._config = config
    self._functions = functions
    self._tokenizer = tokenizer
    sharding = meshes.batch_sharding(functions.mesh, functions.rules)
    self._select = meshes.local_rows(config.eval.batch_size, sharding)
    self._choose = sampler(temperature=config.log.temperature, top_k=config.log.top_k)
    # Samples are few rows, which do not divide over a mesh.
    self._apply = build.apply_of(functions.model)
    self._sets: dict[str, tuple[Rows | FeatureRows, list[Metric], EvalStep]] = {}
    self._predictors: dict[str, Predictor] = {}
    for name, section in config.eval.sets.items():
      rows = prepare.rows(
        config.data,
        section.split,
        tokenizer,
        config.seed,
        prepare.show_progress,
        source=section.source or None,
      )
      metrics = build.metrics(config, name)
      self._sets[name] = rows, metrics, make_eval_step(functions.apply, metrics)
      if isinstance(rows, FeatureRows) and section.scores:
        self._predictors[name] = Predictor(config, name, functions, tokenizer, rows, self._apply)

  def means(self, params: Params) -> dict[str, float]:
    """Returns 'eval/SET/METRIC' of all sets."""
    values: dict[str, float] = {}
    for name, (rows, metrics, step) in self._sets.items():
      source = batches.eval_batches(rows, self._config.eval.batch_size, self._select)
      means = evaluate(step, metrics, params, source, self._functions)
      values |= {f'eval/{name}/{metric}': value for metric, value in means.items()}
    for name, predictor in self._predictors.items():
      scores, _ = predictor.scores(predictor.predictions(params))
      values |= {f'eval/{name}/{metric}': value for metric, value in scores.items()}
    return values

  def run(self, step: int, params: Params, watch: Watch) -> None:
    """Evaluates a step of a run and writes numbers and samples."""
    values = self.means(params)
    watch.metrics.write(step, values)
    summary = '  '.join(f'{name.removeprefix("eval/")} {v:.4g}' for name, v in values.items())
    watch.progress.message(f'step {step}: {summary}')
    for i, (prompt, text) in enumerate(self.samples(params, step)):
      watch.metrics.text(step, f'sample {i + 1}', text, prompt)
      watch.progress.message(f'  | {"".join((prompt, text))}'.replace('\n', '\n  | '))

  def samples(self, params: Params, step: int) -> list[tuple[str, str]]:
    """Returns (prompt, continuation) of the configured prompts."""
    log = self._config.log
    prompts = list(log.prompts)
    if not prompts:
      return []
    if jax.process_count() == 1:
      params = jax.device_put(params, jax.devices()[0])
    pieces = continuations(
      self._functions.model,
      self._apply,
      params,
      self._tokenizer,
      prompts,
      self._choose,
      [step + i for i in range(len(prompts))],
      log.sample_tokens,
    )
    texts = [''.join(row) for row in zip(*pieces, strict=True)] or [''] * len(prompts)
    return list(zip(prompts, texts, strict=True))
