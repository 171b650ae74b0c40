"""Exact match and F1 of extracted answers, in percent, as SQuAD's and CMRC's own scorers find them.

Predictions are strings; the references of one are a list of right answers (a string is a list of
one). The best of them counts. No prediction at all is the empty string.
"""

# ruff: noqa: RUF001
import collections
import difflib
import re
import statistics
import string
from collections.abc import Callable, Sequence

from lm.errors import UserError
from lm.metrics.scores import CorpusMetric, Scores, alternatives, check_kind, check_sizes

_ARTICLE = re.compile(r'\b(?:a|an|the)\b')
_ASCII_PUNCTUATION = str.maketrans('', '', string.punctuation)

# The marks that CMRC 2018 takes out. Its list also has the six dots of '……' as one entry; as the
# scorer compares single characters, dots stay, and so do ASCII commas and full stops.
_CMRC_PUNCTUATION = str.maketrans('', '', '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')
_HAN_OR_OTHER = re.compile('[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+')
# English words as NLTK's word_tokenize cuts them, which CMRC's scorer uses between Chinese
# characters: marks stand alone, but for commas before digits and full stops inside.
_MARKS = r'\[\](){}<>;@#$%&?!"«»“‘„‒–—―'
_LAST = r'(?=[\])}>"\'»”’\s]*$)'
_CLITIC = r"'(?:s|m|d|ll|re|ve)?(?!\S)"
_WORD = re.compile(
  rf'\.{{2,}}|[{_MARKS}]|,(?!\d)|\.{_LAST}|{_CLITIC}'
  rf'|(?:,(?=\d)|\.(?!\.|{_LAST})|(?!{_CLITIC})[^\s,.{_MARKS}])+'
)


def squad() -> CorpusMetric:
  """Returns 'exact_match' and 'f1' of SQuAD (Rajpurkar et al. 2016), in percent.

  Answers are compared in lower case without punctuation, articles and surplus spaces; F1 is over
  their words. An empty list of references is a question without an answer, as in SQuAD 2.0
  (Rajpurkar et al. 2018): only the empty prediction is right.
  On SQuAD 1.1 this is its scorer too, save for answers of nothing but articles and punctuation,
  which 2.0 takes out of the references.
  """

  def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    words = _squad_words(prediction)
    golds = [gold for gold in map(_squad_words, answers) if gold] or [[]]
    return float(words in golds), max(_bag_f1(words, gold) for gold in golds)

  return _best_of('squad', score)


def cmrc() -> CorpusMetric:
  """Returns 'exact_match' and 'f1' of CMRC 2018 (Cui et al. 2019), in percent.

  Chinese punctuation is taken out and case ignored. F1 is over Chinese characters and the words of
  other scripts, and what two answers share is their longest common run (neither a bag nor a
  subsequence), as in the scorer that was published.

  Raises:
    UserError: from the metric; a question has no reference, which CMRC does not provide for.
  """

  def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    if not answers:
      raise UserError('cmrc: a question has no reference; CMRC has no unanswerable questions')
    text, pieces = _cmrc_text(prediction), _cmrc_pieces(prediction)
    exact = any(text == _cmrc_text(answer) for answer in answers)
    return float(exact), max(_run_f1(pieces, _cmrc_pieces(answer)) for answer in answers)

  def check(references: Sequence[str | Sequence[str]]) -> None:
    if not all(alternatives(references)):
      raise UserError('cmrc: a question has no reference; CMRC has no unanswerable questions')

  return _best_of('cmrc', score, check)


def _best_of(
  name: str,
  score: Callable[[str, list[str]], tuple[float, float]],
  check: Callable[[Sequence], object] = lambda references: None,
) -> CorpusMetric:
  def metric(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    check_sizes(name, predictions, references)
    check_kind(name, predictions, str, 'texts')
    pairs = [score(*pair) for pair in zip(predictions, alternatives(references), strict=True)]
    exact, f1 = (100 * statistics.fmean(column) for column in zip(*pairs, strict=True))
    return Scores({'exact_match': exact, 'f1': f1})

  return CorpusMetric(metric, {'exact_match': True, 'f1': True}, check)


def _squad_words(answer: str) -> list[str]:
  return _ARTICLE.sub(' ', answer.lower().translate(_ASCII_PUNCTUATION)).split()


def _cmrc_text(answer: str) -> str:
  return answer.lower().strip().translate(_CMRC_PUNCTUATION)


def _cmrc_pieces(answer: str) -> list[str]:
  runs = _HAN_OR_OTHER.findall(_cmrc_text(answer))
  return [piece for run in runs for piece in _WORD.findall(run)]


def _bag_f1(prediction: list[str], gold: list[str]) -> float:
  if not prediction or not gold:
    return float(prediction == gold)
  shared = (collections.Counter(prediction) & collections.Counter(gold)).total()
  return 2 * shared / (len(prediction) + len(gold))


def _run_f1(prediction: list[str], gold: list[str]) -> float:
  matcher = difflib.SequenceMatcher(None, prediction, gold, autojunk=False)
  shared = matcher.find_longest_match().size
  return 2 * shared / (len(prediction) + len(gold)) if shared else 0.0
