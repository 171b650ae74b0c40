"""Evaluate a trained model: one JSON object of metrics on stdout.

  python -m lm.evaluate --workdir=DIR [--step=N] [--beam_size=5] [--predictions=FILE]

Several directories (--workdir=A,B), or steps of one, are evaluated as an ensemble, on the sets of
the first. Beside the metrics stand `step`, or `steps` where there are several, and, where metrics
have something to tell of themselves (sacrebleu's signatures), `notes` by their names; a metric that
is no finite number is null. FILE gets a JSON object a line for each example of each set with corpus
metrics: set, inputs, output, reference, scores.

The parameters are sharded over all devices, and so are the rows of each batch: what could be
trained where it is evaluated fits. Figures do not depend on the number of devices. Several
processes, as of lm.train, do this together; process 0 prints.
"""

import math
import sys
from typing import TYPE_CHECKING

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.parallel import multihost
from lm.text.files import expand_path

if TYPE_CHECKING:
  from lm.evaluation.evaluators import Evaluators

flags.DEFINE_string('workdir', None, 'directory of the run; several make an ensemble')
flags.DEFINE_string(
  'step', None, 'checkpoint to evaluate, or several; the best unless given, or else the newest'
)
flags.DEFINE_integer('average', 1, 'take the mean of the parameters of the newest N checkpoints')
flags.DEFINE_integer(
  'beam_size', None, "hypotheses that run on; the config's decode.beam_size unless given"
)
flags.DEFINE_float(
  'length_penalty', None, "alpha of Wu et al. 2016; the config's decode.length_penalty unless given"
)
flags.DEFINE_string('predictions', None, 'file to write the outputs to')

multihost.define_flags()
flags.adopt_module_key_flags(multihost)

_DECODE = ('beam_size', 'length_penalty')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  workdir = cli.required('workdir', 'runs/quickstart')
  penalty = flags.FLAGS.length_penalty
  if penalty is not None and not math.isfinite(penalty):
    raise UserError(f'--length_penalty={penalty} is not a finite number')
  file = flags.FLAGS.predictions
  out = None if file is None else expand_path(file, '--predictions')
  if out is not None and not out.absolute().parent.is_dir():
    raise UserError(f'--predictions={file}: there is no such directory')
  if out is not None and out.is_dir():
    raise UserError(f'--predictions={file} is a directory; give the name of a file')
  multihost.start(multihost.settings())
  import jax

  from lm import components
  from lm.data import pipeline
  from lm.decode.beam import check_beam_size
  from lm.evaluation import host_memory
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.evaluators import Evaluators
  from lm.parallel import mesh as meshes
  from lm.progress import show_documents
  from lm.text.tokenizers import vocabulary_size
  from lm.workdir import eval_artifacts, files

  loaded = open_runs(workdir, flags.FLAGS.step, flags.FLAGS.average, jax.devices())
  if flags.FLAGS.beam_size is not None:  # before texts are read
    check_beam_size(flags.FLAGS.beam_size, vocabulary_size(loaded.tokenizer))
  config = loaded.config
  for key in _DECODE:
    if flags.FLAGS[key].value is not None:
      config.decode[key] = flags.FLAGS[key].value
  assert loaded.mesh is not None
  with meshes.set_mesh(
    loaded.mesh, meshes.logical_axis_rules(config.mesh.rules)
  ):  # the size changes no figure
    config.eval.batch_size = meshes.padded_rows(config.eval.batch_size)
  functions = components.inference(config, loaded.model, loaded.apply, loaded.mesh)
  if config.eval.sets:  # else no text is read, and a workdir may do without its corpus
    prepared = pipeline.tokenizer(config.data, show_documents)
    if prepared.to_str() != loaded.tokenizer.to_str():
      raise UserError(
        f'--workdir={workdir} was trained with another tokenizer than data.tokenizer gives now '
        '(another corpus or version of it)'
      )
  evaluators = Evaluators(config, functions, loaded.tokenizer)
  _check_flags(evaluators)
  cli.print_notes(loaded.notes)
  if multihost.is_primary():
    if line := evaluators.transforms_line():
      print(line, file=sys.stderr)
    for name, note in evaluators.notes.items():
      print(f'{name}: {note}', file=sys.stderr)
  # Else two metrics of one name would be found when all is computed.
  evaluators.directions(loaded.params)
  programs = evaluators.programs(loaded.params)
  host_memory.check_evaluations(programs, functions, loaded.params)
  found = evaluators.evaluate(loaded.params)
  if not multihost.is_primary():
    return
  if out is not None:
    sets = found.examples.items()
    content = b''.join(eval_artifacts.lines(examples, set=name) for name, examples in sets)
    try:
      files.replace(out, content)
    except OSError as e:
      raise UserError(f'--predictions={file} cannot be written: {e.strerror or e}') from e
  notes = {'notes': found.notes} if found.notes else {}
  which = {'steps': list(loaded.steps)} if len(loaded.steps) > 1 else {'step': loaded.step}
  print(cli.json_line(which | found.values | notes))


def _check_flags(evaluators: 'Evaluators') -> None:
  """Raises UserError where a flag is given that would change nothing."""
  predictors = evaluators.predictors.values()
  if flags.FLAGS.predictions is not None and not predictors:
    raise UserError(
      f'--predictions={flags.FLAGS.predictions}: no set has outputs; these are made for sets '
      'with corpus metrics (eval.sets.NAME.scores)'
    )
  for key in _DECODE:
    value = flags.FLAGS[key].value
    if value is not None and not any(predictor.writes for predictor in predictors):
      raise UserError(f'--{key}={value}: no set of this run has outputs that are written by decode')


if __name__ == '__main__':
  cli.run(main, __doc__)
