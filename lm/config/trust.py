"""Which functions the config of a workdir that is not trusted may name.

An import path runs code: the import does, and so does the call. `disarmed` marks each string of a
config that could be an import path and names none of the functions listed here. `lm.config.resolve`
refuses marked strings. The mark travels with the config into threads, processes and traced
functions; other configs of the process, and paths from its caller, are not affected.

Functions are listed by the module that defines them. These modules only compute: they read and
write no files, start no process and open no workdir. So `lm.data.sources`, `lm.text.tokenizers`,
`lm.metrics.word_vectors` and most of lm.training and lm.evaluation are absent.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lm.config import resolve
from lm.errors import UserError

MODULES = (
  'lm.data.denoising',
  'lm.data.masking',
  'lm.data.mixture',
  'lm.data.packing',
  'lm.data.preprocess',
  'lm.data.transforms',
  'lm.decode',
  'lm.metrics.answers',
  'lm.metrics.diversity',
  'lm.metrics.labels',
  'lm.metrics.spans',
  'lm.metrics.tokens',
  'lm.metrics.translation',
  'lm.models',
  'lm.nn',
  'lm.objectives',
  'lm.optim',
  'lm.tasks',
  'lm.text.normalize',
  'lm.text.segment',
  'lm.text.words',
  'lm.training.sparse_step',
  'lm.training.train_step',
)
_ACTIVATIONS = (
  'celu elu gelu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu log_sigmoid mish relu '
  'relu6 selu sigmoid silu soft_sign softplus sparse_plus squareplus swish tanh'
)
_INITIALIZERS = (
  'constant glorot_normal glorot_uniform he_normal he_uniform kaiming_normal kaiming_uniform '
  'lecun_normal lecun_uniform normal ones orthogonal truncated_normal uniform variance_scaling '
  'xavier_normal xavier_uniform zeros'
)
_POLICIES = (
  'checkpoint_dots checkpoint_dots_with_no_batch_dims dots_saveable everything_saveable '
  'dots_with_no_batch_dims_saveable nothing_saveable offload_dot_with_no_batch_dims '
  'save_any_names_but_these save_only_these_names'
)
_OPTIMIZERS = (
  'adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars '
  'lion nadam nadamw noisy_sgd novograd radam rmsprop rprop sgd sign_sgd sm3 yogi'
)
NAMES = frozenset(
  f'{prefix}{name}'
  for prefix, names in (
    ('flax.linen:', 'elu gelu leaky_relu relu selu sigmoid silu softplus swish tanh'),
    ('flax.linen:initializers.', _INITIALIZERS),
    ('jax.nn:', _ACTIVATIONS),
    ('jax.nn.initializers:', _INITIALIZERS),
    ('jax:checkpoint_policies.', _POLICIES),
    ('optax:', _OPTIMIZERS),
    ('optax.contrib:', 'schedule_free_eval_params'),
    ('lm.data.cooccurrence:', 'count_cooccurrences'),
    ('lm.evaluation.', 'sets:sets samples:samples attention_maps:attention_maps'),
    ('lm.evaluation.', 'vectors:word_vectors'),
  )
  for name in names.split()
)
# Lists of texts, which may look like import paths and are never resolved.
_TEXTS = ('data.labels', 'data.special_tokens', 'log.sample_prompts')
_MOST_LAYERS = 1024  # entries of a list in `model`, each of which takes time to trace


def disarmed(value: Any, key: str = '') -> Any:
  """Returns a tree of JSON values in which `resolve` refuses all functions but the listed ones.

  Args:
    value: of the key; the config for ''.
    key: dotted.

  Raises:
    UserError: `model` has a list that is too long to trace.
  """
  if isinstance(value, dict):
    return {name: disarmed(each, f'{key}.{name}'.lstrip('.')) for name, each in value.items()}
  if isinstance(value, list):
    if key.startswith('model.') and len(value) > _MOST_LAYERS:
      raise UserError(f'{key} has {len(value):,} entries, and at most {_MOST_LAYERS:,} are read')
    return [disarmed(each, key) for each in value]
  is_refused = isinstance(value, str) and key not in _TEXTS and not may_run(value)
  return resolve.REFUSED + value if is_refused else value


def may_run(text: str) -> bool:
  """Returns whether a string is no import path, or one that names listed functions alone.

  Its module is compared with the list before anything is imported.
  """
  try:
    module, name, arguments = resolve.parse(text, '')
  except UserError:
    return True
  path = f'{module}:{name}'
  if path not in NAMES:
    if not _is_listed(module) or not name.isidentifier() or name.startswith('_'):
      return False
    try:
      fn = resolve.resolve(path, '')
    except UserError:  # no such function, an error wherever the path is resolved
      return True
    if not _is_listed(resolve.defining_module(fn)):
      return False
  return all(map(may_run, _strings(arguments)))


def _is_listed(module: str) -> bool:
  return any(module == each or module.startswith(f'{each}.') for each in MODULES)


def _strings(value: Any) -> Iterator[str]:
  """Yields the strings of literal arguments."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    for pair in value.items():
      yield from _strings(pair)
  elif isinstance(value, list | tuple | set):
    for each in value:
      yield from _strings(each)
