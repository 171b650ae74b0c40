"""A trained tagger behind the interface of lm.text.tags: from words to a tag for each.

tags.tag(segment.words(whole(raw)), functools.partial(tag, workdir='runs/msra_ner'))
tagger = 'lm.evaluation.tagger:tag(workdir=\\"DIR\\")'
config.data.prepare = (f'lm.data.preprocess:tagged(tagger="{tagger}")',)
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from lm.data import features
from lm.errors import UserError
from lm.task import narrow
from lm.text.tags import Tagger
from lm.workdir import files
from lm.workdir.load import load


def tag(
  words: Sequence[str], workdir: str, separator: str = '', step: int | None = None
) -> list[str]:
  """Returns the tags that a trained model gives to words.

  The run is opened once in a process. Prepared data does not notice that a run has gone on: name
  the step where that matters.

  Args:
    words: of one sentence, in order.
    workdir: of a run whose task is tagging, such as those of experiments/msra_ner.py.
    separator: what stood between words when it was trained: '' as for Chinese, or ' '.
    step: the checkpoint; unless given the best one, or else the newest.

  Raises:
    UserError: there is no such run, it does not tag words, or the words are too many for it.
  """
  return list(_opened(str(files.workdir(workdir, 'workdir').absolute()), separator, step)(words))


@functools.cache
def _opened(workdir: str, separator: str, step: int | None) -> Tagger:
  loaded = load(workdir, step)
  data = loaded.config.data
  if data.convert is None or data.convert.partition('(')[0] != 'lm.tasks.find:tags':
    raise UserError(f'--workdir={workdir}: data.convert={data.convert!r} does not tag words')
  with loaded.modules():
    _, converter = features.open_task(data)
  labels, context = tuple(data.labels), data.context
  convert = converter.features(loaded.tokenizer, labels, context)
  predict, read = converter.predict, converter.read
  assert predict is not None and read is not None
  found = jax.jit(lambda params, batch: predict(loaded.apply(params, batch), batch))

  def tagged(words: Sequence[str]) -> list[str]:
    if not words:
      return []
    example = {'words': list(words), 'tags': [labels[0]] * len(words), 'separator': separator}
    (feature,) = convert(example)
    size = len(feature.tokens['inputs'])
    if size > context:
      raise UserError(
        f'{workdir} reads {context} tokens, and a text of {len(words)} words has {size}; tag '
        'sentence by sentence (lm.data.preprocess:sentences)'
      )
    # Rows of one length, so that the model is compiled once.
    row = {name: np.pad(values, (0, context - size)) for name, values in feature.tokens.items()}
    row |= {'segments': np.arange(context) < size, 'positions': np.arange(context) % max(1, size)}
    batch = {name: narrow(name, values[None]) for name, values in row.items()}
    batch['examples'] = np.ones((1, 1), np.int32)
    (tags_T,) = jax.device_get(found(loaded.params, batch))['tokens/tag']
    tokens = {f'tokens/{name}': values for name, values in feature.tokens.items()}
    return read(labels, example, [tokens | {'tokens/tag': tags_T[:size]}])

  return tagged
