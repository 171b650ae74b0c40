"""Random config.json files: what is imported gives the log-probabilities of transformers, live.

Each draw is a config.json as someone may have written it: keys are left out, and rotary positions
have the old or the new spelling. The reference is built from the same file.
"""

import json
import pathlib
import random
import shutil

import jax
import numpy as np
import pytest

import lm
from lm.pretrained import checkpoint

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

TOKENIZER = pathlib.Path(__file__).parent / 'checkpoints' / 'gpt2' / 'tokenizer.json'
VOCAB, CONTEXT, T = 60, 24, 18
FULL, SLIDING = 'full_attention', 'sliding_attention'


def maybe(rng, **values):
  """Returns some of the keys, each with one of its values."""
  chosen = {key: rng.choice(choices) for key, choices in values.items()}
  return {key: value for key, value in chosen.items() if rng.random() < 0.6}


def scaling(rng):
  """Returns a description of scaled rotary positions."""
  context, factor = rng.choice([8, 16]), rng.choice([1.5, 2.0, 4])
  return rng.choice([
    {'rope_type': 'default'},
    {'rope_type': 'linear', 'factor': factor},
    {
      'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
      'original_max_position_embeddings': context,
    },
    {
      'rope_type': 'yarn', 'factor': factor, 'original_max_position_embeddings': context,
      **maybe(rng, beta_fast=[8, 32], beta_slow=[1, 2], attention_factor=[0.8], truncate=[True]),
    },
  ])  # fmt: skip


def rope(rng):
  """Returns the keys of rotary positions in the old or the new spelling, or none."""
  theta, values = rng.choice([100.0, 10000, 5e5]), scaling(rng)
  if rng.random() < 0.4:
    return {'rope_parameters': {'rope_theta': theta, **values}}
  if rng.random() < 0.3:
    return maybe(rng, rope_theta=[theta])
  if values['rope_type'] != 'llama3' and rng.random() < 0.5:
    values['type'] = values.pop('rope_type')
  return {'rope_scaling': values, **maybe(rng, rope_theta=[theta])}


def sizes(rng):
  """Returns the sizes of a relative of Llama."""
  heads = rng.choice([2, 4])
  return {
    'hidden_size': 16, 'num_hidden_layers': rng.choice([1, 2, 3, 4]), 'num_attention_heads': heads,
    'num_key_value_heads': rng.choice([1, 2, heads]), 'intermediate_size': rng.choice([20, 24]),
    'vocab_size': VOCAB, 'max_position_embeddings': CONTEXT,
    **maybe(rng, tie_word_embeddings=[True, False], rms_norm_eps=[1e-6, 1e-5, 0.1]),
  }  # fmt: skip


def llama(rng):
  return {
    **sizes(rng), **rope(rng),
    **maybe(
      rng, head_dim=[6, 8, None], attention_bias=[True, False], mlp_bias=[True, False],
      hidden_act=['silu', 'gelu', 'relu', 'gelu_pytorch_tanh', 'gelu_new'],
    ),
  }  # fmt: skip


def mistral(rng):
  return {**sizes(rng), **rope(rng), **maybe(rng, sliding_window=[3, 5, None], head_dim=[6, None])}


def qwen2(rng):
  values = {**sizes(rng), **rope(rng)}
  N = values['num_hidden_layers']
  windows = maybe(
    rng,
    use_sliding_window=[True, True, False],
    sliding_window=[3, 5, None],
    max_window_layers=[0, 1, 2, N],
  )
  if windows.get('use_sliding_window') and windows.get('sliding_window') and rng.random() < 0.3:
    windows['layer_types'] = rng.choices([FULL, SLIDING], k=N)
  return {**values, **windows}


def qwen3(rng):
  return {**qwen2(rng), 'head_dim': rng.choice([6, 8]), **maybe(rng, attention_bias=[True, False])}


def gemma(rng):
  return {
    **sizes(rng), **rope(rng), 'head_dim': rng.choice([6, 8]),
    **maybe(rng, hidden_act=['gelu', 'gelu_pytorch_tanh'], attention_bias=[True, False]),
  }  # fmt: skip


def gemma2(rng):
  values = {**sizes(rng), **rope(rng), 'head_dim': rng.choice([6, 8])}
  types = {'layer_types': [rng.choices([FULL, SLIDING], k=values['num_hidden_layers'])]}
  return {
    **values, 'sliding_window': rng.choice([3, 5]),
    **maybe(
      rng, query_pre_attn_scalar=[4, 12], attention_bias=[True, False],
      attn_logit_softcapping=[1.5, None], final_logit_softcapping=[2.0, None], **types,
    ),
  }  # fmt: skip


def gemma3_text(rng):
  other = ('rope', 'layer_types', 'attn_logit')
  values = {k: v for k, v in gemma2(rng).items() if not k.startswith(other)}
  theta, local = rng.choice([100.0, 1e4]), rng.choice([50.0, 1000.0])
  if rng.random() < 0.5:
    values |= maybe(
      rng, rope_theta=[theta], rope_local_base_freq=[local], sliding_window_pattern=[2, 3],
      rope_scaling=[{'rope_type': 'linear', 'factor': 8.0}],
    )  # fmt: skip
  else:
    values['layer_types'] = rng.choices([FULL, SLIDING], k=values['num_hidden_layers'])
    values['rope_parameters'] = {
      FULL: {'rope_theta': theta, **scaling(rng)},
      SLIDING: {'rope_theta': local, 'rope_type': 'default'},
    }
  return values


def gpt_neox(rng):
  values = {k: v for k, v in sizes(rng).items() if k not in ('num_key_value_heads', 'rms_norm_eps')}
  old = maybe(rng, rotary_pct=[1.0, 0.5, 0.3], rotary_emb_base=[100, 10000])
  new = {'rope_parameters': {**scaling(rng), 'partial_rotary_factor': rng.choice([0.5, 1.0])}}
  return {
    **values, 'hidden_size': 32, **rng.choice([old, new]),
    **maybe(
      rng, use_parallel_residual=[True, False], attention_bias=[True, False],
      layer_norm_eps=[1e-5, 0.1], hidden_act=['gelu', 'gelu_fast', 'gelu_new', 'relu'],
    ),
  }  # fmt: skip


def gpt2(rng):
  return {
    'n_embd': 16, 'n_layer': rng.choice([1, 2]), 'n_head': rng.choice([1, 2, 4]),
    'n_positions': CONTEXT, 'vocab_size': VOCAB,
    **maybe(
      rng, n_inner=[20, None], tie_word_embeddings=[True, False], layer_norm_epsilon=[1e-5, 0.1],
      activation_function=['gelu_new', 'gelu', 'relu', 'silu'], reorder_and_upcast_attn=[True],
    ),
  }  # fmt: skip


def t5(rng):
  return {
    'd_model': 16, 'd_kv': rng.choice([4, 6]), 'd_ff': 24, 'num_heads': rng.choice([2, 3]),
    'num_layers': rng.choice([1, 2]), 'vocab_size': VOCAB, 'n_positions': CONTEXT,
    'decoder_start_token_id': 0, 'is_encoder_decoder': True,
    **maybe(
      rng, num_decoder_layers=[1, 3, None], relative_attention_num_buckets=[8, 12],
      relative_attention_max_distance=[10, 16], layer_norm_epsilon=[1e-6, 0.1],
      feed_forward_proj=['relu', 'gated-gelu', 'gated-silu', 'gelu'],
      tie_word_embeddings=[True, False],
    ),
  }  # fmt: skip


mt5 = t5


def bart(rng):
  heads, width = rng.choice([2, 4]), rng.choice([20, 24])
  sides = [
    {
      f'{side}_layers': rng.choice([1, 2, 3]),
      f'{side}_attention_heads': heads,
      f'{side}_ffn_dim': width,
    }
    for side in ('encoder', 'decoder')
  ]
  return {
    'd_model': 16, **sides[0], **sides[1], 'vocab_size': VOCAB, 'is_encoder_decoder': True,
    'max_position_embeddings': CONTEXT, 'decoder_start_token_id': 0, 'pad_token_id': 1,
    'bos_token_id': 2, 'eos_token_id': 0, 'forced_eos_token_id': 0,
    **maybe(
      rng, scale_embedding=[True, False], activation_function=['gelu', 'relu', 'swish', 'gelu_new']
    ),
  }  # fmt: skip


marian = mbart = pegasus = bart


DRAWS = [llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, gpt_neox, gpt2]
SEQ2SEQ = {'t5': t5, 'mt5': mt5, 'bart': bart, 'marian': marian, 'mbart': mbart, 'pegasus': pegasus}


def write(folder, values):
  """Writes a random model of a config.json; returns its reference."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(values))
  config = transformers.AutoConfig.from_pretrained(folder)
  torch.manual_seed(0)
  generates = values['model_type'] in SEQ2SEQ
  auto = transformers.AutoModelForSeq2SeqLM if generates else transformers.AutoModelForCausalLM
  model = auto.from_config(config, attn_implementation='eager').eval()
  if generates and values.get('tie_word_embeddings') is False:  # transformers ties all T5 now
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
  for parameter in model.parameters():
    if parameter.requires_grad:  # sinusoids do not
      torch.nn.init.normal_(parameter, std=0.3)
  model.save_pretrained(folder)
  (folder / 'config.json').write_text(json.dumps(values))
  shutil.copy(TOKENIZER, folder)
  return model


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('draw', DRAWS, ids=lambda draw: draw.__name__)
def test_a_random_config_gives_the_log_probs_of_the_reference(draw, seed, tmp_path):
  values = {'model_type': draw.__name__, **draw(random.Random(f'{draw.__name__}{seed}'))}
  model = write(tmp_path / 'source', values)
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  ids = np.random.default_rng(seed).integers(0, VOCAB, (2, T))
  with torch.no_grad():
    expected = model(torch.tensor(ids)).logits.log_softmax(-1).numpy()
  found = jax.nn.log_softmax(lm.load(tmp_path / 'run').logits(ids))
  np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=json.dumps(values))


@pytest.mark.filterwarnings('ignore')  # of transformers
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind', SEQ2SEQ)
def test_a_random_encoder_decoder_gives_the_log_probs_of_the_reference(kind, seed, tmp_path):
  values = {'model_type': kind, **SEQ2SEQ[kind](random.Random(f'{kind}{seed}'))}
  model = write(tmp_path / 'source', values)
  checkpoint.import_checkpoint(tmp_path / 'source', tmp_path / 'run')
  rng = np.random.default_rng(seed)
  ids, decoder_ids = rng.integers(3, VOCAB, (2, T)), rng.integers(3, VOCAB, (2, T - 4))
  mask = np.arange(T)[None] < np.array([T, 7])[:, None]
  arguments = {'attention_mask': mask.astype(int), 'decoder_input_ids': decoder_ids}
  with torch.no_grad():
    output = model(torch.tensor(ids), **{k: torch.tensor(x) for k, x in arguments.items()})
  expected = output.logits.log_softmax(-1).numpy()
  found = jax.nn.log_softmax(lm.load(tmp_path / 'run').logits(ids, mask, decoder_ids))
  np.testing.assert_allclose(found, expected, atol=1e-4, err_msg=json.dumps(values))
