"""Exact match and F1 of extracted answers in percent, equal to the scorers of SQuAD and CMRC.

Predictions are strings, '' for no answer. The references of a question are a list of correct
answers, or a string for a single one. The reference with the best score counts.
"""

# ruff: noqa: RUF001
import collections
import difflib
import re
import statistics
import string
from collections.abc import Callable, Sequence

from lm.errors import UserError
from lm.metrics.scores import TEXTS, CorpusMetric, Scores, alternatives, higher, validated

_ARTICLE = re.compile(r'\b(?:a|an|the)\b')
_ASCII_PUNCTUATION = str.maketrans('', '', string.punctuation)

# The marks that CMRC 2018's scorer removes. Its list also has '……', an entry of two characters. The
# scorer compares each character with the entries, so '…' stays. ASCII commas and full stops are not
# in the list.
_CMRC_PUNCTUATION = str.maketrans('', '', '-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』')
_HAN_OR_OTHER = re.compile('[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+')
# The tokens of English text between Chinese characters, as from NLTK's word_tokenize, which CMRC's
# scorer calls. Marks are tokens, except commas before digits and full stops inside words.
_MARKS = r'\[\](){}<>;@#$%&?!"«»“‘„‒–—―'
_LAST = r'(?=[\])}>"\'»”’\s]*$)'
_CLITIC = r"'(?:s|m|d|ll|re|ve)?(?!\S)"
_WORD = re.compile(
  rf'\.{{2,}}|[{_MARKS}]|,(?!\d)|\.{_LAST}|{_CLITIC}'
  rf'|(?:,(?=\d)|\.(?!\.|{_LAST})|(?!{_CLITIC})[^\s,.{_MARKS}])+'
)


def squad() -> CorpusMetric:
  """Returns 'exact_match' and 'f1' of SQuAD (Rajpurkar et al. 2016), in percent.

  Answers are compared in lower case without punctuation, articles and extra spaces; F1 is over
  their words. A question without references has no answer, as in SQuAD 2.0 (Rajpurkar et al. 2018):
  only the empty prediction is correct. The scorer of SQuAD 1.1 differs only where a reference
  consists of articles and punctuation alone: that of 2.0 removes such references.
  """

  def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    words = _squad_words(prediction)
    golds = [gold for gold in map(_squad_words, answers) if gold] or [[]]
    return float(words in golds), max(_bag_f1(words, gold) for gold in golds)

  return _mean_of_best('squad', score)


def cmrc() -> CorpusMetric:
  """Returns 'exact_match' and 'f1' of CMRC 2018 (Cui et al. 2019), in percent.

  Chinese punctuation and case are ignored. F1 is over Chinese characters and the words of other
  scripts. As in the published scorer, the overlap of two answers is their longest common run, not a
  bag or a subsequence.

  Raises:
    UserError: when the metric is called; a question has no reference. CMRC has no unanswerable
      questions.
  """

  def score(prediction: str, answers: list[str]) -> tuple[float, float]:
    text, pieces = _cmrc_text(prediction), _cmrc_pieces(prediction)
    exact = any(text == _cmrc_text(answer) for answer in answers)
    return float(exact), max(_run_f1(pieces, _cmrc_pieces(answer)) for answer in answers)

  def check(references: Sequence[str | Sequence[str]]) -> None:
    if not all(alternatives(references)):
      raise UserError('cmrc: a question has no reference; CMRC has no unanswerable questions')

  return _mean_of_best('cmrc', score, check)


def _mean_of_best(
  name: str,
  score: Callable[[str, list[str]], tuple[float, float]],
  check: Callable[[Sequence], object] = lambda references: None,
) -> CorpusMetric:
  def mean(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    check(references)
    pairs = [score(*pair) for pair in zip(predictions, alternatives(references), strict=True)]
    exact, f1 = (100 * statistics.fmean(column) for column in zip(*pairs, strict=True))
    return Scores({'exact_match': exact, 'f1': f1})

  return validated(name, CorpusMetric(mean, higher('exact_match', 'f1'), check), TEXTS)


def _squad_words(answer: str) -> list[str]:
  return _ARTICLE.sub(' ', answer.lower().translate(_ASCII_PUNCTUATION)).split()


def _cmrc_text(answer: str) -> str:
  return answer.lower().strip().translate(_CMRC_PUNCTUATION)


def _cmrc_pieces(answer: str) -> list[str]:
  return [p for run in _HAN_OR_OTHER.findall(_cmrc_text(answer)) for p in _WORD.findall(run)]


def _bag_f1(prediction: list[str], gold: list[str]) -> float:
  if not prediction or not gold:
    return float(prediction == gold)
  shared = (collections.Counter(prediction) & collections.Counter(gold)).total()
  return 2 * shared / (len(prediction) + len(gold))


def _run_f1(prediction: list[str], gold: list[str]) -> float:
  matcher = difflib.SequenceMatcher(None, prediction, gold, autojunk=False)
  shared = matcher.find_longest_match().size
  return 2 * shared / (len(prediction) + len(gold)) if shared else 0.0
