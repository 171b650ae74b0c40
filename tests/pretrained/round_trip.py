"""Compares the files of a checkpoint with those that its imported run exports."""

from lm.pretrained import checkpoint, safetensors


def equal_tensors(folder, other):
  """Returns whether two folders have the same tensors: names, dtypes, shapes and bytes."""
  before, after = map(safetensors.read_folder, (folder, other))
  return before.keys() == after.keys() and all(
    (x.dtype, x.shape, x.read().tobytes()) == (y.dtype, y.shape, y.read().tobytes())
    for x, y in ((x, after[name]) for name, x in before.items())
  )


def assert_everything_comes_back(folder, run, out):
  """Exports an imported run, and compares its tensors and files with those of the source."""
  checkpoint.export_run(run.workdir, out)
  assert equal_tensors(folder, out)
  for name in ('config.json', 'generation_config.json', 'tokenizer.json'):
    if (folder / name).exists():
      assert (folder / name).read_bytes() == (out / name).read_bytes(), name
