"""TensorFlow Datasets, read by position from ArrayRecord files without TensorFlow.

Reading a prepared data set never needs TensorFlow. Preparing a builder needs it only if the builder
uses `tf.io`; the extra `tfds` installs it.
"""

import contextlib
import os
import pathlib
import socket
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from lm.data.cache import locked
from lm.data.sources.base import Example, LazySequence, available, check_split
from lm.errors import UserError, did_you_mean
from lm.text.files import expand_path


def tfds(
  split: str,
  name: str,
  text: str = 'text',
  data_dir: str = '',
  splits: Mapping[str, str] | None = None,
  columns: Mapping[str, str] | None = None,
) -> LazySequence:
  """Returns examples of a TensorFlow Datasets builder, after preparing it if necessary.

  Args:
    split: one of the builder's splits, or one of the names in `splits`.
    name: 'builder', 'builder/config' or 'builder/config:version'.
    text: the feature with the text.
    data_dir: directory of data sets; empty for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    splits: names of splits and their definitions in TensorFlow Datasets, for example
      {'train': 'train[:99%]', 'validation': 'train[99%:]'}; None for the builder's own names.
    columns: the feature of each field, for tasks, as in {'source': 'en', 'target': 'de'}; classes
      become their names, and floats stay numbers. None for {'text': text}.

  Raises:
    UserError: the builder, split or feature does not exist; the builder cannot be prepared here.
  """
  directory = expand_path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'), 'data.source: data_dir'
  )
  builder = _builder(name, directory)
  if not builder.is_prepared():
    with locked(directory / f'.{name.replace("/", "-")}.lock'):
      if not builder.is_prepared():
        _prepare(builder, name, directory)
  fields = {'text': text} if columns is None else columns
  for feature in fields.values():
    if feature not in builder.info.features:
      raise UserError(
        f'data.source: tfds {name!r} has no feature {feature!r}'
        f'{available(feature, sorted(builder.info.features))}'
      )
  check_split(split, sorted(builder.info.splits) if splits is None else list(splits))
  return _examples(builder, split if splits is None else splits[split], fields)


def _examples(builder: Any, split: str, fields: Mapping[str, str]) -> LazySequence:
  """Returns some features of the examples of one split of a prepared builder.

  Raises:
    UserError: the split is unknown, or the format has no random access.
  """
  info = builder.info
  try:
    examples = builder.as_data_source(split=split)
    part = info.splits[split]
  except NotImplementedError as e:
    raise UserError(
      f'data.source: {info.full_name} is stored in {builder.data_dir} as '
      f'{info.file_format.value}; prepare it in another data_dir, as array_record'
    ) from e
  except ValueError as e:
    raise UserError(f'data.source: {info.full_name}: {e}') from e

  def make(index: int) -> Example:
    example = examples[index]
    place = f'data.source: {info.full_name} {split!r}, example {index} (from 0)'
    return {
      field: _value(example[name], info.features[name], f'{place}: {name!r}')
      for field, name in fields.items()
    }

  fingerprint = f'{info.full_name} {split} {part.num_examples} of {info.dataset_size}'
  return LazySequence(len(examples), make, fingerprint)


def _value(value: Any, feature: Any, place: str) -> str | float:
  """Returns a text, the name of a class, or a number."""
  if isinstance(value, float | np.floating):
    return float(value)
  if isinstance(value, bytes):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError as e:
      raise UserError(f'{place} is not UTF-8 at byte {e.start}') from e
  if not hasattr(feature, 'int2str'):
    raise UserError(f'{place} is of type {type(value).__name__}, not text')
  # Benchmarks store -1 for unpublished classes; int2str would return the last class.
  if not 0 <= value < feature.num_classes:
    raise UserError(
      f'{place} is the class {int(value)}, but classes are 0 to {feature.num_classes - 1}; a '
      'split without labels has no accuracy: use another split, or remove the field from columns'
    )
  return feature.int2str(int(value))


def _builder(name: str, directory: pathlib.Path) -> Any:
  # Imported here, as it takes most of a second. Builders of the old layout, such as Wikipedia, are
  # registered by importing the package of their kind.
  import tensorflow_datasets
  from tensorflow_datasets import question_answering, summarization, text, translate  # noqa: F401

  try:
    return tensorflow_datasets.builder(name, data_dir=directory, file_format='array_record')
  except tensorflow_datasets.core.registered.DatasetNotFoundError as e:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = did_you_mean(name.partition('/')[0], known)
    raise UserError(
      f'data.source: tfds has no builder {name!r}{near}, and none is prepared in {directory}; '
      'for local files use lm.data.sources:text or :columns'
    ) from e
  except ValueError as e:  # an unknown config or version
    first = str(e).splitlines()[0][:200]
    raise UserError(f'data.source: tfds {name!r} has no such config or version: {first}') from e


def _prepare(builder: Any, name: str, directory: pathlib.Path) -> None:
  """Downloads and prepares a builder; files in DIRECTORY/downloads/manual are not downloaded."""
  from tensorflow_datasets import download

  manual = directory / 'downloads' / 'manual'
  missing = _missing_downloads(builder, directory)
  url, file = next(iter(missing.items()), ('its files', '.'))
  others = f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''
  needs_download = UserError(
    f'data.source: tfds {name!r} needs a download, but the network is not reachable: put {url} at '
    f'{manual / file}{others}, or use lm.data.sources:text for a local file'
  )
  if missing and _offline(missing):  # TensorFlow Datasets would retry for minutes
    raise needs_download
  try:
    with contextlib.redirect_stdout(sys.stderr):  # it prints to stdout
      builder.download_and_prepare(
        download_config=download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
      )
  except ImportError as e:
    if 'tensorflow' in str(e).lower():
      raise UserError(
        f"data.source: preparing tfds {name!r} needs TensorFlow: pip install -e '.[tfds]' "
        '(reading it afterwards does not)'
      ) from e
    package = (e.name or str(e)).partition('.')[0].replace('_', '-')
    raise UserError(
      f'data.source: preparing tfds {name!r} needs another package: pip install {package}'
    ) from e
  except OSError as e:
    if isinstance(e, ConnectionError) or type(e).__module__.startswith('requests'):
      raise needs_download from e
    raise
  except Exception as e:
    if type(e).__name__ != 'NonMatchingChecksumError':
      raise
    raise UserError(f'data.source: tfds {name!r}: {" ".join(str(e).split())}') from e


def _missing_downloads(builder: Any, directory: pathlib.Path) -> dict[str, str]:
  """Returns the URLs that have not been downloaded, and the file name of each."""
  infos, downloads = builder.url_infos or {}, directory / 'downloads'
  missing = {
    url: info.filename or url.rpartition('/')[2]
    for url, info in infos.items()
    if not (downloads / 'manual' / (info.filename or '.')).is_file()
  }
  downloaded = len(list((downloads / builder.name).rglob('*.INFO')))
  # The URLs are those of all configurations. If each configuration has its own files, the missing
  # ones may belong to configurations other than the builder's.
  may_be_complete = len(builder.BUILDER_CONFIGS) > 1 and (downloaded or len(missing) < len(infos))
  return {} if may_be_complete or downloaded >= len(infos) else missing


def _offline(urls: Iterable[str]) -> bool:
  """Returns whether no host of the URLs can be resolved."""
  for host in {urllib.parse.urlsplit(url).hostname for url in urls}:
    with contextlib.suppress(OSError):
      socket.getaddrinfo(host, 443)
      return False
  return True
