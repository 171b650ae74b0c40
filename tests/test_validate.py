import pytest

from lm.config import validate
from lm.config.base import base
from lm.errors import UserError


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'steps': 0}, r'steps=0 is out of range: it must be at least 1$'),
    ({'batch_size': -8}, r'batch_size=-8 is out of range'),
    ({'seed': -1}, r'seed=-1 is out of range: it must be at least 0 and at most 4294967295'),
    ({'eval.every': 0}, r'eval\.every=0'),
    ({'checkpoint.every': 0}, r'checkpoint\.every=0'),
    ({'checkpoint.keep_last': 0, 'checkpoint.keep_best': 0}, r'keep no checkpoint at all'),
    ({'log.every': 0}, r'log\.every=0'),
    ({'microbatches': 0}, r'microbatches=0'),
    ({'model.depth': 0}, r'model\.depth=0'),
    ({'model.dropout': 1.5}, r'model\.dropout=1\.5'),
    ({'model.dtype': 'float16'}, r"model\.dtype='float16' must be .* no loss scaling"),
    ({'model.dtype': 'float33'}, r"model\.dtype='float33' must be one of float32, bfloat16"),
    ({'model.logit_soft_cap': 0.0}, r'model\.logit_soft_cap=0\.0 must be above 0'),
    ({'optim.clip_norm': 0.0}, r'optim\.clip_norm=0\.0 must .*inf clips nothing'),
    ({'optim.learning_rate': -1e-3}, r'optim\.learning_rate=-0\.001'),
    ({'optim.b1': 2.0}, r'optim\.b1=2\.0'),
    (
      {'eval.sets.validation.scores': ('lm.metrics.translation:chrf',)},
      'compare outputs with references, which running text lacks: give data.task',
    ),
    ({'eval.sets.validation.limit': -1}, r'eval\.sets\.validation\.limit=-1 must be 0 '),
    ({'data.tokenizer.vocab_size': -3}, r'data\.tokenizer\.vocab_size=-3 is out of range'),
    (
      {'decode.length_penalty': float('nan')},
      r'decode\.length_penalty=nan must be a finite',
    ),
    ({'objective.logits_chunk': -1}, r'objective\.logits_chunk=-1'),
  ],
)
def test_values_out_of_range_raise_with_their_key(changes, message):
  config = base()
  validate.validate_config(config)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message) as error:
    validate.validate_config(config)
  assert '\n' not in str(error.value)


def test_keys_that_a_model_lacks_are_skipped():
  config = base()
  with config.unlocked():
    del config.model['dropout']
    del config.optim['b1']
  validate.validate_config(config)
