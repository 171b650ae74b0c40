"""From the examples of a task to features: length policies, encoding, and files of arrays."""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache
from lm.errors import UserError
from lm.task import Converter, Example, Features, Task, concatenate_feature, stack_feature
from lm.text.files import lone_surrogate

POLICIES = ('error', 'truncate', 'skip')
# Arrays of a chunk of examples: 'tokens/NAME', 'source/NAME' and 'values/NAME' hold the features,
# 'tokens' and 'source' their lengths, and 'example' the index of their example in the chunk.
# 'count' is the number of examples. 'long' has three counts: the examples that exceed data.seq_len,
# data.source_len, and either of them.
Arrays = dict[str, np.ndarray]
STREAMS = (TOKENS, SOURCE) = ('tokens', 'source')
VALUES, EXAMPLE, COUNT, LONG = 'values', 'example', 'count', 'long'


def build_task(data: Mapping[str, Any]) -> tuple[Task, Converter]:
  """Returns the task of a data section, and the converter that an architecture needs.

  The task rejects texts with a lone surrogate, which a tokenizer cannot read.

  Raises:
    UserError: the section names an unknown function, or lacks a converter. The task raises it for a
      text with a lone surrogate.
  """
  if data['converter'] is None:
    raise UserError(
      f'data.task={data["task"]!r} needs data.converter, such as lm.tasks.seq2seq:encoder_decoder'
    )
  task = resolve.call(resolve.resolve(data['task'], 'data.task'), 'data.task')

  def checked(text: str) -> str:
    if defect := lone_surrogate(text):
      raise UserError(f'data.source: a text of an example {defect}')
    return text

  task = dataclasses.replace(
    task,
    inputs=lambda example, inputs=task.inputs: [checked(part) for part in inputs(example)],
    target=lambda example, target=task.target: checked(target(example)),
  )
  converter = resolve.resolve(data['converter'], 'data.converter')
  return task, resolve.call(converter, 'data.converter', task)


def encoder(
  data: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, where: Callable[[int], str]
) -> Callable[[Iterable[Example], int], Arrays]:
  """Returns the function `encode(examples, start)` that makes arrays of features.

  `start` is the index of the first example.

  Args:
    data: keys task, converter, labels, seq_len, source_len, too_long of the data section.
    tokenizer: the tokenizer of the task.
    where: returns the name of the example at an index, for errors.

  Raises:
    UserError: the section is wrong. `encode` raises it for an example that is too long or
      unsuitable.
  """
  if data['too_long'] not in POLICIES:
    raise UserError(
      f'data.too_long={data["too_long"]!r} must be one of {", ".join(map(repr, POLICIES))}'
    )
  _, converter = build_task(data)
  convert = converter.features(tokenizer, tuple(data['labels']), data['seq_len'])
  limits = length_limits(data)

  def arrays(examples: Iterable[Example], start: int) -> Arrays:
    features: list[tuple[int, Features]] = []
    count, long = 0, np.zeros(3, np.int64)
    for count, example in enumerate(examples, 1):
      name = functools.partial(where, start + count - 1)
      try:
        windows = convert(example)
      except UserError as e:
        raise UserError(f'{name()}: {e}') from e
      fitted = [apply_length_policy(f, limits, data['too_long'], name) for f in windows]
      features += [(count - 1, f) for f in fitted if f is not None]
      too_long = np.array(
        [[_length(getattr(f, stream)) > n for stream, (_, n) in limits.items()] for f in windows]
      ).reshape(-1, len(limits))
      long += np.append(too_long.any(axis=0), too_long.any())
    return _stacked(features) | {COUNT: np.array([count]), LONG: long}

  return arrays


def length_limits(data: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
  """Returns {stream: (key, value)} of the keys of `data` that limit the lengths of the streams."""
  return {TOKENS: ('seq_len', data['seq_len']), SOURCE: ('source_len', data['source_len'])}


def apply_length_policy(
  features: Features,
  limits: Mapping[str, tuple[str, int]],
  policy: str,
  name: Callable[[], str] = lambda: 'an example',
) -> Features | None:
  """Returns features within the length of a row, or None if they are to be skipped.

  Args:
    features: tokens and source of any length.
    limits: result of `length_limits`.
    policy: 'error', 'truncate' (as `Features.shortened` does, or from the right) or 'skip'.
    name: returns the name of the example, for the error.

  Raises:
    UserError: the features are longer than a row, and the policy is 'error'.
  """
  for stream, (key, limit) in limits.items():
    length = _length(getattr(features, stream))
    if length > limit and policy == 'skip':
      return None
    if length > limit and policy == 'error':
      raise UserError(
        f'data.{key}={limit}: {name()} has {length} tokens; raise it, or set '
        "data.too_long='truncate' or 'skip'"
      )
    if length > limit:
      by_framing = features.shortened if stream == TOKENS else None
      kept = slice(limit) if by_framing is None else by_framing(limit)
      cut: Any = {name: values[kept] for name, values in getattr(features, stream).items()}
      features = features._replace(**{stream: cut})
  return features


def apply_prompt_length_policy(
  prompt: Features,
  limits: Mapping[str, tuple[str, int]],
  policy: str,
  name: Callable[[], str] = lambda: 'an example',
) -> Features | None:
  """Applies `apply_length_policy` to a prompt.

  With the policy 'truncate', the prompt of a decoder keeps its first token and its last ones, three
  quarters of a row in all. The last quarter of the row is for generation.
  """
  if not prompt.source and policy == 'truncate':
    limit = limits[TOKENS][1] - limits[TOKENS][1] // 4
    if _length(prompt.tokens) > limit:
      cut = {k: np.concatenate([v[:1], v[1 - limit :]]) for k, v in prompt.tokens.items()}
      return prompt._replace(tokens=cut)
  return apply_length_policy(prompt, limits, policy, name)


def _length(arrays: Mapping[str, np.ndarray]) -> int:
  lengths = {name: len(values) for name, values in arrays.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f'arrays along one row differ in length: {lengths}')
  return next(iter(lengths.values()), 0)


def _stacked(indexed: Sequence[tuple[int, Features]]) -> Arrays:
  """Returns the arrays of a chunk, given its features with the index of their example."""
  arrays: Arrays = {EXAMPLE: np.array([index for index, _ in indexed], np.int64)}
  for stream in STREAMS:
    parts = [getattr(features, stream) for _, features in indexed]
    arrays[stream] = np.array([_length(part) for part in parts], np.int64)
    for name in parts[0] if parts else ():
      arrays[f'{stream}/{name}'] = concatenate_feature(name, [part[name] for part in parts])
  for name in indexed[0][1].values if indexed else ():
    arrays[f'{VALUES}/{name}'] = stack_feature(name, [f.values[name] for _, f in indexed])
  return arrays


def length_note(data: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
  """Returns the count of skipped or truncated examples and the keys responsible; '' for none."""
  long = meta['too_long']
  if not long['either'] or data['too_long'] == 'error':
    return ''
  done = {'skip': 'skipped', 'truncate': 'truncated'}[data['too_long']]
  keys = (f'data.{key}={data[key]}' for key in ('seq_len', 'source_len') if long[key])
  return (
    f'{long["either"]:,} of {meta["documents"]:,} examples {done}: they are longer than '
    f'{" or ".join(keys)}'
  )


def write_features(place: pathlib.Path, chunks: Iterable[Arrays]) -> dict[str, Any]:
  """Writes arrays of features into a directory; returns entries of meta.json.

  Each feature is concatenated in 'STREAM.NAME.bin'; lengths and indices become .npy files. In
  meta.json, `fields` has the dtype of each feature and the shape that it has per token or example.

  Raises:
    UserError: a feature has other types or shapes in some examples than in others.
  """
  arrays: dict[str, list[np.ndarray]] = {name: [] for name in (*STREAMS, EXAMPLE)}
  examples, long, content = 0, np.zeros(3, np.int64), hashlib.sha256()
  files: dict[str, Any] = {}
  fields: dict[str, list[Any]] = {}
  with contextlib.ExitStack() as stack:
    for chunk in chunks:
      chunk[EXAMPLE] = chunk[EXAMPLE] + examples
      examples += int(chunk.pop(COUNT)[0])
      long = long + chunk.pop(LONG)
      for name, values in chunk.items():
        stream, _, field = name.partition('/')
        if not field:
          arrays[name].append(values)
          continue
        if name not in files:
          files[name] = stack.enter_context((place / f'{stream}.{field}.bin').open('wb'))
        kind = [values.dtype.name, *values.shape[1:]]
        if len(values) and kind != fields.setdefault(name, kind):
          one, other = (f'{dtype}{shape or ""}' for dtype, *shape in (fields[name], kind))
          raise UserError(
            f'data.converter: {field!r} of features is {one} in some examples and {other} in '
            'others; use one type and one shape'
          )
        data = values.tobytes()
        files[name].write(data)
        content.update(data)
  for name, parts in arrays.items():
    values = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    content.update(values.tobytes())
    cache.save_array(place / f'{name}.npy', values)
  return {
    'documents': examples,
    'too_long': dict(zip(('seq_len', 'source_len', 'either'), long.tolist(), strict=True)),
    'features': sum(map(len, arrays[EXAMPLE])),
    'tokens': sum(int(np.sum(part)) for stream in STREAMS for part in arrays[stream]),
    'fields': {name: fields.get(name, ['int32']) for name in sorted(files)},
    'content': content.hexdigest(),
  }
