"""BLEU, chrF and TER of a corpus, each the very score that the sacrebleu command prints.

Predictions are detokenised strings; the references of one are a string or a list of strings.
Values are what sacrebleu prints, 100 times a share (TER can pass 100; lower is better there). The
note under a value's name is its signature, which says all that it depends on: scores compare only
under equal signatures (Post 2018, A Call for Clarity in Reporting BLEU Scores).
"""

import itertools
from collections.abc import Callable, Sequence

from sacrebleu.metrics import BLEU, CHRF, TER
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest, Result

from lm.errors import UserError, did_you_mean
from lm.metrics.scores import CorpusMetric, Scores, alternatives, check_kind, check_sizes

# By ISO 639 codes. '13a', the usual tokenizer, cuts at spaces and ASCII punctuation: words of these
# languages end elsewhere, and one and the same Chinese output scored 34.3 for 56.0.
TOKENIZERS = {
  **dict.fromkeys(('zh', 'zho', 'cmn', 'yue'), 'zh'),
  **dict.fromkeys(('ja', 'jpn'), 'ja-mecab'),
  **dict.fromkeys(('ko', 'kor'), 'ko-mecab'),
}
# Thai, Lao, Khmer and Burmese put no spaces between words, and sacrebleu cannot segment them.
UNSEGMENTED = frozenset(('th', 'tha', 'lo', 'lao', 'km', 'khm', 'my', 'mya'))
SPACE_TOKENIZERS = ('13a', 'intl')
CHRF_NAMES = ('chrf', 'chrf_plus', 'chrf_plus_plus')  # by word order


def bleu(language: str, tokenize: str | None = None) -> CorpusMetric:
  """Returns the metric 'bleu' (Papineni et al. 2002), exponential smoothing, case kept.

  Args:
    language: of the references, an ISO 639 code ('zh', 'pt-BR', 'zho_Hans'); it picks the
      tokenizer: 'zh', 'ja-mecab', 'ko-mecab', and '13a' for languages that are written with spaces.
    tokenize: another tokenizer of sacrebleu, such as 'char' or 'flores200' (spBLEU).

  Raises:
    UserError: the tokenizer is unknown, does not suit the language or is not installed.
  """
  return _metric('bleu', _bleu(language, tokenize))


def chrf(word_order: int = 0) -> CorpusMetric:
  """Returns the metric 'chrf' of Popovic 2015: F2 of character n-grams up to 6, spaces left out.

  Args:
    word_order: longest word n-grams to add: 1 gives 'chrf_plus', 2 'chrf_plus_plus' (Popovic 2017).

  Raises:
    UserError: `word_order` is none of these.
  """
  if word_order not in range(len(CHRF_NAMES)):
    raise UserError(f'word_order={word_order!r}: chrF has 0, chrF+ has 1 and chrF++ has 2')
  return _metric(CHRF_NAMES[word_order], CHRF(word_order=word_order))


def ter(language: str = 'en') -> CorpusMetric:
  """Returns the metric 'ter' (Snover et al. 2006): edits a hundred reference words, case ignored.

  Args:
    language: of the references, an ISO 639 code. Words are what lies between spaces; in Chinese and
      Japanese each ideograph is one too (sacrebleu's `normalized` and `asian_support`).

  Raises:
    UserError: the language has no words that TER could count.
  """
  code = _code(language)
  if code in UNSEGMENTED:
    raise UserError(
      f'language={language!r}: TER counts words, which it does not separate; use chrf'
    )
  ideographs = TOKENIZERS.get(code) in ('zh', 'ja-mecab')
  return _metric('ter', TER(normalized=ideographs, asian_support=ideographs))


def sentence_scores(
  predictions: Sequence[str],
  references: Sequence[str | Sequence[str]],
  language: str,
  tokenize: str | None = None,
) -> list[float]:
  """Returns the BLEU of each sentence, to sort examples by; their mean is not the corpus' BLEU.

  N-grams longer than the sentence do not count (sacrebleu's effective order).

  Raises:
    UserError: as for `bleu`, or there are no sentences.
  """
  lists = _references('bleu', predictions, references)
  scorer = _bleu(language, tokenize, effective_order=True)
  pairs = zip(predictions, lists, strict=True)
  return [scorer.sentence_score(prediction, its).score for prediction, its in pairs]


def sentence_chrf() -> Callable[[str, str], float]:
  """Returns `(text, reference) -> chrF`, the utility of lm.decode.mbr; equal texts have 100."""
  scorer = CHRF()

  def utility(text: str, reference: str) -> float:
    # Also where there are no characters to compare.
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

  Sentences are drawn with replacement, the same ones for both. It is the test that the sacrebleu
  command makes of files: `sacrebleu REFERENCE -i BASELINE SYSTEM -m bleu --paired-bs`.

  Args:
    baseline: the predictions of one system.
    system: those of another.
    references: of both.
    language: as for `bleu`.
    tokenize: as for `bleu`.
    samples: how often a set of sentences is drawn.

  Returns:
    'baseline' and 'system', their BLEU, and 'p', the probability of as large a difference between
    two systems that are equally good; the signature is the note of 'p'. Of equal predictions it is
    1, where the command, which counts larger differences than none, prints 1 / (samples + 1).

  Raises:
    UserError: as for `bleu`, or `samples` is below 1.
  """
  if samples < 1:
    raise UserError(f'samples={samples} is not 1 or more')
  check_sizes('bleu', baseline, references)
  lists = _references('bleu', system, references)
  streams = [list(stream) for stream in itertools.zip_longest(*lists)]
  named: list[tuple[str, Sequence[str]]] = [('baseline', baseline), ('system', system)]
  scorer = {'bleu': _bleu(language, tokenize)}
  signatures, found = PairedTest(named, scorer, streams, test_type='bs', n_samples=samples)()
  ((name, signature),) = signatures.items()
  one, other = (result for result in found[name] if isinstance(result, Result))
  values = {'baseline': one.score, 'system': other.score, 'p': other.p_value}
  if list(baseline) == list(system):
    values['p'] = 1.0
  known = {name: float(value) for name, value in values.items() if value is not None}
  return Scores(known, {'p': signature.format()})


def _metric(name: str, scorer: Metric) -> CorpusMetric:
  def metric(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Scores:
    lists = _references(name, predictions, references)
    # sacrebleu wants the first reference of every sentence, then the second, and None for no more.
    streams = [list(stream) for stream in itertools.zip_longest(*lists)]
    score = float(scorer.corpus_score(list(predictions), streams).score)
    return Scores({name: score}, {name: scorer.get_signature().format()})

  def check(references: Sequence[str | Sequence[str]]) -> None:
    _lists(name, references)

  # TER counts edits.
  return CorpusMetric(metric, {name: name != 'ter'}, check)


def _references(
  name: str, predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> list[list[str]]:
  check_sizes(name, predictions, references)
  check_kind(name, predictions, str, 'texts')
  return _lists(name, references)


def _lists(name: str, references: Sequence[str | Sequence[str]]) -> list[list[str]]:
  """Returns the references of each sentence.

  Raises:
    UserError: a sentence has none.
  """
  lists = alternatives(references)
  if not all(lists):
    raise UserError(f'{name}: sentence {lists.index([])} (from 0) has no reference')
  return lists


def _bleu(language: str, tokenize: str | None, effective_order: bool = False) -> BLEU:
  tokenizer = _tokenizer(language, tokenize)
  try:
    return BLEU(tokenize=tokenizer, effective_order=effective_order)
  except (ImportError, RuntimeError, OSError) as e:  # OSError: the model of flores200 is downloaded
    extra = {'ja-mecab': "'sacrebleu[ja]'", 'ko-mecab': "'sacrebleu[ko]'"}.get(tokenizer)
    remedy = (
      f"pip install {extra}, or take tokenize='flores200' or 'char'"
      if extra
      else "pip install sentencepiece and have its model downloaded once, or take tokenize='char'"
    )
    raise UserError(
      f'tokenize={tokenizer!r} with language={language!r} cannot be used here; {remedy} '
      f'({type(e).__name__}: {" ".join(str(e).split())})'
    ) from e


def _tokenizer(language: str, tokenize: str | None) -> str:
  code = _code(language)
  own = TOKENIZERS.get(code, '13a')
  chosen = own if tokenize is None else tokenize
  if chosen not in BLEU.TOKENIZERS:
    known = ', '.join(sorted(BLEU.TOKENIZERS))
    hint = did_you_mean(chosen, BLEU.TOKENIZERS)
    raise UserError(f'tokenize={chosen!r} is no tokenizer of sacrebleu{hint}; it has {known}')
  if chosen in SPACE_TOKENIZERS and (code in TOKENIZERS or code in UNSEGMENTED):
    better = f"{own!r}, 'flores200' or 'char'" if code in TOKENIZERS else "'flores200' or 'char'"
    raise UserError(
      f'tokenize={chosen!r} with language={language!r} scores wrongly, for it cuts at spaces and '
      f'the words of that language do not end there; take {better}'
    )
  return chosen


def _code(language: str) -> str:
  """Returns the ISO 639 code that a language tag starts with."""
  code = language.replace('_', '-').split('-')[0].lower()
  if not (code.isascii() and code.isalpha() and len(code) in (2, 3)):
    raise UserError(f"language={language!r} is no ISO 639 code, such as 'en', 'zh' or 'pt-BR'")
  return code
