"""Minimal pairs: whether a model finds the grammatical sentence of two the more probable one.

BLiMP (Warstadt et al. 2020) and ZhoBLiMP have such pairs in paradigms (`uid`), and these in
phenomena (`term`). `score_pairs` scores both sentences of each pair, and `figures` counts how often
the good one wins. The score of a sentence is, by the kind of the model:

- decoders and recurrent language models: log p(sentence | START), left to right. START is END, as
  in training here, or `decode.start` of an imported model. END after the sentence does not count:
  its probability is that of the length of a training document, and other programs (Warstadt et al.
  2020) leave it out too.
- encoders whose head is the vocabulary: pseudo-log-likelihood, the sum over tokens of
  log p(token | the others), with the token masked (Salazar et al. 2020). Special tokens do not
  count.
- encoders that detect replaced tokens (ELECTRA): the sum over tokens of the log of the probability
  that the token is original. It is the score of no language model, but ranks sentences.
- encoder-decoders: log p(sentence | source) of the decoder. The source is an empty text by default,
  which every such model can read; with `source_mask` it is that token, as in pretraining by
  denoising. T5's sentinel also starts the target.

A sentence is a text alone, without `data.prepare`. Its score does not depend on the other ones.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lm.data import features
from lm.data.sources.rows import FORMATS, Row, file_rows
from lm.decode.stream import document_start, prompt_encoder
from lm.errors import UserError
from lm.evaluation.predict import PredictStep, make_predict_step, packed_batches, predicted_pieces
from lm.evaluation.trained_model import TrainedModel
from lm.nn.losses import sigmoid_cross_entropy, token_statistics
from lm.progress import Report, silent
from lm.task import Example, Features
from lm.tasks import fill_mask, seq2seq, text
from lm.text.files import expand_path
from lm.text.framing import Framed, frame, framing_of
from lm.text.tokenizers import mask_token, special_ids, text_reader, unknown_id
from lm.types import Array, Batch, Output

# The fields of a pair: the columns of our tables, and the keys of BLiMP's own files.
_NAMES = {
  'uid': 'UID',
  'term': 'linguistics_term',
  'good': 'sentence_good',
  'bad': 'sentence_bad',
}
_SUFFIXES = ('.tsv', '.jsonl')
_SENTINEL = re.compile(r'<extra_id_\d+>')
_TIE = 1e-4  # nats; smaller differences are rounding, which depends on the batch
_WINDOW = 1024  # sentences that are packed together
_Z = 1.959964  # the normal quantile of 95 %


class Pair(NamedTuple):
  """Two sentences that differ in grammaticality alone; `place` is their origin, for errors."""

  uid: str
  term: str
  good: str
  bad: str
  place: str


class Score(NamedTuple):
  """The log-probability of a sentence in nats, and how many tokens, also unknown ones, it has."""

  nats: float
  tokens: int
  unknown: int = 0  # of these tokens


class Scored(NamedTuple):
  """The scores of a pair."""

  pair: Pair
  good: Score
  bad: Score

  def credit(self, normalized: bool = False) -> float:
    """Returns 1 if the good sentence is more probable, 0 if the bad one is, and 0.5 for a tie.

    Args:
      normalized: whether scores are means over tokens.
    """
    good, bad = (s.nats / s.tokens if normalized else s.nats for s in (self.good, self.bad))
    return 0.5 if abs(good - bad) <= _TIE else float(good > bad)

  def line(self) -> dict[str, Any]:
    """Returns the pair with its scores as a JSON object."""
    row = {name: getattr(self.pair, name) for name in _NAMES}
    of_both = {'good': self.good, 'bad': self.bad}
    scores = {f'{k}_{f}': x for k, s in of_both.items() for f, x in s._asdict().items()}
    return {**row, **scores, 'credit': self.credit()}


def read_pairs(path: str, per_uid: int = 0) -> list[Pair]:
  """Returns the pairs of a file, .tsv with a header or .jsonl, or of all such files of a folder.

  Args:
    path: the file or folder.
    per_uid: only the first pairs of each paradigm; 0 for all.

  Raises:
    UserError: there is no such file, a row lacks a field or a sentence, or all pairs are of equal
      sentences.
  """
  place = expand_path(path, '--pairs')
  files = [place]
  if place.is_dir():
    files = sorted(file for file in place.iterdir() if file.suffix in _SUFFIXES)
  if not files or not files[0].is_file():
    what = f'no {" or ".join(_SUFFIXES)} in this folder' if place.is_dir() else 'no such file'
    raise UserError(f'--pairs={path}: {what}')
  if files[0].suffix not in _SUFFIXES:
    raise UserError(f'--pairs={path}: its name must end in {" or ".join(_SUFFIXES)}')
  found: list[Pair] = []
  counts: dict[str, int] = {}
  for file in files:
    for row in file_rows(file, '--pairs', FORMATS[file.suffix], ''):
      pair = _pair(row)
      counts[pair.uid] = counts.get(pair.uid, 0) + 1
      if not per_uid or counts[pair.uid] <= per_uid:
        found.append(pair)
  if all(pair.good == pair.bad for pair in found):
    raise UserError(f"{found[0].place}: 'good' and 'bad' are equal, and so in all pairs")
  return found


def _pair(row: Row) -> Pair:
  values: list[str] = []
  for name, other in _NAMES.items():
    value = row.fields.get(name, row.fields.get(other))
    if not isinstance(value, str):
      known = ', '.join(map(repr, row.fields))
      raise UserError(f'{row.place}: no text under {name!r} or {other!r}; it has {known}')
    if not value.strip():
      raise UserError(f'{row.place}: {name!r} is empty')
    values.append(value)
  uid, term, good, bad = values
  return Pair(uid, term, good, bad, row.place)


def score_pairs(
  run: TrainedModel,
  pairs: Sequence[Pair],
  source_mask: str | None = None,
  batch_size: int = 32,
  report: Report = silent,
) -> list[Scored]:
  """Returns the scores of each pair by the model of a run.

  Args:
    run: of `lm.load`.
    pairs: such as those of `read_pairs`.
    source_mask: the name of a token that an encoder-decoder reads, see above.
    batch_size: packed rows of a batch.
    report: receives the count of scored sentences.

  Raises:
    UserError: the model gives sentences no probability, or a sentence has no tokens or too many.
  """
  places = {sentence: pair.place for pair in pairs for sentence in (pair.good, pair.bad)}
  sentences, reader = list(places), _reader(run, source_mask)
  scores: dict[str, Score] = {}
  for start in range(0, len(sentences), _WINDOW):
    window = sentences[start : start + _WINDOW]
    for sentence, score in zip(
      window, _scores(run, reader, window, places, batch_size), strict=True
    ):
      if not math.isfinite(score.nats):
        raise UserError(f'{places[sentence]}: the score of {sentence!r:.60} is {score.nats}')
      scores[sentence] = score
    report(len(scores), len(sentences), 'scoring')
  return [Scored(pair, scores[pair.good], scores[pair.bad]) for pair in pairs]


def figures(scored: Sequence[Scored]) -> dict[str, Any]:
  """Returns the figures of scored pairs, a JSON object; `intervals` are those of 95 %.

  `accuracy` has ties count half; `macro_accuracy` is the mean over paradigms, and
  `normalized_accuracy` compares mean log-probabilities of tokens. `unequal_lengths` pairs differ in
  their number of tokens, which favors the shorter sentence. `unknown_tokens` pairs have a token for
  unknown words, which is more probable than each word that it stands for. `terms` has the
  phenomena.
  """
  of_uids, of_terms = (_grouped(scored, field) for field in ('uid', 'term'))
  macro = np.mean([_accuracy(group)['accuracy'] for group in of_uids.values()])
  return {
    **_accuracy(scored),
    'macro_accuracy': float(macro),
    'normalized_accuracy': float(np.mean([each.credit(normalized=True) for each in scored])),
    'ties': sum(each.credit() == 0.5 for each in scored),
    'equal_sentences': sum(each.pair.good == each.pair.bad for each in scored),
    'unequal_lengths': sum(each.good.tokens != each.bad.tokens for each in scored),
    'unknown_tokens': sum(each.good.unknown + each.bad.unknown > 0 for each in scored),
    'terms': {term: _accuracy(group) for term, group in of_terms.items()},
    'uids': {uid: _accuracy(group)['accuracy'] for uid, group in of_uids.items()},
  }


def _grouped(scored: Iterable[Scored], field: str) -> dict[str, list[Scored]]:
  groups: dict[str, list[Scored]] = {}
  for each in scored:
    groups.setdefault(getattr(each.pair, field), []).append(each)
  return dict(sorted(groups.items()))


def _accuracy(scored: Sequence[Scored]) -> dict[str, Any]:
  """Returns the accuracy of some pairs and its interval (Wilson 1927), as if they were drawn alone.

  The pairs of a paradigm share a template, so that other pairs vary more than this interval.
  """
  n, p = len(scored), float(np.mean([each.credit() for each in scored]))
  half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
  low, high = ((p + _Z**2 / (2 * n) + x) / (1 + _Z**2 / n) for x in (-half, half))
  return {'pairs': n, 'accuracy': p, 'interval': [low, high]}


class _Reader(NamedTuple):
  """How a kind of model scores: the features of a sentence, and the nats of each of them.

  `step` returns `name`, the nats of each token or feature, which count where weights are 1.
  """

  convert: Callable[[str], list[Features]]
  step: PredictStep
  name: str


def _reader(run: TrainedModel, source_mask: str | None) -> _Reader:
  is_seq2seq = getattr(run.model, 'reads_source', False)
  if source_mask and not is_seq2seq:
    raise UserError(
      f'--source_mask={source_mask}: model.fn={run.config.model.fn!r} reads no source'
    )
  if is_seq2seq:
    convert = _after_source(run, source_mask)
  elif getattr(run.model, 'continues_prompts', False):
    if run.config.data.task is not None:
      raise UserError(
        f'--workdir={run.workdir}: data.task={run.config.data.task!r}: this decoder has learned '
        'the targets of its task alone, and gives sentences no probability'
      )
    start = document_start(run.tokenizer, run.config.decode.start)
    encode = prompt_encoder(run.tokenizer, start)
    convert = lambda sentence: [_continued(encode(sentence), len(start), {})]  # noqa: E731
  elif run.fills_masks:
    step = make_predict_step(_masked_nats, run.apply)
    return _Reader(_masked_copies(run.tokenizer), step, 'values/nats')
  elif _detects_replacements(run):
    framed = frame(run.tokenizer, framing_of(run.tokenizer))
    convert = lambda sentence: [_whole(framed([sentence]))]  # noqa: E731
    return _Reader(convert, make_predict_step(_original_nats, run.apply), 'tokens/nats')
  else:
    raise UserError(
      f'--workdir={run.workdir}: model.fn={run.config.model.fn!r} gives sentences no probability; '
      'a language model, an encoder whose head is the vocabulary, or an encoder-decoder does'
    )
  return _Reader(convert, make_predict_step(_target_nats, run.apply), 'tokens/nats')


def _detects_replacements(run: TrainedModel) -> bool:
  of_tokens = getattr(run.model, 'pooling', 0) is None and run.config.data.task is None
  return of_tokens and getattr(run.model, 'num_classes', 0) == 1


def _whole(found: Framed) -> Features:
  """Returns the features of a sentence whose tokens all count, without the special ones."""
  return Features(found.arrays() | {'weights': found.text >= 0}, {}, {})


def _continued(ids: Sequence[int], start: int, source: dict[str, np.ndarray]) -> Features:
  """Returns the features whose targets are the tokens from index `start` on."""
  sequence = np.array(ids)
  counted = np.arange(1, len(ids)) >= start
  tokens = {'inputs': sequence[:-1], 'targets': sequence[1:], 'weights': counted}
  return Features(tokens, source, {})


def _after_source(run: TrainedModel, mask: str | None) -> Callable[[str], list[Features]]:
  """Returns the function from a sentence to the features of an encoder-decoder."""
  data, tokenizer = run.config.data, run.tokenizer
  task = text.text_to_text()
  converter = seq2seq.encoder_decoder(task)
  if data.task is not None:
    with run.modules():
      task, converter = features.build_task(data)
  if converter.encode_prompt is None:
    raise UserError(f'--pairs: data.converter={data.converter!r} generates no text')
  prompt, reader = converter.encode_prompt(tokenizer), text_reader(tokenizer)

  def read(source: str) -> Features:
    row: Example = {f: [source] if f == 'turns' else source for f in task.fields}
    return prompt(task.question(row))

  empty = read('')
  source, first = empty.source['source'], empty.tokens['inputs'].tolist()
  if mask:
    token = tokenizer.token_to_id(mask)
    if token not in special_ids(tokenizer):
      raise UserError(
        f'--source_mask={mask}: the tokenizer of {run.workdir} has no such special token'
      )
    # The mask is where a text would be: before the special tokens that follow it.
    place = np.argmax(read('a').source['source'][: len(source)] != source)
    source = np.insert(source, place, token)
    first += [token] * bool(_SENTINEL.fullmatch(mask))

  def convert(sentence: str) -> list[Features]:
    ids = reader.encode(sentence, add_special_tokens=False).ids
    return [_continued([*first, *ids], len(first), {'source': source})]

  return convert


def _masked_copies(tokenizer: Any) -> Callable[[str], list[Features]]:
  """Returns the function from a sentence to its copies, each with one token masked."""
  _, mask = mask_token(tokenizer)
  framed = frame(tokenizer, framing_of(tokenizer))

  def convert(sentence: str) -> list[Features]:
    found = framed([sentence])
    arrays, copies = found.arrays(), []
    for place in np.flatnonzero(found.text >= 0):
      inputs = found.ids.copy()
      inputs[place] = mask
      values = {'mask': place, 'target': found.ids[place]}
      copies.append(Features(arrays | {'inputs': inputs}, {}, values))
    return copies

  return convert


def _target_nats(output: Output, batch: Batch) -> dict[str, Array]:
  nats_BT = token_statistics(output.hidden, output.head, batch['targets']).nats
  return {'tokens/nats': nats_BT * batch['weights']}


def _original_nats(output: Output, batch: Batch) -> dict[str, Array]:
  logits_BT = output.head(output.hidden)[..., 0]  # of replaced tokens
  return {
    'tokens/nats': sigmoid_cross_entropy(logits_BT, jnp.zeros_like(logits_BT)) * batch['weights']
  }


def _masked_nats(output: Output, batch: Batch) -> dict[str, Array]:
  masked_BPD = fill_mask.masked_states(output, batch)
  return {'values/nats': token_statistics(masked_BPD, output.head, batch['target']).nats}


def _scores(
  run: TrainedModel,
  reader: _Reader,
  sentences: Sequence[str],
  places: dict[str, str],
  batch_size: int,
) -> list[Score]:
  """Returns the score of each sentence."""
  limits = features.length_limits(run.config.data)
  limit = math.inf if getattr(run.model, 'reads_on', False) else limits['tokens'][1]
  flat: list[Features] = []
  owners: list[int] = []
  counts, unknown = np.zeros((2, len(sentences)), int)
  no_word = unknown_id(run.tokenizer)
  for i, sentence in enumerate(sentences):
    for each in reader.convert(sentence):
      tokens = _scored_tokens(each)
      counts[i] += tokens.size
      unknown[i] += np.sum(tokens == (-1 if no_word is None else no_word))
      if (size := len(each.tokens['inputs'])) > limit:
        raise UserError(f'{places[sentence]}: {size} tokens, and the model reads {limit}')
      flat.append(each)
      owners.append(i)
    if not counts[i]:
      raise UserError(f'{places[sentence]}: {sentence!r:.60} has no tokens')
  nats = np.zeros(len(sentences))
  source = packed_batches(flat, batch_size, limits)
  for i, pieces in predicted_pieces(reader.step, run.params, source):
    nats[owners[i]] -= np.sum(pieces[reader.name], dtype=np.float64)
  return [Score(float(x), int(n), int(m)) for x, n, m in zip(nats, counts, unknown, strict=True)]


def _scored_tokens(each: Features) -> np.ndarray:
  """Returns the ids of the tokens of a sentence, or of its copy, that its score sums over."""
  if 'target' in each.values:
    return np.array([each.values['target']])
  tokens = each.tokens.get('targets', each.tokens['inputs'])
  return tokens[each.tokens['weights'].astype(bool)]
