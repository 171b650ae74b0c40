"""Values of config.json that change a model and are not supported: refused in one line."""

import pytest

from lm.errors import UserError
from lm.pretrained.families import family_of

FULL, SLIDING = 'full_attention', 'sliding_attention'
BASE = {
  'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 24,
  'vocab_size': 60, 'max_position_embeddings': 24, 'head_dim': 8, 'num_key_value_heads': 2,
}  # fmt: skip
REFUSED = [
  ('llama', {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}}, 'dynamic'),
  ('llama', {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 100.0}}, 'linear'),
  ('llama', {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'truncate': False}}, 'truncate'),
  ('llama', {'hidden_act': 'quick_gelu'}, 'quick_gelu'),
  ('llama', {'hidden_act': ['silu']}, 'hidden_act'),
  ('llama', {'attention_bias': 'no'}, 'attention_bias'),
  ('llama', {'rms_norm_eps': 'small'}, 'rms_norm_eps'),
  ('llama', {'rope_theta': -1}, 'rope_theta'),
  ('llama', {'rope_scaling': 'linear'}, 'rope_scaling'),
  ('llama', {'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
  ('qwen2', {'layer_types': [FULL, SLIDING]}, 'use_sliding_window'),
  ('qwen2', {'layer_types': [FULL, 'chunked_attention']}, 'chunked_attention'),
  ('qwen2', {'layer_types': [FULL]}, 'layer_types'),
  ('gemma2', {'sliding_window': None}, 'sliding_window'),
  ('gemma2', {'use_bidirectional_attention': True}, 'use_bidirectional_attention'),
  ('gemma3_text', {'rope_parameters': {'rope_theta': 5.0}}, 'rope_theta'),
  ('gemma3_text', {'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping'),
  ('gpt_neox', {'rotary_pct': 1.5}, 'partial_rotary_factor'),
  ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx'),
  *[(kind, {'is_causal': False}, 'is_causal') for kind in ('llama', 'qwen3', 'gpt2', 'gpt_neox')],
  ('gpt2', {'resid_pdrop': 'x'}, "resid_pdrop='x' must be at least 0"),
  ('gpt2', {'resid_pdrop': 7.5}, 'resid_pdrop=7.5 must be below 1'),
  ('gpt_neox', {'hidden_dropout': [0.1]}, 'hidden_dropout'),
  ('gemma3_text', {'rope_parameters': {FULL: [1]}}, 'full_attention=.* must be an object'),
  ('llama', {'rope_scaling': {'rope_type': ['linear'], 'factor': 2.0}}, 'rope_scaling'),
  ('llama', {'model_type': ['llama']}, 'model_type'),
]


@pytest.mark.parametrize(('kind', 'values', 'message'), REFUSED)
def test_other_values_are_refused_in_one_line(kind, values, message):
  sizes = {'n_embd': 16, 'n_layer': 2, 'n_head': 2, 'n_positions': 24, **BASE}
  family_of({'model_type': kind, **sizes})
  with pytest.raises(UserError, match=message) as error:
    family_of({'model_type': kind, **sizes, **values})
  assert '\n' not in str(error.value)
