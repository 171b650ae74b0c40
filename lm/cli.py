"""What every program has in common: flags, --config with overrides, exit codes, SIGTERM.

Exit codes: 0 done, 1 failed, 2 usage or config, 75 preempted and saved, 134 another process of the
run is lost.
"""

import inspect
import json
import math
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from lm.config import resolve
from lm.config.base import base
from lm.errors import PeerLost, Preempted, UserError, did_you_mean
from lm.parallel import host, multihost
from lm.text.files import expand_path, lone_surrogate
from lm.workdir import experiment

OK, FAILED, USAGE, PREEMPTED, PEER_LOST = 0, 1, 2, 75, multihost.LOST
# What Python says of a value, and what is wanted in its place.
_WANTED = (
  (r"invalid literal for int\(\) with base 10: '(.*)'", 'an integer'),
  (r"could not convert string to float: '(.*)'", 'a number'),
  (r"\('Non-boolean argument to boolean flag', '(.*)'\)", 'true or false'),
)
_NEWS = 2.0  # seconds in which the end of another process, of which this one fails, is known


def run(main: Callable[[list[str]], int | None], doc: str | None) -> None:
  """Runs `main(argv)` and exits with its code, 0 for None.

  Args:
    main: the program.
    doc: the text that --help prints before the flags; None if `main` prints its own help.
  """
  code = _exit_code(main, doc, sys.argv)
  multihost.leave(code)
  sys.exit(code)


def _exit_code(main: Callable[[list[str]], int | None], doc: str | None, argv: list[str]) -> int:
  path = pathlib.PurePath(argv[0])
  program = f'lm.{path.parent.name if path.stem == "__main__" else path.stem}'
  try:
    if doc is not None and {'--help', '-h', '-help'} & set(argv[1:]):
      print(_help(doc), flush=True)
      return OK
    _check_text(argv)
    for line in host.drop_unknown(os.environ):
      print(f'{program}: warning: {line}', file=sys.stderr)
    return main(list(argv)) or OK
  except UserError as e:
    print(f'{program}: {e}', file=sys.stderr)
    return USAGE
  except Preempted as e:
    print(f'{program}: {e}', file=sys.stderr)
    return PREEMPTED
  except PeerLost as e:
    print(f'{program}: {e}', file=sys.stderr)
    return PEER_LOST
  except KeyboardInterrupt:
    print(f'{program}: interrupted', file=sys.stderr)
    return FAILED
  except BrokenPipeError:
    # The reader of our output has gone; keep the interpreter from flushing into the closed pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
  except Exception:
    if multihost.is_multiprocess():
      time.sleep(_NEWS)  # a lost process makes this one fail too, and is told in one line
    traceback.print_exc()
    return FAILED


def _check_text(argv: Sequence[str]) -> None:
  """Raises UserError for an argument that is not UTF-8; Python has its bytes as surrogates."""
  for argument in argv[1:]:
    if lone_surrogate(argument):
      name, equals, _ = argument.partition('=')
      given = os.fsencode(argument)
      which = name if equals and not lone_surrogate(name) else 'an argument'
      raise UserError(f'{which} is not UTF-8: it is {given!r:.120}')


def parse(argv: Sequence[str], positional: bool = False) -> list[str]:
  """Parses absl flags; what is wrong with them becomes a UserError of one line.

  Returns:
    The arguments that are no flags; there are none unless `positional` lets them be.
  """
  try:
    rest = flags.FLAGS(list(argv))
  except flags.UnrecognizedFlagError as e:
    known = [name for name in flags.FLAGS if not name.startswith('?')]
    raise UserError(f'unknown flag --{e.flagname}{did_you_mean(e.flagname, known)}') from e
  except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as e:
    raise UserError(_plain(e)) from e
  if rest[1:] and not positional:
    raise UserError(f'unexpected argument {rest[1]!r}; flags are written --name=value')
  return rest[1:]


def required(name: str, example: str) -> Any:
  """Returns the value of a flag that has no default.

  Raises:
    UserError: it was not given.
  """
  value = flags.FLAGS[name].value
  if value in (None, ''):
    raise UserError(f'--{name} is required, for example --{name}={example}')
  return value


def config(argv: list[str]) -> tuple[ConfigDict, str]:
  """Takes --config=FILE.py[:ARG] and every --config.key=value out of the command line.

  Returns:
    The config with its overrides, and FILE.py[:ARG].

  Raises:
    UserError: the file, a key or a value is wrong.
  """
  file, colon, arg = _take(argv).partition(':')
  path = f'{expand_path(file, "--config")}{colon}{arg}'
  loaded = experiment.load(path)
  _override(loaded, argv)
  return loaded, path


def print_notes(notes: Sequence[str]) -> None:
  """Says on stderr what was chosen unasked, such as a checkpoint; of several processes one does."""
  for note in notes if multihost.is_primary() else ():
    print(f'note: {note}', file=sys.stderr)


def json_line(values: Mapping[str, Any]) -> str:
  """Returns an object of JSON on one line, in which a number that is not finite is null."""
  finite = {k: v if math.isfinite(v) else None for k, v in values.items() if isinstance(v, float)}
  return json.dumps({**values, **finite}, ensure_ascii=False, allow_nan=False)


def _override(loaded: ConfigDict, argv: list[str]) -> None:
  given = [a for a in argv if a.startswith(('--config.', '-config.'))]
  for argument in given:
    key, equals, _ = argument.lstrip('-').partition('=')
    _check_key(loaded, key)
    if not equals:
      raise UserError(f'--{key} needs a value, written --{key}=value')
    argv.remove(argument)
  for argument in [a for a in given if a.partition('=')[2] in ('', 'None')]:
    if _empty(loaded, argument):
      given.remove(argument)
  values = flags.FlagValues()
  original, sys.argv = sys.argv, ['lm', *given]  # where config_flags looks for overrides
  try:
    config_flags.DEFINE_config_dict('config', loaded, flag_values=values)
    values(sys.argv)
  except (flags.Error, TypeError, ValueError, KeyError, AttributeError) as e:
    raise UserError(_plain(e)) from e
  finally:
    sys.argv = original


def _empty(loaded: ConfigDict, argument: str) -> bool:
  """Takes the value of a leaf away where it may be empty; returns whether it has.

  Raises:
    UserError: it always has a value, and is no string, which may be 'None' or have no character.
  """
  key, _, value = argument.lstrip('-').partition('=')
  *sections, name = key.split('.')[1:]
  section = loaded
  for part in sections:
    section = section[part]
  if _may_be_empty(section, sections, name):
    section[name] = None
    return True
  held = section[name]
  if value and not isinstance(held, str):
    has = 'is a section' if isinstance(held, ConfigDict) else f'always has a value; it is {held!r}'
    raise UserError(f'--{argument.lstrip("-")}: the key {has}')
  return False


def _may_be_empty(section: ConfigDict, sections: Sequence[str], name: str) -> bool:
  """Returns whether None is a value of a leaf: of the base config, or of the section's function."""
  usual: Any = base()
  for part in (*sections, name):
    usual = usual.get(part, '') if isinstance(usual, ConfigDict) else ''
  if usual is None or section[name] is None:
    return True
  if 'fn' not in section or name == 'fn':
    return False
  key = f'{".".join(sections)}.fn'
  parameter = inspect.signature(resolve.resolve(section.fn, key)).parameters.get(name)
  return parameter is not None and parameter.default is None


def _plain(error: Exception) -> str:
  """Returns one line on a flag that cannot be read, in other words than Python's."""
  told = ' '.join(str(error).split())
  for python, wanted in _WANTED:
    if found := re.fullmatch(rf'flag (--[^=]+)=.*?: {python}', told):
      return f'{found[1]}={found[2]}: {wanted} is wanted'
  return told


def _take(argv: list[str]) -> str:
  for i, argument in enumerate(argv):
    name, equals, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'config':
      if not equals and i + 1 < len(argv):
        value = argv.pop(i + 1)
      argv.pop(i)
      if value:
        return value
  raise UserError('--config is required, for example --config=experiments/quickstart.py')


def _check_key(loaded: ConfigDict, key: str) -> None:
  node: Any = loaded
  for i, part in enumerate(key.split('.')[1:]):
    if not isinstance(node, ConfigDict) or part not in node:
      where = '.'.join(key.split('.')[: i + 1])
      known = list(node) if isinstance(node, ConfigDict) else []
      listed = f'; {where} has {", ".join(known)}' if known else f'; {where} has no keys'
      raise UserError(f'--{key}: unknown config key {part!r}{did_you_mean(part, known)}{listed}')
    node = node[part]


def _help(doc: str) -> str:
  lines = [doc.strip(), '', 'Flags:']
  if '--config=' in doc:
    lines.append('  --config: experiment file, FILE.py or FILE.py:ARG')
    lines.append(
      '  --config.KEY=VALUE: another value for a leaf of the config, None to leave it empty where '
      'that is allowed; any number of these'
    )
  for flag in flags.FLAGS.get_key_flags_for_module(sys.modules['__main__']):
    default = '' if flag.default in (None, '') else f' (default {flag.default})'
    lines.append(f'  --{flag.name}: {flag.help}{default}')
  return '\n'.join(lines)
