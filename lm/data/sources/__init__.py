"""Data sources: `source(split, **arguments) -> random-access sequence of examples`.

A config names one as 'lm.data.sources:python_docs', or with arguments as
"lm.data.sources:text(files='corpus/*.txt', validation=0.1)". A sequence may have these attributes:
- `fingerprint`: a string that changes whenever the examples do; without it they are hashed;
- `place(index)`: the origin of an example, for errors;
- `note`: what was left out of the files, which a run reports;
- `report`: counts that `lm.prepare` prints; lm.data.duplicates has them.

An example is a dict; its fields determine its uses:

  text       text: columns, python_docs, text, tfds
  pair       source, target: dates, names, numbers, parallel, table
             source, target, source_language, target_language: directions
  class      text, label: languages, table
  score      text, value (a float): python_functions, table
  tags       words, tags, separator (the text is separator.join(words)): conll, conllu, python_tags
  question   id, context, question, answers (each of text, start; none if unanswerable):
             python_questions, squad
  dialogue   turns (a list of texts): python_dialogues, table
"""

from lm.data.sources.conll import conll, conllu
from lm.data.sources.embedded.cldr import dates, languages, names, numbers
from lm.data.sources.embedded.python_library import (
  python_dialogues,
  python_docs,
  python_functions,
  python_questions,
  python_tags,
)
from lm.data.sources.squad import squad
from lm.data.sources.tables import directions, parallel, table
from lm.data.sources.text import columns, text
from lm.data.sources.tfds import tfds

__all__ = [
  'columns',
  'conll',
  'conllu',
  'dates',
  'directions',
  'languages',
  'names',
  'numbers',
  'parallel',
  'python_dialogues',
  'python_docs',
  'python_functions',
  'python_questions',
  'python_tags',
  'squad',
  'table',
  'text',
  'tfds',
]
