"""Digests of lowered programs: what a refactoring must leave as it was.

  python tests/digests.py                    # prints NAME DIGEST, a line for each program
  python tests/digests.py --check FILE       # compares with such lines; exit 1 where one differs
  python tests/digests.py --dump DIR NAME    # writes the normalized program of some names

The programs are the train step of every experiment's `:smoke` and of ten configs of full size, and
one decode step of a decoder and of an encoder-decoder. A digest is of the StableHLO without
locations and names. It depends on the version of JAX, so compare within one environment.
"""

import argparse
import hashlib
import importlib.metadata
import pathlib
import re
import sys

import conftest  # sets the environment; before jax
import jax
import jax.numpy as jnp
from first_examples import first

from lm import components
from lm.data import batches, pipeline
from lm.decode.loop import make_decode_step, prefill
from lm.text.tokenizers import vocabulary_size
from lm.training.train_step import abstract_state, make_train_steps
from lm.workdir import experiment

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'
NAMES = sorted(f.stem for f in FOLDER.glob('*.py') if 'def get_config(' in f.read_text())
FULL = (
  'article_lstm', 'dialogue', 'gpt2_small', 'llama_160m', 'llama_1b', 'multi30k_de_en',
  'quickstart', 'squad', 'wmt14_en_de', 'tatoeba_zh_en',
)  # fmt: skip
DECODED = ('quickstart', 'multi30k_de_en')


def rows_of(name):
  """Returns a smoke config, functions that know word counts, and the shapes of a row."""
  config = experiment.load(f'{FOLDER / name}.py:smoke')
  sections = (config.data, *config.data.mixture.values(), *config.eval.sets.values())
  for section in (section for section in sections if section.source):
    section.source = f'first_examples:{first.__name__}(source={section.source!r}, count=400)'
  tokenizer = pipeline.tokenizer(config.data)
  functions = components.build_components(config, vocabulary_size(tokenizer))
  rows = pipeline.packed_rows(config.data, config.data.train_split, tokenizer, config.seed)
  functions = components.pass_corpus(functions, config, rows, tokenizer)
  transforms = batches.open_transforms(config.data.transforms, tokenizer, rows)
  row = batches.batch_at(rows, transforms, 1, config.seed, 0)
  shapes = components.abstract_row({name: x[0] for name, x in row.items()})
  return config, components.with_row(functions, config, shapes), row


def train_step(config, functions, row):
  """Returns the text of the lowered train step."""
  abstract, _ = abstract_state(functions)
  step = make_train_steps(functions, config.seed, config.microbatches, abstract)
  shape = (min(config.steps_per_call, config.steps), config.batch_size)
  batch = {k: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype) for k, x in row.items()}
  return step.lower(abstract, batch).as_text()


def full_size(name, smoke, row):
  """Returns the full config, its functions, and a row as long as its context."""
  config = experiment.load(str(FOLDER / f'{name}.py'))
  config.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1})
  config.steps_per_call = min(config.steps_per_call, 2)
  functions = components.build_components(config, config.data.tokenizer.get('vocab_size', 2000))
  longer = {smoke.data[key]: config.data[key] for key in ('seq_len', 'source_len')}
  sized = {
    k: jax.ShapeDtypeStruct((1, *(longer.get(n, n) for n in x.shape[1:])), x.dtype)
    for k, x in row.items()
  }
  return config, functions, sized


def decode_step(functions):
  """Returns the text of one lowered decode step of two rows, after their prompts were read."""
  abstract, _ = abstract_state(functions)
  row = jnp.ones((2, 8), jnp.int32)
  names = ('inputs', 'segments', 'positions', 'source', 'source_segments', 'source_positions')

  def read(params):
    cache = functions.model.init_cache(2, 16)
    return prefill(functions.apply, params, dict.fromkeys(names, row), cache)

  _, positions, cache = jax.eval_shape(read, abstract.params)
  step = jax.jit(lambda params, *args: make_decode_step(functions.apply, params)(*args))
  return step.lower(abstract.params, row[:, 0], positions, cache).as_text()


def normalized(text):
  """Returns StableHLO without names: of the module, of functions, of results, of locations."""
  text = re.sub(r'^module @\S+', 'module', text)
  text = re.sub(r'\s*\{?jax\.result_info = "[^"]*"\}?,?', '', text)
  text = re.sub(r'loc\([^)]*\)|^#loc.*$', '', text, flags=re.MULTILINE)
  names: dict[str, str] = {}
  return re.sub(r'@[\w.$]+', lambda m: names.setdefault(m[0], f'@f{len(names)}'), text)


def programs(names):
  """Yields the name and the text of each program whose experiment is asked for."""
  for name in names:
    config, functions, row = rows_of(name)
    yield f'{name}:smoke', train_step(config, functions, row)
    if name in DECODED:
      yield f'{name}:decode', decode_step(functions)
    if name in FULL:
      yield name, train_step(*full_size(name, config, row))


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help='experiments (default: all)')
  parser.add_argument('--check', type=pathlib.Path, metavar='FILE', help='lines to compare with')
  parser.add_argument('--dump', type=pathlib.Path, metavar='DIR', help='where to write programs')
  args = parser.parse_args()
  lines = args.check.read_text().splitlines() if args.check else []
  before = dict(line.rsplit(' ', 1) for line in lines)
  here = f'jax {importlib.metadata.version("jax")}'
  if lines and before.get('with') != here.replace(' ', '-'):
    sys.exit(f'--check={args.check}: these digests are of {before.get("with")}, here is {here}')
  print('with', here.replace(' ', '-'))
  differing = []
  with conftest.few_files():
    for name, text in programs(args.names or NAMES):
      text = normalized(text)
      digest = hashlib.sha256(text.encode()).hexdigest()[:16]
      differs = args.check and before.get(name) != digest
      differing += [name] if differs else []
      print(name, digest, *(['differs'] if differs else []), flush=True)
      if args.dump:
        args.dump.mkdir(parents=True, exist_ok=True)
        (args.dump / f'{name.replace(":", ".")}.mlir').write_text(text)
  if differing:
    sys.exit(f'{len(differing)} differ: {", ".join(differing)}')


if __name__ == '__main__':
  main()
