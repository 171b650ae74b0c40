"""How many tokens the tokenizer of a run spends on the text of each evaluation set.

Tokens per word are the fertility of Ács 2019 and Rust et al. 2021, section 2. Languages without
spaces between words are compared by tokens per character or bytes per token.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import tokenizers
from ml_collections import ConfigDict

from lm.components import Inference
from lm.data import encoding, features, pipeline
from lm.evaluation.evaluators import Evaluation, Evaluator
from lm.text.segment import word_spans
from lm.text.tokenizers import unknown_id

_CHARACTERS = 2**20  # of a set; the texts after these are not counted


def fertility(
  config: ConfigDict, functions: Inference, tokenizer: tokenizers.Tokenizer
) -> Evaluator:
  """Returns the evaluator of the tokens per text of each set, which needs no parameters.

  Its notes appear at the start of a run, and its table in the report.

  Raises:
    UserError: a set is wrong, or its Chinese words need the extra `zh`.
  """
  del functions
  found = {name: rates(tokenizer, _texts(config, name)) for name in config.eval.sets}
  notes = {
    f'fertility of {name}': ', '.join(
      f'{x:,} {key}' if isinstance(x, int) else f'{x:.4g} {key}' for key, x in of_set.items()
    )
    for name, of_set in found.items()
  }
  return Evaluator(
    lambda step, params: Evaluation(files={'fertility/sets': {'sets': found}}), notes=notes
  )


def rates(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> dict[str, float]:
  """Returns by name what the first million characters of some texts take.

  Words are those of lm.text.segment.word_spans, punctuation marks included. The share of unknown
  tokens is there for tokenizers that have one. Tokens between documents do not count.
  """
  characters, words, read = 0, 0, []
  for text in texts:
    read.append(text)
    characters += len(text)
    words += sum(1 for _ in word_spans(text))
    if characters >= _CHARACTERS:
      break
  arrays = encoding.text_encoder(tokenizer)(read)
  tokens, unknown = arrays['tokens'], unknown_id(tokenizer)
  count = max(len(tokens) - len(read), 1)
  found = {
    'characters': characters,
    'tokens per character': count / max(characters, 1),
    'bytes per token': int(arrays['sizes'].sum()) / count,
    'tokens per word': count / max(words, 1),
  }
  if unknown is not None:
    found['unknown tokens'] = np.count_nonzero(tokens == unknown) / count
  return found


def _texts(config: ConfigDict, name: str) -> Iterator[str]:
  section = config.eval.sets[name]
  data = pipeline.component(config.data, section.get('component', ''))
  converter = None if data['task'] is None else features.build_task(data)[1]
  texts_of = pipeline.texts_of(converter)
  for example in pipeline.examples(data, section.split, section.source or None):
    yield from texts_of(example)
