"""The import law: layers import downward only, and packages of one layer not each other."""

import ast
import functools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / 'lm').rglob('*.py'))


def _table() -> list[set[str]]:
  """Returns the packages of each layer from the ground, by the table in CONTRIBUTING.md."""
  rows = re.findall(r'^\| (\d+) \| (.*?) \|', (ROOT / 'CONTRIBUTING.md').read_text(), re.M)
  layers = {int(number): set(re.findall(r'`(\w+)`', cell)) for number, cell in rows}
  return [layers[number] for number in sorted(layers)]


LAYERS = _table()
PROGRAMS = len(LAYERS) - 1  # every other module of `lm` is a program


def _package(module: str) -> str:
  if module.endswith('.__main__'):
    return '__main__'  # a program
  parts = module.split('.')
  return parts[1] if len(parts) > 1 else ''


def _layer(package: str) -> int:
  return next((i for i, packages in enumerate(LAYERS) if package in packages), PROGRAMS)


def _module(file: pathlib.Path) -> str:
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_module(file): file for file in FILES}


@functools.cache
def _nodes(source: str) -> list[ast.AST]:
  return list(ast.walk(ast.parse(source)))


def _imports(source: str) -> set[str]:
  """Returns the modules that a source imports anywhere, also inside its functions."""
  found = set()
  for node in _nodes(source):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      # 'from lm import mesh' imports a module, 'from lm.parallel.mesh import make' a name of one.
      names = {f'{node.module}.{alias.name}' for alias in node.names}
      found |= {name if name in MODULES else str(node.module) for name in names}
  return found


def _offences(module: str, source: str) -> list[str]:
  """Returns what a module imports against the law."""
  here = _package(module)
  offences = []
  for imported in sorted(_imports(source)):
    if imported != 'lm' and not imported.startswith('lm.'):
      if here == 'text' and imported.split('.')[0] in ('jax', 'jaxlib', 'flax', 'optax'):
        offences.append(imported)
      continue
    there = _package(imported)
    above = _layer(there) > _layer(here)
    sideways = _layer(there) == _layer(here) < PROGRAMS and there != here
    if here and (above or sideways):
      offences.append(imported)
  return offences


def test_modules_import_downward_only():
  found = {module: _offences(module, file.read_text()) for module, file in MODULES.items()}
  assert {module: offences for module, offences in found.items() if offences} == {}


@pytest.mark.parametrize(
  ('module', 'source', 'offences'),
  [
    ('lm.nn.losses', 'import lm.models.transformer', ['lm.models.transformer']),
    ('lm.nn.losses', 'def f():\n  from lm.training import train_step', ['lm.training.train_step']),
    ('lm.models.transformer', 'from lm.nn.losses import cross_entropy\nfrom lm import types', []),
    ('lm.models.transformer', 'from lm.objectives import focal', ['lm.objectives']),
    ('lm.data.rows', 'import lm.text.files', []),
    ('lm.text.files', 'import jax.numpy as jnp', ['jax.numpy']),
    ('lm.training.trainer', 'import lm.train', ['lm.train']),
  ],
)
def test_the_law_can_be_broken(module, source, offences):
  assert _offences(module, source) == offences


def test_every_package_has_a_layer_or_is_a_program():
  for module, file in MODULES.items():
    if _layer(_package(module)) == PROGRAMS and module.count('.') == 1:
      source = file.read_text()
      assert '__main__' in source or (file.parent / '__main__.py').exists(), (
        f'{module} has no layer'
      )


def test_only_spec_imports_by_name():
  for module, file in MODULES.items():
    called = {
      node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, 'id', '')
      for node in _nodes(file.read_text())
      if isinstance(node, ast.Call)
    }
    assert module == 'lm.config.resolve' or not called & {
      'import_module',
      '__import__',
      'eval',
      'exec',
    }
    assert not _imports(file.read_text()) & {'pickle', 'dill', 'cloudpickle', 'marshal'}


HEAVY = ('jax', 'flax', 'tensorflow', 'torch')


def _heavy_after_importing(*modules: str) -> str:
  code = f'import sys, {", ".join(modules)}; print(*sys.modules.keys() & {set(HEAVY)})'
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert run.returncode == 0, run.stderr
  return run.stdout.strip()


def test_text_never_loads_jax():
  assert _heavy_after_importing(*(m for m in MODULES if _package(m) == 'text')) == ''
  assert _heavy_after_importing('lm.nn.layers') != ''


def test_programs_load_jax_only_after_their_flags_are_right():
  # Each alone, for programs define flags of the same names.
  code = 'from absl import flags; import importlib, sys\n'
  code += 'for name in ("train", "evaluate", "generate", "prepare", "vectors"):\n'
  code += '  flags.FLAGS.__init__()\n'
  code += '  importlib.import_module(f"lm.{name}")\n'
  code += f'  print(name, *sys.modules.keys() & {set(HEAVY)})\n'
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert run.returncode == 0, run.stderr
  assert run.stdout.split() == ['train', 'evaluate', 'generate', 'prepare', 'vectors']


def test_tpu_scripts_need_python_alone():
  files = sorted((ROOT / 'tpu_scripts').glob('*.py'))
  ours = {'tpu_scripts', *sys.stdlib_module_names}
  for file in files:
    assert {name.split('.')[0] for name in _imports(file.read_text())} <= ours, file
