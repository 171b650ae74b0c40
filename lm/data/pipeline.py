"""The data pipeline: from a config's data section to a tokenizer and to packed rows of tokens.

Three kinds of artifacts are cached, each under a digest of its inputs: the tokenizer, the tokens of
a split, and the packing plan of those tokens. With `data.task`, features of examples are cached
instead of tokens (lm.data.features). With `data.pair_counter`, pairs of words are cached instead of
the plan (lm.data.cooccurrence).
"""

import contextlib
import dataclasses
import fractions
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache, features, fingerprints, packing
from lm.data.batches import open_transforms
from lm.data.encoding import (
  CHUNK,
  Job,
  chunks,
  encode,
  open_source,
  pieces,
  prepared_examples,
  text_of,
  token_type,
  write_tokens,
)
from lm.data.packed_rows import FeatureRows, PackedRows, Rows
from lm.errors import UserError
from lm.progress import Report, silent, ticking
from lm.task import Converter, Example
from lm.text.tokenizers import (
  SEPARATOR,
  vocabulary_size,
  with_special_tokens,
  word_ids,
)

_IN_ORDER = 'lm.data.packing:concatenate'  # packing of evaluation rows
_OF_COMPONENT = ('source', 'task', 'converter', 'prepare')
# Keys of a data section that determine the features of a task.
_TASK = ('task', 'converter', 'labels', 'seq_len', 'source_len', 'too_long')


def tokenizer(data: Mapping[str, Any], report: Report = silent) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a config, trained on the training split or cached.

  Args:
    data: the config's data section.
    report: receives the count of documents read.

  Raises:
    UserError: the section or the corpus is wrong.
  """
  train = resolve.build_section(data['tokenizer'], 'data.tokenizer')
  split, alpha = data['train_split'], data['tokenizer_alpha']
  settings = dict(data['tokenizer'])
  shaped_by: dict[str, Any] = {
    'tokenizer': settings,
    'tokenizer code': fingerprints.of_values(settings),
  }
  special_tokens: list[str] = []
  sources: dict[str, _Texts] = {}
  by_path: dict[str, Sequence[dict]] = {}
  for section in (component(data, name) for name in sorted(data['mixture']) or ['']):
    path, steps = section['source'], tuple(section['prepare'])
    opened, of_task = open_source(path, split), {}
    by_path[path] = opened
    converter = None
    if section['task'] is not None:
      task, converter = features.build_task(section)
      special_tokens += [SEPARATOR] if converter.needs_separator else []
      special_tokens += task.special_tokens
      of_task = _task_fingerprint(section, ('task', 'converter'))
    texts_print = fingerprints.of_split(section, path, split, opened) | of_task
    sources[repr(texts_print)] = _Texts(opened, steps, texts_of(converter))  # each once
  special_tokens = [*dict.fromkeys([*special_tokens, *data['special_tokens']])]
  shaped_by |= {'texts': [*sources], 'alpha': alpha, 'special_tokens': special_tokens}

  def build(place: pathlib.Path) -> dict[str, Any]:
    with ticking(report) as shown:
      texts = _TrainingTexts(tuple(sources.values()), alpha, shown)
      if not any(texts):
        raise UserError(_no_text(data, by_path, split))
      trained = with_special_tokens(resolve.call(train, 'data.tokenizer', texts), special_tokens)
    if 'min_count' in data['tokenizer'] and not word_ids(trained):
      raise UserError(
        f'data.tokenizer.min_count={data["tokenizer"]["min_count"]}: no word of split '
        f'{split!r} is that frequent; lower it, or take more text'
      )
    (place / 'tokenizer.json').write_text(trained.to_str(), 'utf-8')
    return {'vocab_size': vocabulary_size(trained)}

  place, _ = cache.artifact(data['cache'], 'tokenizer', shaped_by, build)
  return tokenizers.Tokenizer.from_file(str(place / 'tokenizer.json'))


def examples(data: Mapping[str, Any], split: str, source: str | None = None) -> Iterator[Example]:
  """Yields the examples of a split, after the preparation steps, in order."""
  opened = open_source(source or data['source'], split)
  for start, stop in chunks(len(opened)):
    yield from prepared_examples(opened, data['prepare'], start, stop)


def packed_rows(
  data: Mapping[str, Any],
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int | None,
  report: Report = silent,
  source: str | None = None,
  transformed: bool = True,
) -> Rows:
  """Returns the rows of a split, of tokens or of co-occurring pairs, from the cache if possible.

  Those of a mixture are the result of `data.mix`.

  Evaluation rows have no seed and do not depend on `data.pack`: they keep the order of the source,
  and text is cut every `seq_len` tokens. Results of runs with different seeds, batches and packing
  are thus comparable. Rows of pairs are always shuffled; evaluation uses seed 0 for them.

  Args:
    data: the config's data section.
    split: name of a split of the source.
    tokenizer: encodes its text.
    seed: determines the order of documents before packing, or of pairs; None for evaluation.
    report: receives the count of processed documents.
    source: import path of another source, such as one of an evaluation set; None for the config's.
    transformed: whether packing leaves the space of `data.packing_slack` for transforms.

  Raises:
    UserError: the section or the corpus is wrong.
  """
  packing_slack = data['packing_slack'] if transformed else 1.0
  _check_section(data, packing_slack)
  if source is None and data['mixture']:
    mix = resolve.resolve(data['mix'], 'data.mix')
    parts = {
      name: _component_rows(data, name, split, tokenizer, seed, report, transformed)
      for name in sorted(data['mixture'])
    }
    weights = {name: part['weight'] for name, part in data['mixture'].items()}
    return resolve.call(mix, 'data.mix', parts, weights)
  place, meta = _tokens(data, source or data['source'], split, tokenizer, report)
  if data['pair_counter'] is not None:
    from lm.data import cooccurrence  # most runs do not need it

    return cooccurrence.pair_rows(data, split, tokenizer, seed or 0, place, meta, report)
  shaped_by = {'format': fingerprints.FORMAT, 'tokens': place.name, 'seed': seed}
  shaped_by |= {key: data[key] for key in ('seq_len', 'source_len')}
  if data['task'] is None:
    path = _IN_ORDER if seed is None else data['pack']
    pack = resolve.resolve(path, 'data.pack')
    shaped_by |= {'pack': path, 'code': fingerprints.of_values(path)}
  else:
    shaped_by |= {'packing_slack': packing_slack}

  def build(plan_place: pathlib.Path) -> dict[str, Any]:
    if data['task'] is None:
      ends = np.load(place / 'ends.npy', mmap_mode='r')
      plan = resolve.call(pack, 'data.pack', ends, data['seq_len'], seed)._asdict()
    else:
      sizes = np.stack([np.load(place / f'{stream}.npy') for stream in features.STREAMS], axis=1)
      capacity = np.array([data['seq_len'], data['source_len']])
      # Exact decimal arithmetic: in floating point, ceil(10 * 1.1) would be 12 instead of 11.
      slack = fractions.Fraction(str(packing_slack))
      sizes = np.minimum(-(-sizes * slack.numerator // slack.denominator), capacity)
      rows = packing.pack_examples(sizes, capacity, seed)
      plan = dict(zip(('row_ends', 'order'), rows, strict=True))
    for field, values in plan.items():
      cache.save_array(plan_place / f'{field}.npy', values)
    return {'rows': len(plan['row_ends'])}

  plan_place, _ = cache.artifact(data['cache'], 'plan', shaped_by, build)
  if data['task'] is None:
    return PackedRows(place, plan_place, data['seq_len'], meta)
  return FeatureRows(place, plan_place, (data['seq_len'], data['source_len']), meta)


def component(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """Returns the data section of a component of `data.mixture`: `data` with its source and task.

  Without a name, that is `data` without its mixture.

  Raises:
    UserError: there is no such component.
  """
  if name and name not in data['mixture']:
    raise UserError(f'eval.sets: component={name!r} is not one of data.mixture')
  own = data['mixture'][name] if name else {}
  return {**data, 'mixture': {}, **{key: own[key] for key in _OF_COMPONENT if key in own}}


def _component_rows(
  data: Mapping[str, Any],
  name: str,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  seed: int | None,
  report: Report,
  transformed: bool,
) -> Rows:
  """Returns the rows of a component of a mixture, with its transforms."""
  paths, section = data['mixture'][name].get('transforms', ()), component(data, name)
  try:
    rows = packed_rows(section, split, tokenizer, seed, report, None, transformed)
    rows.transforms = open_transforms(paths, tokenizer, rows, f'data.mixture.{name}.transforms')
  except UserError as e:
    raise UserError(f'data.mixture.{name}: {e}') from e
  return rows


def training_sources(data: Mapping[str, Any]) -> dict[str, str]:
  """Returns the import path of each source of training by name, '' without a mixture."""
  mixture = data['mixture']
  return {name: mixture[name]['source'] for name in sorted(mixture)} or {'': data['source']}


def texts_of(converter: Converter | None) -> Callable[[Example], list[str]]:
  """Returns the function from an example to the texts of it that a tokenizer is trained on."""
  return (lambda example: [text_of(example)]) if converter is None else converter.tokenizer_texts


class _Texts(NamedTuple):
  """The texts of a source for the training of a tokenizer."""

  source: Sequence[dict]
  steps: tuple[str, ...]
  texts_of: Callable[[Example], list[str]]

  def of_chunk(self, start: int, stop: int) -> Iterator[list[str]]:
    """Yields the texts of each example."""
    return map(self.texts_of, prepared_examples(self.source, self.steps, start, stop))


@dataclasses.dataclass(frozen=True)
class _TrainingTexts:
  """The training texts of a tokenizer; every iteration starts at the first.

  With an `alpha` other than 1, the characters of a source are proportional to their number to this
  power, and their sum stays (Conneau et al. 2020, section 3.1). Examples repeat or drop out evenly.
  """

  parts: tuple[_Texts, ...]
  alpha: float
  report: Report

  def __iter__(self) -> Iterator[str]:
    total, done = sum(len(part.source) for part in self.parts), 0
    for part, rate in zip(self.parts, self._rates, strict=True):
      nth = 0
      for start, stop in chunks(len(part.source)):
        for texts in part.of_chunk(start, stop):
          times, nth = int((nth + 1) * rate) - int(nth * rate), nth + 1
          for text in texts * times:
            yield from (piece for piece, _ in pieces(text))
        self.report(done + stop, total, 'training the tokenizer')
      done += len(part.source)

  @functools.cached_property
  def _rates(self) -> list[float]:
    """How often an example of each source is read, on average."""
    if self.alpha == 1:
      return [1.0] * len(self.parts)
    sizes = [
      sum(len(t) for bounds in chunks(len(p.source)) for x in p.of_chunk(*bounds) for t in x)
      for p in self.parts
    ]
    powers = [size**self.alpha if size else 0.0 for size in sizes]
    scale = sum(sizes) / (math.fsum(powers) or 1)
    return [scale * x / size if size else 0.0 for x, size in zip(powers, sizes, strict=True)]


def _check_section(data: Mapping[str, Any], packing_slack: float) -> None:
  """Raises UserError if keys of the data section that determine rows have invalid values."""
  task, counter = data['task'], data['pair_counter']
  counted_task = f'task={task!r} and data.pair_counter={counter!r}'
  for wrong, value, rule in (
    (data['seq_len'] < 1, f'seq_len={data["seq_len"]}', 'a row has at least one token'),
    (data['source_len'] < 1, f'source_len={data["source_len"]}', 'a row has at least one token'),
    (
      None not in (task, counter),
      counted_task,
      'pairs are counted in text without a task; set one of them to None',
    ),
    (packing_slack < 1, f'packing_slack={packing_slack}', 'must be at least 1.0'),
    (
      packing_slack > 1 and task is None,
      f'packing_slack={packing_slack}',
      'text without a task is packed without gaps; it must be 1.0',
    ),
  ):
    if wrong:
      raise UserError(f'data.{value}: {rule}')


def _tokens(
  data: Mapping[str, Any],
  source_path: str,
  split: str,
  tokenizer: tokenizers.Tokenizer,
  report: Report,
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Returns the directory of the tokens or features of a split, and its meta.json."""
  source = open_source(source_path, split)
  task = None if data['task'] is None else {key: data[key] for key in _TASK}
  words = data['words'] if task is None else None
  job = Job(source_path, split, tuple(data['prepare']), tokenizer.to_str(), task, words)
  shaped_by = fingerprints.of_split(data, source_path, split, source)
  shaped_by['tokenizer'] = hashlib.sha256(job.tokenizer.encode()).hexdigest()
  if task is not None:
    shaped_by |= _task_fingerprint(data, _TASK)
  if words is not None:
    shaped_by |= {'words': words, 'words code': fingerprints.of_values(words)}

  def build(place: pathlib.Path) -> dict[str, Any]:
    with contextlib.closing(encode(job, source, data['workers'])) as encoded:
      arrays = _reported(encoded, len(source), split, report)
      if task is None:
        meta, note = write_tokens(place, arrays, token_type(tokenizer)), ''
      else:
        meta = features.write_features(place, arrays)
        note = features.length_note(task, meta)
      meta['note'] = '; '.join(filter(None, (getattr(source, 'note', ''), note)))
    if not meta['bytes' if task is None else 'features']:
      if note:
        raise UserError(f'split {split!r} is empty: {note}; raise the limit')
      raise UserError(_no_text(data, {source_path: source}, split))
    return meta

  return cache.artifact(data['cache'], 'tokens' if task is None else 'features', shaped_by, build)


def _no_text(data: Mapping[str, Any], sources: Mapping[str, Sequence[dict]], split: str) -> str:
  """Returns the message for a split without text, whose sources are given by their paths."""
  count = sum(map(len, sources.values()))
  if not data['prepare'] or not count:
    notes = filter(None, (getattr(source, 'note', '') for source in sources.values()))
    return ': '.join(
      [f'data.source={", ".join(sources)!r}', f'split {split!r} has no text', *notes]
    )
  of_turns = any(step.startswith('lm.tasks.dialogue:expand_turns') for step in data['prepare'])
  return (
    f'data.prepare={tuple(data["prepare"])!r}: split {split!r} has no text: the steps remove all '
    f'{count:,} examples' + '; a dialogue of one turn has no reply' * of_turns
  )


def _reported(
  arrays: Iterable[features.Arrays], total: int, split: str, report: Report
) -> Iterator:
  for done, chunk in enumerate(arrays, 1):
    yield chunk
    report(min(done * CHUNK, total), total, f'preparing {split!r}')


def _task_fingerprint(data: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """Returns the part of a digest that describes a task, its converter and their code."""
  code = fingerprints.of_values([data['task'], data['converter']])
  return {'task': {key: data[key] for key in keys}, 'task code': code}
