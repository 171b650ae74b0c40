"""Reads the workdir of a stranger: nothing that it names runs or is read; see `lm.config.trust`."""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import tokenizers
from ml_collections import ConfigDict

from lm.config import trust, validate
from lm.errors import UserError, first_line
from lm.text import probe
from lm.workdir import experiment, files

_ROWS = 4096  # of a batch of evaluation, at most


def read_config(workdir: pathlib.Path) -> ConfigDict:
  """Returns the config of a workdir; it names listed functions, and no cache or other run.

  Raises:
    UserError: config.json is missing, damaged, or has another structure; a value is out of range;
      the workdir has a link that leads out of it.
  """
  files.check_links(workdir)
  config = experiment.read_config(
    workdir, lambda text: json.dumps(trust.disarmed(json.loads(text)))
  )
  with config.unlocked():
    config.data.cache = config.warm_start.workdir = ''
    config.models = {}
    config.data.workers = 0
    config.eval.batch_size = min(config.eval.batch_size, _ROWS)  # no metric depends on it
  with one_line_errors(workdir):
    validate.validate_config(config)
  return config


def read_tokenizer(workdir: pathlib.Path) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a workdir, after another process has tried it with a limit of time.

  Raises:
    UserError: tokenizer.json is missing or damaged, or it fails or hangs.
  """
  file = workdir / 'tokenizer.json'
  probe.check(str(file), (), f'--workdir={workdir}: tokenizer.json')
  return experiment.read_tokenizer(workdir)


@contextlib.contextmanager
def one_line_errors(workdir: pathlib.Path) -> Iterator[None]:
  """Converts any error within a block, which uses the config of a workdir, to a UserError."""
  try:
    yield
  except UserError as e:
    raise UserError(f'--workdir={workdir}: {e}') from e
  except Exception as e:  # values of wrong types fail anywhere
    raise UserError(f'--workdir={workdir}: config.json is damaged: {first_line(e)}') from e
