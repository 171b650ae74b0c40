"""Model sections of recurrent networks; see lm.config.base."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def recurrent(d_model: int, d_hidden: int, depth: int, context: int) -> ConfigDict:
  """Returns the model section of a recurrent language model of LSTM layers."""
  return ConfigDict(
    {
      'fn': 'lm.models.recurrent:Decoder',
      'vocab_size': placeholder(int),  # None for the tokenizer's
      'vocab_multiple': 1,
      'context': context,
      'd_model': d_model,  # of embeddings
      'cell': 'lm.nn.recurrent:lstm',
      'd_hidden': d_hidden,
      'depth': depth,
      'tie_embeddings': True,
      'dropout': 0.0,
      'init_std': 0.1,
      'scan_unroll': 1,
      'dtype': 'float32',
    }
  )


def recurrent_encoder_decoder(
  d_model: int, d_hidden: int, depth: int, context: int, score: str | None = 'additive'
) -> ConfigDict:
  """Returns the model section of a bidirectional LSTM encoder and an LSTM decoder.

  Args:
    d_model: of embeddings.
    d_hidden: of the decoder, and of each direction of the encoder.
    depth: layers of the encoder, and of the decoder.
    context: maximum length of a row.
    score: 'additive' (Bahdanau), 'multiplicative' (Luong), or None for a decoder without attention,
      whose initial state is the encoder's last one.
  """
  model = recurrent(d_model, d_hidden, depth, context)
  model.update(
    {
      'fn': 'lm.models.recurrent:EncoderDecoder',
      'encoder': {
        'fn': 'lm.models.recurrent:Bidirectional',
        'cell': 'lm.nn.recurrent:lstm',
        # The sizes of the decoder, unless they are set.
        'd_hidden': model.get_oneway_ref('d_hidden'),
        'depth': model.get_oneway_ref('depth'),
        'scan_unroll': 1,
      },
      'attention_score': placeholder(str),
      'input_feeding': True,
      'summary': 'lm.nn.pooling:bidirectional_final_states',  # gives the decoder's initial state
      'share_embeddings': True,  # one embedding table of source and target
    }
  )
  if score is not None:
    model.attention_score = f'lm.nn.recurrent:{score}'
  return model


def convolutional(d_hidden: int, depth: int, width: int) -> ConfigDict:
  """Returns the section of a convolutional encoder, for `model.encoder`."""
  fn = 'lm.models.convolutional:Convolutional'
  return ConfigDict({'fn': fn, 'd_hidden': d_hidden, 'depth': depth, 'width': width})
