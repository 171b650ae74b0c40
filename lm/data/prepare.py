"""Preparation: from a config's data section to a tokenizer, and to rows of tokens.

Three artefacts lie in the cache, each named by what shaped it: the tokenizer, the tokens of a
split, and the packing plan of those tokens. Where the data has a task, the tokens are the features
of its examples (lm.data.features); where neighbours are counted, the pairs of words stand in the
place of the plan (lm.data.pair_rows).
"""

import contextlib
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache, features, identity, module_code, packing, pair_rows, tokenise, workers
from lm.data.batches import AnyRows
from lm.data.progress import Progress, quiet, show_progress, ticking
from lm.data.rows import FeatureRows, Rows
from lm.data.splits import exactly
from lm.errors import UserError
from lm.task import Example
from lm.text.tokenizers import SEPARATOR, vocabulary_size, with_special_tokens, word_ids

__all__ = ['examples', 'rows', 'show_progress', 'tokenizer']

_IN_ORDER = 'lm.data.packing:concatenate'  # rows of evaluation
# What of a data section shapes the features of a task.
_TASK = ('task', 'convert', 'labels', 'context', 'source_context', 'too_long')


def tokenizer(data: Mapping[str, Any], progress: Progress | None = None) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a config, trained on the training split or found in the cache.

  Args:
    data: the config's data section.
    progress: told how many documents of how many have been read; None for silence.

  Raises:
    UserError: the section is wrong, or the corpus is.
  """
  train = resolve.build_section(data['tokenizer'], 'data.tokenizer')
  source = tokenise.open_source(data['source'], data['train'])
  leaves = {key: _plain(value) for key, value in data['tokenizer'].items()}
  shaped_by = identity.corpus(data, data['source'], data['train'], source)
  shaped_by |= {'tokenizer': leaves, 'tokenizer code': module_code.of_values(leaves)}

  specials: tuple[str, ...] = tuple(data['specials'])
  texts_of: Callable[[Example], list[str]] = tokenise.texts_of
  if data['task'] is not None:
    task, converter = features.open_task(data)
    specials, texts_of = (SEPARATOR, *task.special_tokens, *specials), converter.tokenizer_texts
    shaped_by |= _task_shape(data, ('task', 'convert'))
  shaped_by |= {'specials': specials}

  def build(place: pathlib.Path) -> dict[str, Any]:
    with ticking(progress or quiet) as shown:
      texts = _Texts(source, tuple(data['prepare']), texts_of, shown)
      if not any(texts):
        raise UserError(_nothing(data, data['source'], data['train'], len(source)))
      trained = with_special_tokens(resolve.call(train, 'data.tokenizer', texts), specials)
    if 'min_count' in data['tokenizer'] and not word_ids(trained):
      raise UserError(
        f'data.tokenizer.min_count={data["tokenizer"]["min_count"]}: nothing in split '
        f'{data["train"]!r} occurs so often; lower it, or take more text'
      )
    (place / 'tokenizer.json').write_text(trained.to_str(), 'utf-8')
    return {'vocab_size': vocabulary_size(trained), 'shaped_by': shaped_by}

  name = f'tokenizer-{cache.digest(shaped_by)}'
  place, _ = cache.artefact(cache.directory(data['cache']), name, build)
  return tokenizers.Tokenizer.from_file(str(place / 'tokenizer.json'))


def examples(data: Mapping[str, Any], split: str, source: str | None = None) -> Iterator[Example]:
  """Yields the examples of a split, after the preparation steps, in order."""
  opened = tokenise.open_source(source or data['source'], split)
  for start, stop in tokenise.chunks(len(opened)):
    yield from tokenise.examples(opened, data['prepare'], start, stop)


def rows(
  data: Mapping[str, Any],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int | None,
  progress: Progress | None = None,
  source: str | None = None,
  transformed: bool = True,
) -> AnyRows:
  """Returns a split as rows of tokens or of pairs, prepared or found in the cache.

  Rows of evaluation, which have no seed, are packed in the order of the source by a rule of their
  own: text is cut every `context` tokens whatever `data.pack` says, so that figures of runs with
  other seeds, batches and packing compare. Pairs are shuffled always, here by the seed 0.

  Args:
    data: the config's data section.
    split: which split of the source.
    tokenizer: turns its text into tokens.
    seed: orders the documents before they are packed into rows, or the pairs; None for evaluation.
    progress: told how many documents of how many are done; None for silence.
    source: import path of a source other than the config's, as for an evaluation set.
    transformed: whether rows leave the room that `data.reserve` keeps for transforms.

  Raises:
    UserError: the section is wrong, or the corpus is.
  """
  for key in ('context', 'source_context'):
    if data[key] < 1:
      raise UserError(f'data.{key}={data[key]}: a row has at least one token')
  if data['task'] is not None and data['count'] is not None:
    raise UserError(
      f'data.task={data["task"]!r} and data.count={data["count"]!r}: only plain text is counted; '
      'leave one of them empty'
    )
  source = source or data['source']
  reserve = _reserve(data) if transformed else 1.0
  place, meta = _tokens(data, source, split, tokenizer, progress or quiet)
  if data['count'] is not None:
    return pair_rows.prepared(data, split, tokenizer, seed or 0, place, meta, progress or quiet)
  shaped_by = {'format': identity.FORMAT, 'tokens': place.name, 'seed': seed}
  shaped_by |= {key: data[key] for key in ('context', 'source_context')}
  if data['task'] is None:
    path = _IN_ORDER if seed is None else data['pack']
    pack = resolve.resolve(path, 'data.pack')
    shaped_by |= {'pack': path, 'code': module_code.of_values(path)}
  else:
    shaped_by |= {'reserve': reserve}

  def build(plan_place: pathlib.Path) -> dict[str, Any]:
    if data['task'] is not None:
      sizes = np.stack([np.load(place / f'{stream}.npy') for stream in features.STREAMS], axis=1)
      capacity = np.array([data['context'], data['source_context']])
      # In integers: 10 x 1.1 is 11 and not 12, which it is in binary fractions rounded up.
      times = exactly(reserve)
      sizes = np.minimum(-(-sizes * times.numerator // times.denominator), capacity)
      row_ends, order = packing.whole(sizes, capacity, seed)
      plan = {'row_ends': row_ends, 'order': order}
    else:
      ends = np.load(place / 'ends.npy', mmap_mode='r')
      plan = resolve.call(pack, 'data.pack', ends, data['context'], seed)._asdict()
    for field, values in plan.items():
      cache.save_array(plan_place / f'{field}.npy', values)
    return {'rows': len(plan['row_ends']), 'shaped_by': shaped_by}

  plan_place, _ = cache.artefact(
    cache.directory(data['cache']), f'plan-{cache.digest(shaped_by)}', build
  )
  if data['task'] is None:
    return Rows(place, plan_place, data['context'], meta)
  return FeatureRows(place, plan_place, (data['context'], data['source_context']), meta)


def _reserve(data: Mapping[str, Any]) -> float:
  """Returns how many times its size an example takes up in a row that is trained on."""
  if data['reserve'] < 1:
    raise UserError(f'data.reserve={data["reserve"]}: an example takes up 1 or more times its size')
  if data['reserve'] > 1 and data['task'] is None:
    raise UserError(
      f'data.reserve={data["reserve"]}: text without a task is packed without gaps; it must be 1.0'
    )
  return data['reserve']


def _tokens(
  data: Mapping[str, Any],
  source_path: str,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  progress: Progress,
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of the tokens of a split, and its meta.json."""
  source = tokenise.open_source(source_path, split)
  task = None if data['task'] is None else {key: _plain(data[key]) for key in _TASK}
  job = workers.Job(source_path, split, tuple(data['prepare']), tokenizer.to_str(), task)
  shaped_by = identity.corpus(data, source_path, split, source)
  shaped_by['tokenizer'] = hashlib.sha256(job.tokenizer.encode()).hexdigest()
  if task is not None:
    shaped_by |= _task_shape(data, _TASK)

  def build(place: pathlib.Path) -> dict[str, Any]:
    stream = contextlib.closing(workers.encode(job, source, data['workers']))
    with stream as chunks:
      told = _told(chunks, len(source), split, progress)
      if task is None:
        counts = tokenise.write(place, told, tokenise.token_type(tokenizer))
      else:
        counts = features.write(place, told)
    if not counts['bytes' if task is None else 'features']:
      long = '' if task is None else features.note(task, counts)
      raise UserError(
        f'split {split!r} is empty: {long}; raise it'
        if long
        else _nothing(data, source_path, split, len(source))
      )
    if task is not None:
      notes = (getattr(source, 'note', ''), features.note(task, counts))
      counts['note'] = '; '.join(filter(None, notes))
    return counts | {'shaped_by': shaped_by}

  name = f'{"tokens" if task is None else "features"}-{cache.digest(shaped_by)}'
  return cache.artefact(cache.directory(data['cache']), name, build)


def _nothing(data: Mapping[str, Any], source: str, split: str, count: int) -> str:
  """Returns what to say of a split without any text, of `count` examples in its source."""
  if not data['prepare'] or not count:
    return f'data.source={source!r}: split {split!r} has no text'
  of_turns = any(step.startswith('lm.tasks.dialogue:expand_turns') for step in data['prepare'])
  return (
    f'data.prepare={tuple(data["prepare"])!r}: split {split!r} has no text: nothing is left of its '
    f'{count:,} examples' + '; a dialogue of one turn has no reply' * of_turns
  )


def _told(
  chunks: Iterator[workers.Arrays], total: int, split: str, progress: Progress
) -> Iterator[workers.Arrays]:
  for done in itertools.count(tokenise.CHUNK, tokenise.CHUNK):
    chunk = next(chunks, None)
    if chunk is None:
      return
    yield chunk
    progress(min(done, total), total, f'preparing {split!r}')


def _task_shape(data: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """Returns what of a task shapes its artefacts."""
  functions = [data['task'], data['convert']]
  shape = {key: _plain(data[key]) for key in keys}
  return {'task': shape, 'task code': module_code.of_values(functions)}


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


class _Texts:
  """The texts a tokenizer is trained on; every iteration starts afresh."""

  def __init__(
    self,
    source: Sequence[dict],
    steps: tuple[str, ...],
    texts_of: Callable[[Example], list[str]],
    progress: Progress,
  ):
    self._source = source
    self._steps = steps
    self._texts_of = texts_of
    self._progress = progress

  def __iter__(self) -> Iterator[str]:
    total = len(self._source)
    for start, stop in tokenise.chunks(total):
      for example in tokenise.examples(self._source, self._steps, start, stop):
        for text in self._texts_of(example):
          yield from tokenise.pieces(text)
      self._progress(stop, total, 'training the tokenizer')
