"""Shared parts of the programs: flags, --config with overrides, exit codes, notes.

Exit codes: 0 done, 1 failed, 2 wrong usage or config, 75 preempted with the state saved, 134
another process of the run died.
"""

import argparse
import functools
import inspect
import json
import math
import operator
import os
import pathlib
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from lm.config import resolve
from lm.config.base import base
from lm.errors import PeerLost, Preempted, UserError, did_you_mean, first_line
from lm.parallel import host, multihost
from lm.text.files import expand_path, lone_surrogate
from lm.workdir import experiment, files

flags.disclaim_key_flags()  # flags defined here belong to the program that calls `define_...`

OK, FAILED, USAGE, PREEMPTED, PEER_LOST = 0, 1, 2, 75, multihost.LOST
# absl's explanation of a wrong value, and what the value must be.
_EXPECTED = (
  (r'invalid literal for int\(\) with base 10: .*', 'an integer'),
  (r'could not convert string to float: .*', 'a number'),
  (r'\(.Non-boolean argument to boolean flag., .*\)', 'true or false'),
  (r'\S+ is not (an? .*)', r'\1'),
  (r'value should be one of <(.*)>', r'one of \1'),
  (r'must be (.*)', r'\1'),
)
_ABSL_ERRORS = (flags.Error, KeyError, AttributeError, TypeError, ValueError)
_DEATH_NOTICE = 2.0  # seconds until a process knows that another one died


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
    _check_utf8(argv)
    for line in host.drop_unknown(os.environ):
      print(f'{program}: warning: {line}', file=sys.stderr)
    return main(list(argv)) or OK
  except (UserError, Preempted, PeerLost) as e:
    line = ' '.join(str(e).splitlines())  # a value in the message may have several
    print(f'{program}: {line}', file=sys.stderr)
    return {UserError: USAGE, Preempted: PREEMPTED, PeerLost: PEER_LOST}[type(e)]
  except KeyboardInterrupt:
    print(f'{program}: interrupted', file=sys.stderr)
    return FAILED
  except BrokenPipeError:
    # The reader closed the pipe. Without this redirection to /dev/null, the interpreter would flush
    # stdout into the closed pipe at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
  except Exception as e:
    if any(argument.startswith('--untrusted') for argument in argv):
      print(f'{program}: the workdir is damaged or hostile: {first_line(e)}', file=sys.stderr)
      return USAGE
    if multihost.is_multiprocess():
      time.sleep(_DEATH_NOTICE)  # the failure detector may end this process with one line
    traceback.print_exc()
    return FAILED


class Parser(argparse.ArgumentParser):
  """An argument parser that raises a one-line UserError where argparse would print its usage."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message)


def _check_utf8(argv: Sequence[str]) -> None:
  """Raises UserError for an argument that is not UTF-8, which Python decodes to surrogates."""
  for argument in argv[1:]:
    if lone_surrogate(argument):
      name, equals, _ = argument.partition('=')
      which = name if equals and not lone_surrogate(name) else 'an argument'
      raise UserError(f'{which} is not UTF-8: it is {os.fsencode(argument)!r:.120}')


def define_untrusted_flag() -> None:
  """Defines --untrusted, of programs that open the workdir of a stranger."""
  flags.DEFINE_bool(
    'untrusted', False, 'run no code of the workdir, and read nothing outside it that it names'
  )


def define_run_flags() -> None:
  """Defines --workdir, --step, --average_checkpoints, --untrusted: of programs that open runs."""
  define_untrusted_flag()
  flags.DEFINE_string('workdir', None, 'directory of the run; several, as A,B, form an ensemble')
  flags.DEFINE_string(
    'step', None, 'checkpoint to use, or several, as M,N; by default the best, or else the newest'
  )
  flags.DEFINE_integer(
    'average_checkpoints', 1, 'average the parameters of the newest N checkpoints'
  )
  flags.DEFINE_string(
    'mean',
    None,
    'import path of the function from the logits of an ensemble to one; by default the mean '
    'probability, or what the converter of the task says',
  )


def define_beam_flags() -> None:
  """Defines --beam_size and --length_penalty, for programs that decode by beam search."""
  flags.DEFINE_integer(
    'beam_size',
    None,
    'hypotheses, 1 for greedy decoding; by default decode.beam_size of the run',
    lower_bound=1,
  )
  flags.DEFINE_float(
    'length_penalty', None, 'alpha of Wu et al. 2016; by default decode.length_penalty of the run'
  )
  flags.register_validator(
    'length_penalty', lambda x: x is None or math.isfinite(x), 'must be a finite number'
  )


def define_sampling_flags(temperature: float) -> None:
  """Defines the flags of `lm.decode.sampling.sampler`, --seed, --sampler, --logits_processor."""
  flags.DEFINE_float('temperature', temperature, 'divides the logits; 0 for greedy decoding')
  flags.DEFINE_integer('top_k', 0, 'sample from the k most probable tokens; 0 for all')
  flags.DEFINE_float('top_p', 1.0, 'sample from the fewest tokens whose probabilities sum to this')
  flags.DEFINE_float(
    'min_p', 0.0, 'sample from tokens with at least this share of the highest probability'
  )
  flags.DEFINE_integer('seed', 0, 'seed of the samples', lower_bound=0, upper_bound=2**32 - 1)
  flags.DEFINE_string(
    'sampler', None, 'import path of a sampler; by default decode.sampler of the run'
  )
  flags.DEFINE_multi_string(
    'logits_processor',
    None,
    'import path of a logits processor; repeatable; by default decode.logits_processors of the run',
  )


def set_decoding(decode: ConfigDict) -> ConfigDict:
  """Returns the section `decode` of a run with --sampler and --logits_processor in it.

  Flags of the common sampler take the place of the run's own sampler. --sampler takes the place of
  its beam too.

  Raises:
    UserError: one of them is given with --sampler.
  """
  args = flags.FLAGS
  common = ('temperature', 'top_k', 'top_p', 'min_p')
  given = [f'--{name}={args[name].value}' for name in common if args[name].present]
  if args.sampler and given:
    raise UserError(f'{given[0]} has no effect with --sampler={args.sampler}')
  if args['sampler'].present or given:
    decode.sampler = args.sampler or None
  if args.sampler:
    decode.beam_size = 1
  if args.logits_processor is not None:
    decode.logits_processors = tuple(args.logits_processor)
  return decode


def parse(argv: Sequence[str], positional: bool = False) -> list[str]:
  """Parses the command line by absl.

  Returns:
    The positional arguments.

  Raises:
    UserError: a flag is unknown or wrong, or a positional argument is not allowed.
  """
  try:
    rest = flags.FLAGS(list(argv))[1:]
  except flags.UnrecognizedFlagError as e:
    known = [name for name in flags.FLAGS if not name.startswith('?')]
    raise UserError(f'unknown flag --{e.flagname}{did_you_mean(e.flagname, known)}') from e
  except _ABSL_ERRORS as e:
    raise UserError(_one_line(e)) from e
  if not positional:
    refuse_positional(rest)
  return rest


def refuse_positional(arguments: Sequence[str]) -> None:
  """Raises UserError if there are positional arguments."""
  if arguments:
    raise UserError(f'unexpected argument {arguments[0]!r}; flags have the form --name=value')


def required(name: str, example: str, values: flags.FlagValues = flags.FLAGS) -> Any:
  """Returns the value of a flag that has no default.

  Raises:
    UserError: the command line does not give it.
  """
  value = values[name].value
  if value in (None, ''):
    raise UserError(f'--{name} is required, for example --{name}={example}')
  return value


def output_file(name: str, value: str) -> pathlib.Path:
  """Returns the path of an output file, checked before the work begins.

  Args:
    name: of the flag.
    value: of the flag.

  Raises:
    UserError: the path is a directory, or its directory does not exist.
  """
  path = expand_path(value, f'--{name}')
  if path.is_dir():
    raise UserError(f'--{name}={path} is a directory; give the name of a file')
  if not path.absolute().parent.is_dir():
    raise UserError(f'--{name}={path}: there is no such directory')
  return path


def write_output(name: str, path: pathlib.Path, content: bytes) -> None:
  """Writes the file of the flag --NAME atomically.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    files.replace(path, content)
  except OSError as e:
    raise UserError(f'--{name}={path} cannot be written: {e.strerror or e}') from e


def config(argv: list[str]) -> tuple[ConfigDict, str]:
  """Removes --config=FILE.py[:ARG] and every --config.key=value from `argv` and loads the config.

  Returns:
    The config with its overrides, and FILE.py[:ARG].

  Raises:
    UserError: the file, a key or a value is wrong.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('config', None, 'experiment file', flag_values=values)
  try:
    argv[:] = values(argv, known_only=True)
  except flags.Error as e:
    raise UserError(_one_line(e)) from e
  file, colon, arg = required('config', 'experiments/quickstart.py', values).partition(':')
  path = f'{expand_path(file, "--config")}{colon}{arg}'
  loaded = experiment.load(path)
  _override(loaded, argv)
  return loaded, path


def print_notes(notes: Sequence[str]) -> None:
  """Prints notes, such as the default checkpoint, on stderr of the primary process."""
  for note in notes if multihost.is_primary() else ():
    print(f'note: {note}', file=sys.stderr)


def json_line(values: Mapping[str, Any]) -> str:
  """Returns a JSON object on one line; a float that is not finite becomes null."""
  finite = {k: v if math.isfinite(v) else None for k, v in values.items() if isinstance(v, float)}
  return json.dumps({**values, **finite}, ensure_ascii=False, allow_nan=False)


def _override(loaded: ConfigDict, argv: list[str]) -> None:
  """Applies every --config.key=value to a config, and removes it from `argv`."""
  given = [a for a in argv if a.startswith(('--config.', '-config.'))]
  argv[:] = [a for a in argv if a not in given]
  for argument in given:
    _check_key(loaded, argument.lstrip('-'))
  given = ['lm', *(argument for argument in given if not _set_to_none(loaded, argument))]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict('config', loaded, flag_values=values, sys_argv=given)
    values(given)
  except _ABSL_ERRORS as e:
    raise UserError(_one_line(e)) from e


def _check_key(loaded: ConfigDict, argument: str) -> None:
  key, equals, _ = argument.partition('=')
  node: Any = loaded
  for i, part in enumerate(key.split('.')[1:]):
    if not isinstance(node, ConfigDict) or part not in node:
      where = '.'.join(key.split('.')[: i + 1])
      known = list(node) if isinstance(node, ConfigDict) else []
      listed = f'; available in {where}: {", ".join(known)}' if known else f'; {where} has no keys'
      raise UserError(f'--{key}: unknown config key {part!r}{did_you_mean(part, known)}{listed}')
    node = node[part]
  if not equals:
    raise UserError(f'--{key} needs a value, as in --{key}=value')


def _set_to_none(loaded: ConfigDict, argument: str) -> bool:
  """Applies --config.key=None, or an empty value, if the key accepts None.

  Returns:
    Whether the key was set. If a string key does not accept None, the result is False, and
    config_flags then sets the text 'None'.

  Raises:
    UserError: the key has another type and does not accept None.
  """
  key, _, value = argument.lstrip('-').partition('=')
  if value not in ('', 'None'):
    return False
  *sections, name = key.split('.')[1:]
  section = functools.reduce(operator.getitem, sections, loaded)
  if _accepts_none(section, sections, name):
    section[name] = None
    return True
  old = section[name]
  if value and not isinstance(old, str):
    why = 'is a section' if isinstance(old, ConfigDict) else f'needs a value; it is {old!r}'
    raise UserError(f'--{key}={value}: the key {why}')
  return False


def _accepts_none(section: ConfigDict, sections: Sequence[str], name: str) -> bool:
  """Returns whether a leaf may be None, by the base config or the function of its section."""
  default = experiment.flatten(base().to_dict()).get('.'.join((*sections, name)), '')
  if default is None or section[name] is None:
    return True
  if 'fn' not in section or name == 'fn':
    return False
  key = f'{".".join(sections)}.fn'
  parameter = inspect.signature(resolve.resolve(section.fn, key)).parameters.get(name)
  return parameter is not None and parameter.default is None


def _one_line(error: Exception) -> str:
  """Returns an error of absl as one line with the values that the flag accepts."""
  message = ' '.join(str(error).split())
  for why, expected in _EXPECTED:
    if found := re.fullmatch(rf'flag (--[^=]+=(.*)): ({why})', message):
      must = re.sub(why, expected, found[3])
      known = must.removeprefix('one of ').split('|') if '|' in must else ()
      return f'{found[1]} must be {must.replace("|", ", ")}{did_you_mean(found[2], known)}'
  return message


def _help(doc: str) -> str:
  overrides = (
    '  --config: experiment file, FILE.py or FILE.py:ARG',
    '  --config.KEY=VALUE: overrides a config leaf (by None if the key accepts it); repeatable',
  )
  own = flags.FLAGS.get_key_flags_for_module(sys.modules['__main__'])
  defaults = ['' if flag.default in (None, '') else f' (default {flag.default})' for flag in own]
  lines = [f'  --{flag.name}: {flag.help}{d}' for flag, d in zip(own, defaults, strict=True)]
  shown = [*overrides, *lines] if '--config=' in doc else lines
  return '\n'.join([doc.strip(), '', 'Flags:', *shown])
