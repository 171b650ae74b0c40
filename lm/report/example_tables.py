"""The sections of a report that show single examples: outputs with references, attention maps."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm.report.html import details, embedded, escaped, format_float, plain, readable, section
from lm.workdir.run_data import EvalExample, RunData

_Directions = Mapping[str, bool | None]
_SHOWN = 50  # visible rows of a table
_LONGEST = 800  # characters of a cell
_COLORS = 6  # classes `kind0`, `kind1`, ... of report.css
_ORDER = (
  '<form class="controls"><label>order <select name="order"><option value="worst">worst first'
  '</option><option value="best">best first</option><option value="index">as in the set</option>'
  '</select></label></form>'
)


def outputs(run: RunData) -> str:
  """Returns the section of the outputs and references of each set, sorted by score.

  The page contains the 50 worst, the 50 best and the first 50 examples of each set. Its script
  shows 50 of them in the order that the reader selects.
  """
  parts = []
  best = f', the best by {run.setting("checkpoint.monitor") or "checkpoint.monitor"}'
  for name, by_step in run.predictions.items():
    directions = {key.removeprefix(f'eval/{name}/'): d for key, d in run.directions.items()}
    newest = max(by_step)
    tables = ''.join(
      details(
        f'step {step:,}{best if step != newest else ""}',
        _examples(examples, directions),
        opened=step == newest,
      )
      for step, examples in sorted(by_step.items(), reverse=True)
    )
    parts.append(f'<div class="outputs"><h3>{escaped(name)}</h3>{_ORDER}{tables}</div>')
  return section('Outputs', ''.join(parts)) if parts else ''


def attention(run: RunData) -> str:
  """Returns the section of the attention maps, as data that the page's script draws."""
  return readable('Attention', _maps, run.attention) if run.attention else ''


def _maps(maps: Mapping[str, Any]) -> str:
  kind = {
    'cross_attention': 'Each row is a word of the reference, with the weights of the source words '
    'when the decoder predicted it.',
    'attention': 'Each row is a word, with the weights of the words that it attends to.',
  }[maps['kind']]
  if not maps['heads']:
    kind += ' The heads of each layer are averaged.'
  where = f'{escaped(maps["set"])}, step {maps["step"]:,}'
  choices = ('example', 'layer', 'head')
  selects = ''.join(f'<label>{c} <select name="{c}"></select></label>' for c in choices)
  return section(
    'Attention',
    f'<p class="none">{where}. {kind}</p>'
    '<noscript><p class="none">The maps need JavaScript.</p></noscript>'
    f'<form class="controls">{selects}</form><div id="attention"></div>'
    + embedded('attention-data', maps),
  )


def _examples(examples: Sequence[EvalExample], directions: _Directions) -> str:
  if not examples:
    return '<p class="none">No examples.</p>'
  ranks = _ranks(examples, directions)
  count = len(examples)
  ends = [i for i, rank in enumerate(ranks) if min(i, rank, count - 1 - rank) < _SHOWN]
  kinds = _kinds(examples)
  head = '<th></th><th>source</th><th>output</th><th>reference</th>'
  scores = ''.join(f'<th class="number">{escaped(name)}</th>' for name in examples[0].scores)
  body = ''.join(
    _row(i, ranks[i], examples[i], kinds) for i in sorted(ends, key=lambda i: ranks[i])
  )
  shown = f', {_SHOWN} shown' if count > _SHOWN else ''
  return (
    f'<p class="none">{count:,} examples{shown}</p><div class="table"><table>'
    f'<thead><tr>{head}{scores}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _ranks(examples: Sequence[EvalExample], directions: _Directions) -> list[int]:
  """Returns the rank of each example by its first score; 0 is the worst. NaN ranks lowest."""
  first = [next(iter(example.scores.items())) for example in examples]
  signed = np.array([-float(x) if directions.get(name) is False else float(x) for name, x in first])
  order = np.argsort(np.where(np.isnan(signed), -np.inf, signed), kind='stable')
  return np.argsort(order).tolist()


def _row(index: int, rank: int, example: EvalExample, kinds: dict[str, int]) -> str:
  output, reference = example.output, example.reference
  cells = [_cell(output), _cell(reference)]
  if (words := _tagged_words(example)) is not None:
    cells = [_tags(words, tags, reference, kinds) for tags in (output, reference)]
  source = '<br>'.join(_cell(part) for part in example.inputs if part != '<|sep|>')
  scores = ''.join(f'<td class="number">{_score(example, name)}</td>' for name in example.scores)
  hidden = ' hidden' if rank >= _SHOWN else ''
  return (
    f'<tr data-index="{index}" data-rank="{rank}"{hidden}><td class="number">{index + 1}</td>'
    f'<td>{source}</td><td>{cells[0]}</td><td>{cells[1]}</td>{scores}</tr>'
  )


def _score(example: EvalExample, name: str) -> str:
  value = float(example.scores[name])
  if name == 'accuracy' and not isinstance(example.output, list):
    return '<span class="right">right</span>' if value else '<span class="wrong">wrong</span>'
  return format_float(value)


def _cell(value: Any) -> str:
  if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
    value = ' / '.join(value)  # several references
  text = plain(value)
  return escaped(text if len(text) <= _LONGEST else f'{text[:_LONGEST]}…')


def _tagged_words(example: EvalExample) -> list[str] | None:
  """Returns the words (or characters) that the output tags; None if the output has no tags."""
  tags, reference, inputs = example.output, example.reference, example.inputs
  if not isinstance(tags, list) or not isinstance(reference, list) or len(inputs) != 1:
    return None
  if not all(isinstance(tag, str) for tag in (*tags, *reference)):
    return None
  splits = (inputs[0].split(' '), list(inputs[0]))
  return next((words for words in splits if len(words) == len(tags) == len(reference)), None)


def _kinds(examples: Sequence[EvalExample]) -> dict[str, int]:
  """Returns a color index for each tag type; the tags B-PER and I-PER have the type PER."""
  references = (e.reference for e in examples if isinstance(e.reference, list))
  kinds = {_kind(tag) for tags in references for tag in tags if isinstance(tag, str)} - {''}
  return {kind: i % _COLORS for i, kind in enumerate(sorted(kinds))}


def _kind(tag: str) -> str:
  return '' if tag == 'O' else tag[2:] if tag[1:2] == '-' else tag


def _tags(
  words: Sequence[str], tags: Sequence[str], reference: Sequence[str], kinds: dict[str, int]
) -> str:
  """Returns the words as HTML, with a colored box for each span and a mark on wrong words."""
  between = ' ' if any(len(word) > 1 for word in words) else ''
  begins = itertools.accumulate(tag[:2] in ('B-', 'S-') for tag in tags)
  keyed = zip(words, tags, reference, begins, strict=True)
  parts = []
  for (kind, _), members in itertools.groupby(keyed, lambda m: (_kind(m[1]), m[3])):
    spelled = between.join(
      escaped(word) if tag == actual else f'<span class="wrong">{escaped(word)}</span>'
      for word, tag, actual, _ in members
    )
    if kind:
      color = kinds.get(kind, 0)
      spelled = f'<span class="tag kind{color}">{spelled}<sub>{escaped(kind)}</sub></span>'
    parts.append(spelled)
  return between.join(parts)
