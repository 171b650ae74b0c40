"""A trained model that can be asked, as `lm.load` returns it; and `tag`, which tags words.

  run = lm.load('runs/sst2')
  run.predict(['a fine film'])       # [{'label': '1', 'probabilities': {'1': 0.98, '0': 0.02}}]
  run.embed(['a fine film'])         # (1, D)
  run.generate(['The '])             # of a model that generates

A trained tagger serves lm.text.segment and `data.prepare`:

segment.tag_words(text, functools.partial(tag, workdir='runs/msra_ner'))
tagger = "lm.evaluation.trained_model:tag(workdir='DIR')"
config.data.prepare = (f'lm.data.preprocess:tag_words(tagger="{tagger}")',)
"""

import contextlib
import functools
import inspect
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.config import resolve
from lm.data import features
from lm.decode import sampling
from lm.decode.batch import generate_batch
from lm.decode.loop import DecodeConfig
from lm.decode.stream import prompt_encoder
from lm.errors import UserError, check_choice, check_range
from lm.evaluation import calibration
from lm.evaluation.long_rows import POLICIES, fit
from lm.evaluation.predict import (
  Prediction,
  PredictStep,
  decode_config,
  make_predict_step,
  packed_batches,
  predicted_pieces,
)
from lm.models.ensemble import Ensemble
from lm.nn import heads, pooling
from lm.nn.hooks import with_hooks
from lm.task import Convert, Example, Features, Pieces, Task, string_field
from lm.tasks import fill_mask
from lm.text.detokenize import TextStream
from lm.text.files import lone_surrogate
from lm.text.framing import frame, framing_of
from lm.text.tokenizers import special_ids, text_parts
from lm.types import Array, Batch, Params, apply_of
from lm.workdir import files
from lm.workdir import load as workdirs
from lm.workdir.load import Loaded

MAX_TOKENS = 100  # of a continuation, by default
Place = Callable[[int], str]  # the name of a row, for errors
Pooling = Callable[[Array, Array, int], Array]


def _nth_row(index: int) -> str:
  return f'row {index + 1}'


class _Reading(NamedTuple):
  """How a model reads rows: by `prompt`, to generate; or by `convert`, for one forward pass."""

  task: Task
  answer: str  # the key of the answer in a prediction
  prompt: Callable[[Example], Features] | None = None
  convert: Convert | None = None
  step: PredictStep | None = None
  postprocess: Callable[[Example, Pieces, int], Prediction] | None = None


class TrainedModel(Loaded):
  """A trained model with its parameters, config and tokenizer, and functions that ask it.

  Rows are dicts with the fields of the run's task, without its target; a text alone is the only
  field. A prediction depends on its own row: several share a row of a batch for speed.

  Policies for rows that are longer than those of training: 'error'; 'truncate', from the right, and
  from the left for a prompt; 'windows', whose outputs are averaged, weighted by their tokens.
  """

  def predict(
    self,
    rows: Iterable[Any],
    *,
    top_k: int = 0,
    temperature: float = 1.0,
    too_long: str = 'error',
    batch_size: int = 32,
    place: Place = _nth_row,
  ) -> list[Prediction]:
    """Returns the prediction of each row, a JSON object; its answer is under one of these keys.

    label (with probabilities), labels, value, tags (with offsets, and entities), answer (with its
    start, stop, score and null_score), masks (each a list of fillers), or generated text.

    Args:
      rows: texts, or dicts.
      top_k: labels, or fillers of a mask, to return; 0 for all labels and 5 fillers.
      temperature: divides the logits of labels; see `calibrate`.
      too_long: the policy above.
      batch_size: packed rows of a batch, or prompts.
      place: names the row of an index, for errors.

    Raises:
      UserError: the run predicts nothing, a row is unsuitable or too long, or an argument has no
        effect.
    """
    reading, examples = self._reading, self.examples(rows, place)
    if temperature != 1 and reading.answer != 'label':
      raise UserError(f'temperature={temperature}: this run predicts no label to calibrate')
    check_range('temperature', temperature, 1e-3)
    check_range('top_k', top_k, 0, fill_mask.MOST if reading.answer == 'masks' else np.inf)
    if reading.prompt is not None:
      if top_k:
        raise UserError(f'top_k={top_k}: this run generates; `generate` samples from the top k')
      return self._generations(
        examples, self._decode._replace(batch_size=batch_size), too_long, place
      )
    assert reading.convert and reading.step and reading.postprocess
    fits = self._fits(reading.convert, examples, too_long, place)
    of_examples = self._pieces(reading.step, fits, batch_size)
    found = []
    for example, pieces in zip(examples, of_examples, strict=True):
      prediction = reading.postprocess(example, pieces, top_k)
      if temperature != 1:
        prediction['probabilities'] = calibration.rescale(prediction['probabilities'], temperature)
      if top_k and isinstance(prediction.get('probabilities'), dict):
        best = list(prediction['probabilities'].items())[:top_k]
        prediction['probabilities'] = dict(best)
      found.append(prediction)
    return found

  def embed(
    self,
    texts: Iterable[Any],
    *,
    pooling: Pooling = pooling.mean,
    normalize: bool = False,
    too_long: str = 'error',
    batch_size: int = 32,
    place: Place = _nth_row,
  ) -> np.ndarray:
    """Returns a vector of each text, (n, D) float32, from the hidden states of its tokens.

    Special tokens of the text count. The hidden states are those of the last layer; of an
    encoder-decoder, those of its encoder.

    Args:
      texts: texts, or dicts with the fields of the run's task.
      pooling: a function of lm.nn.pooling.
      normalize: whether vectors have length 1.
      too_long: the policy of the class.
      batch_size: packed rows of a batch.
      place: names the text of an index, for errors.

    Raises:
      UserError: the model has no hidden states, or a text is unsuitable or too long.
    """
    examples = self.examples(texts, place)
    fits = self._fits(self._text_features, examples, too_long, place)
    vectors = [
      np.average(
        [piece['values/embedding'] for piece in pieces],
        axis=0,
        weights=[piece['tokens'] for piece in pieces],
      )
      for pieces in self._pieces(self._embed_step(pooling), fits, batch_size)
    ]
    found = np.array(vectors, np.float32).reshape(len(examples), -1)
    if normalize:
      found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found

  def generate(
    self,
    prompts: Iterable[Any],
    max_tokens: int | None = None,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
    first: int = 0,
    too_long: str = 'error',
    batch_size: int | None = None,
    place: Place = _nth_row,
  ) -> list[str]:
    """Returns the generated text of each prompt: its continuation, or the target of a task.

    Args:
      prompts: texts, or dicts with the fields of the run's task.
      max_tokens: of a text; by default 100, or decode.max_tokens of a task.
      temperature: divides the logits of samples; at 0, decoding is greedy, or by the beam search
        or the decode.sampler, that the run names.
      top_k: with the rest as `lm.decode.sampling.sampler`.
      top_p: see there.
      min_p: see there.
      seed: of the samples.
      first: the index of the first prompt among those of the seed.
      too_long: 'error' or 'truncate'.
      batch_size: prompts of a batch; by default decode.batch_size of the run.
      place: names the prompt of an index, for errors.

    Raises:
      UserError: the run does not generate, a prompt is unsuitable or too long, or `top_k`, `top_p`
        or `min_p` is given at temperature 0.
    """
    if self._reading.prompt is None:
      raise UserError(f'--workdir={self.workdir}: this run generates no text; ask `predict`')
    given = {'max_tokens': max_tokens, 'batch_size': batch_size}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if temperature:
      fn = sampling.sampler(temperature, top_k, top_p, min_p)
      changes |= {'sample_fn': fn, 'beam_size': 1}
    elif (top_k, top_p, min_p) != (0, 1.0, 0.0):
      raise UserError(
        f'top_k={top_k}, top_p={top_p} and min_p={min_p} have no effect at temperature=0, which is '
        'not sampled'
      )
    found = self._generations(
      self.examples(prompts, place), self._decode._replace(**changes), too_long, place, seed, first
    )
    return [prediction['text'] for prediction in found]

  def calibrate(self, rows: Sequence[Example], **how: Any) -> float:
    """Returns the temperature of `predict` that fits labelled rows best.

    Args:
      rows: dicts with the fields of the run's task, its label too.
      **how: arguments of `predict`.

    Raises:
      UserError: the run predicts no labels, or a label is not one of them.
    """
    predictions, place = self.predict(rows, **how), how.get('place', _nth_row)
    if self._reading.answer != 'label':
      raise UserError(f'--workdir={self.workdir}: this run predicts no label to calibrate')
    labels, known = [], set(self.config.data.labels)
    for i, row in enumerate(rows):
      with _at(place, i):
        labels.append(self._reading.task.reference(row))
        if labels[-1] not in known:
          raise UserError(f'the model has no label {labels[-1]!r}; it has {sorted(known)}')
    return calibration.fit_temperature([p['probabilities'] for p in predictions], labels)

  @property
  def fills_masks(self) -> bool:
    """Whether the model is an encoder whose head is the vocabulary."""
    for model in getattr(self.model, 'members', (self.model,)):
      if getattr(model, 'num_classes', 0) is not None or getattr(model, 'pooling', 0) is not None:
        return False
    names, row = ('inputs', 'segments', 'positions', 'examples'), np.zeros((1, 1), np.int32)
    output = jax.eval_shape(self.apply, self.params, dict.fromkeys(names, row))
    return output.head.padded_vocab_size > 0

  @property
  def answer(self) -> str:
    """The key of the answer in the predictions of the run."""
    return self._reading.answer

  @property
  def field(self) -> str:
    """The field of a row that is a text alone.

    Raises:
      UserError: the task reads several.
    """
    fields = self._task.fields
    if len(fields) > 1:
      raise UserError(
        f'a row is a text, and data.task={self.config.data.task!r} reads several fields, '
        f'{", ".join(map(repr, fields))}; give objects that name them'
      )
    return fields[0]

  def examples(self, rows: Iterable[Any], place: Place = _nth_row) -> list[Example]:
    """Returns the example of each row, as `data.prepare` prepares those of training.

    Raises:
      UserError: a row is neither text nor dict, lacks a field, or has an empty one.
    """
    return [self._example(row, functools.partial(place, i)) for i, row in enumerate(rows)]

  def _example(self, row: Any, name: Callable[[], str]) -> Example:
    with _at(lambda _: name(), 0):
      if isinstance(row, str):  # that of a dialogue is its first turn
        row = {self.field: [row] if self.field == 'turns' else row}
      if not isinstance(row, Mapping):
        raise UserError(f'{row!r:.60} is neither a text nor a dict of fields')
      for field in self._task.fields:
        if field in row and not str(row[field] or '').strip():
          raise UserError(f'{field!r} is empty')
      example = self._task.question(row)
      for step in self._steps:
        example = self._prepared(example, step)
      return example

  def _prepared(self, example: Example, step: Callable[..., Iterable[Example]]) -> Example:
    """Returns an example after a step of data.prepare that acts on one of its fields."""
    field = inspect.signature(step).parameters['field'].default
    if not isinstance(example.get(field), str):
      return example
    found = list(step([example]))
    if len(found) != 1:
      raise UserError(f'data.prepare makes {len(found)} examples of the row, and not one')
    if self._reading.answer == 'answer' and found[0].get(field) != example[field]:
      raise UserError(
        f'data.prepare changes {field!r}, so that the answer has no place in the raw text'
      )
    return found[0]

  @functools.cached_property
  def _steps(self) -> list[Callable[..., Iterable[Example]]]:
    """The steps of data.prepare that act on a field; others shape the corpus."""
    if self.config.data.task is None:
      return []
    with self.modules():
      found = [resolve.resolve(path, 'data.prepare') for path in self.config.data.prepare]
    return [step for step in found if 'field' in inspect.signature(step).parameters]

  @property
  def prepare_notes(self) -> list[str]:
    """What data.prepare does in training and not to rows."""
    if self.config.data.task is None or not self.config.data.prepare:
      return []
    skipped = len(self.config.data.prepare) - len(self._steps)
    count = f'{skipped} of {len(self.config.data.prepare)} steps of data.prepare'
    return [f'{count} shape the corpus and do not apply to rows'] if skipped else []

  @functools.cached_property
  def _task(self) -> Task:
    """The task of the run; without one, rows have a text."""
    if self.config.data.task is not None:
      return self._built[0]
    return Task(_texts, _no_target, _no_target)

  @functools.cached_property
  def _built(self) -> tuple[Task, Any]:
    with self.modules():
      return features.build_task(self.config.data)

  @functools.cached_property
  def _reading(self) -> _Reading:
    data, tokenizer = self.config.data, self.tokenizer
    if data.task is None:
      return self._without_task()
    task, converter = self._built
    if converter.predict is None:
      if converter.encode_prompt is None:
        raise UserError(f'data.converter={data.converter!r} has neither a prediction nor a prompt')
      return _Reading(task, 'text', prompt=converter.encode_prompt(tokenizer))
    if converter.inputs is None:
      raise UserError(
        f'data.converter={data.converter!r} has no `inputs`, so that it predicts only examples '
        'whose targets are known'
      )
    postprocess, labels = converter.postprocess, tuple(data.labels)
    return _Reading(
      task,
      converter.answer,
      convert=converter.inputs(tokenizer, data.seq_len),
      step=make_predict_step(converter.predict, self.apply),
      postprocess=lambda example, pieces, top_k: postprocess(labels, example, pieces),
    )

  def _without_task(self) -> _Reading:
    """Returns how a language model, or an encoder whose head is the vocabulary, reads texts."""
    tokenizer = self.tokenizer
    if getattr(self.model, 'continues_prompts', False):
      encode = prompt_encoder(tokenizer, self.config.decode.start)
      prompt = lambda e: Features({'inputs': np.array(encode(e['text']))}, {}, {})  # noqa: E731
      return _Reading(self._task, 'text', prompt=prompt)
    if not self.fills_masks:
      raise UserError(
        f'--workdir={self.workdir}: the run has no data.task, and model.fn='
        f'{self.config.model.fn!r} continues no prompt and fills no masks; --embed, or `embed`, '
        'gives embeddings'
      )
    return _Reading(
      self._task,
      'masks',
      convert=fill_mask.inputs(tokenizer),
      step=make_predict_step(fill_mask.predict, self.apply),
      postprocess=lambda e, pieces, k: fill_mask.postprocess(tokenizer, k or 5)(e, pieces),
    )

  @functools.cached_property
  def _text_features(self) -> Convert:
    """The function from an example to the features that `embed` reads."""
    if self.config.data.task is not None or getattr(self.model, 'continues_prompts', False):
      reading = self._reading
      if reading.convert is not None:
        return reading.convert
      prompt = reading.prompt
      assert prompt is not None
      return lambda example: [prompt(example)]
    framed = frame(self.tokenizer, framing_of(self.tokenizer))

    def convert(example: Example) -> list[Features]:
      found = framed(_texts(example))
      return [Features(found.arrays(), {}, {}, None if found.types is None else found.shortened)]

    return convert

  @functools.cached_property
  def _embed_step(self) -> Callable[[Pooling], PredictStep]:
    """The function from a pooling to the compiled step that embeds a batch."""
    if isinstance(self.model, Ensemble):
      raise UserError('embeddings of different runs share no space; give one --workdir')
    # Without pooling and head, the hidden states of all tokens are the output.
    fields: dict[str, Any] = {'pooling': None, 'head': heads.none}
    changed = {k: v for k, v in fields.items() if getattr(self.model, k, None) is not None}
    model = self.model.clone(**changed)
    apply, apply_with_hooks, fn = apply_of(model), with_hooks(model), self.config.model.fn

    @functools.cache
    def step_of(pool: Pooling) -> PredictStep:
      @jax.jit
      def step(params: Params, batch: Batch) -> dict[str, Array]:
        count = batch['examples'].shape[1]
        if 'source' not in batch:
          hidden_BTD, segments_BT = apply(params, batch).hidden, batch['segments']
        else:
          _, found = apply_with_hooks(params, batch, ('encoder/hidden',))
          if not found:
            raise UserError(f"model.fn={fn!r} has no hook point 'encoder/hidden' to embed texts by")
          hidden_BTD, segments_BT = found['encoder/hidden'], batch['source_segments']
        if not jnp.issubdtype(hidden_BTD.dtype, jnp.floating):
          raise UserError(f'model.fn={fn!r} has no vectors as hidden states to embed texts by')
        return {'values/embedding': pool(hidden_BTD, segments_BT, count).astype(jnp.float32)}

      return step

    return step_of

  def _fits(
    self, convert: Convert, examples: Sequence[Example], policy: str, place: Place
  ) -> list[list[Features]]:
    """Returns the features of each example, within the length of a row.

    Raises:
      UserError: an example is unsuitable, or too long for its policy.
    """
    check_choice('too_long', policy, POLICIES)
    limits, special = features.length_limits(self.config.data), special_ids(self.tokenizer)
    unlimited = policy == 'error' and getattr(self.model, 'reads_on', False)

    def fitting(one: Features, texts: int) -> list[Features]:
      limit = sys.maxsize if unlimited else limits['source' if one.source else 'tokens'][1]
      return fit(one, policy, limit, special, texts)

    found = []
    for i, example in enumerate(examples):
      with _at(place, i):
        texts = len(text_parts(self._task.inputs(example))) if policy == 'windows' else 1
        found.append([each for one in convert(example) for each in fitting(one, texts)])
    return found

  def _pieces(
    self, step: PredictStep, fits: Sequence[Sequence[Features]], batch_size: int
  ) -> Iterator[list[dict[str, np.ndarray]]]:
    """Yields the slices of each example, one for each of its features."""
    flat = [each for of_example in fits for each in of_example]
    limits = features.length_limits(self.config.data)
    by_index = dict(predicted_pieces(step, self.params, packed_batches(flat, batch_size, limits)))
    in_order = (by_index[i] for i in range(len(flat)))
    for of_example in fits:
      sizes = [len(next(iter((f.source or f.tokens).values()))) for f in of_example]
      yield [next(in_order) | {'tokens': np.array(size)} for size in sizes]

  @functools.cached_property
  def _decode(self) -> DecodeConfig:
    """The decoding of the run: the same functions, and so one program, at every call."""
    with self.modules():
      found = decode_config(self.config.decode, self.tokenizer, self.config.data.seq_len)
    if self.config.data.task is None:
      return found._replace(max_tokens=MAX_TOKENS, beam_size=1, max_length_ratio=0.0)
    return found

  def _generations(
    self,
    examples: Sequence[Example],
    config: DecodeConfig,
    too_long: str,
    place: Place,
    seed: int = 0,
    first: int = 0,
  ) -> list[Prediction]:
    """Returns the text of each example and its score, as `lm.decode.batch.Generation` has it."""
    check_choice('too_long', too_long, POLICIES[:2])
    prompt, limits = self._reading.prompt, features.length_limits(self.config.data)
    assert prompt is not None
    prompts = []
    for i, example in enumerate(examples):
      with _at(place, i):
        read = prompt(example)
        if too_long == 'truncate' or not self.model.reads_on:
          fitting = features.apply_prompt_length_policy(read, limits, too_long, lambda: 'it')
          assert fitting is not None
          read = fitting
        prompts.append(read)
    indices = range(first, first + len(prompts))
    best = generate_batch(self.model, self.apply, self.params, prompts, config, indices, seed=seed)
    return [
      {'text': self._text(example, read, tokens), 'score': score}
      for example, read, ((tokens, score), *_) in zip(examples, prompts, best, strict=True)
    ]

  def _text(self, example: Example, read: Features, tokens: Sequence[int]) -> str:
    """Returns generated tokens as text: a target, or what they add to a prompt."""
    if self.config.data.task is not None:
      return self.tokenizer.decode(tokens)
    prompt = read.tokens['inputs'].tolist()[1:]
    stream = TextStream(self.tokenizer, prompt, example['text'][-1:].isspace())
    return ''.join([*map(stream.step, tokens), stream.finish()])


@contextlib.contextmanager
def _at(place: Place, index: int) -> Iterator[None]:
  """Names the row of an error."""
  try:
    yield
  except UserError as e:
    # Rows do not come from data.source, which tasks name.
    raise UserError(f'{place(index)}: {str(e).removeprefix("data.source: ")}') from e


def _texts(example: Example) -> list[str]:
  text = string_field(example, 'text', 'a row')
  if defect := lone_surrogate(text):
    raise UserError(f"'text' {defect}")
  return [text]


def _no_target(example: Example) -> Any:
  raise UserError('the run has no data.task, and so no target')


def load(
  workdir: str | pathlib.Path,
  step: int | None = None,
  mesh: Mesh | None = None,
  trusted: bool = True,
) -> TrainedModel:
  """Opens a workdir; see `lm.workdir.load.load`."""
  return as_trained_model(workdirs.load(workdir, step, mesh, trusted=trusted))


def as_trained_model(loaded: Loaded) -> TrainedModel:
  """Returns an opened run, or an ensemble of `lm.evaluation.ensembles`, as a model to ask."""
  return TrainedModel(**vars(loaded))


def tag(
  words: Sequence[str], workdir: str, separator: str = '', step: int | None = None
) -> list[str]:
  """Returns the tags that a trained model predicts for words.

  A process opens the run once. In a step of `data.prepare`, the tags are cached with the prepared
  data, and a newer checkpoint does not invalidate this cache. Give `step` if the run may still be
  trained.

  Args:
    words: the words of one sentence, in order.
    workdir: a run whose task is tagging, such as those of experiments/msra_ner.py.
    separator: the text between words in training: '' as for Chinese, or ' '.
    step: the checkpoint; None for the best one, or else the newest.

  Raises:
    UserError: there is no such run, it does not tag words, or the words do not fit its context.
  """
  model = _tagger(str(files.workdir(workdir, 'workdir').absolute()), step)
  if not words:
    return []
  row = {'words': list(words), 'separator': separator}
  (found,) = model.predict([row], place=lambda _: f'{workdir}: a sentence of {len(words)} words')
  return found['tags']


@functools.cache
def _tagger(workdir: str, step: int | None) -> TrainedModel:
  model = load(workdir, step)
  if model.config.data.task is None or model.answer != 'tags':
    raise UserError(
      f'--workdir={workdir}: data.converter={model.config.data.converter!r} does not tag words'
    )
  return model
