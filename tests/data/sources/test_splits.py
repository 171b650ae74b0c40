import pytest

from lm.data.sources import base
from lm.errors import UserError


def names(files):
  return [file.name for file in files]


def test_the_name_of_the_split_selects_its_files(tmp_path):
  for name in ('train-1.txt', 'train-2.txt', 'val.txt', 'train.md'):
    (tmp_path / name).write_text('text')
  pattern = f'{tmp_path}/{{split}}*.txt'
  assert names(base.split_files('train', pattern, 'files')) == ['train-1.txt', 'train-2.txt']
  assert names(base.split_files('val', pattern, 'files')) == ['val.txt']
  assert names(base.split_files('any', f'{tmp_path}/val.txt', 'files')) == ['val.txt']
  assert base.split_bounds('val', pattern, 7, 0.0, 'rows') == (0, 7)


def test_a_split_without_files_is_reported_with_the_available_splits(tmp_path):
  for name in ('train.de', 'val.de'):
    (tmp_path / name).write_text('text')
  with pytest.raises(UserError) as e:
    base.split_files('valid', f'{tmp_path}/{{split}}.de', 'data.source: source')
  message = str(e.value)
  assert message.startswith('data.source: source=')
  assert 'valid.de' in message and "did you mean 'val.de'" in message and "'train.de'" in message
  with pytest.raises(UserError, match=r"none\.de': no such file$"):
    base.split_files('train', f'{tmp_path}/none.de', 'files')


def test_splits_without_files_are_fractions():
  assert base.split_bounds('train', 'all.txt', 10, 0.2, 'rows') == (0, 8)
  assert base.split_bounds('validation', 'all.txt', 10, 0.2, 'rows') == (8, 10)
  with pytest.raises(UserError, match=r"validation=0\.2 sets a part aside, but '{split}'"):
    base.split_bounds('train', '{split}.txt', 10, 0.2, 'rows')
  with pytest.raises(UserError, match=r"'b\.txt' does not contain '{split}'"):
    base.split_bounds('train', ('{split}.txt', 'b.txt'), 10, 0.0, 'rows')


@pytest.mark.parametrize('validation', ['a', True, None, 1.5, float('nan')])
def test_a_fraction_out_of_range_is_reported(validation):
  for find in (
    lambda v: base.split_bounds('train', 'all.txt', 9, v, 'rows'),
    lambda v: base.hash_split('train', v),
  ):
    with pytest.raises(UserError, match=f'validation={validation!r} must satisfy'):
      find(validation)


def test_a_hash_of_the_name_determines_the_split():
  items = [f'item {n}' for n in range(4000)]
  small, large = (base.hash_split('validation', share) for share in (0.05, 0.2))
  train = base.hash_split('train', 0.05)
  assert all(small(t) != train(t) for t in items)
  assert all(large(t) for t in items if small(t))
  assert 0.04 < sum(map(small, items)) / len(items) < 0.06
  with pytest.raises(UserError, match='validation=0 must satisfy 0 < validation < 1'):
    base.hash_split('train', 0)


def test_a_fraction_is_decimal():
  for count in (2, 10, 20, 50, 97, 100, 10**12):
    for percent in range(1, 100):
      aside = -(-percent * count // 100)  # in integers, rounded up
      if aside < count:
        assert base.split_bounds('validation', 'all.txt', count, percent / 100, 'rows') == (
          count - aside,
          count,
        )
        bounds = base.split_bounds('train', 'all.txt', count, percent / 100, 'rows')
        assert bounds == (0, count - aside)
  assert base.split_bounds('validation', 'all.txt', 8, 0.125, 'rows') == (7, 8)
  assert base.split_bounds('validation', 'all.txt', 10**7, 1e-7, 'rows') == (10**7 - 1, 10**7)


@pytest.mark.parametrize(
  'names', ['run[1]', 'run[1]/[ab]', 'a?b', 'x*', '**', 'back\\slash', '[!a]']
)
def test_an_existing_folder_is_no_pattern(tmp_path, names):
  wanted = tmp_path / names
  wanted.mkdir(parents=True)
  for other in ('run1/a', 'run1', 'axb', 'xy', 'x/y', 'backslash', 'b'):
    (tmp_path / other).mkdir(parents=True, exist_ok=True)
    (tmp_path / other / 'train.txt').write_text('another')
  (wanted / 'train.txt').write_text('wanted')
  for pattern in ('*.txt', 't[r]ain.txt', '{split}.txt', '{split}*', 'tr?in.txt'):
    (path,) = base.split_files('train', f'{wanted}/{pattern}', 'files')
    assert path.samefile(wanted / 'train.txt'), pattern
  with pytest.raises(UserError, match=r"did you mean 'train\.txt'\?\); available: 'train\.txt'$"):
    base.split_files('trein', f'{wanted}/{{split}}.txt', 'files')


def test_a_missing_folder_may_be_a_pattern(tmp_path):
  for name in ('a1', 'a2', 'b1'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'x.txt').write_text(name)
  files = base.split_files('train', f'{tmp_path}/a[12]/*.txt', 'files')
  assert [file.parent.name for file in files] == ['a1', 'a2']
