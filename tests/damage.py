"""Damages a finished run and its cache, and counts what a resume does not notice.

  python tests/damage.py [--count=300] [--seed=0]

Run by hand; pytest runs a few of these damages (tests/workdir/test_damage.py). Each file of the
newest checkpoint and of the cache is cut, emptied, deleted, filled with zeros, replaced by that of
another step or artifact, and exchanged with another file; entire items are replaced, and leaves are
exchanged within them. Half of the damages are a random one of these, and half a flipped bit of a
file, larger ones more often. A damage is

  recognized  a line says so, and the checkpoint before or a new preparation is taken,
  refused     a line says so, and nothing is taken,
  harmless    the state and all rows are bit for bit as before,
  crashed     another error than one for users ends the program,
  silent      none of these.

Exits 1 if a damage is silent or crashes.
"""

import argparse
import collections
import contextlib
import io
import itertools
import pathlib
import random
import shutil
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from typing import Any

import absl.logging
import jax
import numpy as np
from ml_collections import ConfigDict

from lm import components
from lm.config.base import base, gpt2
from lm.data import cache, pipeline
from lm.errors import UserError
from lm.parallel.host import Never
from lm.training import train_step, trainer
from lm.workdir.checkpoints import Checkpoints, restore_newest

NEWEST = 4
Damage = Callable[[pathlib.Path], None]


def lines(split):
  return [{'text': f'{n} times {n} is {n * n}.'} for n in range(60)]


def tiny(folder: pathlib.Path) -> ConfigDict:
  config = base()
  config.steps, config.batch_size, config.eval.batch_size = NEWEST, 4, 4
  config.eval.every = config.checkpoint.every = 2
  config.model = gpt2(depth=1, d_model=16, heads=2, context=8)
  config.optim.warmup_steps = 1
  config.data.update({'source': 'damage:lines', 'seq_len': 8, 'cache': str(folder / 'cache')})
  config.data.tokenizer = ConfigDict({'fn': 'lm.text.tokenizers:bytes'})
  config.early_stopping.patience = 9
  config.log.sample_prompts, config.report = (), ''
  return config


class Run:
  """A finished run with checkpoints at steps 2 and 4, and what an undamaged resume would read."""

  def __init__(self, folder: pathlib.Path):
    self.folder, self.config = folder, tiny(folder)
    trainer.train(self.config, 'x.txt', folder / 'run', Never())
    built = components.build_components(self.config, 257)
    self.abstract, _ = train_step.abstract_state(built)
    self.rows = self.read_rows()
    self.artifacts = sorted(cache._verified)  # which other damage of the cache does not reach
    self.states = {step: self.state(step) for step in (2, NEWEST)}
    for donor, change in (('swapped', self._swapped), ('older', self._with_older_leaf)):
      with contextlib.closing(Checkpoints(folder / donor)) as checkpoints:
        state, stopping = self.restore(folder / 'run', NEWEST)
        checkpoints.save(NEWEST, change(state), stopping)

  def restore(self, workdir: pathlib.Path, step: int) -> Any:
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
      return checkpoints.restore(step, self.abstract)

  def state(self, step: int) -> dict[str, bytes]:
    return as_bytes(self.restore(self.folder / 'run', step))

  def _swapped(self, state):
    """Exchanges two leaves of one shape, and the moments of Adam."""
    layer = state.params['decoder']['layers']['layer_0']
    names = [name for name in layer if 'norm' in name]
    layer = layer | {names[0]: layer[names[1]], names[1]: layer[names[0]]}
    decoder = state.params['decoder'] | {'layers': {'layer_0': layer}}
    opt_state = jax.tree.map(
      lambda x: x._replace(mu=x.nu, nu=x.mu) if hasattr(x, 'mu') else x,
      state.opt_state,
      is_leaf=lambda x: hasattr(x, 'mu'),
    )
    params = state.params | {'decoder': decoder}
    return state.replace(params=params, opt_state=opt_state)

  def _with_older_leaf(self, state):
    older, _ = self.restore(self.folder / 'run', 2)
    params = state.params | {'embedding': older.params['embedding']}
    return state.replace(params=params, step=older.step)

  def read_rows(self) -> dict[str, bytes]:
    """Returns all that a run reads of the cache."""
    cache._verified.clear()  # as in a new process
    data = self.config.data
    tokenizer = pipeline.tokenizer(data)
    found = {'tokenizer': tokenizer.to_str().encode()}
    for split, seed in ((data.train_split, self.config.seed), ('validation', None)):
      rows = pipeline.packed_rows(data, split, tokenizer, seed)
      found |= {f'{split}/{k}': v for k, v in as_bytes(rows.batch(np.arange(len(rows)))).items()}
      found[f'{split}/attributes'] = repr([rows.tokens, rows.documents, rows.content]).encode()
    return found


def as_bytes(tree: Any) -> dict[str, bytes]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path): np.asarray(x).tobytes() if hasattr(x, 'dtype') else repr(x).encode()
    for path, x in leaves
  }


def outcome(run: Run, name: str, damage: Damage) -> str:
  """Returns what happens after a damage, and repairs it."""
  of_cache = name.startswith('cache')
  kept = run.folder / 'kept'
  target = run.folder / ('cache' if of_cache else 'run')
  shutil.copytree(target, kept, dirs_exist_ok=True)
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said):
      damage(target)
      if of_cache:
        same = run.read_rows() == run.rows
        return (
          'silent' if not same else 'recognized' if 'damaged' in said.getvalue() else 'harmless'
        )
      with contextlib.closing(Checkpoints(target)) as checkpoints:
        events = types.SimpleNamespace(write=lambda *args, **kwargs: None)
        restored = restore_newest(checkpoints, run.abstract, events)
      assert restored is not None
      if as_bytes(restored) == run.states[NEWEST]:
        return 'harmless'
      fell_back = as_bytes(restored) == run.states[2] and 'is damaged' in said.getvalue()
      return 'recognized' if fell_back else 'silent'
  except UserError as e:
    print(f'{name}: {e}'[:220])
    return 'refused'
  except Exception as e:
    print(f'{name}: {type(e).__name__}: {e}'[:400])
    return 'crashed'
  finally:
    shutil.rmtree(target)
    kept.rename(target)


def _change(name: str, change: Callable[[bytes], bytes]) -> Damage:
  return lambda root: (root / name).write_bytes(change((root / name).read_bytes())) and None


def _flip(at: float, bit: int) -> Callable[[bytes], bytes]:
  def change(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[int(at * len(content))] ^= 1 << bit
    return bytes(changed)

  return change


def _exchange(one: str, other: str) -> Damage:
  def exchange(root: pathlib.Path) -> None:
    a, b = (root / one).read_bytes(), (root / other).read_bytes()
    (root / one).write_bytes(b)
    (root / other).write_bytes(a)

  return exchange


def _put(source: pathlib.Path, name: str) -> Damage:
  """Replaces a file or a folder by another one."""

  def put(root: pathlib.Path) -> None:
    if source.is_dir():
      shutil.rmtree(root / name)
      shutil.copytree(source, root / name)
    else:
      shutil.copy(source, root / name)

  return put


def damages(run: Run, rng: random.Random) -> Iterator[tuple[str, Damage]]:
  """Yields names and damages without an end; every second one flips a bit."""
  newest = run.folder / 'run/checkpoints' / str(NEWEST)
  artifacts = [folder.rglob('*') for folder in run.artifacts]
  groups = {'run': newest.rglob('*'), 'cache': itertools.chain.from_iterable(artifacts)}
  files = [
    (group, path.relative_to(run.folder / group).as_posix(), path.read_bytes())
    for group, paths in groups.items()
    for path in sorted(paths)
    if path.is_file() and path.stat().st_size
  ]
  others = list(_damages_of_files(run, newest, files, rng))
  rng.shuffle(others)
  for other in itertools.cycle(others):
    yield other
    group, name, content = rng.choices(files, [len(file[2]) ** 0.5 for file in files])[0]
    at, bit = rng.random(), rng.randrange(8)
    yield f'{group} {name} byte {int(at * len(content))} bit {bit}', _change(name, _flip(at, bit))


def _damages_of_files(
  run: Run, newest: pathlib.Path, files: list[tuple[str, str, bytes]], rng: random.Random
) -> Iterator[tuple[str, Damage]]:
  for item in ('params', 'training', 'stopping', 'digests'):
    yield f'run {item} of another step', _put(newest.with_name('2') / item, f'checkpoints/4/{item}')
    yield (
      f'run {item} deleted',
      lambda root, item=item: shutil.rmtree(root / 'checkpoints/4' / item),
    )
    for donor in ('swapped', 'older') if item in ('params', 'training') else ():
      source = run.folder / donor / 'checkpoints/4' / item
      yield f'run {item} with {donor} leaves', _put(source, f'checkpoints/4/{item}')
  yield 'run all of another step', _put(newest.with_name('2'), 'checkpoints/4')
  for group, name, content in files:
    yield f'{group} {name} cut', _change(name, lambda x: x[: len(x) // 2])
    yield f'{group} {name} emptied', _change(name, lambda x: b'')
    yield f'{group} {name} deleted', lambda root, name=name: (root / name).unlink()
    yield f'{group} {name} zeros', _change(name, lambda x: bytes(len(x)))
    other = _partner(run.folder / group, name)
    if other is not None and other.read_bytes() != content:
      yield f'{group} {name} of another', _put(other, name)
    _, there, _ = rng.choice([file for file in files if file[0] == group])
    yield f'{group} {name} exchanged with {there}', _exchange(name, there)


def _partner(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the same file of another step or artifact; the nth of a folder with random names."""
  path = pathlib.Path(name)
  if path.parts[0] == 'checkpoints':
    folder = root / 'checkpoints/2' / pathlib.Path(*path.parts[2:]).parent
  else:
    kind = path.parts[0].partition('-')[0]
    folders = [x for x in sorted(root.glob(f'{kind}-*')) if x.name != path.parts[0]]
    if not folders:
      return None
    folder = folders[0]
  if (folder / path.name).is_file():
    return folder / path.name
  nth = sorted((root / path).parent.iterdir()).index(root / path)
  there = sorted(x for x in folder.iterdir()) if folder.is_dir() else []
  return there[nth] if nth < len(there) and there[nth].is_file() else None


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--count', type=int, default=300)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax reports damaged metadata at length
  counts: collections.Counter = collections.Counter()
  with tempfile.TemporaryDirectory() as folder:
    run = Run(pathlib.Path(folder))
    for nth, (name, damage) in enumerate(damages(run, random.Random(args.seed))):
      if nth == args.count:
        break
      found = outcome(run, name, damage)
      counts[name.split()[0], found] += 1
      print(f'{found:10} {name}', flush=True)
  for (group, found), count in sorted(counts.items()):
    print(f'{group:8} {found:12} {count}')
  return int(any(found in ('silent', 'crashed') for _, found in counts))


if __name__ == '__main__':
  sys.exit(main())
