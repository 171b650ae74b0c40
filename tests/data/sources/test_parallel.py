import gzip
import os

import pytest

from lm.data.sources import directions, parallel
from lm.errors import UserError


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file and returns its name."""

  def write(name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(tmp_path / name)

  return write


def test_lines_are_paired_by_number(write):
  source = write('a.de', 'eins\r\nzwei "x\r\ndrei\u2028vier')
  target = write('a.en', 'one\ntwo\nthree\u2028four\n')
  assert list(parallel('train', source, target)) == [
    {'source': 'eins', 'target': 'one'},
    {'source': 'zwei "x', 'target': 'two'},
    {'source': 'drei\u2028vier', 'target': 'three\u2028four'},
  ]


def test_a_byte_order_mark_is_skipped_and_another_encoding_reported(write):
  source, target = write('a.de', '\ufeffeins\nzwei\n'), write('a.en', 'one\n\ufefftwo\n')
  # After the beginning of a file it is an ordinary character.
  assert [list(e.values()) for e in parallel('train', source, target)] == [
    ['eins', 'one'],
    ['zwei', '\ufefftwo'],
  ]
  source = write('a.de', 'eins\nzwei\n'.encode('utf-16'))
  with pytest.raises(UserError, match=r'a\.de is not UTF-8 but UTF-16'):
    parallel('train', source, target)


def test_splits_are_files_or_fractions(write, tmp_path):
  for name in ('train', 'val'):
    for language in ('de', 'en'):
      write(f'{name}.{language}', ''.join(f'{name} {language} {n}\n' for n in range(4)))
  names = [f'{tmp_path}/{{split}}.{language}' for language in ('de', 'en')]
  assert parallel('val', *names)[-1] == {'source': 'val de 3', 'target': 'val en 3'}
  names = [f'{tmp_path}/*.{language}' for language in ('de', 'en')]
  assert len(parallel('train', *names, validation=0.25)) == 6
  aside = parallel('validation', *names, validation=0.25)
  assert [pair['source'] for pair in aside] == ['val de 2', 'val de 3']


def test_gzipped_files_are_read_and_determine_the_fingerprint(write):
  source, target = write('a.de.gz', gzip.compress(b'eins\nzwei\n')), write('a.en', 'one\ntwo\n')
  pairs = parallel('train', source, target)
  assert pairs[1] == {'source': 'zwei', 'target': 'two'}
  os.utime(target, ns=(1, 1))
  assert parallel('train', source, target).fingerprint != pairs.fingerprint


def test_a_blank_line_is_reported_or_skipped(write):
  source, target = write('a.de', 'eins\n \ndrei\n\n'), write('a.en', 'one\ntwo\nthree\nfour\n')
  pairs = parallel('train', source, target)
  with pytest.raises(UserError, match=r"a\.de, line 2 is blank; empty='skip'"):
    pairs[1]
  kept = parallel('train', source, target, empty='skip')
  assert [pair['target'] for pair in kept] == ['one', 'three']
  with pytest.raises(UserError, match=r"empty='skipped' .did you mean 'skip'"):
    parallel('train', source, target, empty='skipped')


def test_sides_of_different_lengths_are_reported(write, tmp_path):
  source, target = write('a.de', 'eins\nzwei\ndrei\n'), write('a.en', 'one\ntwo')
  for sides in ((source, target), (target, source)):
    with pytest.raises(UserError, match=r'a\.de, line 3 has no counterpart: .*a\.en has 2 lines'):
      parallel('train', *sides)
  # Both sides have the same number of lines in all, but not in each file.
  write('b.de', 'vier\n')
  write('b.en', 'three\nfour\n')
  with pytest.raises(UserError, match=r'a\.de, line 3 has no counterpart'):
    parallel('train', f'{tmp_path}/*.de', f'{tmp_path}/*.en')
  with pytest.raises(UserError, match=r"does not contain '{split}'"):
    parallel('a', f'{tmp_path}/{{split}}.de', target)
  with pytest.raises(UserError, match=r'is one of 2 files.*one of 1; both sides'):
    parallel('train', f'{tmp_path}/*.de', target)


LANGUAGES = ('de', 'en', 'fr')


def three(write, lines=4, **changed):
  return {
    language: write(
      f'a.{language}', changed.get(language) or ''.join(f'{language} {n}\n' for n in range(lines))
    )
    for language in LANGUAGES
  }


def test_directions_follow_one_another(write):
  examples = list(directions('train', three(write), (('de', 'en'), ('en', 'fr'), ('en', 'de'))))
  assert len(examples) == 12
  assert examples[5] == {
    'source': 'en 1',
    'target': 'fr 1',
    'source_language': 'en',
    'target_language': 'fr',
  }
  assert [(e['source'], e['target']) for e in examples[8:]] == [
    (f'en {n}', f'de {n}') for n in range(4)
  ]


def test_the_same_lines_are_set_aside_in_all_directions(write):
  files = three(write, fr='fr 0\n\nfr 2\nfr 3\n')
  pairs = (('de', 'en'), ('fr', 'de'))
  train, aside = (
    list(directions(split, files, pairs, validation=0.25, empty='skip'))
    for split in ('train', 'validation')
  )
  assert [e['source'] for e in train] == ['de 0', 'de 1', 'de 2', 'fr 0', 'fr 2']
  assert [e['source'] for e in aside] == ['de 3', 'fr 3']


def test_user_errors_in_directions_are_reported(write):
  with pytest.raises(UserError, match=r"no files of 'eng' .did you mean 'en'"):
    directions('train', three(write), (('de', 'eng'),))
  with pytest.raises(UserError, match='pairs is empty'):
    directions('train', three(write), ())


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='needs the folder LM_DATA')
def test_multi30k():
  files = {language: f'$LM_DATA/multi30k/{{split}}.{language}' for language in LANGUAGES}
  assert len(parallel('train', files['de'], files['en'])) == 29000
  assert parallel('train', files['de'], files['en'])[0] == {
    'source': 'Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.',
    'target': 'Two young, White males are outside near many bushes.',
  }
  assert len(directions('test2016', files, (('de', 'en'), ('en', 'fr')))) == 2000
