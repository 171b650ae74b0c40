"""The error with which a verb ends: one line for stderr and an exit code."""

USAGE, CLOUD, LOST, GAVE_UP, AGAIN = 2, 3, 4, 5, 75


class Stop(Exception):
  """Ends the program with one line on stderr and an exit code.

  The codes: 2 wrong usage, 3 gcloud, permission or network, 4 machines lost or no capacity, 5 gave
  up, 75 not finished and may be started again. No code is 255, the code of a failed ssh, after
  which gcloud would start the command again.
  """

  def __init__(self, line: str, code: int = USAGE):
    super().__init__(' '.join(line.split()))
    self.code = code
