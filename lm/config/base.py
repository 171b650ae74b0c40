"""The base configuration: every leaf that an experiment has, spelled out once.

An experiment file has `get_config(arg='')` that starts from `base()`, replaces what differs and
returns it. Leaves named `fn`, and those that hold 'module:name', are import paths
(`lm.config.resolve`).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lm.errors import UserError, did_you_mean


def base() -> ConfigDict:
  """Returns the configuration of a small GPT-2 on the embedded English text."""
  config = ConfigDict()
  config.seed = 0
  config.steps = 1000
  config.batch_size = 16  # rows of the global batch
  config.microbatches = 1  # the batch is taken in this many parts; the gradient is the same
  config.dispatch = 1  # steps that go to the device at once; they are the same steps
  config.nonfinite_limit = 10  # skipped steps in a row after which the run stops
  # What may be exactly 0, else the run stops: a regular expression on 'loss', and on the paths of
  # parameters whose gradient is 0 in step 1.
  config.allow_zero = ''

  config.data = ConfigDict(
    {
      'source': 'lm.data.sources:python_docs',
      'train': 'train',  # the split trained on
      'prepare': (),  # import paths of cached steps: examples -> examples
      'tokenizer': {'fn': 'lm.text.tokenizers:bpe', 'vocab_size': 2048},
      'specials': (),  # tokens that stand for no text, beside those of the task: '<|mask|>'
      'task': placeholder(str),  # import path of what to do with examples; empty to model text
      'convert': placeholder(str),  # import path of how the architecture does the task
      'labels': (),  # the classes or tags of the task, in order
      'count': placeholder(str),  # import path of how neighbours are counted; empty to read tokens
      'context': 128,  # tokens in a row, or pairs of neighbours
      'source_context': 128,  # tokens in a row of an encoder beside, where there is one
      'too_long': 'error',  # what becomes of an example longer than a row: error, truncate, skip
      'pack': 'lm.data.packing:concatenate',  # of training; evaluation is packed in file order
      # Import paths of read-time changes of training rows: (row, rng) -> row, or their builders.
      # Rows of evaluation take those of eval.sets.NAME.transforms.
      'transforms': (),
      'reserve': 1.0,  # times its size that an example takes up, for transforms that lengthen it
      'cache': '',  # directory; empty for $LM_CACHE or ~/.cache/lm
      'workers': 0,  # processes that prepare; 0 for one a core
    }
  )
  config.model = gpt2(depth=4, d_model=128, heads=4, context=128)
  config.objective = ConfigDict(
    {
      'fn': 'lm.objectives.supervised:cross_entropy',
      'z_loss': 0.0,
      'label_smoothing': 0.0,
      'chunk': 0,
    }
  )
  config.optim = ConfigDict(
    {
      'fn': 'lm.optim.optimizers:adamw',
      'learning_rate': 1e-3,
      'schedule': 'lm.optim.optimizers:cosine',
      'steps': 0,  # follows `steps`
      'warmup': 100,
      'final': 0.1,
      'b1': 0.9,
      'b2': 0.95,
      'eps': 1e-8,
      'weight_decay': 0.1,
      'decay': '(kernel|embedding)$',  # regular expression on parameter paths
      'freeze': placeholder(str),  # likewise; what it finds is not trained
      'freeze_until': placeholder(int),  # from this step on it is trained after all
      'layer_decay': 1.0,  # the rate of each layer as a share of that of the layer above
      'rates': (),  # 'PATTERN -> MULTIPLIER' of the rate, by parameter path; the first found counts
      'clip': 1.0,
    }
  )
  config.init = ConfigDict(
    {
      'workdir': '',  # of the run whose parameters this one begins with; empty to draw them
      'step': placeholder(int),  # of its checkpoint; unless given the best, or else the newest
      'rules': (),  # 'PATTERN -> REPLACEMENT' where the models differ (lm.training.warm_start)
    }
  )
  config.stop = ConfigDict(
    {
      'metric': '',  # 'eval/SET/METRIC'; empty for that of checkpoint.best
      'patience': 0,  # evaluations without improvement that end the run; 0 for never
      'least': 0.0,  # the improvement that counts
    }
  )
  config.mesh = ConfigDict({'data': -1, 'fsdp': 1, 'tensor': 1, 'rules': {}})
  config.eval = ConfigDict(
    {
      'every': 250,  # steps; the last step is always evaluated
      'batch_size': 0,  # follows `batch_size`
      'sets': {'validation': evaluation('validation')},
      'vectors': (),  # import paths of what is asked of word vectors (lm.metrics.word_vectors)
    }
  )
  config.decode = ConfigDict(
    {
      'beam_size': 1,  # 1 for greedy decoding
      'length_penalty': 0.6,  # alpha of Wu et al. 2016
      'max_tokens': 0,  # of a text; 0 for data.context
      'max_length_ratio': 0.0,  # tokens of a text for each of its source, plus 10; 0 for no limit
      'batch_size': 64,  # prompts of a batch
    }
  )
  config.checkpoint = ConfigDict(
    {
      'every': 250,  # steps; evaluated steps and the last one are saved too
      'keep': 2,  # the newest ones kept
      'keep_best': 1,  # the best ones kept beside them
      'best': 'eval/validation/loss',  # by this metric, in the direction that it declares
    }
  )
  config.log = ConfigDict(
    {
      'every': 10,  # steps between lines of metrics.jsonl
      'prompts': (
        'The ',
      ),  # continued at every evaluation; of word vectors: words (lm.evaluation.samples)
      'sample_tokens': 100,
      'temperature': 0.8,
      'top_k': 50,
    }
  )
  return link_defaults(config).lock()


def link_defaults(config: ConfigDict) -> ConfigDict:
  """Makes `optim.steps` follow `steps` and `eval.batch_size` follow `batch_size`, one way only.

  Those that were given a value of their own keep it.
  """
  for section, key in (('optim', 'steps'), ('eval', 'batch_size')):
    if config[section][key] in (0, config[key]):
      config[section][key] = config.get_oneway_ref(key)
  return config


def evaluation(
  split: str,
  source: str = '',
  metrics: tuple[str, ...] = ('lm.metrics.tokens:language_model',),
  scores: tuple[str, ...] = (),
  transforms: tuple[str, ...] = (),
) -> ConfigDict:
  """Returns an evaluation set: a split of `source`, or, when empty, of the training source."""
  return ConfigDict(
    {
      'split': split,
      'source': source,
      'metrics': metrics,  # exact means over all targets
      'scores': scores,  # corpus metrics of predictions, such as BLEU
      'transforms': transforms,  # read-time changes of its rows; data.transforms are none of them
      'limit': 0,  # examples that predictions are made for, the first ones; 0 for all
    }
  )


def gpt2(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of GPT-2 (Radford et al. 2019) at a given size.

  `kv_heads`, `head_dim` and `d_mlp` follow `heads` and `d_model` until they get a value of their
  own, so that an override of one size gives the model of that size.
  """
  model = ConfigDict(
    {
      'fn': 'lm.models.transformer:Decoder',
      'vocab_size': placeholder(int),  # the tokenizer's, unless given
      'vocab_multiple': 1,
      'context': context,
      'd_model': d_model,
      'depth': depth,
      'heads': heads,
      'attention_layer': 'lm.nn.layers:Attention',  # one import path, or a tuple that repeats
      'attention_fn': 'lm.nn.attention:fused',
      'position': 'lm.nn.position:learned',
      'norm': 'lm.nn.layers:LayerNorm',
      'mlp': 'lm.nn.layers:Mlp',
      'block_layout': 'lm.nn.layers:pre_norm',
      'final_norm': True,
      'bias': True,
      'tie_embeddings': True,
      'dropout': 0.0,
      'init_std': 0.02,
      'embed_scale': 1.0,
      'logit_soft_cap': placeholder(float),
      'scan_unroll': 1,
      'remat_policy': placeholder(str),  # such as 'jax:checkpoint_policies.nothing_saveable'
      'dtype': 'float32',
    }
  )
  model.kv_heads = model.get_oneway_ref('heads')
  model.head_dim = model.get_oneway_ref('d_model') // model.get_oneway_ref('heads')
  model.d_mlp = 4 * model.get_oneway_ref('d_model')
  return model


def encoder_decoder(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of an encoder-decoder: that of Vaswani et al. 2017 in pre-norm."""
  model = gpt2(depth, d_model, heads, context)
  model.fn = 'lm.models.transformer:EncoderDecoder'
  model.position = 'lm.nn.position:sinusoidal'
  # It follows `d_model`; else the sines drown the embeddings.
  model.embed_scale = model.get_oneway_ref('d_model').to_float() ** 0.5
  model.encoder_depth = placeholder(int)  # as many layers as the decoder, unless given
  model.cross_attention = 'lm.nn.layers:Attention'
  model.share_embeddings = True  # source and target have one table of embeddings
  return model


def encoder(depth: int, d_model: int, heads: int, context: int) -> ConfigDict:
  """Returns the model section of an encoder with a head on the whole of what is read."""
  model = gpt2(depth, d_model, heads, context)
  model.fn = 'lm.models.transformer:Encoder'
  model.num_classes = placeholder(int)  # as many as data.labels, unless given
  model.pooling = 'lm.nn.pooling:mean'
  return model


def llama(
  depth: int, d_model: int, heads: int, kv_heads: int, d_mlp: int, context: int
) -> ConfigDict:
  """Returns the model section of Llama (Touvron et al. 2023; grouped heads as in Llama 2 70B).

  `kv_heads` and `d_mlp` are stated values: an override of `heads` or `d_model` leaves them.
  """
  model = gpt2(depth, d_model, heads, context)
  model.kv_heads = kv_heads
  model.d_mlp = d_mlp
  model.position = 'lm.nn.position:rope'
  model.norm = 'lm.nn.layers:RMSNorm'
  model.mlp = 'lm.nn.layers:GatedMlp'
  model.bias = False
  model.tie_embeddings = False
  return model


def smoke(config: ConfigDict) -> ConfigDict:
  """Returns the experiment shrunk to run in seconds on any machine with the embedded text.

  What the experiment is about (its functions) stays; sizes, steps and the source do not.
  """
  config.steps = 100
  config.batch_size = 8
  config.data.source = 'lm.data.sources:python_docs'
  config.data.context = 32
  if 'vocab_size' in config.data.tokenizer:
    config.data.tokenizer.vocab_size = 512
  _shrink(config.model)
  config.optim.warmup = 10
  config.eval.every = 50
  config.checkpoint.every = 50
  config.log.sample_tokens = 20
  return config


def _shrink(model: ConfigDict) -> None:
  """Gives a model, and its sections, small sizes; each has some of these."""
  groups = 'kv_heads' in model and model.kv_heads != model.heads
  small = {
    'context': 32,
    'd_model': 32,
    'd_hidden': 32,
    'heads': 4,
    'depth': 2 * layer_pattern_length(model),
  }
  small |= {'kv_heads': 2 if groups else 4, 'head_dim': 8}
  for key, size in small.items():
    if key in model and model[key] != size:  # else it may follow another size, and still does
      model[key] = size
  if 'd_mlp' in model:
    model.d_mlp = 2 * model.get_oneway_ref('d_model')
  for section in model.values():
    if isinstance(section, ConfigDict):
      _shrink(section)


def layer_pattern_length(model: ConfigDict) -> int:
  """Returns the number of layers that repeat."""
  return len(model.attention_layer) if isinstance(model.get('attention_layer'), tuple) else 1


def sizes(model: ConfigDict) -> str:
  """Returns the sizes of a model and of its sections in one line, those that follow included."""
  shown = []
  for key in ('depth', *_SIZES, 'encoder_depth'):
    if model.get(key) is not None:
      shown.append(f'{key}={model[key]}')
  line = ' '.join(shown)
  if 'kv_heads' in model and model.kv_heads != model.heads:
    line += f' (query heads share {model.kv_heads} key/value heads)'
  for name, section in model.items():
    if isinstance(section, ConfigDict) and (inner := sizes(section)):
      line += f'; {name}: {inner}'
  return line


_SIZES = ('d_model', 'd_hidden', 'heads', 'kv_heads', 'head_dim', 'd_mlp')


def select_variant(config: ConfigDict, arg: str, **variants) -> ConfigDict:
  """Returns `config` for an empty `arg`, else what the variant of that name makes of it.

  `variants` are functions of a config, offered after the colon of --config=FILE.py:NAME.

  Raises:
    UserError: there is no such variant.
  """
  if not arg:
    return config
  if arg not in variants:
    offered = ', '.join(f':{name}' for name in variants)
    raise UserError(
      f'--config: no argument {arg!r}{did_you_mean(arg, variants)}; there is {offered}'
    )
  return variants[arg](config)
