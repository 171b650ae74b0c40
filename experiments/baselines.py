"""Baselines without a neural network, on the data of the experiments.

  LM_DATA=DIR python experiments/baselines.py squad

Prints one JSON line. Any CPU, at most a minute. The methods:

- squad and cmrc2018: a sliding window of word overlap (after Richardson et al. 2013).
- sst2, chnsenticorp_hotel, ag_news and rte: logistic regression on bags of words or characters
  (`pip install -e '.[eval]'`).
- online_shopping: the same with several labels, on characters, by stochastic gradient descent.
- python_functions: the mean of the training values, and ridge regression on bags of words.
- msra_ner and wnut17_ner: the most frequent tag of each word.
"""

import collections
import itertools
import json
import math
import re
import statistics
import sys

from lm.data import sources
from lm.metrics import answers, labels, spans
from lm.metrics.scores import CorpusMetric

# One Chinese character, or a word of another script.
_WORD = re.compile(r'[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+')
_SHOPPING = '$LM_DATA/online_shopping/{split}.tsv'
_MORE = 2  # a window has this many words more than the question


def answer(question: str, context: str) -> str:
  """Returns the longest run of words in the best window that are not in the question.

  The best window is the one that shares most with the question. A shared word that occurs n times
  in the context has the weight log(1 + 1 / n), so rare words weigh most. Ties go to the first.
  """
  words = list(_WORD.finditer(context))
  lowered = [word[0].lower() for word in words]
  asked = _WORD.findall(question.lower())
  counts = collections.Counter(lowered)
  shared = [math.log1p(1 / counts[word]) * (word in asked) for word in lowered]
  size = len(asked) + _MORE
  starts = range(max(1, len(words) - size + 1))
  best = max(starts, key=lambda start: sum(shared[start : start + size]))
  indices = range(best, min(best + size, len(words)))
  runs = [
    list(run) for known, run in itertools.groupby(indices, lambda i: shared[i] > 0) if not known
  ]
  if not runs:
    return ''
  longest = max(runs, key=len)
  return context[words[longest[0]].start() : words[longest[-1]].end()]


def extraction(files: str, metric: CorpusMetric) -> dict[str, float]:
  """Returns the scores of `answer` on the development questions."""
  examples = list(sources.squad('dev', files))
  predicted = [answer(example['question'], example['context']) for example in examples]
  return metric(predicted, [[a['text'] for a in e['answers']] for e in examples]).values


def classification(files: str, text: str | tuple[str, ...], characters: bool) -> dict[str, float]:
  """Returns the scores of logistic regression on the test texts.

  The features are tf-idf of single words (or characters) and of bigrams.
  """
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline

  columns = {'text': text, 'label': 'label'}
  train, test = (list(sources.table(split, files, columns)) for split in ('train', 'test'))
  units = {'analyzer': 'char' if characters else 'word', 'ngram_range': (1, 2)}
  model = make_pipeline(TfidfVectorizer(**units), LogisticRegression(C=10, max_iter=1000))
  model.fit([example['text'] for example in train], [example['label'] for example in train])
  predicted = model.predict([example['text'] for example in test]).tolist()
  return labels.classification()(predicted, [example['label'] for example in test]).values


def multilabel() -> dict[str, float]:
  """Returns the scores on the test reviews of a logistic regression for each label, trained by SGD.

  The features are tf-idf of single characters and of bigrams.
  """
  from multilabel import category_and_rating
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import SGDClassifier
  from sklearn.multiclass import OneVsRestClassifier
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import MultiLabelBinarizer

  columns = {'text': 'text', 'category': 'category', 'rating': 'label'}
  train, test = (
    list(category_and_rating(sources.table(split, _SHOPPING, columns, empty='skip')))
    for split in ('train', 'test')
  )
  names = MultiLabelBinarizer()
  wanted = names.fit_transform([example['labels'] for example in train])
  words = TfidfVectorizer(analyzer='char', ngram_range=(1, 2), min_df=3)
  each = OneVsRestClassifier(SGDClassifier(loss='log_loss', alpha=1e-6, random_state=0))
  model = make_pipeline(words, each).fit([example['text'] for example in train], wanted)
  predicted = names.inverse_transform(model.predict([example['text'] for example in test]))
  return labels.multilabel()(predicted, [example['labels'] for example in test]).values


def regression() -> dict[str, float]:
  """Returns the scores of the training mean and of ridge regression on the held-out functions."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.linear_model import Ridge
  from sklearn.pipeline import make_pipeline

  train, aside = (list(sources.python_functions(split)) for split in ('train', 'validation'))
  known, wanted = ([example['value'] for example in part] for part in (train, aside))
  words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, token_pattern=r'\w+|[^\w\s]')
  model = make_pipeline(words, Ridge(alpha=1.0)).fit([e['text'] for e in train], known)
  found = {
    'mean': [statistics.fmean(known)] * len(wanted),
    'ridge': model.predict([example['text'] for example in aside]).tolist(),
  }
  scores = {name: labels.regression()(values, wanted).values for name, values in found.items()}
  return {
    f'{name}/{key}': value
    for name, values in scores.items()
    for key, value in values.items()
    if math.isfinite(value)  # a constant prediction has no correlation
  }


def tagging(files: str) -> dict[str, float]:
  """Returns the scores on dev of each word's most frequent tag; unknown words get 'O'."""
  train, dev = (sources.conll(split, files) for split in ('train', 'dev'))
  seen = collections.defaultdict(collections.Counter)
  for example in train:
    for word, tag in zip(example['words'], example['tags'], strict=True):
      seen[word][tag] += 1
  usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
  predicted = [[usual.get(word, 'O') for word in example['words']] for example in dev]
  return spans.entities()(predicted, [example['tags'] for example in dev]).values


BASELINES = {
  'squad': lambda: extraction('$LM_DATA/squad/{split}.jsonl', answers.squad()),
  'cmrc2018': lambda: extraction('$LM_DATA/cmrc2018/{split}.json', answers.cmrc()),
  'sst2': lambda: classification('$LM_DATA/sst2/{split}.tsv', 'text', characters=False),
  'chnsenticorp_hotel': lambda: classification(
    '$LM_DATA/chnsenticorp_hotel/{split}.tsv', 'text', characters=True
  ),
  'ag_news': lambda: classification(
    '$LM_DATA/ag_news/{split}.tsv', ('title', 'description'), characters=False
  ),
  'rte': lambda: classification(
    '$LM_DATA/rte/{split}.tsv', ('premise', 'hypothesis'), characters=False
  ),
  'online_shopping': multilabel,
  'python_functions': regression,
  'msra_ner': lambda: tagging('$LM_DATA/msra_ner/{split}.tsv'),
  'wnut17_ner': lambda: tagging('$LM_DATA/wnut17_ner/{split}.tsv'),
}

if __name__ == '__main__':
  if len(sys.argv) != 2 or sys.argv[1] not in BASELINES:
    sys.exit(f'usage: python experiments/baselines.py NAME; there is {", ".join(BASELINES)}')
  print(json.dumps({'data': sys.argv[1]} | BASELINES[sys.argv[1]]()))
