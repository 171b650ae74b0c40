#!/usr/bin/env python3
"""Jobs on Cloud TPU: create, wait, setup, launch, status, logs, stop, delete, babysit, list.

  python3 tpu_scripts/tpu.py VERB --env=FILE [--dry-run] ...

Needs nothing but Python 3.11 and gcloud. Exit codes: 0 done, 2 wrong usage, 3 gcloud, permission
or network, 4 machines lost or no capacity, 5 gave up, 75 stopped and may be started again.
"""

import pathlib
import sys

# Python adds the directory of a program to its path; the package is in the parent directory.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tpu_scripts.cli import main

if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
