"""Data sources: `source(split, **arguments) -> random-access sequence of {'text': str}`.

Name one in a config as 'lm.data.sources:python_docs', or with arguments as
"lm.data.sources:text(files='corpus/*.txt', validation=0.1)". A sequence may have a `fingerprint`,
a string that changes whenever its content does; preparation hashes the content of one that has not.
"""

from lm.data.columns import columns
from lm.data.python_docs import python_docs
from lm.data.text_files import text
from lm.data.tfds import tfds

__all__ = ['columns', 'python_docs', 'text', 'tfds']
