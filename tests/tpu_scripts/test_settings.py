"""Settings: wrong files are refused with a message that names line, key and value."""

import pathlib
import re

import pytest

from tpu_scripts import settings
from tpu_scripts.errors import Stop
from tpu_scripts.slices import slice_of

EXAMPLE = pathlib.Path(settings.__file__).parent / 'env.example'


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'NAME': '$(rm -rf ~)'}, r'tpu\.env:3: NAME=.*not shell code'),
    ({'NAME': 'a`id`'}, r'tpu\.env:3: NAME=.*not shell code'),
    ({'GCS_ROOT': 'gs://b/r; reboot'}, r'tpu\.env:6: GCS_ROOT=.*not shell code'),
    ({'PROJECT': 'p && true'}, r'tpu\.env:1: PROJECT=.*not shell code'),
    ({'PROJECT': '"quoted"'}, r'tpu\.env:1: PROJECT=.*no quotes'),
    ({'CAPACITY': 'cheap'}, r"tpu\.env:5: CAPACITY='cheap' is wrong; it is on-demand, spot or"),
    ({'MAX_HOURS': 'many'}, r'tpu\.env:8: MAX_HOURS'),
    ({'NUMSLICES': '2'}, r'tpu\.env:10: unknown key NUMSLICES \(did you mean NUM_SLICES\?\)'),
    ({'ACCELERATOR_TYPE': 'tpu7x-8'}, 'does not serve TPU7x; use GKE'),
    ({'ACCELERATOR_TYPE': 'v9-8'}, 'v9-8 is unknown; it is one of'),
    (
      {'ACCELERATOR_TYPE': 'v5litepod-7'},
      'no default topology; the sizes are v5litepod-1, v5litepod-4',
    ),
    ({'ACCELERATOR_TYPE': 'v4-32', 'TOPOLOGY': '2x2x2'}, '2x2x2 has 8 chips and v4-32 has 16'),
    ({'TOPOLOGY': '4x4'}, 'a topology for v4 alone'),
    ({'TUNNEL': 'yes', 'INTERNAL_IP': 'yes'}, 'takes one of them'),
  ],
)
def test_wrong_settings_are_one_line_and_make_no_call(cloud, capsys, changes, words):
  cloud.write(changes)
  assert cloud.run('create', '--yes') == 2
  err = capsys.readouterr().err
  assert err.count('\n') == 1
  assert re.search(words, err)
  assert cloud.calls() == []


@pytest.mark.parametrize('line', ['export NAME=x', 'source other', 'NAME', '. /etc/passwd'])
def test_line_without_key_and_value_is_refused(cloud, line):
  cloud.env.write_text(cloud.env.read_text() + line + '\n')
  with pytest.raises(Stop, match=r'tpu\.env:10: .*KEY=VALUE'):
    settings.read(str(cloud.env))


def test_missing_and_repeated_keys_are_refused(cloud):
  text = cloud.env.read_text()
  cloud.env.write_text(text.replace('ZONE=us-central1-a\n', ''))
  with pytest.raises(Stop, match=r'missing ZONE \(a zone, as in'):
    settings.read(str(cloud.env))
  cloud.env.write_text(text + 'ZONE=us-east1-b\n')
  with pytest.raises(Stop, match='ZONE is given twice'):
    settings.read(str(cloud.env))
  with pytest.raises(Stop, match=r'copy tpu_scripts/env\.example'):
    settings.read('nowhere.env')


def test_example_has_every_key_and_needs_only_a_price(tmp_path):
  text = EXAMPLE.read_text()
  # The user has to look up the price first.
  with pytest.raises(Stop, match=r'PRICE_PER_CHIP_HOUR=.0. is wrong; it is a price above 0'):
    settings.read(str(EXAMPLE))
  mine = tmp_path / 'tpu.env'
  mine.write_text(text.replace('PRICE_PER_CHIP_HOUR=0', 'PRICE_PER_CHIP_HOUR=1.2'))
  assert settings.read(str(mine)).slice.topology == '4x4'
  for key, (_, default, _) in settings.KEYS.items():
    assert (f'\n{key}=' if default is None else f'\n#{key}={default}\n') in text


def test_cost_is_chips_times_price_times_hours(cloud):
  cloud.write({'ACCELERATOR_TYPE': 'v5p-16', 'NUM_SLICES': '2'})
  # 16 TensorCores are 8 chips: 2 slices x 8 chips x 2 an hour, for 3 hours.
  assert '16 chips x 2 = 32.00 an hour, 96.00 in MAX_HOURS=3' in settings.read(cloud.env).cost()


def test_label_depends_only_on_settings_of_the_machines(cloud):
  label = settings.read(cloud.env).label
  cloud.write({'MAX_HOURS': '99', 'GCS_ROOT': 'gs://other/runs'})
  assert settings.read(cloud.env).label == label
  cloud.write({'CAPACITY': 'on-demand'})
  assert settings.read(cloud.env).label != label


@pytest.mark.parametrize(
  ('accelerator', 'generation', 'chips', 'topology'),
  [
    ('v4-8', 'v4', 4, '2x2x1'),
    ('v5litepod-256', 'v5e', 256, '16x16'),
    ('v5p-128', 'v5p', 64, '4x4x4'),
    ('v6e-8', 'v6e', 8, '2x4'),
  ],
)
def test_accelerator_types_have_chips_and_a_topology(accelerator, generation, chips, topology):
  found = slice_of(accelerator)
  assert (found.generation, found.chips, found.topology) == (generation, chips, topology)


# Zones that Google documents, AI zones included, and texts that are no zones.
@pytest.mark.parametrize(
  ('zone', 'is_one'),
  [
    ('us-south1-ai1b', True),
    ('us-central1-ai1a', True),
    ('northamerica-northeast1-b', True),
    ('europe-west10-a', True),
    ('us-central1', False),
    ('us-central1-ai1', False),
    ('us-central1-aia', False),
    ('us-central1-1a', False),
  ],
)
def test_zones_are_validated(cloud, zone, is_one):
  cloud.write({'ZONE': zone})
  if is_one:
    assert settings.read(str(cloud.env))['ZONE'] == zone
  else:
    with pytest.raises(Stop, match=f"ZONE='{zone}' is wrong; it is a zone"):
      settings.read(str(cloud.env))


def test_paths_of_settings_files_expand_the_home(cloud, monkeypatch, capsys):
  monkeypatch.setenv('HOME', str(cloud.folder))
  assert settings.read(f'~/{cloud.env.name}')['NAME'] == 'my-slice'
  (cloud.folder / 'set.env').write_text('COLOR=blue\n')
  assert (
    cloud.run('launch', 'a', '--no-preflight', '--dry-run', '--set-file=~/set.env', '--', 'x') == 0
  )
  assert 'COLOR=blue' in capsys.readouterr().out
