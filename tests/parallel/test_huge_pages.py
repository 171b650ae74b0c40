import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
before = os.environ.get('GLIBC_TUNABLES')
from lm.parallel.host import enable_huge_pages
print(os.getpid(), before, sys.argv[1:], flush=True)
enable_huge_pages()
print('done')
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='a setting of glibc')
@pytest.mark.parametrize('given', [None, 'glibc.malloc.check=0'])
def test_program_restarts_once_with_the_same_process_and_arguments(given, tmp_path):
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM)
  environment = {k: v for k, v in os.environ.items() if k != 'GLIBC_TUNABLES'}
  environment |= {'GLIBC_TUNABLES': given} if given else {}
  command = [sys.executable, '-W', 'ignore', str(program), '--a=1', 'b c']
  run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  *starts, done = run.stdout.splitlines()
  pid = starts[0].split()[0]
  arguments = "['--a=1', 'b c']"
  again = [] if given else [f'{pid} glibc.malloc.hugetlb=1 {arguments}']
  assert starts == [f'{pid} {given} {arguments}', *again]
  assert done == 'done'
