"""The files of an exported run besides its tensors: configs, tokenizer and model card."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tokenizers import Tokenizer, processors

from lm.config.base import sizes
from lm.text.tokenizers import end_id
from lm.workdir import run_data


def files(
  workdir: Path, config: ConfigDict, described: dict[str, Any], tokenizer: Tokenizer, step: int
) -> dict[str, bytes]:
  """Returns the contents of the files by name.

  Args:
    workdir: of the run.
    config: of the run.
    described: the content of config.json without the tokens.
    tokenizer: of the run.
    step: of the checkpoint.
  """
  end = end_id(tokenizer)
  name = tokenizer.id_to_token(end)
  # Texts begin after the token that ends the one before, in training as in `lm.generate`.
  tokenizer.post_processor = processors.TemplateProcessing(
    single=[name, '$A'], special_tokens=[(name, end)]
  )
  ends = {'bos_token_id': end, 'eos_token_id': end}
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'bos_token': name,
    'eos_token': name,
    'clean_up_tokenization_spaces': False,
    'model_max_length': config.model.context,
  }
  texts = {
    'config.json': _json(described | ends),
    'generation_config.json': _json(ends),
    'tokenizer.json': tokenizer.to_str(pretty=True),
    'tokenizer_config.json': _json(settings),
    'README.md': _card(run_data.read_run(workdir), workdir, config, described, step),
  }
  return {name: text.encode() for name, text in texts.items()}


def _json(value: dict[str, Any]) -> str:
  return json.dumps(value, indent=2, ensure_ascii=False) + '\n'


def _card(
  run: run_data.RunData, workdir: Path, config: ConfigDict, described: dict[str, Any], step: int
) -> str:
  """Returns the model card: what was trained, on what, and the metrics of the step."""
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
    'from transformers import AutoModelForCausalLM, AutoTokenizer',
    '',
    "model, tokenizer = (c.from_pretrained('.') for c in (AutoModelForCausalLM, AutoTokenizer))",
    '```',
    '',
  ]
  return '\n'.join(lines)
