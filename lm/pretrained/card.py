"""The files of an exported run besides its tensors: configs, tokenizer and model card."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer, processors

from lm.config.base import sizes
from lm.text.tokenizers import end_id
from lm.workdir import run_data


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, bytes]:
  """Returns the files of a tokenizer that was trained here, and of generation, by name."""
  end = end_id(tokenizer)
  name = tokenizer.id_to_token(end)
  # Texts begin after the token that ends the one before, in training as in `lm.generate`.
  tokenizer.post_processor = processors.TemplateProcessing(
    single=[name, '$A'], special_tokens=[(name, end)]
  )
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': name,
    'eos_token': name,
    'clean_up_tokenization_spaces': False,
    'model_max_length': context,
  }
  texts = {
    'generation_config.json': as_json({'bos_token_id': end, 'eos_token_id': end}),
    'tokenizer.json': tokenizer.to_str(pretty=True),
    'tokenizer_config.json': as_json(settings),
  }
  return {name: text.encode() for name, text in texts.items()}


def as_json(value: dict[str, Any]) -> str:
  """Returns the text of a JSON file."""
  return json.dumps(value, indent=2, ensure_ascii=False) + '\n'


def model_card(workdir: Path, config: ConfigDict, described: dict[str, Any], step: int) -> str:
  """Returns the model card: what was trained, on what, and the metrics of the step."""
  run = run_data.read_run(workdir)
  metrics = run_data.metrics_at(workdir, step).items()
  evaluated = [f'| {name} | {value:.6g} |' for name, value in metrics if name.startswith('eval/')]
  table = ['| metric | value |', '|---|---|', *evaluated] if evaluated else ['Not evaluated.']
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
    f'- Data: `{config.data.source}`, split `{config.data.train_split}`',
    '',
    f'## Metrics of step {step}',
    '',
    *table,
    '',
    '```python',
    f'from transformers import AutoTokenizer, {described["architectures"][0]}',
    '',
    f"model = {described['architectures'][0]}.from_pretrained('.')",
    "tokenizer = AutoTokenizer.from_pretrained('.')",
    '```',
    '',
  ]
  return '\n'.join(lines)
