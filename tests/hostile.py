"""Hostile workdirs, made from one tiny run, and the programs that open them with --untrusted.

  python tests/hostile.py [NAME ...]

Each workdir tries to run code, to write or read outside of itself, or to fill memory or time. The
script opens each by `lm.load` and by every program. It prints what they say, and fails if code has
run, a file outside has changed, or a refusal is not one line. tests/test_trust.py has the cases.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import in_process
import jax
import numpy as np
import tensorstore

import lm
from lm.components import init_of, model
from lm.config.base import base, gpt2
from lm.errors import UserError
from lm.text import tokenizers
from lm.workdir.write import write_workdir

Change = Callable[[pathlib.Path, pathlib.Path], None]  # (workdir, folder of the victims)
EVIL = """
import pathlib
pathlib.Path({sentinel!r}).write_text('imported')
def f(*args, **kwargs):
  pathlib.Path({sentinel!r}).write_text('called')
"""
OPENERS = ('load', 'generate', 'vectors', 'predict', 'evaluate', 'translate', 'to_hf', 'report')
_MODEL = OPENERS[:6]  # those that build the model


class Hostile(NamedTuple):
  """A hostile workdir.

  Attributes:
    change: what differs from a good run.
    says: a part of the refusal; '' if the workdir opens, and nothing of it runs.
    openers: that refuse it.
  """

  change: Change
  says: str
  openers: tuple[str, ...] = _MODEL


def make_run(folder: pathlib.Path) -> pathlib.Path:
  """Writes the run that all cases change: a decoder of bytes whose parameters are zeros."""
  config = base()
  config.model = gpt2(depth=2, d_model=16, heads=2, context=32)
  config.data.seq_len = 32
  init = init_of(model(config, 257), 32)
  shapes = nn.unbox(jax.eval_shape(init, jax.random.key(0)))
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  write_workdir(folder / 'run', config, tokenizers.bytes([]), params)
  return folder / 'run'


def make_victims(folder: pathlib.Path) -> pathlib.Path:
  """Makes the files outside of the workdirs, which no case may change."""
  victims = folder / 'victims'
  (victims / 'folder').mkdir(parents=True)
  (victims / 'file').write_text('precious\n')
  (victims / 'folder/notes.txt').write_text('precious too\n')
  (victims / 'rows.jsonl').write_text('{"text": "one two three", "label": "NUM:date"}\n' * 20)
  return victims


def state_of(folder: pathlib.Path) -> dict[str, str]:
  """Returns a digest of each file below a folder."""
  files = (path for path in sorted(folder.rglob('*')) if path.is_file())
  return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def config(**values: Any) -> Change:
  """Changes values of config.json by dotted key; SENTINEL and VICTIMS in strings are paths."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    tree = json.loads((workdir / 'config.json').read_text())
    for key, value in values.items():
      *sections, name = key.split('.')
      section = tree
      for part in sections:
        section = section[part]
      section[name] = value
    text = json.dumps(tree).replace('SENTINEL', str(victims / 'sentinel'))
    (workdir / 'config.json').write_text(text.replace('VICTIMS', str(victims)))
    source('evil')(workdir, victims)

  return change


def source(*modules: str) -> Change:
  """Writes modules to source/ that leave a sentinel when they are imported or called."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    for module in modules:
      file = workdir / f'source/{module}.py'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(EVIL.format(sentinel=str(victims / 'sentinel')))

  return change


def content(name: str, value: str | Callable[[str], str]) -> Change:
  """Changes the content of a file."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    file = workdir / name
    file.write_text(value(file.read_text()) if callable(value) else value, errors='surrogatepass')

  return change


def link(name: str, to: str) -> Change:
  """Replaces an entry by a link."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    entry = workdir / name
    entry.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
    entry.symlink_to(to.replace('VICTIMS', str(victims)))

  return change


def pipe(name: str) -> Change:
  """Replaces a file by a pipe, whose reader would wait forever."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    (workdir / name).unlink(missing_ok=True)
    os.mkfifo(workdir / name)

  return change


def several(*changes: Change) -> Change:
  """Makes several changes in turn."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    for each in changes:
      each(workdir, victims)

  return change


def stored(array: str, chunk: str = '', **fields: Any) -> Change:
  """Changes the metadata of an array in the checkpoint, and deletes one of its chunks."""

  def change(workdir: pathlib.Path, victims: pathlib.Path) -> None:
    spec = {'driver': 'ocdbt', 'base': f'file://{workdir}/checkpoints/0/params/'}
    store = tensorstore.KvStore.open(spec).result()
    meta = json.loads(store.read(f'{array}/.zarray').result().value) | fields
    store.write(f'{array}/.zarray', json.dumps(meta)).result()
    if chunk:
      store.write(f'{array}/{chunk}', None).result()

  return change


def _tokenizer(**values: Any) -> Change:
  return content('tokenizer.json', lambda text: json.dumps(json.loads(text) | values))


def _split(pattern: str) -> dict[str, Any]:
  split = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated'}
  return {'pre_tokenizer': split | {'invert': False}}


def position(path: Any) -> Change:
  """Names a position scheme."""
  return config(**{'model.position': path})


_MARK = 'not run, because the workdir is not trusted'
_TASK = {
  'data.task': 'lm.tasks.text:classification',
  'data.converter': 'lm.tasks.classification:classifier',
  'data.labels': ['DESC:manner', 'NUM:date'],
}
_ROWS = 2**34  # of a table of 1 TiB
_LIBRARIES = ('lm/__init__', 'lm/nn/layers', 'jax/__init__', 'optax', 'sacrebleu', 'encodings/ab')

# A path names a function, or a function's argument does.
PATHS = {
  'system': position('os:system(command="touch SENTINEL")'),
  'subprocess': position('subprocess:run(args=["touch", "SENTINEL"])'),
  'exec': position('builtins:exec'),
  'source': position('evil:f'),
  'source as model': config(**{'model.fn': 'evil:f'}),
  'in a tuple': config(**{'model.attention_layer': ['lm.nn.layers:Attention', 'evil:f']}),
  'in arguments': config(**{'model.mlp': 'lm.nn.layers:Mlp(activation="evil:f")'}),
  'in escaped arguments': config(**{'model.mlp': r'lm.nn.layers:Mlp(activation="ev\x69l:f")'}),
  'in a section': config(**{'model.mlp': {'fn': 'lm.nn.layers:Mlp', 'activation': 'evil:f'}}),
  'in a dict': config(**{'model.mlp': 'lm.nn.layers:Mlp(activation={"fn": "evil:f"})'}),
  'through a module': position('lm.workdir.experiment:subprocess.run'),
  'through a listed module': position('lm.nn.position:math.sqrt'),
  'partial': position('lm.models.transformer:functools.partial'),
  'dunder': position('lm.nn.layers:Attention.__init__'),
  'writer': position('lm.text.files:write_atomic(path="SENTINEL", chunks=[b"x"])'),
  'reader': position('lm.metrics.word_vectors:read_pairs(path="VICTIMS/file")'),
  'other workdir': position('lm.evaluation.trained_model:load(workdir="VICTIMS")'),
  'resolver': position('lm.config.resolve:resolve(path="evil:f", key="k")'),
  'import_extra': position('lm.text.segment:import_extra(module="evil", extra="", need="")'),
  'pickle': position('numpy:load(file="VICTIMS/file", allow_pickle=True)'),
  'member of jax': position('jax:numpy.load(file="VICTIMS/file")'),
  'checkpoint of flax': position('flax.training.checkpoints:restore_checkpoint(ckpt_dir="/")'),
  'other letters': position('\uff4f\uff53:system(command="touch SENTINEL")'),
  'marked': position('(untrusted) os:system(command="touch SENTINEL")'),
}
# `lm.train` and `lm.report` refuse these too.
LINKS = {
  name: link(name, f'VICTIMS/{to}')
  for name, to in {
    '.lock': 'file',
    'events.jsonl': 'file',
    'metrics.jsonl': 'file',
    'config.json': 'file',
    'tokenizer.json': 'file',
    'environment.json': 'sentinel',
    'report.html': 'file',
    'checkpoints': 'folder',
    'checkpoints/0/params/d/x': 'file',
    'damaged': 'folder',
    'samples': 'folder',
    'samples/1.txt': 'file',
    'source': 'folder',
    'predictions': 'folder',
  }.items()
} | {
  'relative link': link('events.jsonl', '../victims/file'),
  'link by a link': several(link('inner', 'VICTIMS/folder'), link('samples', 'inner')),
  'circle': link('samples', 'samples'),
  'pipe': pipe('events.jsonl'),
  'pipe as config': pipe('config.json'),
}
# Values of config.json, with a part of the refusal.
_VALUES: dict[str, tuple[Mapping[str, Any], str]] = {
  'depth': ({'model.depth': 10**9}, 'model.depth=1000000000 is out of range'),
  'depth in range': ({'model.depth': 4096}, 'does not fit the config'),
  'd_model': ({'model.d_model': 10**12}, 'model.d_model='),
  'context': ({'model.context': 10**15}, 'model.context='),
  'seq_len': ({'model.context': 2**30, 'data.seq_len': 10**9}, 'data.seq_len='),
  'vocab_size': ({'model.vocab_size': 2**30}, 'embedding is (257, 16)'),
  'heads': ({'model.heads': 10**9, 'model.kv_heads': 10**9}, 'model.heads='),
  'head_dim': ({'model.head_dim': 10**15}, 'model.head_dim='),
  'digits': ({'model.d_model': 10**4200}, 'model.d_model=1000'),
  'embed_scale': ({'model.embed_scale': 10**400}, 'OverflowError'),
  'init_std': ({'model.init_std': 'wide'}, "'wide'"),
  'negative': ({'model.d_mlp': -5}, 'model.d_mlp=-5 is out of range'),
  'zero': ({'model.heads': 0}, 'model.heads=0 is out of range'),
  'NaN': ({'model.dropout': float('nan')}, 'model.dropout=nan is out of range'),
  'text for a number': ({'model.depth': '4'}, "model.depth='4' is not a number"),
  'list for a number': ({'model.depth': [4]}, 'model.depth=(4,) is not a number'),
  'null for a number': ({'model.d_model': None}, 'TypeError'),
  'number for a path': ({'model.position': 7}, 'model.position=7 must be an import path'),
  'number for a list': ({'data.labels': 7}, 'data.labels=7 is not of type tuple'),
  'section for a path': ({'model.position': {}}, "model.position: the section needs 'fn'"),
  'unknown argument': ({'model.position': 'lm.nn.position:rope(thta=1)'}, "no argument 'thta'"),
  'missing function': ({'model.position': 'lm.nn.position:rop'}, "did you mean 'rope'"),
  'many layers': ({'model.attention_layer': ['lm.nn.layers:Attention'] * 10**5}, '100,000 entries'),
  'buckets': ({'model.position': f'lm.nn.position:relative(buckets={10**12})'}, 'OverflowError'),
  'long path': ({'model.position': 'm:' + 'a' * 10**6}, 'of at most 10000 characters'),
  'deep path': ({'model.position': 'lm.nn.position:rope(theta=' + '(' * 9000}, 'import path'),
  'signs': ({'model.position': f'lm.nn.position:rope(theta={"-" * 9000}1)'}, 'import path'),
  'surrogate': ({'model.mlp': '\ud800:f'}, 'import path'),
  'beam_size': ({'decode.beam_size': 10**12}, 'decode.beam_size='),
  'max_tokens': ({'decode.max_tokens': 10**15}, 'decode.max_tokens='),
  'name of a key': ({'model.__class__': 1}, '__class__'),
  'empty key': ({'model.': 1}, "no argument ''"),
  'method as key': ({'model.unlocked': 1}, "no argument 'unlocked'"),
  'mesh.rules': ({'mesh.rules': {'embed': 'moon'}}, "unknown mesh axis 'moon'"),
  'number in mesh.rules': ({'mesh.rules': {'embed': 7}}, 'AttributeError'),
}
_DEEP = '{"a":' * 10**5
_FILES: dict[str, tuple[Change, str]] = {
  'deep config': (content('config.json', _DEEP), 'config.json is damaged: RecursionError'),
  'large config': (content('config.json', lambda text: text + ' ' * 2**24), 'bytes, and at most'),
  'config of null': (content('config.json', 'null'), 'config.json is damaged'),
  'config of lists': (
    content('config.json', '{"model": [], "data": []}'),
    'config.json has no key',
  ),
  'metrics.json': (content('metrics.json', _DEEP), 'metrics.json'),
}
# Checkpoints and tokenizers; those that take seconds are tested by this script and slow tests.
_ARRAY = 'decoder.final_norm.scale'
_CHECKPOINTS: dict[str, tuple[Change, str]] = {
  'chunk of terabytes': (stored(_ARRAY, chunks=[2**40]), 'has chunks of shape (1099511627776,)'),
  'shape': (stored(_ARRAY, shape=[10**15], chunks=[16]), 'does not fit the config'),
  'dtype': (stored(_ARRAY, dtype='|S1000000000'), 'damaged'),
  'model of a terabyte': (
    several(
      config(**{'model.context': _ROWS // 16}),
      stored('decoder.position', '0.0', shape=[_ROWS // 16, 16], chunks=[_ROWS // 16, 16]),
    ),
    'GiB of the memory of this host',
  ),
  'metadata': (content('checkpoints/0/params/_METADATA', '['), 'damaged'),
  'deep metadata': (content('checkpoints/0/params/_METADATA', _DEEP), 'damaged'),
}
_TOKENIZERS: dict[str, tuple[Change, str]] = {
  'empty tokenizer': (content('tokenizer.json', ''), 'tokenizer.json'),
  'deep tokenizer': (content('tokenizer.json', _DEEP), 'tokenizer.json'),
  'backtracking': (_tokenizer(**_split('(a|a|aa|a*)*$')), 'tokenizer.json'),
  'wrong expression': (_tokenizer(**_split('(')), 'tokenizer.json'),
  'large id': (
    content('tokenizer.json', lambda text: text.replace('"!": ', '"!": 40000', 1)),
    'does not fit the config',
  ),
}
# These open: what is hostile in them is never looked at.
_UNUSED: dict[str, Change] = {
  'modules of libraries': source(*_LIBRARIES),
  'data.source': config(**{'data.source': 'evil:f'}),
  'data.prepare': config(**{'data.prepare': ['evil:f']}),
  'data.cache': config(**{'data.cache': 'VICTIMS/cache'}),
  'data.tokenizer': config(**{'data.tokenizer': {'fn': 'evil:f', 'file': 'VICTIMS/file'}}),
  'data.workers': config(**{'data.workers': 10**9}),
  'eval.batch_size': config(**{'eval.batch_size': 10**12}),
  'decode.batch_size': config(**{'decode.batch_size': 10**12}),
  'objective': config(objective={'fn': 'evil:f'}),
  'optim': config(optim={'fn': 'evil:f', 'decay_steps': 1}),
  'report': config(report='evil:f'),
  'evaluators': config(**{'eval.evaluators': ['evil:f']}),
  'sets': config(**{'eval.sets.validation.metrics': ['evil:f']}),
  'warm_start': config(**{'warm_start.workdir': 'VICTIMS'}),
  'bucket': content('.remote', 'file:///nowhere'),
}


def cases() -> dict[str, Hostile]:
  """Returns the cases by name, 'KIND: WHAT'."""
  files = (*_MODEL, 'to_hf')
  found = {f'path: {name}': Hostile(change, _MARK, files) for name, change in PATHS.items()}
  found |= {f'link: {k}': Hostile(change, '--workdir=', OPENERS) for k, change in LINKS.items()}
  found |= {f'value: {k}': Hostile(config(**v), says) for k, (v, says) in _VALUES.items()}
  found |= {f'file: {k}': Hostile(*case) for k, case in _FILES.items()}
  found |= {f'checkpoint: {k}': Hostile(*case) for k, case in _CHECKPOINTS.items()}
  found |= {f'tokenizer: {k}': Hostile(*case) for k, case in _TOKENIZERS.items()}
  found |= {f'unused: {k}': Hostile(change, '', ()) for k, change in _UNUSED.items()}
  found['all unused'] = Hostile(several(*_UNUSED.values()), '', ())
  # What only some openers need.
  task = config(**_TASK | {'data.task': 'evil:f'})
  found['task: data.task'] = Hostile(task, _MARK, ('predict', 'evaluate', 'translate'))
  step = config(**_TASK | {'data.prepare': ['evil:f']})
  found['task: data.prepare'] = Hostile(step, _MARK, ('predict', 'evaluate'))
  metric = config(**{'eval.sets.validation.metrics': ['evil:f']})
  found['task: metric'] = Hostile(metric, _MARK, ('evaluate',))
  return found


def openers_of(name: str) -> tuple[str, ...]:
  """Returns what opens a case here; models that are not refused would be compiled by the others."""
  kind = name.partition(':')[0]
  return {'unused': ('load',), 'task': cases()[name].openers}.get(kind, OPENERS)


def opened(opener: str, workdir: pathlib.Path, victims: pathlib.Path) -> str:
  """Opens a workdir without trust; returns the refusal, or '' if it opens.

  Raises:
    AssertionError: the program ends otherwise than by one line and exit code 2, or 0.
  """
  if opener == 'load':
    try:
      lm.load(workdir, trusted=False)
    except UserError as e:
      assert '\n' not in str(e), e
      return str(e)
    return ''
  out = victims.parent / 'out'
  program, *arguments = {
    'generate': ('generate', '--prompt=a', '--max_tokens=1'),
    'vectors': ('vectors', 'nearest', 'a'),
    'predict': ('predict', f'--input={victims}/rows.jsonl'),
    'evaluate': ('evaluate', f'--data={victims}/rows.jsonl'),
    'translate': ('translate',),
    'to_hf': ('convert', 'to_hf', f'--out={out}'),
    'report': ('report',),
  }[opener]
  result = in_process.run(program, *arguments, f'--workdir={workdir}', '--untrusted', text='a\n')
  shutil.rmtree(out, ignore_errors=True)
  assert result.returncode in (0, 2), (opener, result)
  assert result.returncode == 0 or result.stdout == '', (opener, result)
  lines = [line for line in result.stderr.splitlines() if line.startswith('lm.')]
  assert 'Traceback' not in result.stderr, (opener, result)
  assert result.returncode == 0 or len(lines) == 1, (opener, result)
  return lines[0] if result.returncode else ''


def check(
  case: Hostile, openers: tuple[str, ...], run: pathlib.Path, victims: pathlib.Path
) -> list[str]:
  """Opens a hostile copy of a run; returns the refusals.

  Raises:
    AssertionError: code has run, something outside has changed, or a refusal is wrong.
  """
  said = []
  for opener in openers:
    workdir, before = run.parent / 'hostile', state_of(victims)
    shutil.copytree(run, workdir, symlinks=True)
    try:
      case.change(workdir, victims)
      line = opened(opener, workdir, victims)
    finally:
      shutil.rmtree(workdir)
    assert state_of(victims) == before, opener
    refuses = opener in case.openers
    assert (case.says in line and line != '') if refuses else True, (opener, line)
    assert len(line) < 1500, (opener, line)
    said.append(f'{opener}: {line}')
  return said


def main(argv: list[str]) -> int:
  count, failed = 0, 0
  with tempfile.TemporaryDirectory() as root:
    folder = pathlib.Path(root).resolve()
    run, victims = make_run(folder), make_victims(folder)
    for name, case in cases().items():
      if not argv or any(word in name for word in argv):
        count += 1
        start = time.perf_counter()
        try:
          said = check(case, openers_of(name), run, victims)
        except AssertionError as e:
          said, failed = [f'FAILED: {e}'], failed + 1
        print(f'{name}, {time.perf_counter() - start:.1f} s')
        for line in said:
          print(f'  {line}'.replace(str(folder), ''), flush=True)
  print(f'{count} hostile workdirs, {failed} failed')
  return int(failed > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
