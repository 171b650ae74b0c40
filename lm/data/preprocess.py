"""Steps of data.prepare: normal forms, sentences, words, parts of speech.

  config.data.prepare = (
    'lm.data.preprocess:split_sentences',
    'lm.data.preprocess:segment_words(stop=("en", "zh"))',
  )

Each step replaces the fields that it names and keeps the others. Steps apply to any field and in
any order: the output of one step is the raw text of the next.
"""

import io
from collections.abc import Iterable, Iterator, Sequence

from lm.data.encoding import text_of
from lm.task import Example
from lm.text import normalize as text_normalize
from lm.text import segment
from lm.text.segment import as_single_token, sentence_spans


def normalize(
  examples: Iterable[Example],
  field: str = 'text',
  form: text_normalize.Form = 'NFKC',
  case: text_normalize.Case = 'keep',
  simplify: bool = False,
) -> Iterator[Example]:
  """Yields examples with each line of a text in normal form; see lm.text.normalize.normalize.

  Args:
    examples: with a text.
    field: name of the text.
    form: 'NFC', 'NFD', 'NFKC' or 'NFKD'.
    case: 'keep', 'lower' or 'fold'.
    simplify: whether to convert traditional to simplified Chinese characters.

  Raises:
    UserError: the form or case is unknown; a text is missing or damaged; OpenCC is not installed.
  """
  text_normalize.check_options(form, case)
  for example in examples:
    lines = text_of(example, field, 'data.prepare').split('\n')
    normal = (text_normalize.normalize(line, form, case, simplify) for line in lines)
    yield {**example, field: '\n'.join(normal)}


def split_sentences(examples: Iterable[Example], field: str = 'text') -> Iterator[Example]:
  """Yields an example for each sentence of a text; see lm.text.segment.sentence_spans.

  Raises:
    UserError: a text is missing or damaged.
  """
  for example in examples:
    raw = text_of(example, field, 'data.prepare')
    for start, end in sentence_spans(raw):
      yield {**example, field: raw[start:end]}


def segment_words(
  examples: Iterable[Example],
  field: str = 'text',
  form: text_normalize.Form = 'NFKC',
  case: text_normalize.Case = 'fold',
  simplify: bool = False,
  stop: Sequence[str] = (),
) -> Iterator[Example]:
  """Yields examples with the words of a text, in normal form, joined by single spaces.

  A text of stop words alone becomes empty.

  Args:
    examples: with a text.
    field: name of the text.
    form: 'NFC', 'NFD', 'NFKC' or 'NFKD'.
    case: 'keep', 'lower' or 'fold'.
    simplify: whether to convert traditional to simplified Chinese characters before segmentation.
    stop: ISO 639-1 codes of languages whose stop words are removed.

  Raises:
    UserError: the form, case or language is unknown; a text is missing or damaged; a required
      library is not installed.
  """
  text_normalize.check_options(form, case)
  removed = text_normalize.stop_words(stop) if stop else frozenset()
  for example in examples:
    raw = text_of(example, field, 'data.prepare')
    joined = io.StringIO()  # needs less memory than a list of words
    for start, end in segment.word_spans(raw, simplify):
      word = text_normalize.normalize(raw[start:end], form, case, simplify)
      if not removed or text_normalize.stop_word_key(word) not in removed:
        joined.write(f' {word}' if joined.tell() else word)
    yield {**example, field: joined.getvalue()}


def tag_words(
  examples: Iterable[Example],
  field: str = 'text',
  tagger: segment.Tagger = segment.parts_of_speech,
  separator: str = '',
  simplify: bool = False,
) -> Iterator[Example]:
  """Yields examples with 'words', 'tags' and 'separator' in place of a text.

  These are the fields of tagging tasks (lm.data.sources). `separator` replaces the white space
  between words.

  Args:
    examples: with a text, preferably a sentence.
    field: name of the text.
    tagger: the function from words to their tags; a config gives its import path.
    separator: the string between words, '' as in Chinese, or ' '.
    simplify: whether to segment Chinese text by its simplified characters.

  Raises:
    UserError: a text is missing or damaged; a required library is not installed.
  """
  for example in examples:
    raw = as_single_token(text_of(example, field, 'data.prepare'))
    text = segment.tag_words(segment.split_words(raw, simplify), tagger)
    yield {name: value for name, value in example.items() if name != field} | {
      'words': [token.text for token in text.tokens],
      'tags': [token.tag for token in text.tokens],
      'separator': separator,
    }
