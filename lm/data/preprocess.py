"""Preprocessing as steps of data.prepare: normal forms, sentences, words, parts of speech.

  config.data.prepare = (
    'lm.data.preprocess:sentences',
    'lm.data.preprocess:segmented(stop=("en", "zh"))',
  )

Each step writes the fields it names and leaves the others of an example as they are. They can be
used on any field and in any order: what a step writes is the raw text of the next one.
"""

import io
from collections.abc import Iterable, Iterator, Sequence

from lm.data.tokenise import text_of
from lm.task import Example
from lm.text import normalize, segment
from lm.text.segment import as_single_token, sentence_spans


def normalised(
  examples: Iterable[Example],
  field: str = 'text',
  form: normalize.Form = 'NFKC',
  case: normalize.Case = 'keep',
  simplify: bool = False,
) -> Iterator[Example]:
  """Yields examples with each line of a text in its normal form; see lm.text.normalize.normalize.

  Args:
    examples: they have a text.
    field: under which name.
    form: 'NFC', 'NFD', 'NFKC' or 'NFKD'.
    case: 'keep', 'lower' or 'fold'.
    simplify: whether traditional Chinese characters become simplified ones.

  Raises:
    UserError: there is no such form or case; an example has no text or a damaged one; OpenCC is not
      installed.
  """
  normalize.check_options(form, case)
  for example in examples:
    lines = _text(example, field).split('\n')
    lines = [normalize.normalize(line, form, case, simplify) for line in lines]
    yield {**example, field: '\n'.join(lines)}


def sentences(examples: Iterable[Example], field: str = 'text') -> Iterator[Example]:
  """Yields an example for each sentence of a text; see lm.text.segment.sentence_spans.

  Raises:
    UserError: an example has no text or a damaged one.
  """
  for example in examples:
    raw = _text(example, field)
    for start, end in sentence_spans(raw):
      yield {**example, field: raw[start:end]}


def segmented(
  examples: Iterable[Example],
  field: str = 'text',
  form: normalize.Form = 'NFKC',
  case: normalize.Case = 'fold',
  simplify: bool = False,
  stop: Sequence[str] = (),
) -> Iterator[Example]:
  """Yields examples with the words of a text, in their normal forms, joined by single spaces.

  A text that is all stop words becomes an empty one.

  Args:
    examples: they have a text.
    field: under which name.
    form: 'NFC', 'NFD', 'NFKC' or 'NFKD'.
    case: 'keep', 'lower' or 'fold'.
    simplify: whether traditional Chinese characters become simplified ones, and are cut as such.
    stop: ISO 639-1 codes of languages whose stop words are left out.

  Raises:
    UserError: there is no such form, case or language; an example has no text or a damaged one; a
      library that is needed is not installed.
  """
  normalize.check_options(form, case)
  left_out = normalize.stop_words(stop) if stop else frozenset()
  for example in examples:
    raw = _text(example, field)
    joined = io.StringIO()  # a long text is never held as a list of its words
    for start, end in segment.word_spans(raw, simplify):
      word = normalize.normalize(raw[start:end], form, case, simplify)
      if not left_out or normalize.stop_word_key(word) not in left_out:
        joined.write(f' {word}' if joined.tell() else word)
    yield {**example, field: joined.getvalue()}


def tagged(
  examples: Iterable[Example],
  field: str = 'text',
  tagger: segment.Tagger = segment.parts_of_speech,
  separator: str = '',
  simplify: bool = False,
) -> Iterator[Example]:
  """Yields examples with the 'words' of a text, their 'tags' and 'separator' in place of the text.

  These are the fields of tagging tasks (lm.data.sources). White space between words is lost, but
  for the separator.

  Args:
    examples: they have a text, best a sentence.
    field: under which name.
    tagger: from words to their tags; the import path of a function.
    separator: what stands between words: '' as for Chinese, or ' '.
    simplify: whether Chinese is cut as if written in simplified characters.

  Raises:
    UserError: an example has no text or a damaged one; a library that is needed is not installed.
  """
  for example in examples:
    text = segment.tag_words(
      segment.split_words(as_single_token(_text(example, field)), simplify), tagger
    )
    others = {name: value for name, value in example.items() if name != field}
    yield others | {
      'words': [token.text for token in text.tokens],
      'tags': [token.tag for token in text.tokens],
      'separator': separator,
    }


def _text(example: Example, field: str) -> str:
  return text_of(example, field, 'data.prepare')
