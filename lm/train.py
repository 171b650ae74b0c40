"""Train a model, or take up a run where it stands.

  python -m lm.train --config=experiments/NAME.py[:ARG] --workdir=DIR [--config.key=value ...]

--config.data.transforms changes rows of training alone; an evaluation set takes the transforms that
--config.eval.sets.NAME.transforms names, by default none.

The same command again goes on from the newest checkpoint. It refuses other training data than
before, unless --new_data asks for it. Exit codes: 0 done, 1 failed, 2 wrong usage or config, 75
stopped by SIGTERM with the state saved, 134 another process is lost.

Several processes train as one: the same command on every host of a TPU slice, under srun, or with
--coordinator=HOST:PORT --processes=N --process=I. They share the workdir; SIGTERM to one saves and
stops all.

On Linux it sets GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for itself, unless you have set the variable.
"""

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.parallel import host, multihost, preemption
from lm.workdir import files

flags.DEFINE_string('workdir', None, 'directory that becomes the record of the run')
flags.DEFINE_integer('stop_at', None, 'end at this step without touching the schedules')
flags.DEFINE_bool('new_data', False, 'resume on other training data, with the tokenizer of the run')
flags.DEFINE_integer('profile', 0, 'steps to trace into WORKDIR/profile')
multihost.define_flags()
flags.adopt_module_key_flags(multihost)


def main(argv: list[str]) -> None:
  stop: preemption.Stop = preemption.Signals()
  config, path = cli.config(argv)
  cli.parse(argv)
  name = cli.required('workdir', 'runs/quickstart')
  stop_at = flags.FLAGS.stop_at
  if stop_at is not None and stop_at < 1:
    raise UserError(f'--stop_at={stop_at} is not a positive number of steps')
  if flags.FLAGS.profile < 0:
    raise UserError(f'--profile={flags.FLAGS.profile} is not a number of steps')
  if multihost.start(multihost.settings()):
    stop = preemption.PreemptionService()
  workdir = files.workdir(name, process=multihost.process_index_and_count()[0])
  # Imported after the flags are known to be right, because jax takes seconds.
  from lm.training.trainer import train

  train(config, path, workdir, stop, stop_at, flags.FLAGS.profile, flags.FLAGS.new_data)


if __name__ == '__main__':
  host.enable_huge_pages()
  cli.run(main, __doc__)
