"""BLEU, chrF and TER of a corpus, equal to the scores of the sacrebleu command.

Predictions are detokenized strings; each has a reference string, or a list of them. Values are in
percent, as sacrebleu prints them (TER may exceed 100, and a lower TER is better). `Scores.notes`
has the sacrebleu signature of each value. Only scores with equal signatures are comparable (Post
2018, A Call for Clarity in Reporting BLEU Scores).
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest, Result

from lm.errors import UserError, check_choice, check_range
from lm.metrics.scores import TEXTS, CorpusMetric, Scores, alternatives, validated

# By ISO 639 code. The default tokenizer, '13a', splits at spaces and ASCII punctuation, which these
# languages do not put between words: one Chinese output scored 34.3 instead of 56.0.
TOKENIZERS = {
  **dict.fromkeys(('zh', 'zho', 'cmn', 'yue'), 'zh'),
  **dict.fromkeys(('ja', 'jpn'), 'ja-mecab'),
  **dict.fromkeys(('ko', 'kor'), 'ko-mecab'),
}
# Thai, Lao, Khmer and Burmese have no spaces between words, and sacrebleu cannot segment them.
UNSEGMENTED = frozenset(('th', 'tha', 'lo', 'lao', 'km', 'khm', 'my', 'mya'))
SPACE_TOKENIZERS = ('13a', 'intl')
CHRF_NAMES = ('chrf', 'chrf_plus', 'chrf_plus_plus')  # by word order


def bleu(language: str, tokenize: str | None = None) -> CorpusMetric:
  """Returns the metric 'bleu' (Papineni et al. 2002), case-sensitive, with exponential smoothing.

  The score of one example uses sacrebleu's effective order, without n-grams longer than a sentence.

  Args:
    language: of the references, an ISO 639 code ('zh', 'pt-BR', 'zho_Hans'). It determines the
      tokenizer: 'zh', 'ja-mecab', 'ko-mecab', and '13a' for languages with spaces.
    tokenize: another tokenizer of sacrebleu, such as 'char' or 'flores200' (spBLEU).

  Raises:
    UserError: the tokenizer is unknown, unsuitable for the language or not installed.
  """
  sentence = _bleu(language, tokenize, effective_order=True)
  metric = _metric('bleu', _bleu(language, tokenize))

  def example_score(prediction: str, reference: str | Sequence[str]) -> float:
    (answers,) = _reference_lists('bleu', [reference])
    return sentence.sentence_score(prediction, answers).score

  return dataclasses.replace(metric, example_score=('bleu', example_score))


def chrf(word_order: int = 0) -> CorpusMetric:
  """Returns the metric 'chrf' (Popovic 2015): F2 of character n-grams up to 6, without spaces.

  Args:
    word_order: longest word n-grams to add: 1 gives 'chrf_plus', 2 'chrf_plus_plus' (Popovic 2017).

  Raises:
    UserError: `word_order` is not 0, 1 or 2.
  """
  if word_order not in range(len(CHRF_NAMES)):
    raise UserError(f'word_order={word_order!r}: chrF has 0, chrF+ has 1 and chrF++ has 2')
  return _metric(CHRF_NAMES[word_order], CHRF(word_order=word_order))


def ter(language: str = 'en') -> CorpusMetric:
  """Returns the metric 'ter' (Snover et al. 2006): edits per 100 reference words, ignoring case.

  Args:
    language: of the references, an ISO 639 code. Spaces separate words; in Chinese and Japanese
      each ideograph is a word (sacrebleu's `normalized` and `asian_support`).

  Raises:
    UserError: the language does not separate words.
  """
  code = _code(language)
  if code in UNSEGMENTED:
    raise UserError(
      f'language={language!r}: TER counts words, which this language does not separate; use chrf'
    )
  ideographs = TOKENIZERS.get(code) in ('zh', 'ja-mecab')
  return _metric('ter', TER(normalized=ideographs, asian_support=ideographs))


def sentence_chrf() -> Callable[[str, str], float]:
  """Returns `(text, reference) -> chrF`, the utility of lm.decode.mbr; 100 for equal texts."""
  scorer = CHRF()

  def utility(text: str, reference: str) -> float:
    # sacrebleu gives 0 for two texts without characters.
    return 100.0 if text == reference else scorer.sentence_score(text, [reference]).score

  return utility


def compare(
  baseline: Sequence[str],
  system: Sequence[str],
  references: Sequence[str | Sequence[str]],
  language: str,
  tokenize: str | None = None,
  samples: int = 1000,
) -> Scores:
  """Compares the BLEU of two systems by paired bootstrap resampling (Koehn 2004).

  Equals the command `sacrebleu REFERENCE -i BASELINE SYSTEM -m bleu --paired-bs`.

  Args:
    baseline: the predictions of the first system.
    system: the predictions of the second system.
    references: the references of both.
    language: as for `bleu`.
    tokenize: as for `bleu`.
    samples: the count of bootstrap samples.

  Returns:
    'baseline' and 'system', the BLEU of each, and 'p', the probability of a difference at least as
    large between equally good systems; the note of 'p' is the signature. For equal predictions 'p'
    is 1. There the command prints 1 / (samples + 1), because it counts only strictly larger
    differences.

  Raises:
    UserError: as for `bleu`, or `samples` is below 1.
  """
  check_range('samples', samples, 1)
  named: list[tuple[str, Sequence[str]]] = [('baseline', baseline), ('system', system)]
  for _, predictions in named:
    bleu(language, tokenize)(predictions, references)  # checks the arguments
  scorer = {'bleu': _bleu(language, tokenize)}
  streams = _streams('bleu', references)
  signatures, results = PairedTest(named, scorer, streams, test_type='bs', n_samples=samples)()
  ((name, signature),) = signatures.items()
  one, other = (result for result in results[name] if isinstance(result, Result))
  p = 1.0 if list(baseline) == list(system) else other.p_value
  values = {'baseline': one.score, 'system': other.score, 'p': p}
  known = {name: float(value) for name, value in values.items() if value is not None}
  return Scores(known, {'p': signature.format()})


def _metric(name: str, scorer: Metric) -> CorpusMetric:
  def score(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    value = float(scorer.corpus_score(list(predictions), _streams(name, references)).score)
    return Scores({name: value}, {name: scorer.get_signature().format()})

  def check(references: Sequence[str | Sequence[str]]) -> None:
    _reference_lists(name, references)

  # A lower TER is better, as it counts edits.
  return validated(name, CorpusMetric(score, {name: name != 'ter'}, check), TEXTS)


def _reference_lists(name: str, references: Sequence[str | Sequence[str]]) -> list[list[str]]:
  """Returns the references of each sentence.

  Raises:
    UserError: a sentence has none.
  """
  lists = alternatives(references)
  if not all(lists):
    raise UserError(f'{name}: sentence {lists.index([])} (from 0) has no reference')
  return lists


def _streams(name: str, references: Sequence[str | Sequence[str]]) -> list[list[str]]:
  """Returns lists of the first, second, ... reference of each sentence; None for a missing one."""
  return [list(stream) for stream in itertools.zip_longest(*_reference_lists(name, references))]


def _bleu(language: str, tokenize: str | None, effective_order: bool = False) -> BLEU:
  tokenizer = _tokenizer(language, tokenize)
  try:
    return BLEU(tokenize=tokenizer, effective_order=effective_order)
  except (ImportError, RuntimeError, OSError) as e:  # OSError: flores200 downloads a model
    extra = {'ja-mecab': "'sacrebleu[ja]'", 'ko-mecab': "'sacrebleu[ko]'"}.get(tokenizer)
    remedy = (
      f"pip install {extra}, or use tokenize='flores200' or 'char'"
      if extra
      else "pip install sentencepiece and let it download its model once, or use tokenize='char'"
    )
    raise UserError(
      f'tokenize={tokenizer!r} with language={language!r} is not available here; {remedy} '
      f'({type(e).__name__}: {" ".join(str(e).split())})'
    ) from e


def _tokenizer(language: str, tokenize: str | None) -> str:
  code = _code(language)
  own = TOKENIZERS.get(code, '13a')
  chosen = own if tokenize is None else tokenize
  check_choice('tokenize', chosen, sorted(BLEU.TOKENIZERS))
  if chosen in SPACE_TOKENIZERS and (code in TOKENIZERS or code in UNSEGMENTED):
    better = f"{own!r}, 'flores200' or 'char'" if code in TOKENIZERS else "'flores200' or 'char'"
    raise UserError(
      f'tokenize={chosen!r} splits at spaces, which do not separate the words of '
      f'language={language!r}; use {better}'
    )
  return chosen


def _code(language: str) -> str:
  """Returns the ISO 639 code at the start of a language tag."""
  code = language.replace('_', '-').split('-')[0].lower()
  if not (code.isascii() and code.isalpha() and len(code) in (2, 3)):
    raise UserError(f"language={language!r} is no ISO 639 code, such as 'en', 'zh' or 'pt-BR'")
  return code
