"""From examples to tokens, a chunk of examples at a time.

The chunks are the same however many processes share them, so that a preparation step, which sees
the examples of one chunk in a row, gives the same result everywhere.
"""

import functools
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lm.config import resolve
from lm.data import cache
from lm.data.examples import checked
from lm.errors import UserError
from lm.task import Example, mismatch
from lm.text.files import lone_surrogate
from lm.text.tokenizers import end_id, text_reader, vocabulary_size

CHUNK = 256  # examples that a preparation step sees in a row
_PIECE = 2**20  # characters; longer documents are tokenised in pieces that end at a line end
_LONGEST = 2**31 - 1  # bytes of a document: batches have int32
_BATCH = 2**22  # characters tokenised at once, which bounds the memory


class Encoded(NamedTuple):
  """Some documents as tokens.

  Attributes:
    tokens: the documents one after another, each followed by END.
    counts: int64, the tokens of each document, END included.
    sizes: int64, the UTF-8 bytes of the text of each document.
  """

  tokens: np.ndarray
  counts: np.ndarray
  sizes: np.ndarray


def chunks(count: int) -> list[tuple[int, int]]:
  """Returns the first and last index, exclusive, of the chunks of `count` examples."""
  return [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def open_source(path: str, split: str) -> Sequence[dict[str, Any]]:
  """Returns a split of the source with an import path.

  Raises:
    UserError: there is no such source, or it gives no sequence.
  """
  opened = resolve.call(resolve.resolve(path, 'data.source'), 'data.source', split)
  by_position = hasattr(opened, '__len__') and hasattr(opened, '__getitem__')
  if not by_position or isinstance(opened, str | bytes | Mapping):
    raise UserError(
      f'data.source={path!r} gives a {type(opened).__name__} for split {split!r}; examples are '
      'read by position and more than once: return a list, or what has __len__ and __getitem__'
    )
  return opened


def examples(
  source: Sequence[dict[str, Any]], steps: Iterable[str], start: int, stop: int
) -> Iterator[dict[str, Any]]:
  """Yields what the preparation steps make of the examples from `start` to `stop`.

  Raises:
    UserError: an example is no dict, or a step does not give examples.
  """
  found: Iterator[dict[str, Any]] = (checked(source[i], 'data.source') for i in range(start, stop))
  for i, path in enumerate(steps):
    key = f'data.prepare[{i}]'
    made = resolve.call(resolve.resolve(path, key), key, found)
    if not isinstance(made, Iterable) or isinstance(made, str | Mapping):
      raise UserError(
        f'{key}={path!r} makes a {type(made).__name__} of the examples; a step takes an iterator '
        'of examples and gives another, as with yield'
      )
    found = map(functools.partial(checked, key=key), made)
  return found


def text_of(example: Example, field: str = 'text', key: str = 'data.source') -> str:
  """Returns the text of an example under a field; `key` is to blame where there is none.

  Raises:
    UserError: it has none, or it holds half a character.
  """
  text = example.get(field)
  if not isinstance(text, str):
    raise mismatch(example, field, 'string', key)
  if half := lone_surrogate(text):
    raise UserError(f'{key}: {field!r} of an example {half}')
  return text


def texts_of(example: Example) -> list[str]:
  """Returns what a tokenizer is trained on."""
  return [text_of(example)]


def token_type(tokenizer: tokenizers.Tokenizer) -> type[np.unsignedinteger]:
  """Returns the smallest type that holds every token."""
  return np.uint16 if vocabulary_size(tokenizer) < 2**16 else np.uint32


def encoder(tokenizer: tokenizers.Tokenizer) -> Callable[[Iterable[str]], Encoded]:
  """Returns the function that turns texts into tokens.

  Text that looks like a special token is taken as text. `sizes` counts the bytes of the text as it
  comes out of the preparation steps, before the tokenizer normalises it.
  """
  reader, end, dtype = text_reader(tokenizer), end_id(tokenizer), token_type(tokenizer)

  def encode(texts: Iterable[str]) -> Encoded:
    tokens, counts, sizes = [], [0], [0]
    for batch in _batches(_parts(texts)):
      some = [part for part, _ in batch]
      found = reader.encode_batch_fast(some, add_special_tokens=False)
      for (part, is_last), encoding in zip(batch, found, strict=True):
        ids = np.array([*encoding.ids, end] if is_last else encoding.ids, dtype)
        tokens.append(ids)
        counts[-1] += len(ids)
        sizes[-1] += len(part.encode())
        if is_last:
          counts.append(0)
          sizes.append(0)
    empty = np.empty(0, dtype)
    return Encoded(
      np.concatenate([empty, *tokens]),
      np.array(counts[:-1], np.int64),
      np.array(sizes[:-1], np.int64),
    )

  return encode


def _parts(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
  """Yields the pieces of texts, and whether each is the last of its text."""
  for text in texts:
    for part, after in itertools.pairwise(itertools.chain(pieces(text), [None])):
      assert part is not None
      yield part, after is None


def write(
  place: pathlib.Path, chunks: Iterable[Mapping[str, np.ndarray]], dtype: Any
) -> dict[str, Any]:
  """Writes the tokens of documents into a directory; returns what meta.json says of them.

  Raises:
    UserError: a document has more bytes than a batch can tell of.
  """
  counts: list[np.ndarray] = []
  sizes: list[np.ndarray] = []
  content = hashlib.sha256()
  with (place / 'tokens.bin').open('wb') as f:
    for chunk in chunks:
      if (longest := chunk['sizes'].max(initial=0)) > _LONGEST:
        nth = sum(map(len, counts)) + chunk['sizes'].argmax() + 1
        raise UserError(
          f'data.source: document {nth:,} has {longest:,} bytes, and {_LONGEST:,} are the most '
          'there can be: divide it into several'
        )
      f.write(chunk['tokens'].data)
      content.update(chunk['tokens'].data)
      counts.append(chunk['counts'])
      sizes.append(chunk['sizes'])
  none = np.zeros(0, np.int64)
  ends, doc_bytes = np.cumsum(np.concatenate([none, *counts])), np.concatenate([none, *sizes])
  cache.save_array(place / 'ends.npy', ends)
  cache.save_array(place / 'doc_bytes.npy', doc_bytes)
  return {
    'documents': len(ends),
    'tokens': int(ends[-1]) if len(ends) else 0,
    'bytes': int(doc_bytes.sum()),
    'dtype': np.dtype(dtype).name,
    'content': content.hexdigest(),
  }


def _batches(parts: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
  """Yields runs of parts of about `_BATCH` characters."""
  batch: list[tuple[str, bool]] = []
  size = 0
  for part in parts:
    batch.append(part)
    size += len(part[0])
    if size >= _BATCH:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch


def pieces(text: str) -> Iterator[str]:
  """Yields a text in pieces that end at line ends, else before spaces; mostly the text itself.

  What is done to a long text at once takes a hundred times its size.
  """
  start = 0
  while len(text) - start > _PIECE:
    stop = start + _PIECE
    cut = text.rfind('\n', start, stop) + 1 or max(start, text.rfind(' ', start, stop))
    cut = cut if cut > start else stop
    yield text[start:cut]
    start = cut
  yield text[start:]
