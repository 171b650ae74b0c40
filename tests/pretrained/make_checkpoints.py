"""Writes tests/pretrained/checkpoints/: tiny random models of transformers, with golden outputs.

  python tests/pretrained/make_checkpoints.py [NAME ...]
  python tests/pretrained/make_checkpoints.py --bfloat16 NAME ...   # prints tolerances of tests

It needs torch and transformers (extra `baselines`); the tests need neither. golden.npz has tokens
(B, T), lengths (B,), and hidden states after the embeddings and each layer (N + 1, B, T, D). Those
of decoders have the log-probability (B, T - 1) of each next token; those of encoders have types
(B, T), and logits (B, T, C) or (B, C) if the model has a head. Those of encoder-decoders have
decoder_ids (B, T), decoder_log_p (B, T, V), and greedy (B, L), which generate() returns.
"""

import pathlib
import sys

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
VOCAB, T, LENGTHS = 60, 12, (12, 7)
NEW = 10  # tokens that are generated

LLAMA = {
  'hidden_size': 16, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2,
  'intermediate_size': 24, 'vocab_size': VOCAB, 'max_position_embeddings': 24,
}  # fmt: skip
TWO = LLAMA | {'num_hidden_layers': 2}


def scaled(**rope):
  """Returns a Llama with scaled rotary positions."""
  config = transformers.LlamaConfig(**LLAMA, rope_parameters={'rope_theta': 100.0} | rope)
  return transformers.LlamaForCausalLM, config


def neox(**values):
  """Returns a GPT-NeoX."""
  sizes = {key: value for key, value in TWO.items() if key != 'num_key_value_heads'}
  config = transformers.GPTNeoXConfig(**sizes, **values)
  return transformers.GPTNeoXForCausalLM, config


BERT = {
  'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 24,
  'vocab_size': VOCAB, 'max_position_embeddings': 24,
}  # fmt: skip
ENCODER_HEADS = {
  '': 'Model',
  '_masked': 'ForMaskedLM',
  '_replaced': 'ForPreTraining',
  '_classes': 'ForSequenceClassification',
  '_tags': 'ForTokenClassification',
  '_answers': 'ForQuestionAnswering',
}


def with_heads(name, prefix, make_config):
  """Returns an encoder with each of its heads."""
  found = {}
  for ending, head in ENCODER_HEADS.items():
    labels = (
      {'id2label': {0: 'red', 1: 'green', 2: 'blue'}} if ending in ('_classes', '_tags') else {}
    )
    if (
      build := getattr(transformers, prefix + head, None)
    ) and prefix + head != 'BertForPreTraining':
      found[name + ending] = (build, make_config(**labels))
  return found


T5 = {
  'd_model': 16, 'd_kv': 6, 'num_heads': 3, 'd_ff': 24, 'vocab_size': VOCAB, 'num_layers': 2,
  'num_decoder_layers': 3, 'relative_attention_num_buckets': 8,
  'relative_attention_max_distance': 16, 'decoder_start_token_id': 1, 'pad_token_id': 1,
  'eos_token_id': 0, 'n_positions': 32,
}  # fmt: skip

BART = {
  'd_model': 16, 'encoder_layers': 2, 'decoder_layers': 3, 'encoder_attention_heads': 4,
  'decoder_attention_heads': 4, 'encoder_ffn_dim': 24, 'decoder_ffn_dim': 24, 'vocab_size': VOCAB,
  'max_position_embeddings': 24, 'pad_token_id': 1, 'eos_token_id': 0, 'bos_token_id': 2,
  'forced_eos_token_id': None,
}  # fmt: skip


def modern(layers=2, **kw):
  """Returns the config of a ModernBERT; one with labels has biases and pools by the mean."""
  named = 'id2label' in kw
  special = dict.fromkeys(('pad_token_id', 'eos_token_id', 'bos_token_id', 'cls_token_id'), 0)
  biases = dict.fromkeys(('norm_bias', 'attention_bias', 'mlp_bias', 'classifier_bias'), named)
  return transformers.ModernBertConfig(
    **BERT | {'num_hidden_layers': layers},
    **special,
    sep_token_id=0,
    local_attention=6,
    **biases,
    classifier_pooling='mean' if named else 'cls',
    classifier_activation='relu' if named else 'gelu',
    **kw,
  )


MODELS = {
  **with_heads('bert', 'Bert', lambda **kw: transformers.BertConfig(**BERT, **kw)),
  **with_heads(
    'roberta',
    'Roberta',
    lambda **kw: transformers.RobertaConfig(**BERT, type_vocab_size=1, layer_norm_eps=1e-5, **kw),
  ),
  **with_heads(
    'distilbert',
    'DistilBert',
    lambda **kw: transformers.DistilBertConfig(
      dim=16, n_layers=2, n_heads=4, hidden_dim=24, vocab_size=VOCAB, max_position_embeddings=24,
      sinusoidal_pos_embds='id2label' in kw, **kw,
    ),
  ),
  **with_heads(
    'electra',
    'Electra',
    lambda **kw: transformers.ElectraConfig(
      **BERT, embedding_size=16 if 'id2label' in kw else 8, **kw
    ),
  ),
  **with_heads('modernbert', 'ModernBert', modern),
  'modernbert': (transformers.ModernBertModel, modern(layers=4)),  # the fourth is global again
  'gpt2': (
    transformers.GPT2LMHeadModel,
    transformers.GPT2Config(n_embd=16, n_layer=3, n_head=4, n_positions=24, vocab_size=VOCAB),
  ),
  'llama': (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig(**LLAMA, rms_norm_eps=1e-5),
  ),
  'llama_tied': (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, head_dim=8, rope_theta=500000.0),
  ),
  'mistral': (
    transformers.MistralForCausalLM,
    transformers.MistralConfig(**LLAMA, sliding_window=4),
  ),
  'qwen2': (transformers.Qwen2ForCausalLM, transformers.Qwen2Config(**LLAMA)),
  'qwen3': (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**LLAMA, head_dim=8)),
  't5': (transformers.T5ForConditionalGeneration, transformers.T5Config(**T5)),
  't5_gated': (
    transformers.T5ForConditionalGeneration,
    transformers.T5Config(**T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False),
  ),
  'bart': (
    transformers.BartForConditionalGeneration,
    transformers.BartConfig(**BART, decoder_start_token_id=0),
  ),
  'marian': (
    transformers.MarianMTModel,
    transformers.MarianConfig(
      **BART, decoder_start_token_id=1, scale_embedding=True, activation_function='swish'
    ),
  ),
  'mbart': (
    transformers.MBartForConditionalGeneration,
    transformers.MBartConfig(**BART, decoder_start_token_id=3, scale_embedding=True),
  ),
  'pegasus': (
    transformers.PegasusForConditionalGeneration,
    transformers.PegasusConfig(**BART, decoder_start_token_id=1, scale_embedding=True),
  ),
  'mt5': (transformers.MT5ForConditionalGeneration, transformers.MT5Config(**T5)),
  'llama_biases': (
    transformers.LlamaForCausalLM,
    transformers.LlamaConfig(**TWO, attention_bias=True),
  ),
  'qwen2_windows': (
    transformers.Qwen2ForCausalLM,
    transformers.Qwen2Config(
      **TWO, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
  ),
  'gemma': (transformers.GemmaForCausalLM, transformers.GemmaConfig(**TWO, head_dim=8)),
  # Every other layer has a window. Caps are small, so that they matter.
  'gemma2': (
    transformers.Gemma2ForCausalLM,
    transformers.Gemma2Config(
      **LLAMA | {'num_hidden_layers': 4}, head_dim=8, query_pre_attn_scalar=12, sliding_window=4,
      attn_logit_softcapping=1.5, final_logit_softcapping=3.0, attn_implementation='eager',
    ),
  ),
  'gemma3_text': (
    transformers.Gemma3ForCausalLM,
    transformers.Gemma3TextConfig(
      **TWO, head_dim=8, query_pre_attn_scalar=12, sliding_window=4,
      layer_types=['sliding_attention', 'full_attention'],
      rope_parameters={
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
        'full_attention': {'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 1000.0},
      },
    ),
  ),
  'gpt_neox': neox(rotary_pct=0.5),
  'gpt_neox_sequential': neox(use_parallel_residual=False, rotary_emb_base=100.0),
  'llama_linear': scaled(rope_type='linear', factor=2.0),
  'llama_31': scaled(
    rope_type='llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=24,
  ),
  'llama_yarn': scaled(rope_type='yarn', factor=2.0, original_max_position_embeddings=12),
}  # fmt: skip


SEEDS = {'t5': 50, 't5_gated': 37, 'bart': 56, 'mbart': 20}  # of texts that vary
GENERATION = {
  'bart': {'forced_bos_token_id': 2},
  'marian': {'bad_words_ids': [[1]]},
  'mbart': {},
  'pegasus': {},
}
UNTIED = ('t5_gated', 'mt5')  # as published; transformers makes them tied


def tokenizer() -> tokenizers.Tokenizer:
  """Returns a tokenizer of single bytes, for the vocabulary of the models."""
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCAB - 1]
  vocabulary = {token: i for i, token in enumerate(['<|endoftext|>', *letters])}
  found = tokenizers.Tokenizer(models.BPE(vocabulary, []))
  found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  found.decoder = decoders.ByteLevel()
  found.add_special_tokens(['<|endoftext|>'])
  return found


def write(name: str) -> None:
  build, config = MODELS[name]
  torch.manual_seed(SEEDS.get(name, 0))
  model = build(config).eval()
  if name in UNTIED:
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
  for parameter in model.parameters():
    if parameter.requires_grad:  # sinusoids do not
      torch.nn.init.normal_(parameter, std=0.3)  # larger than trained ones: errors show
  if name in GENERATION:
    vary(model)
    model.generation_config.update(**GENERATION[name])
    if name == 'marian':
      model.final_logits_bias[0, config.pad_token_id] = 5  # likely, and forbidden
  folder = FOLDER / name
  model.save_pretrained(folder)
  words = tokenizer()
  if config.is_encoder_decoder:
    words.post_processor = processors.TemplateProcessing(
      single='$A <|endoftext|>', special_tokens=[('<|endoftext|>', 0)]
    )
  words.save(str(folder / 'tokenizer.json'))
  if config.is_encoder_decoder:
    np.savez(folder / 'golden.npz', **encoder_decoder_golden(model, config))
    return
  ids = torch.randint(0, VOCAB, (len(LENGTHS), T))
  if 'roberta' in name:
    ids[ids == config.pad_token_id] += 1  # the reference counts no position for padding
  mask = (torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]).long()
  types = torch.randint(0, getattr(config, 'type_vocab_size', 0) or 1, ids.shape)
  encodes = not config.is_encoder_decoder and not hasattr(model, 'generate')
  with torch.no_grad():
    more = {'token_type_ids': types} if getattr(config, 'type_vocab_size', 0) else {}
    output = model(ids, attention_mask=mask, output_hidden_states=True, **more)
  found = {
    'tokens': ids.int(),
    'lengths': torch.tensor(LENGTHS, dtype=torch.int32),
    'hidden': torch.stack(output.hidden_states),
  }
  if 'start_logits' in output:
    found['logits'] = torch.stack([output.start_logits, output.end_logits], -1)
  elif 'logits' in output and not encodes:
    log_p = output.logits.log_softmax(-1)[:, :-1]
    found['log_p'] = log_p.gather(-1, ids[:, 1:, None])[..., 0]
  elif 'logits' in output:
    found['logits'] = output.logits[..., None] if name.endswith('_replaced') else output.logits
  if encodes:
    found['types'] = types.int()
  np.savez(folder / 'golden.npz', **{name: x.numpy() for name, x in found.items()})


def vary(model):
  """Makes the greedy texts of a relative of BART vary: its post-norms hide small differences."""
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if 'norm' in name and name.endswith('weight'):
        parameter += 1
      elif 'embed_positions' in name and parameter.requires_grad:
        parameter *= 3
  torch.nn.init.normal_(model.final_logits_bias, std=0.3)


def encoder_decoder_golden(model, config):
  """Returns the golden arrays of an encoder-decoder by name."""
  ids, decoder_ids = torch.randint(2, VOCAB, (2, len(LENGTHS), T))
  decoder_ids = decoder_ids[:, : T - 3]
  decoder_ids[:, 0] = config.decoder_start_token_id
  mask = (torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]).long()
  ids = torch.where(mask > 0, ids, config.pad_token_id)
  with torch.no_grad():
    output = model(
      ids, attention_mask=mask, decoder_input_ids=decoder_ids, output_hidden_states=True
    )
    greedy = model.generate(
      ids, attention_mask=mask, do_sample=False, num_beams=1, max_new_tokens=NEW,
      forced_eos_token_id=None, use_cache=False,
    )  # fmt: skip
  found = {
    'source': ids.int(),
    'source_lengths': torch.tensor(LENGTHS, dtype=torch.int32),
    'decoder_ids': decoder_ids.int(),
    'encoder_hidden': torch.stack(output.encoder_hidden_states),
    'decoder_hidden': torch.stack(output.decoder_hidden_states),
    'decoder_log_p': output.logits.log_softmax(-1),
    'greedy': greedy.int(),
  }
  return {name: x.numpy() for name, x in found.items()}


def bfloat16_difference(name: str) -> float:
  """Returns by how much log-probabilities of a checkpoint in bfloat16 differ from the golden ones.

  Those of all tokens count for a masked language model, and those of next tokens for a decoder.
  """
  build, _ = MODELS[name]
  model = build.from_pretrained(FOLDER / name, dtype=torch.bfloat16).eval()
  golden = {key: torch.tensor(x) for key, x in np.load(FOLDER / name / 'golden.npz').items()}
  ids = golden['tokens'].long()
  inside = torch.arange(T)[None] < golden['lengths'][:, None]
  types = {'token_type_ids': golden['types'].long()} if 'types' in golden else {}
  with torch.no_grad():
    log_p = model(ids, attention_mask=inside.long(), **types).logits.float().log_softmax(-1)
  if types:
    return (log_p - golden['logits'].log_softmax(-1)).abs()[inside].max().item()
  log_p = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
  return (log_p - golden['log_p']).abs()[inside[:, 1:]].max().item()


if __name__ == '__main__':
  if sys.argv[1:2] == ['--bfloat16']:
    for each in sys.argv[2:]:
      print(each, bfloat16_difference(each))
  else:
    for each in sys.argv[1:] or MODELS:
      write(each)
