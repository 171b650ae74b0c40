"""Downloads of checkpoints by name, through the package `huggingface_hub` (extra `hub`)."""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from lm.config.resolve import import_extra
from lm.errors import UserError, first_line

_NAME = re.compile(r'[\w.-]+/[\w.-]+')
_WEIGHTS = ('model*.safetensors', 'model.safetensors.index.json')
_PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')


def is_name(source: Path) -> bool:
  """Returns whether a path has the form OWNER/NAME and does not exist."""
  return _NAME.fullmatch(source.as_posix()) is not None and not source.exists()


def download(name: str, revision: str | None, files: Sequence[str]) -> tuple[Path, str]:
  """Returns the folder of a checkpoint in the cache of `huggingface_hub`, and its commit.

  Args:
    name: OWNER/NAME.
    revision: a branch, tag or commit; None for the main branch.
    files: names of other files to download, if the checkpoint has them.

  Raises:
    UserError: the package is missing, the name or the revision is unknown, the network fails, or
      the checkpoint has no safetensors.
  """
  hub = import_extra(
    'huggingface_hub', 'hub', f'{name}: no such folder; a download needs a package'
  )
  which = name if revision is None else f'{name} at --revision={revision}'
  try:
    api = hub.HfApi()
    info = api.model_info(name, revision=revision)
    known = [sibling.rfilename for sibling in info.siblings or ()]
    weights = [file for pattern in _WEIGHTS for file in fnmatch.filter(known, pattern)]
    if not any('/' not in file for file in weights):
      pickled = [file for pattern in _PICKLES for file in fnmatch.filter(known, pattern)]
      reason = (
        f'only {pickled[0]}, a pickle, which can run any code when it is read'
        if pickled
        else f'no {_WEIGHTS[0]}'
      )
      raise UserError(f'{which} has {reason}; only safetensors are read')
    wanted = [file for file in known if file in files or (file in weights and '/' not in file)]
    stored = [Path(api.hf_hub_download(name, file, revision=info.sha)) for file in wanted]
  except UserError:
    raise
  except Exception as e:  # the library and its HTTP client raise many types
    raise UserError(f'{which} is no folder, and cannot be downloaded: {first_line(e)}') from e
  return stored[0].parent, str(info.sha)
