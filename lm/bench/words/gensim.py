"""Word2Vec of Gensim (Rehurek and Sojka 2010)."""

import gzip
import pathlib
import time

import gensim
from gensim.models import Word2Vec

from lm.bench.words import Trained, Work

_SENTENCE = 10_000  # words, the most that Gensim reads at once


def train(work: Work) -> Trained:
  """Trains with the words in memory, the fastest that Gensim takes."""
  start = time.perf_counter()
  path = pathlib.Path(work.text)
  with gzip.open(path, 'rt') if path.suffix == '.gz' else path.open() as file:
    words = file.read().split()
  sentences = [words[i : i + _SENTENCE] for i in range(0, len(words), _SENTENCE)]
  model = Word2Vec(
    vector_size=work.size,
    window=work.window,
    min_count=work.min_count,
    sg=int(work.model == 'skip_gram'),
    negative=work.negatives,
    workers=work.threads,
    seed=work.seed,
  )
  model.build_vocab(sentences)
  begin = time.perf_counter()
  model.train(sentences, total_examples=model.corpus_count, epochs=work.epochs)
  seconds = time.perf_counter() - begin
  model.wv.save_word2vec_format(work.out)
  command = time.perf_counter() - start
  amount = len(words) * work.epochs
  return Trained(seconds, 0.0, command, 'words', amount, gensim.__version__)
