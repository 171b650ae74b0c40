"""Evaluate a trained model: one JSON object of metrics on stdout.

  python -m lm.evaluate --workdir=DIR [--step=N] [--beam_size=5] [--predictions=FILE]

Several directories (--workdir=A,B), or several steps of one directory, form an ensemble, which is
evaluated on the sets of the first. The object also has `step` (`steps` for an ensemble) and `notes`
by metric, such as sacrebleu's signatures. A metric that is not finite is null. FILE gets a JSON
line for each example of each set with corpus metrics: set, inputs, output, reference, scores.

--data=FILE replaces the sets by one, 'data', with the metrics of the first. FILE has rows as
lm.predict reads them, with their labels; for a language model, a .txt file is one text.

--pairs=FILE scores minimal pairs instead: TSV with the columns uid, term, good and bad, or BLiMP's
JSONL; of a folder, all such files. The object has the accuracy with a 95 % interval (Wilson), for
each phenomenon too, the mean over paradigms, and how many pairs differ in their number of tokens.
--predictions then gets a line for each pair, with both scores. One device scores.

Parameters and batches are sharded over all devices. Metrics do not depend on the number of devices.
Several processes can evaluate as one, as in lm.train; process 0 prints.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from lm import cli
from lm.errors import UserError
from lm.parallel import multihost

cli.define_run_flags()
cli.define_beam_flags()
flags.DEFINE_string('predictions', None, 'file to write the outputs to')
flags.DEFINE_string('data', None, 'labeled file to score in place of the sets of the run')
flags.DEFINE_string(
  'pairs', None, 'minimal pairs to score in place of the sets: a file or a folder'
)
flags.DEFINE_integer('pairs_per_uid', 0, 'first pairs of each paradigm; 0 for all', lower_bound=0)
flags.DEFINE_string(
  'source_mask', None, 'a mask that an encoder-decoder reads before pairs, such as <extra_id_0>'
)

multihost.define_flags()
flags.adopt_module_key_flags(multihost)

_DECODE = ('beam_size', 'length_penalty')
_OF_PAIRS = ('pairs_per_uid', 'source_mask')


def main(argv: list[str]) -> None:
  cli.parse(argv)
  workdir = cli.required('workdir', 'runs/quickstart')
  _check_pairs_flags()
  if flags.FLAGS.untrusted and flags.FLAGS.data is flags.FLAGS.pairs is None:
    raise UserError(
      '--untrusted: the data that the config of the run names are not read; give --data=FILE or '
      '--pairs=FILE'
    )
  file = flags.FLAGS.predictions
  out = None if file is None else cli.output_file('predictions', file)
  multihost.start(multihost.settings())
  if flags.FLAGS.pairs is not None:
    _score_pairs(workdir, out)
    return
  import jax

  from lm import components
  from lm.data import features, pipeline
  from lm.decode.beam import check_beam_size
  from lm.evaluation import host_memory
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.evaluators import Evaluators
  from lm.evaluation.sets import file_set
  from lm.parallel import mesh as meshes
  from lm.progress import show_documents
  from lm.text.tokenizers import vocabulary_size
  from lm.workdir import run_data

  args = flags.FLAGS
  trusted = not args.untrusted
  loaded = open_runs(
    workdir, args.step, args.average_checkpoints, jax.devices(), trusted, args.mean
  )
  if flags.FLAGS.beam_size is not None:  # checked before the data is read
    check_beam_size(flags.FLAGS.beam_size, vocabulary_size(loaded.tokenizer))
  config = loaded.config
  for key in _DECODE:
    if flags.FLAGS[key].value is not None:
      config.decode[key] = flags.FLAGS[key].value
  assert loaded.mesh is not None
  with meshes.set_mesh(loaded.mesh, meshes.logical_axis_rules(config.mesh.rules)):
    # Metrics do not depend on the batch size.
    config.eval.batch_size = meshes.padded_rows(config.eval.batch_size)
  functions = components.inference(config, loaded.model, loaded.apply, loaded.mesh)
  if flags.FLAGS.data is not None:
    with loaded.modules():
      file_set(config, flags.FLAGS.data)
  elif config.eval.sets:  # without sets, the corpus may be absent
    prepared = pipeline.tokenizer(config.data, show_documents)
    if prepared.to_str() != loaded.tokenizer.to_str():
      raise UserError(
        f'--workdir={workdir}: data.tokenizer now gives another tokenizer than that of the run '
        '(the corpus or its version differs)'
      )
  evaluators = Evaluators(config, functions, loaded.tokenizer)
  with_outputs = any(section.scores for section in config.eval.sets.values())
  _check_flags(with_outputs, with_outputs and features.build_task(config.data)[1].predict is None)
  cli.print_notes(loaded.notes)
  if multihost.is_primary():
    for name, note in evaluators.notes.items():
      print(f'{name}: {note}', file=sys.stderr)
  programs = evaluators.programs(loaded.params)
  host_memory.check_evaluations(programs, functions, loaded.params)
  found = evaluators.evaluate(loaded.step, loaded.params)
  if not multihost.is_primary():
    return
  if out is not None:
    sets = found.examples.items()
    content = b''.join(run_data.example_lines(examples, set=name) for name, examples in sets)
    cli.write_output('predictions', out, content)
  notes = {'notes': found.notes} if found.notes else {}
  which = {'steps': list(loaded.steps)} if len(loaded.steps) > 1 else {'step': loaded.step}
  print(cli.json_line(which | found.values | notes))


def _score_pairs(workdir: str, out: pathlib.Path | None) -> None:
  """Prints the figures of --pairs, and writes a line for each pair to `out`."""
  from lm.evaluation.ensembles import open_runs
  from lm.evaluation.pairs import figures, read_pairs, score_pairs
  from lm.evaluation.trained_model import as_trained_model
  from lm.progress import show_documents

  args = flags.FLAGS
  if multihost.is_multiprocess():
    raise UserError(f'--pairs={args.pairs}: one process scores pairs; start one')
  pairs = read_pairs(args.pairs, args.pairs_per_uid)
  run = as_trained_model(
    open_runs(workdir, args.step, args.average_checkpoints, None, not args.untrusted, args.mean)
  )
  scored = score_pairs(run, pairs, args.source_mask, report=show_documents)
  cli.print_notes(run.notes)
  if out is not None:
    lines = (cli.json_line(each.line()).encode() + b'\n' for each in scored)
    cli.write_output('predictions', out, b''.join(lines))
  which: dict[str, Any] = {'steps': list(run.steps)} if len(run.steps) > 1 else {'step': run.step}
  limit = {'pairs_per_uid': args.pairs_per_uid} if args.pairs_per_uid else {}
  print(cli.json_line(which | limit | figures(scored)))


def _check_pairs_flags() -> None:
  """Raises UserError for a flag that has no effect with --pairs, or without it."""
  without = flags.FLAGS.pairs is None
  for name in _OF_PAIRS if without else ('data', *_DECODE):
    if flags.FLAGS[name].present:
      which = 'without' if without else 'with'
      raise UserError(f'--{name}={flags.FLAGS[name].value} has no effect {which} --pairs')


def _check_flags(with_outputs: bool, generated: bool) -> None:
  """Raises UserError for a flag that has no effect on this run."""
  if flags.FLAGS.predictions is not None and not with_outputs:
    raise UserError(
      f'--predictions={flags.FLAGS.predictions}: no evaluation set has corpus metrics '
      '(eval.sets.NAME.scores), and only those need outputs'
    )
  for key in _DECODE:
    value = flags.FLAGS[key].value
    if value is not None and not generated:
      raise UserError(f'--{key}={value}: no evaluation set of this run generates text')


if __name__ == '__main__':
  cli.run(main, __doc__)
