"""The programs of Stanford's GloVe (Pennington et al. 2014), built beforehand."""

import gzip
import pathlib
import shutil
import subprocess
import tempfile
import time

from lm.bench.words import Trained, Work
from lm.errors import UserError
from lm.text.vector_files import read_glove, write_word2vec_text
from lm.text.vectors import make_vectors

PROGRAMS = ('vocab_count', 'cooccur', 'shuffle', 'glove')
_RECORD = 16  # bytes of a pair in a file of co-occurrences


def train(work: Work) -> Trained:
  """Runs the four programs one after another; their defaults are those of the paper.

  Raises:
    UserError: they are not there.
  """
  programs = pathlib.Path(work.programs).expanduser()
  for name in PROGRAMS:
    if not work.programs or not (programs / name).is_file():
      raise UserError(
        f"--glove={work.programs!r}: there is no program {name!r}; build Stanford's GloVe and name "
        'its directory build'
      )
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    text = root / 'text'
    path = pathlib.Path(work.text)
    with gzip.open(path) if path.suffix == '.gz' else path.open('rb') as f, text.open('wb') as out:
      shutil.copyfileobj(f, out)

    def run(name: str, *arguments: object, read: str = '', write: str = '') -> float:
      begin = time.perf_counter()
      with (
        (root / (read or 'text')).open('rb') as stdin,
        (root / (write or 'log')).open('wb') as to,
      ):
        command = [str(programs / name), *map(str, arguments), '-verbose', '0']
        subprocess.run(command, stdin=stdin, stdout=to, stderr=subprocess.DEVNULL, check=True)
      return time.perf_counter() - begin

    vocab = root / 'vocab'
    run('vocab_count', '-min-count', work.min_count, write='vocab')
    counting = run(
      'cooccur', '-vocab-file', vocab, '-window-size', work.glove_window, '-memory', 4.0,
      '-overflow-file', root / 'overflow', write='pairs',
    )  # fmt: skip
    pairs = (root / 'pairs').stat().st_size // _RECORD
    shuffling = run('shuffle', '-memory', 4.0, '-temp-file', root / 'temp', '-seed', work.seed + 1,
                    read='pairs', write='shuffled')  # fmt: skip
    seconds = run(
      'glove', '-input-file', root / 'shuffled', '-vocab-file', vocab,
      '-save-file', root / 'vectors',
      '-threads', work.threads, '-x-max', work.x_max, '-iter', work.glove_epochs,
      '-vector-size', work.size, '-binary', 0, '-seed', work.seed + 1,
    )  # fmt: skip
    command = time.perf_counter() - start
    found = read_glove(root / 'vectors.txt')  # with a vector <unk> at the end
    write_word2vec_text(work.out, make_vectors(found.words[:-1], found.matrix[:-1]))
  amount = pairs * work.glove_epochs
  return Trained(seconds, counting + shuffling, command, 'pairs', amount, str(programs))
