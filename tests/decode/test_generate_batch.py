"""Decoding many prompts: the text of each depends on nothing else."""

import functools

import jax
import numpy as np
import pytest

from lm.decode import batch as module
from lm.decode.batch import generate_batch
from lm.decode.beam import Hypotheses
from lm.decode.loop import DecodeConfig
from lm.decode.sampling import forbidden_tokens, sampler
from lm.errors import UserError
from lm.models.recurrent import Bidirectional, EncoderDecoder
from lm.nn.recurrent import additive, lstm
from lm.task import Features
from lm.types import apply_of

END, CONTEXT, MOST = 32, 32, 6
# Sources and prefixes of many lengths: the last two take longer rows than the others.
LENGTHS = (3, 9, 1, 12, 7, 12, 5, 2, 20, 26)
SAMPLE = sampler(temperature=1.0)
NO_END = forbidden_tokens((END,))


@pytest.fixture(scope='module')
def writer(encoder_decoder, decoder, params_of):
  """Returns (model, apply, params) and prompts of an architecture."""
  made = {}

  def of(architecture):
    if architecture not in made:
      build = {'encoder_decoder': encoder_decoder, 'decoder': decoder}[architecture]
      model = build('t5', context=CONTEXT, depth=1)
      rng = np.random.default_rng(1)
      read = [rng.integers(0, 37, length) for length in LENGTHS]
      if architecture == 'decoder':
        prompts = [Features({'inputs': x, 'prefix': np.ones_like(x)}, {}, {}) for x in read]
      else:
        prompts = [Features({'inputs': np.array([0])}, {'source': x}, {}) for x in read]
      made[architecture] = (model, apply_of(model), params_of(model, seed=3)), prompts
    return made[architecture]

  return of


@pytest.fixture(scope='module')
def log_p(writer):
  """Returns log p of every next token after a prompt and a text, by full passes."""
  compiled = {}

  def of(architecture, prompt, tokens):
    (_, apply, params), _ = writer(architecture)
    if architecture not in compiled:
      compiled[architecture] = jax.jit(lambda p, b: apply(p, b).hidden)
    sequence = np.concatenate([prompt.tokens['inputs'], tokens]).astype(int)
    length = len(prompt.tokens['inputs'])
    batch = _row(
      {'inputs': sequence, 'segments': np.ones_like(sequence), 'positions': range(len(sequence))}
    )
    if 'prefix' in prompt.tokens:
      batch |= _row({'prefix': np.arange(len(sequence)) < length})
    if prompt.source:
      source = prompt.source['source']
      there = {'source_segments': np.ones_like(source), 'source_positions': range(len(source))}
      batch |= _row({'source': source} | there)
    hidden = compiled[architecture](params, batch)[0]
    logits = np.asarray(hidden @ params['embedding'].T, np.float64)
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return found[length - 1 : length + len(tokens)]

  return of


def _row(arrays):
  """Returns arrays along a row as a batch of one row, padded to one length."""
  rows = {name: np.zeros((1, 48), np.int32) for name in arrays}
  for name, values in arrays.items():
    rows[name][0, : len(values)] = list(values)
  return rows


ARCHITECTURES = ['encoder_decoder', 'decoder']
GREEDY = DecodeConfig(END, MOST, batch_size=10)
BEAM = DecodeConfig(END, MOST, beam_size=3, n_best=2, batch_size=10)


@pytest.fixture(scope='module')
def generated(writer):
  """Returns the texts of all prompts, made once for each config."""
  made = {}

  def of(architecture, config):
    key = architecture, config
    if key not in made:
      functions, prompts = writer(architecture)
      made[key] = generate_batch(*functions, prompts, config)
    return made[key]

  return of


@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_greedy_texts_are_the_argmax_of_full_passes(architecture, writer, generated, log_p):
  _, prompts = writer(architecture)
  found = generated(architecture, GREEDY)
  ended = 0
  for prompt, texts in zip(prompts, found, strict=True):
    ((tokens, score),) = texts
    expected, total = [], 0.0
    while len(expected) < MOST and END not in expected:
      following = log_p(architecture, prompt, expected)[-1]
      expected.append(int(following.argmax()))
      total += following.max()
    ended += expected[-1] == END
    assert tokens == (expected[:-1] if expected[-1] == END else expected)
    assert score == pytest.approx(total, abs=1e-4)
  # Some texts end and some are cut off, and they are not all one.
  assert 0 < ended < len(prompts) and len({tuple(texts[0].tokens) for texts in found}) > 3


def test_beam_search_returns_the_best_first_with_their_scores(writer, generated, log_p):
  _, prompts = writer('encoder_decoder')
  for prompt, texts in zip(prompts, generated('encoder_decoder', BEAM), strict=True):
    assert len({tuple(text.tokens) for text in texts}) == 2
    complete = []
    for tokens, score in texts:
      ended = tokens if len(tokens) == MOST else [*tokens, END]
      each = log_p('encoder_decoder', prompt, ended)[np.arange(len(ended)), ended]
      assert score == pytest.approx(each.sum() / ((5 + len(ended)) / 6) ** 0.6, abs=1e-4)
      complete.append((ended[-1] == END, score))
    assert complete == sorted(complete, reverse=True)


@pytest.mark.parametrize(
  ('architecture', 'config'), [('decoder', GREEDY), ('encoder_decoder', BEAM)]
)
def test_a_text_depends_on_its_prompt_alone(architecture, config, writer, generated):
  functions, prompts = writer(architecture)
  batched = generated(architecture, config)

  def same(found, indices):
    for texts, i in zip(found, indices, strict=True):
      assert [text.tokens for text in texts] == [text.tokens for text in batched[i]]
      scores, expected = ([text.score for text in ts] for ts in (texts, batched[i]))
      assert scores == pytest.approx(expected, abs=1e-4)

  # In another order, with other neighbors, in smaller batches, and with other padding: the last
  # two prompts, which are left out, have longer rows.
  order = np.random.default_rng(0).permutation(len(prompts) - 2)
  small = config._replace(batch_size=4)
  same(generate_batch(*functions, [prompts[i] for i in order], small), order)


def test_batches_have_similar_lengths_the_longest_first(writer, monkeypatch):
  functions, prompts = writer('encoder_decoder')
  batches = []

  def decode(params, batch, seeds, limits, prefix):
    B = len(limits)
    batches.append(batch['source_segments'].sum(1).tolist())
    texts = Hypotheses(np.zeros((B, 1, 1), int), np.ones((B, 1), int), np.zeros((B, 1)))
    return texts, np.ones(B, bool)

  # The texts are not the subject, and so nothing is compiled.
  monkeypatch.setattr(module, '_compiled', lambda *_: decode)
  config = GREEDY._replace(batch_size=4)
  generate_batch(*functions, prompts, config)
  longest = sorted(LENGTHS, reverse=True)
  assert batches == [longest[:4], longest[4:8], longest[8:] + longest[-1:] * 2]
  assert generate_batch(*functions, [], config) == []


SAMPLED = DecodeConfig(
  END, 20, max_length_ratio=0.1, sample_fn=SAMPLE, logits_processors=(NO_END,), batch_size=4
)


def test_samples_depend_on_their_keys(writer):
  functions, prompts = writer('decoder')
  same = [prompts[0]] * 4
  one, other = (
    generate_batch(*functions, same, SAMPLED, seeds) for seeds in ([1, 2, 1, 3], [3, 1, 2, 2])
  )
  assert one[0] == one[2] == other[1] and one[3] == other[0]
  assert len({tuple(texts[0].tokens) for texts in one}) == 3


# Rotary positions would go on beyond the context; learned ones have none to give.
@pytest.mark.parametrize(('variant', 'beam'), [('llama', 1), ('gpt2', 3)])
def test_a_text_stops_where_the_context_is_full(variant, beam, decoder, params_of):
  model = decoder(variant, context=16, depth=1)
  functions = model, apply_of(model), params_of(model)
  prompts = [Features({'inputs': np.arange(n)}, {}, {}) for n in (14, 16, 4)]
  config = DecodeConfig(END, 6, beam_size=beam, batch_size=3, logits_processors=(NO_END,))
  found = generate_batch(*functions, prompts, config)
  assert [len(texts[0].tokens) for texts in found] == [3, 1, 6]
  assert all(np.isfinite(texts[0].score) for texts in found)


def test_texts_that_exceed_their_buffer_are_retried(writer, log_p):
  # Longer than the first buffers of a source of one token: 2, and then 4.
  functions, _ = writer('encoder_decoder')
  short = [Features({'inputs': np.array([0])}, {'source': np.array([n])}, {}) for n in range(4)]
  found = generate_batch(
    *functions, short, GREEDY._replace(max_tokens=4, logits_processors=(NO_END,))
  )
  for prompt, texts in zip(short, found, strict=True):
    assert texts[0].tokens == _without_end(log_p('encoder_decoder', prompt, texts[0].tokens))
    assert len(texts[0].tokens) == 4


def _without_end(log_p):
  """Returns the most probable token but END after each prefix of a text."""
  allowed = np.where(np.arange(log_p.shape[1]) == END, -np.inf, log_p)
  return allowed[:-1].argmax(-1).tolist()


@pytest.mark.parametrize('beam', [1, 3])
def test_a_ratio_limits_a_text_by_its_source(beam, writer, log_p):
  functions, prompts = writer('encoder_decoder')
  config = DecodeConfig(END, 30, max_length_ratio=0.7, beam_size=beam, logits_processors=(NO_END,))
  # A prefix comes on top.
  prefixes = [[4] * 3, [], [5]] + [[]] * 7
  found = generate_batch(*functions, prompts, config, prefixes=prefixes)
  # Ten more than the ratio, rounded up.
  sizes = zip(LENGTHS, prefixes, strict=True)
  expected = [min(30, 10 + -(-7 * length // 10) + len(prefix)) for length, prefix in sizes]
  assert [len(texts[0].tokens) for texts in found] == expected
  if beam == 1:
    ((tokens, _),) = found[-1]
    assert tokens == _without_end(log_p('encoder_decoder', prompts[-1], tokens))


def test_a_ratio_limits_nothing_without_a_source(writer):
  functions, prompts = writer('decoder')
  found = generate_batch(*functions, prompts[:3], SAMPLED)
  assert [len(texts[0].tokens) for texts in found] == [20] * 3


def test_texts_begin_with_their_prefix(writer, generated, log_p):
  functions, prompts = writer('encoder_decoder')
  prompts = prompts[:8]
  prefixes = [[n, n + 1] if n % 2 else [] for n in range(len(prompts))]
  found = generate_batch(*functions, prompts, GREEDY, prefixes=prefixes)
  free = generated('encoder_decoder', GREEDY)
  for n, (texts, prefix) in enumerate(zip(found, prefixes, strict=True)):
    tokens = texts[0].tokens
    assert tokens[: len(prefix)] == prefix
    assert prefix or tokens == free[n][0].tokens
    if prefix and len(tokens) > 2:
      assert tokens[2] == log_p('encoder_decoder', prompts[n], prefix)[-1].argmax()


def test_mistakes_raise(writer):
  functions, prompts = writer('encoder_decoder')
  long = Features({'inputs': np.array([0])}, {'source': np.zeros(33, int)}, {})
  with pytest.raises(UserError, match='prompt 3 has 33 tokens and the model reads 32'):
    generate_batch(*functions, [*prompts[:2], long], GREEDY)
  with pytest.raises(
    UserError, match=r'--beam_size=38 is not between 1 and 37, the size of the voc'
  ):
    generate_batch(*functions, prompts, BEAM._replace(beam_size=38))
  with pytest.raises(UserError, match='--n_best=4 is not between 1 and --beam_size=3'):
    generate_batch(*functions, prompts[:1], BEAM._replace(n_best=4))
  with pytest.raises(UserError, match=r'--max_tokens=-1 is not 1 or more'):
    generate_batch(*functions, prompts[:1], GREEDY._replace(max_tokens=-1))
  empty = Features({'inputs': np.array([0])}, {'source': np.zeros(0, int)}, {})
  with pytest.raises(UserError, match='prompt 2 has no tokens; a model reads at least one'):
    generate_batch(*functions, [prompts[0], empty], GREEDY)


def test_recurrent_models_read_longer_prompts_with_one_warning(params_of, capsys):
  model = EncoderDecoder(
    vocab_size=37,
    context=4,
    d_model=8,
    d_hidden=6,
    encoder=functools.partial(Bidirectional, cell=lstm, d_hidden=5),
    attention_score=additive,
  )
  params, apply = params_of(model), apply_of(model)
  rng = np.random.default_rng(0)
  prompts = [
    Features({'inputs': np.array([0])}, {'source': rng.integers(1, 37, size)}, {})
    for size in (9, 3, 12)
  ]
  config = GREEDY._replace(max_tokens=11)
  found = generate_batch(model, apply, params, prompts, config)
  assert capsys.readouterr().err.count('at most 4 tokens') == 1
  alone = [generate_batch(model, apply, params, [prompt], config)[0] for prompt in prompts]
  assert [texts[0].tokens for texts in found] == [texts[0].tokens for texts in alone]
  assert not capsys.readouterr().err
