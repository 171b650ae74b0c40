"""The logit lens and activation patching of a trained decoder, as tables.

  python experiments/lens.py runs/quickstart 'The name of the file' 'The size of the file'

The first table has the likeliest next token after each layer and position of the first text
(nostalgebraist 2020, "interpreting GPT: the logit lens"). The second has the log-probability of the
last token that the second text would predict, if a layer and position of the first had the second's
residual stream (Meng et al. 2022, section 2). Any hardware.
"""

import sys

import jax
import numpy as np

import lm
from lm.decode.stream import prompt_encoder
from lm.evaluation.interventions import logit_lens, patch


def lens(run, text):
  """Returns the likeliest next token after each layer and position: lists of texts, (N, T)."""
  best_NT = logit_lens(run, text).argmax(-1)
  return [[run.tokenizer.decode([int(token)]) for token in layer] for layer in best_NT]


def patched(run, text, source):
  """Returns the token that `source` predicts, and its log-probability (N, T) under patches."""
  token = int(logit_lens(run, source)[-1, -1].argmax())
  log_p_NT = patch(run, text, source, lambda logits_TV: jax.nn.log_softmax(logits_TV[-1])[token])
  return token, log_p_NT


def main(workdir, text, source):
  run = lm.load(workdir)
  tokens = [run.tokenizer.decode([i]) for i in prompt_encoder(run.tokenizer)(text)]
  token, log_p_NT = patched(run, text, source)
  next_NT = [map(repr, row) for row in lens(run, text)]
  title = f'log p {run.tokenizer.decode([token])!r}'
  for name, rows in (('next token', next_NT), (title, np.round(log_p_NT, 2))):
    print(name, *map(repr, tokens), sep='\t')
    for n, row in enumerate(rows):
      print(f'layer {n}', *row, sep='\t')


if __name__ == '__main__':
  main(*sys.argv[1:])
