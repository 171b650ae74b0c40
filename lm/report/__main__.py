"""Write report.html of a run: curves, results, samples, configuration, environment, events.

  python -m lm.report --workdir=DIR

Training writes the report at every evaluation and at its end. This program writes it at any time,
also during training, and prints its path.
"""

from absl import flags

from lm import cli
from lm.report import page
from lm.workdir import files

flags.DEFINE_string('workdir', None, "the run's directory")
cli.define_untrusted_flag()


def main(argv: list[str]) -> None:
  cli.parse(argv)
  workdir = files.workdir(cli.required('workdir', 'runs/quickstart'))
  if flags.FLAGS.untrusted:  # no program runs code of a workdir to show it
    files.check_links(workdir)
  with files.one_line_errors(workdir):
    print(page.write_report(workdir))


if __name__ == '__main__':
  cli.run(main, __doc__)
