"""The files of an exported run besides its tensors: configs, tokenizer and model card."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer, processors

from lm.config.base import sizes
from lm.data.pipeline import training_sources
from lm.errors import UserError
from lm.pretrained.encoder_decoders import STARTS
from lm.pretrained.section import canonical
from lm.text.framing import framing_of
from lm.text.tokenizers import MASKS, SEPARATOR, end_id, special_ids, unknown_id
from lm.workdir import run_data

_OF_MODEL = ('bos_token', 'eos_token', 'cls_token', 'sep_token', 'pad_token')  # in config.json
_PADS = ('[PAD]', '<pad>', '<|pad|>')  # names of padding in tokenizers


def tokenizer_files(
  config: ConfigDict, described: dict[str, Any], tokenizer: Tokenizer
) -> tuple[dict[str, int | None], dict[str, bytes]]:
  """Returns the ids of special tokens by the keys of config.json, and files by name.

  The files are those of the tokenizer, and of generation for a model that generates.

  Args:
    config: of the run.
    described: the content of config.json without the tokens.
    tokenizer: of the run; its post-processor becomes that of the rows of the run.

  Raises:
    UserError: padding has a token of texts.
  """
  kind = config.model.fn.partition(':')[2]
  tokens_of = {'Encoder': _encoder_tokens, 'EncoderDecoder': _pair_tokens}.get(
    kind, _decoder_tokens
  )
  tokens = tokens_of(config, described, tokenizer)
  ids = {f'{key}_id': tokenizer.token_to_id(tokens[key]) for key in _OF_MODEL if key in tokens}
  generation: dict[str, Any] = dict(ids)
  if kind == 'EncoderDecoder':
    if _arguments(config).get('start') is None:
      ids['decoder_start_token_id'] = ids['eos_token_id']
    generation |= {key: (described | ids)[key] for key in STARTS if key in described}
    unknown = unknown_id(tokenizer)
    banned = [*config.decode.forbidden, *([] if unknown is None else [unknown])]
    generation |= {'max_length': config.model.context}
    generation |= {'bad_words_ids': [[i] for i in banned]} if banned else {}
  types = ['token_type_ids'] if described.get('type_vocab_size', 1) > 1 else []
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    **tokens,
    'clean_up_tokenization_spaces': False,
    'model_max_length': config.model.context,
    'model_input_names': ['input_ids', *types, 'attention_mask'],
  }
  texts = {
    **({} if kind == 'Encoder' else {'generation_config.json': as_json(generation)}),
    'tokenizer.json': tokenizer.to_str(pretty=True),
    'tokenizer_config.json': as_json(settings),
  }
  return ids, {name: text.encode() for name, text in texts.items()}


def _decoder_tokens(
  config: ConfigDict, described: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, str]:
  """Returns the special tokens of a decoder by the keys of tokenizer_config.json.

  Texts begin after the token that ends the one before, in training as in `lm.generate`.
  """
  end = _end(tokenizer)
  _frame(tokenizer, [end], [])
  return {'bos_token': end, 'eos_token': end}


def _pair_tokens(
  config: ConfigDict, described: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, str]:
  """Returns the special tokens of an encoder-decoder by the keys of tokenizer_config.json.

  Sources end as the converter of the run frames them.
  """
  end = _end(tokenizer)
  if _arguments(config).get('special_tokens') != 'template':
    _frame(tokenizer, [], [end])
  return {'bos_token': end, 'eos_token': end, **_others(tokenizer)}


def _arguments(config: ConfigDict) -> dict[str, Any]:
  """Returns the arguments of the converter of a run."""
  converter = config.data.get('converter')
  return {} if converter is None else canonical(converter)[1]


def _others(tokenizer: Tokenizer) -> dict[str, str]:
  """Returns the tokens of padding and of unknown words; END pads a tokenizer without padding."""
  specials, unknown = _specials(tokenizer), unknown_id(tokenizer)
  return {
    'pad_token': next((name for name in _PADS if name in specials), _end(tokenizer)),
    **({} if unknown is None else {'unk_token': _token(tokenizer, unknown)}),
  }


def _encoder_tokens(
  config: ConfigDict, described: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, str]:
  """Returns the special tokens of an encoder by the keys of tokenizer_config.json.

  Its rows begin and end as the converter of the run frames texts.
  """
  framing = _arguments(config).get('special_tokens', framing_of(tokenizer))
  if framing != 'template':
    _frame(tokenizer, [_end(tokenizer)] if framing == 'end' else [], [])
  frame, end, specials = tokenizer.encode('').tokens, _end(tokenizer), _specials(tokenizer)
  others, pad = _others(tokenizer), described.get('pad_token_id')
  masks = [name for name in MASKS if name in specials]
  if pad is None:
    padding = others['pad_token']
  elif (padding := _token(tokenizer, pad)) not in specials:
    # Code of RoBERTa counts no position for it.
    raise UserError(
      f'model.position={config.model.position!r}: token {pad} before its first row must be '
      f'padding, and is {padding!r}'
    )
  return {
    **({'cls_token': frame[0], 'sep_token': frame[-1]} if frame else {}),
    'bos_token': frame[0] if frame else end,
    'eos_token': frame[-1] if frame else end,
    **others,
    'pad_token': padding,
    **({'mask_token': masks[0]} if masks else {}),
  }


def _token(tokenizer: Tokenizer, i: int) -> str:
  """Returns the name of a token; '' for an id that none has."""
  return tokenizer.id_to_token(i) or ''


def _end(tokenizer: Tokenizer) -> str:
  return _token(tokenizer, end_id(tokenizer))


def _specials(tokenizer: Tokenizer) -> set[str]:
  return {_token(tokenizer, i) for i in special_ids(tokenizer)}


def _frame(tokenizer: Tokenizer, first: list[str], last: list[str]) -> None:
  """Sets the frame of texts: tokens around them, and a separator in a pair; all of one type."""
  separator = [str(SEPARATOR)] if tokenizer.token_to_id(SEPARATOR) is not None else []
  tokens = dict.fromkeys([*first, *separator, *last])
  tokenizer.post_processor = processors.TemplateProcessing(
    single=[*first, '$A', *last],
    pair=[*first, '$A', *separator, '$B', *last],
    special_tokens=[(name, tokenizer.token_to_id(name)) for name in tokens],
  )


def as_json(value: dict[str, Any]) -> str:
  """Returns the text of a JSON file."""
  return json.dumps(value, indent=2, ensure_ascii=False) + '\n'


def model_card(
  workdir: Path, config: ConfigDict, described: dict[str, Any], step: int, reader: str
) -> str:
  """Returns the model card: what was trained, on what, and the metrics of the step.

  Args:
    workdir: of the run.
    config: of the run.
    described: the content of config.json.
    step: of the checkpoint.
    reader: the class of transformers that reads the tokenizer.
  """
  run = run_data.read_run(workdir)
  metrics = run_data.metrics_at(workdir, step).items()
  evaluated = [f'| {name} | {value:.6g} |' for name, value in metrics if name.startswith('eval/')]
  table = ['| metric | value |', '|---|---|', *evaluated] if evaluated else ['Not evaluated.']
  sources = ', '.join(training_sources(config.data).values())
  lines = [
    '---',
    'library_name: transformers',
    '---',
    f'# {run.name}',
    '',
    f'A `{described["model_type"]}` that `lm` trained: {sizes(config.model)}.',
    '',
    f'- Experiment: `{run.name}`',
    f'- Step: {step} of {config.steps}',
    f'- Data: `{sources}`, split `{config.data.train_split}`',
    '',
    f'## Metrics of step {step}',
    '',
    *table,
    '',
    '```python',
    f'from transformers import {described["architectures"][0]}, {reader}',
    '',
    f"model = {described['architectures'][0]}.from_pretrained('.')",
    f"tokenizer = {reader}.from_pretrained('.')",
    '```',
    '',
  ]
  return '\n'.join(lines)
