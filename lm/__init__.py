"""A JAX/Flax functional research codebase for language models."""

__version__ = '0.1.0'


def load(workdir, step=None, mesh=None, trusted=True):
  """Opens a workdir; see `lm.evaluation.trained_model.load`."""
  # Imported here, because `import lm.text` must not import jax.
  from lm.evaluation.trained_model import load as open_workdir

  return open_workdir(workdir, step, mesh, trusted)
