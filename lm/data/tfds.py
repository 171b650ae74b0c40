"""TensorFlow Datasets, read by position from ArrayRecord files without TensorFlow.

Reading what is prepared never needs TensorFlow, nor does preparing a builder that avoids `tf.io`.
Other builders import it while they prepare themselves: the extra `tfds` brings it.
"""

import contextlib
import os
import pathlib
import socket
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from lm.data import splits as split_names
from lm.data.cache import locked
from lm.errors import UserError, did_you_mean
from lm.text.files import expand_path


def tfds(
  split: str,
  name: str,
  text: str = 'text',
  data_dir: str = '',
  splits: Mapping[str, str] | None = None,
  columns: Mapping[str, str] | None = None,
) -> 'TfdsExamples':
  """Returns examples of a TensorFlow Datasets builder, preparing it first where that is needed.

  Args:
    split: one of the builder's splits, or one of the names in `splits`.
    name: 'builder', 'builder/config' or 'builder/config:version'.
    text: the feature that holds the text.
    data_dir: where data sets lie; empty for $TFDS_DATA_DIR or ~/tensorflow_datasets.
    splits: what our names mean, in the notation of TensorFlow Datasets, for example
      {'train': 'train[:99%]', 'validation': 'train[99%:]'}; None for the builder's own names.
    columns: the feature of each field, for tasks, as {'source': 'en', 'target': 'de'}; classes are
      given by their names. None for {'text': text}.

  Raises:
    UserError: there is no such builder, split or feature; it cannot be prepared here.
  """
  default = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  directory = expand_path(data_dir or default, 'data.source: data_dir')
  builder = _builder(name, directory)
  if not builder.is_prepared():
    with locked(directory / f'.{name.replace("/", "-")}.lock'):
      if not builder.is_prepared():
        _prepare(builder, name, directory)
  fields = {'text': text} if columns is None else columns
  for feature in fields.values():
    if feature not in builder.info.features:
      there = ', '.join(map(repr, sorted(builder.info.features)))
      raise UserError(f'data.source: tfds {name!r} has no feature {feature!r}; there is {there}')
  if splits is None:
    split_names.check(split, sorted(builder.info.splits))
    return TfdsExamples(builder, split, fields)
  split_names.check(split, list(splits))
  return TfdsExamples(builder, splits[split], fields)


class TfdsExamples(Sequence):
  """Some features of the examples of one split.

  Attributes:
    fingerprint: the builder's full name with its version, the split, and their sizes.
  """

  def __init__(self, builder: Any, split: str, fields: Mapping[str, str]):
    """Opens a prepared builder.

    Raises:
      UserError: there is no such split, or the data is in a format without random access.
    """
    try:
      self._examples = builder.as_data_source(split=split)
      part = builder.info.splits[split]
    except NotImplementedError as e:
      raise UserError(
        f'data.source: {builder.info.full_name} lies in {builder.data_dir} as '
        f'{builder.info.file_format.value}; prepare it in another data_dir, as array_record'
      ) from e
    except ValueError as e:
      raise UserError(f'data.source: {builder.info.full_name}: {e}') from e
    self._fields = fields
    self._features = builder.info.features
    self._name = f'{builder.info.full_name} {split!r}'
    sizes = f'{part.num_examples} of {builder.info.dataset_size}'
    self.fingerprint = f'{builder.info.full_name} {split} {sizes}'

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index):
    example = self._examples[index]
    return {field: self._text(example[name], name, index) for field, name in self._fields.items()}

  def _text(self, value: Any, name: str, index: int) -> str:
    feature = self._features[name]
    if isinstance(value, bytes):
      try:
        return value.decode('utf-8')
      except UnicodeDecodeError as e:
        raise UserError(
          f'data.source: {self._place(index)}: {name!r} is not UTF-8 at byte {e.start}'
        ) from e
    if hasattr(feature, 'int2str'):  # a class
      # Sets of benchmarks have -1 where the class is withheld; int2str makes it the last class.
      if not 0 <= value < feature.num_classes:
        raise UserError(
          f'data.source: {self._place(index)}: {name!r} is the class {int(value)}, and there are '
          f'0 to {feature.num_classes - 1}; a split without labels has no accuracy: take another '
          'split, or leave the field out of columns'
        )
      return feature.int2str(int(value))
    kind = type(value).__name__
    raise UserError(f'data.source: feature {name!r} holds {kind}, not text')

  def _place(self, index: int) -> str:
    return f'{self._name}, example {index} (from 0)'


def _builder(name: str, directory: pathlib.Path) -> Any:
  # Imported here, because it takes most of a second. Builders of the old layout, as those of
  # Wikipedia, are known only once the package of their kind has been imported.
  import tensorflow_datasets
  import tensorflow_datasets.question_answering
  import tensorflow_datasets.summarization
  import tensorflow_datasets.text
  import tensorflow_datasets.translate

  try:
    return tensorflow_datasets.builder(name, data_dir=directory, file_format='array_record')
  except tensorflow_datasets.core.registered.DatasetNotFoundError as e:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    near = did_you_mean(name.partition('/')[0], known)
    raise UserError(
      f'data.source: tfds knows no builder {name!r}{near}, nor is it prepared in {directory}; '
      'for local files take lm.data.sources:text or :columns'
    ) from e
  except ValueError as e:  # an unknown config or version
    first = str(e).splitlines()[0][:200]
    raise UserError(f'data.source: tfds {name!r} has no such config or version: {first}') from e


def _prepare(builder: Any, name: str, directory: pathlib.Path) -> None:
  """Downloads and prepares a builder, or says what is in the way."""
  missing = _missing_downloads(builder, directory)
  if missing and _offline(missing):
    raise _needs_download(name, missing)
  try:
    with contextlib.redirect_stdout(sys.stderr):  # it announces itself on stdout
      builder.download_and_prepare()
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
  except ConnectionError as e:
    raise _needs_download(name, missing) from e
  except OSError as e:
    if type(e).__module__.startswith('requests'):
      raise _needs_download(name, missing) from e
    raise


def _missing_downloads(builder: Any, directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the addresses that have not been downloaded, and where each file may be put by hand.

  Raises:
    UserError: a file that was put there is another one.
  """
  from tensorflow_datasets.core.download import resource

  missing = {}
  infos = builder.url_infos or {}
  for url, info in infos.items():
    name = resource.get_dl_fname(url, info.checksum)
    by_hand = directory / 'downloads' / name
    if by_hand.exists():
      _adopt(builder.name, url, info, by_hand)
    elif not (directory / 'downloads' / builder.name / name).exists():
      missing[url] = by_hand
  # Of many configurations, each with files of its own, some are always missing.
  several = len(builder.BUILDER_CONFIGS) > 1 and len(missing) < len(infos)
  return {} if several else missing


def _adopt(name: str, url: str, info: Any, file: pathlib.Path) -> None:
  """Writes beside a file put there by hand what a download would have written."""
  from tensorflow_datasets.core.download import checksums, resource

  if resource.is_locally_cached(file):
    return
  found = checksums.compute_url_info(file)
  if found.checksum != info.checksum:
    raise UserError(
      f'data.source: tfds {name!r}: {file} is not {url}: its sha256 is {found.checksum}, '
      f'not {info.checksum}'
    )
  resource.write_info_file(url, file, name, info.filename or file.name, info)


def _offline(urls: Mapping[str, pathlib.Path]) -> bool:
  """Returns whether no host of the addresses has a name that resolves."""
  for host in {urllib.parse.urlsplit(url).hostname for url in urls}:
    with contextlib.suppress(OSError):
      socket.getaddrinfo(host, 443)
      return False
  return True


def _needs_download(name: str, missing: Mapping[str, pathlib.Path]) -> UserError:
  url, place = next(iter(missing.items()), ('its files', pathlib.Path('DATA_DIR/downloads')))
  others = f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''
  return UserError(
    f'data.source: tfds {name!r} needs a download and there is no network: put {url} at '
    f'{place}{others} (make its folder), or take lm.data.sources:text for a local file'
  )
