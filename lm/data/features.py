"""From the examples of a task to features, a chunk at a time, and how they lie on the disk."""

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
from lm.task import Converter, Example, Features, Task, cast_feature, concatenate_feature
from lm.text.files import lone_surrogate

POLICIES = ('error', 'truncate', 'skip')
# Arrays of features by their place: 'tokens/NAME', 'source/NAME', 'values/NAME'; and 'tokens',
# 'source', the lengths of each; 'example', which of the chunk's examples each was made of, and
# 'count', how many those are; 'long', how many are longer than data.context, than
# data.source_context, and than any of the two.
Arrays = dict[str, np.ndarray]
STREAMS = (TOKENS, SOURCE) = ('tokens', 'source')
VALUES, EXAMPLE, COUNT, LONG = 'values', 'example', 'count', 'long'


def open_task(data: Mapping[str, Any]) -> tuple[Task, Converter]:
  """Returns the task of a data section and the converter that an architecture needs.

  Raises:
    UserError: the section names no such functions; later, from the task, a text is damaged.
  """
  if data['convert'] is None:
    raise UserError(
      f'data.task={data["task"]!r} needs data.convert, such as lm.tasks.seq2seq:encoder_decoder'
    )
  task = _whole(resolve.call(resolve.resolve(data['task'], 'data.task'), 'data.task'))
  builder = resolve.resolve(data['convert'], 'data.convert')
  return task, resolve.call(builder, 'data.convert', task)


def _whole(task: Task) -> Task:
  """Returns a task that takes no text with half a character, which a tokenizer cannot read."""

  def checked(text: str) -> str:
    if half := lone_surrogate(text):
      raise UserError(f'data.source: a text of an example {half}')
    return text

  return dataclasses.replace(
    task,
    inputs=lambda example: [checked(part) for part in task.inputs(example)],
    target=lambda example: checked(task.target(example)),
  )


def encoder(
  data: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, where: Callable[[int], str]
) -> Callable[[Iterable[Example], int], Arrays]:
  """Returns the function that turns examples, from a number on, into arrays of features.

  Args:
    data: the config's data section, of which it reads task, convert, labels, context,
      source_context and too_long.
    tokenizer: that of the task.
    where: names the example of a number, for errors.

  Raises:
    UserError: the section is wrong; later, an example does not fit or is not of the task.
  """
  if data['too_long'] not in POLICIES:
    raise UserError(f'data.too_long={data["too_long"]!r} is none of {", ".join(POLICIES)}')
  _, converter = open_task(data)
  convert = converter.features(tokenizer, tuple(data['labels']), data['context'])
  longest = limits(data)

  def arrays(examples: Iterable[Example], start: int) -> Arrays:
    found: list[tuple[int, Features]] = []
    count, long = 0, np.zeros(3, np.int64)
    for example in examples:
      name = functools.partial(where, start + count)
      try:
        made = convert(example)
      except UserError as e:
        raise UserError(f'{name()}: {e}') from e
      for features in made:
        fitted = fit(features, longest, data['too_long'], name)
        if fitted is not None:
          found.append((count, fitted))
      if made:
        beyond = np.array([_beyond(features, longest) for features in made])
        long += np.append(beyond.any(axis=0), beyond.any())
      count += 1
    return _stacked(found) | {COUNT: np.array([count]), LONG: long}

  return arrays


def limits(data: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
  """Returns what bounds 'tokens' and 'source': the key of a data section, and its value."""
  keys = {TOKENS: 'context', SOURCE: 'source_context'}
  return {stream: (key, data[key]) for stream, key in keys.items()}


def _beyond(features: Features, limits: Mapping[str, tuple[str, int]]) -> list[bool]:
  return [_length(getattr(features, stream)) > limit for stream, (_, limit) in limits.items()]


def fit(
  features: Features,
  limits: Mapping[str, tuple[str, int]],
  policy: str,
  name: Callable[[], str] = lambda: 'an example',
) -> Features | None:
  """Returns features that are no longer than a row, or None when they are to be skipped.

  Args:
    features: tokens and source of any length.
    limits: as `limits` returns them.
    policy: 'error', 'truncate' (the end is cut off) or 'skip'.
    name: of the example, for the error.

  Raises:
    UserError: they are longer, and the policy is 'error'.
  """
  for stream, (key, limit) in limits.items():
    length = _length(getattr(features, stream))
    if length <= limit:
      continue
    if policy == 'skip':
      return None
    if policy == 'error':
      raise UserError(
        f'data.{key}={limit}: {name()} has {length} tokens; raise it, or set '
        "data.too_long='truncate' or 'skip'"
      )
    cut = {name: values[:limit] for name, values in getattr(features, stream).items()}
    features = features._replace(**{stream: cut})
  return features


def fit_prompt(
  prompt: Features,
  limits: Mapping[str, tuple[str, int]],
  policy: str,
  name: Callable[[], str] = lambda: 'an example',
) -> Features | None:
  """Does what `fit` does for what is there before the first token is written.

  In a row that is written on, a quarter stays free, and what is cut off is the beginning, after the
  first token: the end says that now something is to be written.
  """
  if not prompt.source and policy == 'truncate':
    limit = limits[TOKENS][1] - limits[TOKENS][1] // 4
    if _length(prompt.tokens) > limit:
      cut = {k: np.concatenate([v[:1], v[1 - limit :]]) for k, v in prompt.tokens.items()}
      return prompt._replace(tokens=cut)
  return fit(prompt, limits, policy, name)


def _length(arrays: Mapping[str, np.ndarray]) -> int:
  lengths = {len(values) for values in arrays.values()}
  if len(lengths) > 1:
    sizes = {name: len(values) for name, values in arrays.items()}
    raise ValueError(f'arrays along one row differ in length: {sizes}')
  return lengths.pop() if lengths else 0


def _stacked(found: Sequence[tuple[int, Features]]) -> Arrays:
  arrays: Arrays = {EXAMPLE: np.array([index for index, _ in found], np.int64)}
  for stream in STREAMS:
    parts = [getattr(features, stream) for _, features in found]
    arrays[stream] = np.array([_length(part) for part in parts], np.int64)
    for name in parts[0] if parts else ():
      arrays[f'{stream}/{name}'] = concatenate_feature(name, [part[name] for part in parts])
  for name in found[0][1].values if found else ():
    arrays[f'{VALUES}/{name}'] = cast_feature(
      name, [features.values[name] for _, features in found]
    )
  return arrays


def note(data: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
  """Returns how many examples are left out or cut, and by which keys; '' where none is."""
  long = meta['too_long']
  if not long['either'] or data['too_long'] == 'error':
    return ''
  done = {'skip': 'left out', 'truncate': 'cut'}[data['too_long']]
  keys = (f'data.{key}={data[key]}' for key in ('context', 'source_context') if long[key])
  return (
    f'{long["either"]:,} of {meta["documents"]:,} examples {done}: they are longer than '
    f'{" or ".join(keys)}'
  )


def write(place: pathlib.Path, chunks: Iterable[Arrays]) -> dict[str, Any]:
  """Writes arrays of features into a directory; returns what meta.json says of them.

  Arrays along rows go to 'STREAM.NAME.bin', one after another; the others to .npy files. `fields`
  holds their names, and `dtypes` the type of each that lies along a row.

  Raises:
    UserError: a field along a row holds integers in some examples and floats in others.
  """
  whole: dict[str, list[np.ndarray]] = {name: [] for name in (*STREAMS, EXAMPLE)}
  examples, long, content = 0, np.zeros(3, np.int64), hashlib.sha256()
  with contextlib.ExitStack() as stack:
    files: dict[str, Any] = {}
    dtypes: dict[str, str] = {}
    for chunk in chunks:
      chunk[EXAMPLE] = chunk[EXAMPLE] + examples
      examples += int(chunk.pop(COUNT)[0])
      long = long + chunk.pop(LONG)
      for name, values in chunk.items():
        stream, _, field = name.partition('/')
        if not field or stream == VALUES:
          whole.setdefault(name, []).append(values)
          continue
        if name not in files:
          files[name] = stack.enter_context((place / f'{stream}.{field}.bin').open('wb'))
        if len(values):
          dtypes.setdefault(name, values.dtype.name)
        if len(values) and values.dtype.name != dtypes[name]:
          raise UserError(
            f'data.convert: {field!r} of features is {dtypes[name]} in some examples and '
            f'{values.dtype.name} in others; give it as one of them'
          )
        files[name].write(values.data)
        content.update(values.data)
  for name, parts in whole.items():
    values = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if values.dtype.kind == 'f':
      values = values.astype(np.float32)  # of some chunks integers
    content.update(values.tobytes())
    cache.save_array(place / f'{name.replace("/", ".")}.npy', values)
  fields = sorted([*files, *(name for name in whole if name.startswith(f'{VALUES}/'))])
  tokens = sum(int(np.sum(part)) for stream in STREAMS for part in whole[stream])
  features = sum(map(len, whole[EXAMPLE]))
  return {
    'documents': examples,
    'too_long': dict(zip(('context', 'source_context', 'either'), long.tolist(), strict=True)),
    'features': features,
    'tokens': tokens,
    'fields': fields,
    'dtypes': dict.fromkeys(files, 'int32') | dtypes,
    'content': content.hexdigest(),
  }
