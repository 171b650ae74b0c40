"""Resolves import paths of configs to functions: 'package.module:name(key=literal)'.

This is the only module that imports by name. Arguments are Python literals parsed by `ast`, never
evaluated. A section of a config, `{fn: 'package.module:name', key: value, ...}`, names a function
and its arguments. In an experiment file, `ref(function, key=literal)` returns such a path.

An import path runs code. Functions of the standard library and builtins are refused, because an
experiment needs none. Paths of a workdir that is not trusted pass `lm.config.trust` first.
"""

import ast
import functools
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lm.errors import UserError, did_you_mean

# Begins each string of a config that `lm.config.trust` lets nothing run by.
REFUSED = '(untrusted) '
_LONGEST = 10_000  # characters of a path; the parser of Python may crash on long expressions


def import_extra(module: str, extra: str, need: str) -> Any:
  """Returns the module of an optional dependency.

  Raises:
    UserError: it is not installed. The message begins with `need`, which says what needs it.
  """
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as e:
    raise UserError(f'{need}: pip install -e ".[{extra}]"') from e


def ref(fn: Callable, /, **kwargs: Any) -> str:
  """Returns the import path of a function with arguments: `ref(rope, theta=5e5)`.

  Editors jump to the definition, and a wrong name or argument fails when the config file loads.

  Raises:
    UserError: nothing can import `fn` by a name, it has no such argument, or a value is no literal.
  """
  module, name = getattr(fn, '__module__', None), getattr(fn, '__qualname__', '')
  key = f'ref({name or repr(fn)[:60]})'
  if not module or not name or '<' in name or module == '__main__':
    raise UserError(f'{key} must name a function or class at the top level of an imported module')
  if any(part.startswith('_') for part in module.split('.')):
    raise UserError(f'{key}: {module} is private; write its public path as a string')
  for argument, value in kwargs.items():
    if not _is_literal(value):
      what = 'a function; give ref(...) of it' if callable(value) else 'no Python literal'
      raise UserError(f'{key}: {argument}={value!r:.60} is {what}')
  arguments = ', '.join(f'{argument}={value!r}' for argument, value in kwargs.items())
  path = f'{module}:{name}({arguments})' if kwargs else f'{module}:{name}'
  found = resolve(path, key)
  if getattr(found, 'func', found) is not fn and found is not fn:
    raise UserError(f'{key}: {module}:{name} is another function')
  return path


def _is_literal(value: Any) -> bool:
  try:
    return bool(ast.literal_eval(repr(value)) == value)
  except (ValueError, SyntaxError):
    return False


def resolve(path: str, key: str) -> Callable:
  """Returns the function or class of an import path, with its literal arguments bound.

  Args:
    path: 'module:name' or 'module:name(key=literal, ...)'; the name may be dotted, for a member of
      a namespace ('jax:checkpoint_policies.dots_saveable').
    key: the config key that holds the path; error messages start with it.

  Raises:
    UserError: the path is malformed, nothing has this name, it belongs to the standard library, or
      the function has no such argument.
  """
  module_name, name, kwargs = parse(path, key)
  _refuse_standard(module_name, path, key)  # before the import, which runs code
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as e:
    if e.name is None or not (module_name == e.name or module_name.startswith(e.name + '.')):
      raise UserError(f'{key}={path!r}: importing {module_name} failed: {e}') from e
    raise UserError(f'{key}={path!r}: no module {e.name!r}') from e
  fn: Any = module
  for part in name.split('.'):
    holder, fn = fn, getattr(fn, part, None)
  if not callable(fn):
    members = getattr(holder, '__dict__', {}).items()
    known = [n for n, value in members if callable(value) and not n.startswith('_')]
    raise UserError(
      f'{key}={path!r}: {module_name} has no function {name!r}{did_you_mean(part, known)}'
    )
  _refuse_standard(defining_module(fn), path, key)
  return partial_with(fn, kwargs, key=key) if kwargs else fn


def defining_module(fn: Callable) -> str:
  """Returns the name of the module that defines a callable; of a partial, that of its function."""
  while isinstance(fn, functools.partial):
    fn = fn.func
  return getattr(fn, '__module__', None) or type(fn).__module__


def _refuse_standard(module: str, path: str, key: str) -> None:
  if module.partition('.')[0] in sys.stdlib_module_names:
    raise UserError(
      f'{key}={path!r:.200}: {module} belongs to the standard library of Python, whose functions '
      'no config may name; write a function that calls it, in the folder of the experiment'
    )


def partial_with(fn: Callable, kwargs: Mapping[str, Any], key: str) -> Callable:
  """Returns `partial(fn, **kwargs)` after checking the names and resolving function arguments.

  An argument annotated as a `Callable` (or a tuple of them) is an import path, or a section with
  `fn` and arguments.

  Raises:
    UserError: a name in `kwargs` is not an argument of `fn`.
  """
  parameters = inspect.signature(fn).parameters
  takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  for name in kwargs:
    if name not in parameters and not takes_any:
      known = ', '.join(n for n in parameters if n not in ('self', 'parent', 'name'))
      raise UserError(
        f'{key}: {_name(fn)} takes no argument {name!r}{did_you_mean(name, parameters)}; '
        f'it takes {known}'
      )
  hints = _hints(fn)
  bound = {k: _argument(v, hints.get(k), f'{key}.{k}') for k, v in kwargs.items()}
  return functools.partial(fn, **bound)


def build_section(config: Mapping[str, Any], key: str) -> Callable:
  """Returns the function that a section names in `fn`, with the other leaves bound."""
  if 'fn' not in config:
    raise UserError(f"{key}: the section needs 'fn', the import path of a function")
  return partial_with(
    resolve(config['fn'], f'{key}.fn'), {k: v for k, v in config.items() if k != 'fn'}, key
  )


def call(fn: Callable, key: str, *args, **kwargs) -> Any:
  """Calls `fn` after checking that no argument is missing; `key` names it in the error."""
  try:
    inspect.signature(fn).bind(*args, **kwargs)
  except TypeError as e:
    raise UserError(f'{key}: {_name(fn)}: {e}') from e
  return fn(*args, **kwargs)


def _argument(value: Any, hint: Any, key: str) -> Any:
  if not _holds_callable(hint) or value is None:
    return value
  if isinstance(value, tuple | list):
    return tuple(_argument(v, hint, f'{key}[{i}]') for i, v in enumerate(value))
  if isinstance(value, Mapping | ConfigDict):
    return build_section(value, key)
  if callable(value) or type(value) in typing.get_args(hint):
    return value
  return resolve(value, key)


def _holds_callable(hint: Any) -> bool:
  is_callable = Callable in (hint, typing.get_origin(hint))
  return is_callable or any(_holds_callable(h) for h in typing.get_args(hint))


def _hints(fn: Callable) -> dict[str, Any]:
  target = getattr(fn, 'func', fn)  # a partial of a partial has the innermost function
  try:
    return typing.get_type_hints(target)
  except (NameError, TypeError):  # annotations with names that are absent at run time
    return getattr(target, '__annotations__', {})


def parse(path: str, key: str) -> tuple[str, str, dict[str, Any]]:
  """Returns module, name and literal arguments of an import path; imports nothing.

  Raises:
    UserError: the path is malformed, or was refused by `lm.config.trust`.
  """
  if isinstance(path, str) and path.startswith(REFUSED):
    raise UserError(
      f'{key}={path.removeprefix(REFUSED)!r:.200}: not run, because the workdir is not trusted and '
      'this is none of the functions that such a workdir may name (experiments/README.md, Trust)'
    )
  expected = "an import path such as 'package.module:name' or 'package.module:name(key=1)'"
  if isinstance(path, str) and len(path) > _LONGEST:
    raise UserError(f'{key}={path!r:.60}... must be {expected}, of at most {_LONGEST} characters')
  module_name, colon, expression = path.partition(':') if isinstance(path, str) else ('', '', '')
  if not colon or not all(part.isidentifier() for part in module_name.split('.')):
    raise UserError(f'{key}={path!r:.200} must be {expected}')
  try:
    tree = ast.parse(expression.strip(), mode='eval').body
    if not isinstance(tree, ast.Call):
      return module_name, _dotted(tree), {}
    if tree.args:
      raise ValueError('arguments need names')
    if any(keyword.arg is None for keyword in tree.keywords):
      raise ValueError('no ** here')
    kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in tree.keywords}
    return module_name, _dotted(tree.func), kwargs
  except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
    raise UserError(f'{key}={path!r:.200} must be {expected}: {e}') from e


def _dotted(node: ast.expr) -> str:
  if isinstance(node, ast.Name):
    return node.id
  if isinstance(node, ast.Attribute):
    return f'{_dotted(node.value)}.{node.attr}'
  raise ValueError('a name, or a call of one, must follow the colon')


def _name(fn: Callable) -> str:
  fn = getattr(fn, 'func', fn)
  return f'{fn.__module__}:{getattr(fn, "__qualname__", type(fn).__qualname__)}'
