"""Train a model, or resume a run.

  python -m lm.train --config=experiments/NAME.py[:ARG] --workdir=DIR [--config.key=value ...]

--config.data.transforms applies to training rows only; --config.eval.sets.NAME.transforms applies
to an evaluation set and is empty by default.

The same command resumes from the newest checkpoint. If the training data has changed, this is an
error without --new_data. Exit codes: 0 done, 1 failed, 2 wrong usage or config, 75 stopped by
SIGTERM with the state saved, 134 another process died.

Several processes train as one. Run the same command on every host of a TPU slice, or under srun or
mpirun. Elsewhere, give each process --coordinator=HOST:PORT --processes=N --process=I. The
processes share the workdir; SIGTERM to one process saves and stops all.

On Linux the program sets GLIBC_TUNABLES=glibc.malloc.hugetlb=1 for itself if the variable is unset.
"""

from absl import flags

from lm import cli
from lm.parallel import host, multihost
from lm.workdir import files

flags.DEFINE_string('workdir', None, 'directory of the run')
flags.DEFINE_integer('until_step', None, 'end at this step; schedules stay the same', lower_bound=1)
flags.DEFINE_bool('new_data', False, 'resume on other training data, with the tokenizer of the run')
flags.DEFINE_integer('profile', 0, 'steps to trace into WORKDIR/profile', lower_bound=0)
multihost.define_flags()
flags.adopt_module_key_flags(multihost)


def main(argv: list[str]) -> None:
  stop: host.Stop = host.Signals()
  config, path = cli.config(argv)
  cli.parse(argv)
  name = cli.required('workdir', 'runs/quickstart')
  if multihost.start(multihost.settings()):
    stop = host.PreemptionService()
  workdir = files.workdir(name, process=multihost.process_index_and_count()[0])
  # Imported after the flags are checked, because jax takes seconds to import.
  from lm.training.trainer import train

  args = flags.FLAGS
  train(config, path, workdir, stop, args.until_step, args.profile, args.new_data)


if __name__ == '__main__':
  host.enable_huge_pages()
  cli.run(main, __doc__)
