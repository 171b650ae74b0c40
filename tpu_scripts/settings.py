"""The settings file: KEY=VALUE lines that are parsed here and never reach a shell."""

import dataclasses
import difflib
import hashlib
import pathlib
import re

from tpu_scripts.errors import Stop
from tpu_scripts.slices import Slice, slice_of

NAME = r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?'
DECIMAL = r'[0-9]+(\.[0-9]+)?'
WORD = r'[A-Za-z0-9._-]*'
# Each key -> (pattern of its value, its default or None, description).
KEYS = {
  'PROJECT': (r'[a-z][a-z0-9.:-]+', None, "the project's id, as in my-project"),
  'ZONE': (r'[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]', None, 'a zone, as in us-central1-a'),
  'NAME': (NAME, None, 'at most 40 lower-case letters, digits and dashes'),
  'ACCELERATOR_TYPE': (r'[a-z0-9]+-[0-9x]+', None, 'a type, as in v5litepod-16'),
  'CAPACITY': (r'on-demand|spot|reserved', None, 'on-demand, spot or reserved'),
  'GCS_ROOT': (r'gs://[a-z0-9][A-Za-z0-9._/-]+', None, 'a folder of a bucket, gs://BUCKET/PATH'),
  'PRICE_PER_CHIP_HOUR': (
    f'(?=.*[1-9]){DECIMAL}',
    None,
    'a price above 0, from https://cloud.google.com/tpu/pricing',
  ),
  'MAX_HOURS': (DECIMAL, None, 'the hours after which babysit gives up'),
  'MAX_RECREATIONS': (r'[0-9]+', None, 'how many times babysit may recreate machines'),
  'MAX_FAILURES': (r'[1-9][0-9]*', '3', 'failures without a newer checkpoint step'),
  'MAX_ERRORS': (r'[1-9][0-9]*', '20', 'failures of gcloud in a row'),
  'NUM_SLICES': (r'[1-9][0-9]*', '1', 'an integer from 1'),
  'TOPOLOGY': (r'([0-9]+(x[0-9]+)+)?', '', 'a topology of v4, as in 2x2x4'),
  'RUNTIME_VERSION': (WORD, '', 'a version that `gcloud compute tpus tpu-vm versions list` lists'),
  'VALID_UNTIL': (r'[0-9]+[smhd]', '6h', 'the maximum wait for capacity, as in 6h'),
  'INTERNAL_IP': (r'yes|no', 'no', 'yes or no'),
  'TUNNEL': (r'yes|no', 'no', 'yes or no: ssh through the Identity-Aware Proxy'),
  'NETWORK': (WORD, '', 'a network'),
  'SUBNETWORK': (WORD, '', 'a subnetwork'),
  'SERVICE_ACCOUNT': (r'([A-Za-z0-9.-]+@[A-Za-z0-9.-]+)?', '', 'an address, NAME@PROJECT...'),
  'PYTHON': (r'3\.[0-9]+', '3.12', 'a version of Python, as in 3.12'),
  'WAIT_MINUTES': (DECIMAL, '30', 'minutes to wait for the creation or repair of machines'),
  'MIXED_MINUTES': (DECIMAL, '5', 'minutes to wait for workers that disagree'),
}
# The settings that define the machines. The label is a hash of them, by which `tpu.py` recognizes
# its machines.
SHAPING = (
  'ACCELERATOR_TYPE',
  'RUNTIME_VERSION',
  'CAPACITY',
  'NUM_SLICES',
  'TOPOLOGY',
  'INTERNAL_IP',
  'NETWORK',
  'SUBNETWORK',
  'SERVICE_ACCOUNT',
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of one or several slices of the same type; `values` has every key of KEYS."""

  values: dict[str, str]
  slice: Slice

  def __getitem__(self, key: str) -> str:
    return self.values[key]

  @property
  def slices(self) -> int:
    return int(self['NUM_SLICES'])

  @property
  def runtime(self) -> str:
    return self['RUNTIME_VERSION'] or self.slice.runtime

  @property
  def label(self) -> str:
    """A hash of the settings that define the machines."""
    shape = '\n'.join(f'{key}={self[key]}' for key in SHAPING)
    return hashlib.sha256(shape.encode()).hexdigest()[:16]

  def cost(self) -> str:
    """Returns chips x price x hours as a sentence."""
    chips = self.slices * self.slice.chips
    price, hours = float(self['PRICE_PER_CHIP_HOUR']), float(self['MAX_HOURS'])
    return (
      f'{self.slices} x {self["ACCELERATOR_TYPE"]} ({self["CAPACITY"]}) is {chips} chips x '
      f'{price:g} = {chips * price:,.2f} an hour, {chips * price * hours:,.2f} in MAX_HOURS='
      f'{hours:g}; billed until deleted'
    )


def read(path: str) -> Settings:
  """Reads a settings file.

  Raises:
    Stop: the file is missing, or a line, key or value is wrong; the message names them.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_text(encoding='utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise Stop(f'--env={path} cannot be read ({e}); copy tpu_scripts/env.example') from e
  given: dict[str, str] = {}
  for row, line in enumerate(lines, 1):
    if line.strip() and not line.lstrip().startswith('#'):
      key, value = _pair(line.strip(), f'{path}:{row}')
      if key in given:
        raise Stop(f'{path}:{row}: {key} is given twice')
      given[key] = value
  missing = [key for key, (_, default, _) in KEYS.items() if default is None and key not in given]
  if missing:
    needs = '; '.join(f'{key} ({KEYS[key][2]})' for key in missing)
    raise Stop(f'{path}:{len(lines)}: missing {needs}')
  values = {key: given.get(key, default or '') for key, (_, default, _) in KEYS.items()}
  values['GCS_ROOT'] = values['GCS_ROOT'].rstrip('/')
  if values['TUNNEL'] == values['INTERNAL_IP'] == 'yes':
    raise Stop(f'{path}: TUNNEL=yes and INTERNAL_IP=yes: gcloud takes one of them for ssh')
  try:
    return Settings(values, slice_of(values['ACCELERATOR_TYPE'], values['TOPOLOGY']))
  except Stop as e:
    raise Stop(f'{path}: {e}') from e


def _pair(line: str, where: str) -> tuple[str, str]:
  key, equals, value = (part.strip() for part in line.partition('='))
  if not equals or not re.fullmatch(r'[A-Z_]+', key):
    raise Stop(f'{where}: {line!r} is not KEY=VALUE (settings are not shell code)')
  if key not in KEYS:
    close = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
    hint = f' (did you mean {close[0]}?)' if close else ''
    raise Stop(f'{where}: unknown key {key}{hint}')
  pattern, _, words = KEYS[key]
  if not re.fullmatch(pattern, value):
    shell = ' (settings are not shell code, and have no quotes)'
    hint = shell if re.search(r'[$`;&|<>"\'\\(){}]', value) else ''
    raise Stop(f'{where}: {key}={value!r} is wrong; it is {words}{hint}')
  return key, value
