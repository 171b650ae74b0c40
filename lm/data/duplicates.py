"""A source without duplicates, and without documents that overlap with evaluation sets.

  config.data.source = ref(distinct, source=PATH, near=0.8, held_out={'test': ('test', PATH)})

`lm.config.base.without_duplicates(config)` writes this for every source of a config, with all its
evaluation sets. A duplicate is a property of the corpus, whereas a step of data.prepare sees a part
of it. `distinct` therefore wraps a source: it finds the documents to keep once, stores their
indices in the cache, and is then read like any other source.
"""

import bisect
import functools
import importlib.metadata
import itertools
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config.resolve import import_extra
from lm.data import cache as caches
from lm.data import fingerprints
from lm.data.encoding import open_source, text_of
from lm.data.sources.base import LazySequence, as_tuple
from lm.errors import UserError
from lm.progress import show_documents
from lm.task import Example, as_example
from lm.text.duplicates import character_ngrams, find_repeats, is_unspaced, word_ngrams
from lm.text.normalize import normalize

_SHOWN = 3  # samples of each kind in a report
_CUT = 80  # characters of a sample
_SHORTEST = 8  # characters of a text that is compared as a whole; shorter ones may be labels
_RECENT = 64  # normalized documents in memory


class Distinct(LazySequence):
  """The documents that are kept.

  Attributes:
    report: counts and a few samples of what was removed, as `lm.prepare` prints them.
  """

  report: dict[str, Any]


def distinct(
  split: str,
  source: str,
  near: float | None = 0.8,
  held_out: Mapping[str, tuple[str, str]] | None = None,
  after: str | Sequence[str] = (),
  fields: str | Sequence[str] = 'text',
  shingle: int = 5,
  words: int = 13,
  characters: int = 50,
  filtered: str = 'train',
  cache: str = '',
) -> Sequence[dict[str, Any]]:
  """Returns the documents of a source without duplicates and without evaluation examples.

  Documents are compared in Unicode's NFKC, with case folding and runs of white space as one space.
  Removed are, in this order:

  1. exact duplicates: documents that equal an earlier one;
  2. near duplicates: documents whose similarity to an earlier one that stays is at least `near`
     (`lm.text.duplicates.find_repeats`, which finds at least 99 % of them and errs in none);
  3. overlap: documents that share a run of 13 words with an evaluation example (Brown et al. 2020,
     appendix C), or of 50 letters if most of the example is in Chinese or another script without
     spaces. Punctuation does not count. Runs are compared as strings, so hashes cannot collide. An
     example that is shorter overlaps with the documents that equal it.

  The first of equal or similar documents stays, in the order of the source. The result depends on
  nothing else. Documents are removed as a whole: choose units such as paragraphs.

  Cost, on one core: about a second for a million characters. It is quadratic in documents that
  share a template and are not quite duplicates. Memory: 1.7 KB for each document that stays, about
  300 bytes for each word or Chinese character of the evaluation sets, and 120 bytes for each
  character of the two longest documents that are compared.

  Args:
    split: name of a split.
    source: import path of the source. Its other splits than `filtered` are returned as they are.
    near: Jaccard index of the sets of shingles, above 0 and at most 1; None for exact duplicates.
    held_out: (split, import path) of each evaluation set by name; '' is the path of `source`.
    after: import paths of sources whose documents come first; those that repeat them are removed.
    fields: of the text, joined by a space; a list of strings is joined by the field 'separator', or
      else by spaces. Of an evaluation example all strings count, except for 'tags'.
    shingle: characters of a shingle.
    words: words of a run.
    characters: letters and digits of a run in scripts without spaces.
    filtered: name of the split to filter.
    cache: directory of the result, as `data.cache`: '' for $LM_CACHE, or else ~/.cache/lm.

  Raises:
    UserError: an argument is out of range; a text is missing; an evaluation set is the split
      itself; rensa is not installed. The pipeline raises if no document is left.
  """
  opened = open_source(source, split)
  if split != filtered:
    return opened
  if near is not None:
    if not isinstance(near, int | float) or not 0 < near <= 1:
      raise UserError(f'data.source: near={near!r} must be above 0 and at most 1, or None')
    import_extra('rensa', 'dedup', f'data.source: near={near} needs rensa')
  for name, value in {'shingle': shingle, 'words': words, 'characters': characters}.items():
    if not isinstance(value, int) or value < 1:
      raise UserError(f'data.source: {name}={value!r} must be an integer of at least 1')
  after, fields = as_tuple(after), as_tuple(fields)
  if not fields:
    raise UserError("data.source: fields=() names no text; give one, such as 'text'")
  if not isinstance(held_out or {}, Mapping):
    raise UserError(
      f'data.source: held_out={held_out!r:.200} must map names to (split, source), such as '
      "{'validation': ('validation', '')}"
    )
  sets = {name: _set(name, pair, source, split) for name, pair in (held_out or {}).items()}
  parts = [open_source(path, split) for path in after] + [opened]
  compared = {name: open_source(path, part) for name, (part, path) in sets.items()}
  inputs: dict[str, Any] = {
    'sources': _fingerprints([(split, path) for path in (*after, source)], parts),
    'held_out': dict(zip(sets, _fingerprints(sets.values(), compared.values()), strict=True)),
    'settings': [near, list(fields), shingle, words, characters],
    'code': fingerprints.of_paths([f'{__name__}:distinct']),
    'versions': [importlib.metadata.version('regex'), unicodedata.unidata_version]
    + [importlib.metadata.version('rensa')] * (near is not None),
  }

  def build(place: pathlib.Path) -> dict[str, Any]:
    kept, report = _filter(parts, compared, near, fields, shingle, (words, characters))
    caches.save_array(place / 'kept.npy', kept)
    return {'report': report}

  place, meta = caches.artifact(cache, 'distinct', inputs, build)
  kept, report = np.load(place / 'kept.npy'), meta['report']
  result = Distinct(
    len(kept),
    lambda i: opened[kept[i]],
    place.name,
    lambda i: _name(opened, kept[i]),
    '; '.join(filter(None, (getattr(opened, 'note', ''), _note(report)))),
  )
  result.report = report
  return result


def report_lines(report: Mapping[str, Any]) -> list[str]:
  """Returns a report as lines to read."""
  lines = [f'{report["documents"]:,} documents, of which {report["kept"]:,} stay']
  for kind, samples in report['samples'].items():
    lines.append(f'{report[kind]:10,} {kind.replace("_", " ")}')
    lines += [
      f'{"":11}{s["document"]}, as {s["of"]} ({s["similarity"]}): {s["text"]}' for s in samples
    ]
  if report['overlap']:
    lines.append(
      f'{"examples":>10} {"compared":>10} {"overlap":>10} {"documents":>10}  evaluation set'
    )
  for name, of in report['overlap'].items():
    counts = (of[key] for key in ('examples', 'compared', 'overlapping', 'documents'))
    lines.append(f'{" ".join(f"{count:10,}" for count in counts)}  {name}')
    lines += [f'{"":11}{s["document"]}: {s["text"]}' for s in of['samples']]
  return lines


def _set(name: str, pair: Any, source: str, split: str) -> tuple[str, str]:
  """Returns the split and the import path of an evaluation set."""
  if not isinstance(pair, tuple | list) or list(map(type, pair)) != [str, str]:
    raise UserError(
      f'data.source: held_out[{name!r}]={pair!r:.200} must be a split and the import path of a '
      "source, or '' for the source itself"
    )
  chosen = pair[0], pair[1] or source
  if chosen == (split, source):
    raise UserError(
      f'data.source: held_out[{name!r}] is the split {split!r} of {source!r} itself, of which '
      'nothing would be left; leave it out'
    )
  return chosen


def _fingerprints(
  splits: Iterable[tuple[str, str]], opened: Iterable[Sequence[dict[str, Any]]]
) -> list[dict[str, Any]]:
  return [
    fingerprints.of_split({'prepare': ()}, path, split, each)
    for (split, path), each in zip(splits, opened, strict=True)
  ]


def _filter(
  parts: Sequence[Sequence[dict[str, Any]]],
  sets: Mapping[str, Sequence[dict[str, Any]]],
  near: float | None,
  fields: Sequence[str],
  shingle: int,
  sizes: tuple[int, int],
) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the indices to keep in the last part, and the report."""
  ends = [*itertools.accumulate(map(len, parts))]

  def at(index: int) -> tuple[Sequence[dict[str, Any]], int]:
    part = bisect.bisect_right(ends, index)
    return parts[part], index - (ends[part] - len(parts[part]))

  def name(index: int) -> str:
    return _name(*at(index))

  @functools.lru_cache(maxsize=_RECENT)
  def text(index: int) -> str:
    part, i = at(index)
    example = as_example(part[i], 'data.source')
    return normalize(' '.join(text_of(_as_text(example, field), field) for field in fields))

  texts = LazySequence(ends[-1], text, '')  # type: ignore[arg-type]
  first = ends[-1] - len(parts[-1])
  ngrams = _Ngrams(sets, sizes)
  kept: list[int] = []
  counts = {'exact_duplicates': 0, 'near_duplicates': 0}
  samples: dict[str, list[dict[str, Any]]] = {kind: [] for kind in counts}
  for i, repeat in enumerate(find_repeats(texts, near, shingle)):
    show_documents(i + 1, len(texts), 'finding duplicates')
    if i < first:
      continue
    # An equal document has the n-grams of the first one.
    overlaps = (repeat is None or not repeat.equal) and ngrams.overlaps(text(i), i, name)
    if repeat is None:
      kept += [] if overlaps else [i - first]
      continue
    kind = 'exact_duplicates' if repeat.equal else 'near_duplicates'
    counts[kind] += 1
    if len(samples[kind]) < _SHOWN:
      samples[kind].append(
        {
          'document': name(i),
          'of': name(repeat.of),
          'similarity': round(repeat.similarity, 3),
          'text': text(i)[:_CUT],
        }
      )
  report = {'documents': len(parts[-1]), 'kept': len(kept), **counts, 'near': near}
  return np.array(kept, np.int64), {**report, 'overlap': ngrams.report(), 'samples': samples}


class _Ngrams:
  """The n-grams of evaluation sets, and the documents that have some of them."""

  def __init__(self, sets: Mapping[str, Sequence[dict[str, Any]]], sizes: tuple[int, int]):
    self._sets, self._sizes = sets, sizes
    self._bits: dict[str, int] = {}  # the sets of each n-gram, bit by bit
    self._kinds: set[bool] = set()  # of n-grams: of characters, or of words
    self._found: set[str] = set()  # n-grams of documents
    self._documents = dict.fromkeys(sets, 0)
    self._samples: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for bit, examples in enumerate(sets.values()):
      for i in range(len(examples)):
        for ngram in self._of_example(examples[i]):
          self._bits[ngram] = self._bits.get(ngram, 0) | 1 << bit

  def overlaps(self, text: str, index: int, name: Callable[[int], str]) -> bool:
    """Returns whether a document has an n-gram of a set, and counts it if so."""
    shared = [g for kind in self._kinds for g in self._of(text, kind) if g in self._bits]
    self._found.update(shared)
    for bit, (of_set, samples) in enumerate(self._samples.items()):
      inside = [ngram for ngram in shared if self._bits[ngram] >> bit & 1]
      self._documents[of_set] += bool(inside)
      if inside and len(samples) < _SHOWN:
        samples.append({'document': name(index), 'text': inside[0][:_CUT]})
    return bool(shared)

  def report(self) -> dict[str, dict[str, Any]]:
    """Returns counts of examples and documents for each set."""
    report = {}
    for name, examples in self._sets.items():
      compared = overlapping = 0
      for i in range(len(examples)):
        ngrams = set(self._of_example(examples[i]))
        compared += bool(ngrams)
        overlapping += not ngrams.isdisjoint(self._found)
      report[name] = {
        'examples': len(examples),
        'compared': compared,  # the others are too short
        'overlapping': overlapping,
        'documents': self._documents[name],
        'samples': self._samples[name],
      }
    return report

  def _of_example(self, example: Example) -> Iterator[str]:
    for field in example:
      value = _as_text(example, field)[field]
      for text in fingerprints.strings(value) if field != 'tags' else ():
        normal = normalize(text)
        self._kinds.add(is_unspaced(normal))
        yield from self._of(normal, is_unspaced(normal))

  def _of(self, text: str, unspaced: bool) -> Iterator[str]:
    """Yields the n-grams of a text; one that has none is compared as a whole."""
    fn, found = character_ngrams if unspaced else word_ngrams, False
    for ngram in fn(text, self._sizes[unspaced]):
      found = True
      yield ngram
    if not found and len(text) >= _SHORTEST:
      yield text


def _as_text(example: Example, field: str) -> Example:
  """Returns an example whose list of strings under `field` is joined to one string."""
  value = example.get(field)
  if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
    return example
  return {**example, field: str(example.get('separator', ' ')).join(value)}


def _name(source: Sequence[dict[str, Any]], index: int) -> str:
  """Returns the origin of a document for errors and samples."""
  place = getattr(source, 'place', None)
  return f'document {index}' if place is None else place(int(index))


def _note(report: Mapping[str, Any]) -> str:
  """Returns the note of a source: what was removed."""
  exact, near = report['exact_duplicates'], report['near_duplicates']
  overlap = report['documents'] - report['kept'] - exact - near
  return (
    f'of {report["documents"]:,} documents, {exact:,} exact duplicates, {near:,} near duplicates '
    f'and {overlap:,} that overlap with evaluation sets are removed'
  )
