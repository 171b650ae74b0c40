"""Data sources: `source(split, **arguments) -> random-access sequence of examples`.

Name one in a config as 'lm.data.sources:python_docs', or with arguments as
"lm.data.sources:text(files='corpus/*.txt', validation=0.1)". A sequence may have a `fingerprint`,
a string that changes whenever its content does; preparation hashes the content of one that has not;
a function `place(index)`, which says in errors where an example is from; and a `note` on what was
left out of the files, which is reported where the data has a task.

An example is a dict; its fields say what it can be used for:

  text       text: columns, python_docs, text, tfds
  pair       source, target: dates, names, numbers, parallel, table; and, where there are many
             directions, source_language, target_language: directions
  class      text, label: languages, table
  score      text, value (a float): python_functions, table
  tags       words, tags, separator (the text is separator.join(words)): conll, conllu, python_tags
  question   id, context, question, answers (each of text, start; none if there is no answer):
             python_questions, squad
  dialogue   turns (a list of texts): python_dialogues, table
"""

from lm.data.cldr import dates, languages, names, numbers
from lm.data.columns import columns
from lm.data.conll import conll, conllu
from lm.data.parallel import directions, parallel
from lm.data.python_docs import python_docs
from lm.data.python_functions import python_functions
from lm.data.python_questions import python_dialogues, python_questions
from lm.data.python_tags import python_tags
from lm.data.squad import squad
from lm.data.tables import table
from lm.data.text_files import text
from lm.data.tfds import tfds

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
