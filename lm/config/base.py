"""The base configuration: every leaf of an experiment, defined once.

An experiment file has `get_config(arg='')` that starts from `base()`, changes some leaves and
returns it. Leaves named `fn`, and values of the form 'module:name', are import paths
(`lm.config.resolve`).
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference, placeholder

from lm.errors import UserError, did_you_mean

# The evaluator of `eval.vector_metrics`.
WORD_VECTORS = 'lm.evaluation.vectors:word_vectors'


def base() -> ConfigDict:
  """Returns the configuration of a small GPT-2 on the embedded English text."""
  config = ConfigDict(
    {
      'seed': 0,
      'steps': 1000,
      'batch_size': 16,  # rows of the global batch
      'microbatches': 1,  # gradient accumulation over this many parts of a batch
      'steps_per_call': 1,  # steps per call of the jitted train step
      'max_consecutive_nonfinite': 10,  # the run stops after this many skipped steps in a row
      # A loss of exactly 0 stops the run, and so does a gradient of exactly 0 in step 1. This
      # regular expression matches the exceptions: 'loss', or the paths of parameters.
      'allow_zero': '',
      'callbacks': (),  # import paths of functions: () -> (every, fn(step, state, metrics))
      'report': 'lm.report.page:write_report',  # writes the workdir's report.html; '' for none
      'data': {
        'source': 'lm.data.sources:python_docs',
        'train_split': 'train',  # the training split
        'mixture': {},  # several sources by name instead of one, each a section as in `component`
        'mix': 'lm.data.mixture:mix',  # mixes their training rows; alpha=0.3 scales by size
        'prepare': (),  # import paths of functions: examples -> examples; results are cached
        'tokenizer': {'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 2048},
        # The share of a source of a mixture in the tokenizer's texts is proportional to its
        # size**tokenizer_alpha: 1 reads each text once.
        'tokenizer_alpha': 1.0,
        'special_tokens': (),  # special tokens besides those of the task, such as '<|mask|>'
        'task': placeholder(str),  # import path; None for language modeling
        'converter': placeholder(str),  # import path of the task's converter for the architecture
        # Import path of the marks of words in a text, such as 'lm.text.words:word_marks', which
        # whole-word masking needs; None for rows without words.
        'words': placeholder(str),
        'labels': (),  # the classes or tags of the task, in order
        'pair_counter': placeholder(str),  # import path of a counter of word pairs; None for tokens
        'seq_len': 128,  # tokens in a row, or word pairs
        'source_len': 128,  # tokens in a row of the encoder of an encoder-decoder
        'too_long': 'error',  # policy for examples longer than a row: error, truncate, skip
        'pack': 'lm.data.packing:concatenate',  # of training rows; evaluation packs in file order
        # Import paths of read-time transforms of training rows: (row, rng) -> row, or builders of
        # these. Evaluation sets have their own in eval.sets.NAME.transforms.
        'transforms': (),
        'packing_slack': 1.0,  # packing reserves this many times an example's size, for transforms
        'cache': '',  # directory; '' for $LM_CACHE or ~/.cache/lm
        'workers': 0,  # processes that prepare data; 0 for one per core
      },
      'model': gpt2(depth=4, d_model=128, heads=4, context=128),
      'objective': {
        'fn': 'lm.objectives.supervised:cross_entropy',
        'z_loss': 0.0,
        'label_smoothing': 0.0,
        'logits_chunk': 0,
      },
      'optim': {
        'fn': 'lm.optim.optimizers:adamw',
        'learning_rate': 1e-3,
        'schedule': 'lm.optim.optimizers:cosine',
        'decay_steps': 0,  # follows `steps`
        'warmup_steps': 100,
        'final_lr_fraction': 0.1,
        'b1': 0.9,
        'b2': 0.95,
        'eps': 1e-8,
        'weight_decay': 0.1,
        'weight_decay_mask': '(kernel|embedding)$',  # a regular expression on parameter paths
        'freeze': placeholder(str),  # a regular expression on the paths of frozen parameters
        'freeze_until': placeholder(int),  # the step at which they start to train
        'layer_decay': 1.0,  # the rate of a layer divided by that of the layer above
        'lr_multipliers': (),  # 'PATTERN -> MULTIPLIER'; the first match of a path counts
        'clip_norm': 1.0,
      },
      'models': {},  # further models by name (another_model); the objective then gets dicts
      'view': '',  # import path: () -> lm.types.View, such as that of LoRA; '' for none
      'warm_start': {
        'workdir': '',  # of the run whose parameters initialize this one; '' for none
        'step': placeholder(int),  # of its checkpoint; None for the best, or else the newest
        'rules': (),  # 'PATTERN -> REPLACEMENT' of parameter paths (lm.training.warm_start)
      },
      'early_stopping': {
        'metric': '',  # 'eval/SET/METRIC'; '' for that of checkpoint.monitor
        'patience': 0,  # evaluations without improvement that end the run; 0 to disable
        'min_delta': 0.0,  # minimum improvement
      },
      'mesh': {'data': -1, 'fsdp': 1, 'tensor': 1, 'rules': {}},
      'eval': {
        'every': 250,  # steps; the last step is always evaluated
        'batch_size': 0,  # follows `batch_size`
        # Import paths of evaluators (lm.evaluation.evaluators).
        'evaluators': (
          'lm.evaluation.sets:sets',
          'lm.evaluation.samples:samples',
          'lm.evaluation.attention_maps:attention_maps',
        ),
        'sets': {'validation': evaluation('validation')},
        'vector_metrics': (),  # import paths of metrics of word vectors (lm.metrics.word_vectors)
      },
      'decode': {
        'beam_size': 1,  # 1 for greedy decoding
        'length_penalty': 0.6,  # alpha of Wu et al. 2016
        'max_tokens': 0,  # per text; 0 for data.seq_len
        'max_length_ratio': 0.0,  # maximum output tokens per source token, plus 10; 0: none
        'batch_size': 64,  # prompts per batch
        'forbidden': (),  # ids of tokens that no text has, such as the padding of Marian
        'start': (),  # ids before a prompt, such as the <bos> of Gemma; () for END, as in training
        # Import paths of builders (lm.decode.sampling): of the sampler where there is no beam, None
        # for greedy decoding; and of logits processors, for the beam too.
        'sampler': placeholder(str),
        'logits_processors': (),
      },
      'checkpoint': {
        'every': 250,  # steps; evaluated steps and the last one are saved too
        'keep_last': 2,  # checkpoints to keep, the newest
        'keep_best': 1,  # checkpoints to keep in addition, the best
        'monitor': 'eval/validation/loss',  # the metric that defines the best
      },
      'log': {
        'every': 10,  # steps between lines of metrics.jsonl
        # Prompts to continue at every evaluation; for word vectors, words whose neighbors to show.
        'sample_prompts': ('The ',),
        'sample_tokens': 100,
        'temperature': 0.8,
        'top_k': 50,
      },
    }
  )
  return link_defaults(config).lock()


def link_defaults(config: ConfigDict) -> ConfigDict:
  """Makes `steps` the default of `optim.decay_steps`, and `batch_size` that of `eval.batch_size`.

  The references are one-way, and a leaf with a value of its own keeps it.
  """
  for section, key, source in (
    ('optim', 'decay_steps', 'steps'),
    ('eval', 'batch_size', 'batch_size'),
  ):
    if config[section][key] in (0, config[source]):
      config[section][key] = config.get_oneway_ref(source)
  return config


def evaluation(
  split: str,
  source: str = '',
  metrics: tuple[str, ...] = ('lm.metrics.tokens:language_model',),
  scores: tuple[str, ...] = (),
  transforms: tuple[str, ...] = (),
  component: str = '',
) -> ConfigDict:
  """Returns an evaluation set: a split of `source`, or of the training source if that is ''.

  With a component of `data.mixture`, the set has its task and, if `source` is '', its source.
  """
  return ConfigDict(
    {
      'split': split,
      'source': source,
      'component': component,
      'metrics': metrics,  # exact means over all targets
      'scores': scores,  # corpus metrics of predictions, such as BLEU
      'transforms': transforms,  # read-time transforms of its rows; data.transforms do not apply
      'limit': 0,  # predictions are made for this many examples; 0 for all
    }
  )


def component(source: str, weight: float = 1.0, **changes: Any) -> ConfigDict:
  """Returns a section of `data.mixture`: a source, and what its rows have of their own.

  Args:
    source: import path.
    weight: see `data.mix`.
    **changes: values of `task`, `converter` and `prepare` that replace those of `data`, and
      `transforms` of its rows, which precede those of `data`.
  """
  return ConfigDict({'source': source, 'weight': weight, **changes})


def mixture(config: ConfigDict, sources: Mapping[str, str]) -> ConfigDict:
  """Returns the config with a mixture of sources, each evaluated as `eval.sets.NAME`.

  The sets have the keys of the set `validation`; the loss of the first source selects checkpoints.

  Args:
    config: of one source.
    sources: import paths by name; their weights are 1.
  """
  section = config.eval.sets.validation
  config.data.source = ''
  config.data.mixture = ConfigDict({n: component(s) for n, s in sources.items()})
  config.eval.sets = ConfigDict({n: {**section, 'source': s} for n, s in sources.items()})
  config.checkpoint.monitor = f'eval/{next(iter(sources))}/loss'
  return config


def without_duplicates(
  config: ConfigDict,
  near: float | None = 0.8,
  held_out: Mapping[str, tuple[str, str]] | None = None,
  **settings: Any,
) -> ConfigDict:
  """Returns the config with training text that repeats neither itself nor evaluation sets.

  Sources of a mixture do not repeat those before them in alphabetical order. `eval.sets` stay as
  they are; those without a source are other splits of the same files.

  Args:
    config: with its sources and evaluation sets.
    near: the similarity from which documents are duplicates; None for equal ones alone.
    held_out: (split, source) by name of evaluation sets in addition to `eval.sets`.
    **settings: other arguments of `lm.data.duplicates:distinct`.
  """
  settings |= {'near': near, 'filtered': config.data.train_split}
  mixture = config.data.mixture
  sets = {
    name: (s.split, s.source or (mixture[s.component].source if s.get('component') else ''))
    for name, s in config.eval.sets.items()
  }
  settings['held_out'] = sets | dict(held_out or {})
  sections = [config.data.mixture[name] for name in sorted(config.data.mixture)] or [config.data]
  sources = [section.source for section in sections]
  for i, section in enumerate(sections):
    arguments = {'source': sources[i], 'after': tuple(sources[:i]), **settings}
    listed = ', '.join(f'{name}={value!r}' for name, value in arguments.items())
    section.source = f'lm.data.duplicates:distinct({listed})'
  return config


def another_model(
  workdir: str = '',
  frozen: bool = True,
  model: ConfigDict | None = None,
  shared: tuple[str, ...] = (),
) -> ConfigDict:
  """Returns a section of `models`: a model in addition to that of the config, such as a teacher.

  Args:
    workdir: of the run that has its parameters and its model section; '' for freshly initialized
      parameters of `model`.
    frozen: whether it stays as it is. Checkpoints do not have it then, and a resumed run reads it
      again.
    model: a section like `model`, without a workdir.
    shared: names of its parameters that are those of the model of the config, such as 'embedding';
      of a model without a workdir.
  """
  step = placeholder(int)  # of its checkpoint; None for the best at the first start of the run
  section = {'workdir': workdir, 'step': step, 'frozen': frozen, 'model': model or {}}
  return ConfigDict(section | {'shared': shared})


def gpt2(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of GPT-2 (Radford et al. 2019) at a given size.

  `kv_heads`, `head_dim` and `d_mlp` have defaults that depend on `heads` and `d_model`, so that an
  override of one size gives the model of that size.
  """
  model = ConfigDict(
    {
      'fn': 'lm.models.transformer:Decoder',
      'vocab_size': placeholder(int),  # None for the tokenizer's
      'vocab_multiple': 1,
      'context': context,
      'd_model': d_model,
      'depth': depth,
      'heads': heads,
      'attention_layer': _any('lm.nn.layers:Attention'),  # a path, or a tuple that repeats
      'attention_fn': 'lm.nn.attention:fused',
      'input_layer': 'lm.nn.embedding:plain',
      'position': _any('lm.nn.position:learned'),  # a path, or one for each layer of the tuple
      'norm': 'lm.nn.layers:LayerNorm',
      'mlp': 'lm.nn.layers:Mlp',
      'block_layout': _any('lm.nn.layers:pre_norm'),  # likewise
      'final_norm': True,
      'bias': True,
      'tie_embeddings': True,
      'dropout': 0.0,
      'init_std': 0.02,
      'embed_scale': 1.0,
      'logit_soft_cap': placeholder(float),
      'head': placeholder(str),  # None for the vocabulary, or for the classes of an encoder
      'scan_unroll': 1,
      'remat_policy': placeholder(str),  # such as 'jax:checkpoint_policies.nothing_saveable'
      'dtype': 'float32',
    }
  )
  model.kv_heads = model.get_oneway_ref('heads')
  model.head_dim = model.get_oneway_ref('d_model') // model.get_oneway_ref('heads')
  model.d_mlp = 4 * model.get_oneway_ref('d_model')
  return model


def _any(value: Any) -> FieldReference:
  """Returns a leaf that accepts values of another type than that of `value`."""
  return FieldReference(value, field_type=object)


def encoder_decoder(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of the encoder-decoder of Vaswani et al. 2017, with pre-norm."""
  model = gpt2(depth, d_model, heads, context)
  model.update(
    {
      'fn': 'lm.models.transformer:EncoderDecoder',
      'position': 'lm.nn.position:sinusoidal',
      'encoder_depth': placeholder(int),  # None for that of the decoder
      'cross_attention': 'lm.nn.layers:Attention',
      'share_embeddings': True,  # one embedding table of source and target
    }
  )
  # Without this scale, the sinusoids would be much larger than the embeddings.
  model.embed_scale = model.get_oneway_ref('d_model').to_float() ** 0.5
  return model


def encoder(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of an encoder with a classification head on the pooled states."""
  model = gpt2(depth, d_model, heads, context)
  model.update(
    {
      'fn': 'lm.models.transformer:Encoder',
      'num_classes': placeholder(int),  # None for that of data.labels
      'pooling': 'lm.nn.pooling:mean',
    }
  )
  return model


def bert(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of BERT (Devlin et al. 2019), which predicts masked tokens.

  `lm.convert to_hf` exports its runs.
  """
  model = encoder(depth, d_model, heads, context)
  norm, gelu = 'lm.nn.layers:LayerNorm(epsilon=1e-12)', 'lm.nn.layers:gelu'
  model.update(
    {
      'pooling': placeholder(str),
      'head': f'lm.nn.heads:masked(activation={gelu!r}, norm={norm!r})',
      'mlp': f'lm.nn.layers:Mlp(activation={gelu!r})',
      'input_layer': f'lm.nn.embedding:normed(norm={norm!r}, types=2)',
      'norm': norm,
      'block_layout': 'lm.nn.layers:post_norm',
      'final_norm': False,
    }
  )
  return model


def unrolled(model: ConfigDict) -> ConfigDict:
  """Returns the model section with all layers in one iteration of the scan, for a few layers.

  A step on a CPU takes up to a tenth less time (experiments/LOG.md): no activations are copied into
  stacked arrays and out of them. Compilation grows with the layers.
  """
  model.scan_unroll = model.get_oneway_ref('depth')
  return model


def llama(
  depth: int, d_model: int, heads: int, kv_heads: int, d_mlp: int, context: int
) -> ConfigDict:
  """Returns the model section of Llama (Touvron et al. 2023; grouped heads as in Llama 2 70B).

  An override of `heads` or `d_model` does not change `kv_heads` and `d_mlp`.
  """
  model = gpt2(depth, d_model, heads, context)
  model.update(
    {
      'kv_heads': kv_heads,
      'd_mlp': d_mlp,
      'position': 'lm.nn.position:rope',
      'norm': 'lm.nn.layers:RMSNorm',
      'mlp': 'lm.nn.layers:GatedMlp',
      'bias': False,
      'tie_embeddings': False,
    }
  )
  return model


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the experiment reduced to run in seconds on the embedded text, on any machine.

  Its functions stay the same; sizes, steps and the source change.
  """
  config.update(
    {
      'steps': 100,
      'batch_size': 8,
      'data': {'source': 'lm.data.sources:python_docs', 'seq_len': 32},
      'optim': {'warmup_steps': 10},
      'eval': {'every': 50},
      'checkpoint': {'every': 50},
      'log': {'sample_tokens': 20},
    }
  )
  if 'vocab_size' in config.data.tokenizer:
    config.data.tokenizer.vocab_size = 512
  _shrink(config.model)
  return config


def _shrink(model: ConfigDict) -> None:
  """Sets small sizes in a model section and its subsections, for the keys that they have."""
  groups = 'kv_heads' in model and model.kv_heads != model.heads
  patterns = [model.get(key) for key in ('attention_layer', 'position', 'block_layout')]
  group = max(len(each) if isinstance(each, tuple) else 1 for each in patterns)
  small = {
    'context': 32,
    'd_model': 32,
    'd_hidden': 32,
    'heads': 4,
    'depth': 2 * group,
    'kv_heads': 2 if groups else 4,
    'head_dim': 8,
  }
  for key, size in small.items():
    if key in model and model[key] != size:  # keeps a reference of equal value
      model[key] = size
  if 'd_mlp' in model:
    model.d_mlp = 2 * model.get_oneway_ref('d_model')
  for section in model.values():
    if isinstance(section, ConfigDict):
      _shrink(section)


def sizes(model: ConfigDict) -> str:
  """Returns the sizes of a model and its subsections in one line, defaults included."""
  keys = ('depth', *_SIZES, 'encoder_depth', 'order', 'size')
  line = ' '.join(f'{key}={model[key]}' for key in keys if model.get(key) is not None)
  if 'kv_heads' in model and model.kv_heads != model.heads:
    line += f' (query heads share {model.kv_heads} key/value heads)'
  for name, section in model.items():
    if isinstance(section, ConfigDict) and (inner := sizes(section)):
      line += f'; {name}: {inner}'
  return line


_SIZES = ('d_model', 'd_hidden', 'heads', 'kv_heads', 'head_dim', 'd_mlp')


def select_variant(config: ConfigDict, arg: str, **variants) -> ConfigDict:
  """Returns `config`, changed by the variant that `arg` names if it is not empty.

  Variants are functions of a config, selected after the colon of --config=FILE.py:NAME.

  Raises:
    UserError: there is no such variant.
  """
  if not arg:
    return config
  if arg not in variants:
    available = ', '.join(f':{name}' for name in variants)
    raise UserError(
      f'--config: no argument {arg!r}{did_you_mean(arg, variants)}; available: {available}'
    )
  return variants[arg](config)
