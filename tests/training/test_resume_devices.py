"""A run goes on with another number of devices: the same batches, the same losses."""

import json
import os
import subprocess
import sys

import pytest

SOURCE = """
from ml_collections import ConfigDict
from lm.config.base import base

def get_config(arg=''):
  config = base()
  config.steps = 9
  config.batch_size = 8
  config.data.source = "lm.data.sources:text(files={corpus!r}, validation=0.1, documents='line')"
  config.data.tokenizer = ConfigDict({{'fn': 'lm.text.tokenizers:bytes'}})
  config.data.seq_len = 16
  config.model.update({{'context': 16, 'd_model': 16, 'depth': 2, 'heads': 2, 'kv_heads': 2,
                       'head_dim': 8, 'd_mlp': 32, 'vocab_multiple': 8}})
  config.optim.warmup_steps = 2
  config.optim.learning_rate = 0.01
  config.log.every = 1
  config.log.sample_prompts = ()
  return config
"""


def losses(workdir):
  rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return {row['step']: row['train/loss'] for row in rows if 'train/loss' in row}


@pytest.mark.slow
def test_eight_then_four_then_one_device_train_like_one(tmp_path):
  corpus = tmp_path / 'corpus.txt'
  corpus.write_text('\n'.join(f'{n} times {n} is {n * n}.' for n in range(200)))
  file = tmp_path / 'devices.py'
  file.write_text(SOURCE.format(corpus=str(corpus)))

  def train(workdir, devices, *flags):
    count = f'--xla_force_host_platform_device_count={devices}'
    subprocess.run(
      [sys.executable, '-m', 'lm.train', f'--config={file}', f'--workdir={workdir}', *flags],
      env=os.environ | {'XLA_FLAGS': count},
      check=True,
      capture_output=True,
    )

  train(tmp_path / 'one', 1)
  moved = tmp_path / 'moved'
  train(moved, 8, '--until_step=3', '--config.mesh.fsdp=2', '--config.mesh.tensor=2')
  train(moved, 4, '--until_step=6', '--config.mesh.fsdp=4')
  train(moved, 1)
  assert losses(moved) == pytest.approx(losses(tmp_path / 'one'), rel=1e-5)
  assert len(losses(moved)) == 9
