"""From lines to translations: in the process, and as the program that a user meets."""

import dataclasses
import functools
import textwrap

import in_process
import numpy as np
import pytest

from lm.data import pipeline
from lm.decode.loop import DecodeConfig
from lm.errors import UserError
from lm.evaluation.translate import Translator, windows
from lm.text.tokenizers import end_id
from lm.training import trainer
from lm.workdir import experiment, load

PAIRS = {
  'eins': 'one',
  'zwei': 'two',
  'drei': 'three',
  'vier': 'four',
  'fünf': 'five',
  'sechs': 'six',
  'ein Hund': 'a dog',
  'zwei Hunde': 'two dogs',
}
FILE = 'pairs_tiny.py'
SOURCE = f"""
  from lm.config import base as configs

  PAIRS = {PAIRS!r}

  def pairs(split):
    return [{{'source': a, 'target': b, 'text': a, 'label': b}} for a, b in PAIRS.items()]

  def directed(split):
    return [pair | {{'target_language': 'en'}} for pair in pairs(split)]

  def get_config(arg=''):
    config = configs.base()
    config.steps, config.batch_size = 121, 2  # the last one would be evaluated
    config.eval.every = 1000
    config.data.source = 'pairs_tiny:pairs'
    config.data.task = 'lm.tasks.text:text_to_text'
    config.data.converter = 'lm.tasks.seq2seq:encoder_decoder'
    config.data.seq_len = config.data.source_len = 24
    with config.unlocked():
      config.data.tokenizer = {{'fn': 'lm.text.tokenizers:characters'}}
      config.model = configs.encoder_decoder(depth=1, d_model=32, heads=2, context=24)
      metrics = ('lm.metrics.tokens:targets',)
      config.eval.sets = {{'validation': configs.evaluation('train', metrics=metrics)}}
      if arg == 'classes':
        config.model = configs.encoder(depth=1, d_model=32, heads=2, context=24)
    config.model.init_std = 0.1
    config.optim.update({{'learning_rate': 1e-2, 'warmup_steps': 5, 'weight_decay': 0.0}})
    config.log.sample_prompts = ()
    if arg == 'languages':
      config.data.source = 'pairs_tiny:directed'
      config.data.task = "lm.tasks.text:translation(languages=('en', 'fr'))"
    if arg == 'classes':
      config.data.task = 'lm.tasks.text:classification'
      config.data.converter = 'lm.tasks.classification:classifier'
      config.data.labels = tuple(PAIRS.values())
    return config
"""


class Never:
  signal = None

  def begin(self):
    pass


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the experiment in it."""
  folder = tmp_path_factory.mktemp('translate')
  (folder / FILE).write_text(textwrap.dedent(SOURCE), 'utf-8')
  return folder


@pytest.fixture(scope='module')
def workdir(folder):
  """A run that has learned all pairs."""
  path = str(folder / FILE)
  trainer.train(experiment.load(path), path, folder / 'run', Never(), until_step=120)
  return folder / 'run'


def opened(loaded, language=None, too_long='error', prefix='', **changes):
  """Returns a translator with greedy decoding, or with other settings."""
  strategy = DecodeConfig(end_id(loaded.tokenizer), max_tokens=24, batch_size=4)
  return Translator(loaded, strategy._replace(**changes), language, too_long, prefix)


@pytest.fixture(scope='module')
def translator(workdir):
  """Returns a function that makes a translator of the trained model."""
  return functools.partial(opened, load.load(workdir))


def best(found):
  return [texts[0][0] for texts in found]


# More than 5 seconds: the first test of the file trains the translator.
def test_lines_are_translated_in_their_order(translator):
  lines = [*PAIRS, *reversed(PAIRS)]
  assert best(translator()(lines)) == [PAIRS[line] for line in lines]
  assert best(translator(beam_size=3)(lines)) == [PAIRS[line] for line in lines]


def test_empty_lines_stay_empty(translator):
  assert best(translator()(['', 'eins', '  ', '\t'])) == ['', 'one', '', '']
  assert list(translator()(['', ' '])) == [[('', 0.0)], [('', 0.0)]]
  assert list(translator()([])) == []


def test_lines_are_prepared_as_the_sources_were(workdir):
  loaded = load.load(workdir)
  prepare = [
    f"lm.data.preprocess:normalize(field='{f}', case='lower')" for f in ('source', 'target')
  ]
  config = loaded.config.copy_and_resolve_references()
  config.data.prepare = tuple(prepare)
  assert best(opened(dataclasses.replace(loaded, config=config))(['EINS', 'Zwei'])) == [
    'one',
    'two',
  ]


def test_the_best_texts_of_a_line_are_different(translator):
  for texts in translator(beam_size=4, n_best=3)(['zwei', 'ein Hund']):
    assert len(texts) == len({text for text, _ in texts}) == 3
    scores = [score for _, score in texts]
    assert scores == sorted(scores, reverse=True)


def test_texts_begin_with_the_prefix_that_is_asked_for(translator):
  found = best(translator(prefix='t')(['zwei', 'drei', 'eins']))
  assert found[:2] == ['two', 'three'] and found[2].startswith('t')


LONG = 'eins ' + 'zwei ' * 8


def test_too_long_lines_raise(translator):
  with pytest.raises(UserError) as error:
    list(translator()(['eins', LONG], before=10))
  assert str(error.value) == (
    'line 12 has 46 tokens and the model reads 24; set --too_long=truncate or --too_long=split'
  )


def test_too_long_lines_are_truncated(translator):
  long, cut = translator(too_long='truncate')([LONG, LONG[:24]])
  # A line of 24 characters and END is cut as well.
  assert long == cut and long[0][0]


def test_too_long_lines_are_split_and_their_targets_joined(translator):
  split = translator(too_long='split')
  ((whole, score),) = next(split([LONG]))
  # Nine words: four and five, and the five are two and three.
  parts = ['eins zwei zwei zwei', 'zwei zwei', 'zwei zwei zwei']
  found = [texts[0] for texts in translator()(parts)]
  assert whole == ' '.join(text for text, _ in found)
  assert score == pytest.approx(sum(score for _, score in found), abs=1e-4)
  # Where there are no spaces, in the middle of the characters.
  parts = ['vier' * 3 + 'vi', 'er' + 'vier' * 3]
  (whole, *halves) = best(split([''.join(parts), *parts]))
  assert whole == ' '.join(halves)


def test_line_ends_in_generated_texts_become_spaces(translator):
  made = translator()
  made._loaded = dataclasses.replace(made._loaded, tokenizer=_Lines())
  assert best(made(['eins'])) == ['a b c d']


class _Lines:
  """Stands for a tokenizer whose text has line ends of several kinds in it."""

  def decode(self, tokens):
    return 'a\nb\r\nc\u2028d'


def test_windows_are_lines_without_their_ends():
  lines = [b'a\n', b'\n', b'b \r\n', 'é\u2028x'.encode()]
  assert list(windows([b'\xef\xbb\xbfa\n'], 3)) == [['a']]
  assert list(windows(iter(lines), 3)) == [['a', '', 'b '], ['é\u2028x']]
  with pytest.raises(UserError, match='line 3 of the input is not UTF-8 at byte 2'):
    list(windows([b'a\n', b'b\n', b'ab\xff\n'], 2))


def translate(workdir, text, *arguments):
  """Runs the program on bytes."""
  return in_process.run('translate', f'--workdir={workdir}', *arguments, text=text)


def test_the_program_writes_a_line_for_a_line(workdir):
  lines = [*PAIRS, '', 'zwei']
  text = '\n'.join(lines).encode()  # the last line has no end
  result = translate(workdir, text, '--window=3', '--beam_size=2')
  assert result.returncode == 0, result.stderr
  assert result.stdout == ''.join(f'{PAIRS.get(line, "")}\n' for line in lines)
  assert result.stderr.startswith('note: ') and result.stderr.count('\n') == 1


def test_the_program_writes_many_texts_a_line(workdir):
  text = 'fünf\n\nzwei\n'.encode()
  result = translate(workdir, text, '--window=2', '--beam_size=3', '--n_best=2')
  assert result.returncode == 0, result.stderr
  rows = [line.split(' ||| ') for line in result.stdout.splitlines()]
  assert [row[0] for row in rows] == ['1', '1', '2', '3', '3']
  assert (rows[0][1], rows[2][1:], rows[3][1]) == ('five', ['', '0.0000'], 'two')
  assert float(rows[0][2]) > float(rows[1][2])


def test_windows_before_a_mistake_are_translated(workdir):
  result = translate(workdir, b'eins\nzwei\n\xff\n', '--window=2', '--beam_size=1')
  assert (result.returncode, result.stdout) == (2, 'one\ntwo\n')
  note, mistake = result.stderr.splitlines()
  assert note.startswith('note: ') and 'at step 120' in note
  assert mistake == 'lm.translate: line 3 of the input is not UTF-8 at byte 0'


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--beam_size=99'], '--beam_size=99 is not between 1 and'),
    (
      ['--min_tokens=50', '--max_tokens=5'],
      '--min_tokens=50 is more than --max_tokens=5',
    ),
    (['--min_tokens=999'], '--min_tokens=999 is more than data.seq_len='),
    (['--beam_size=2', '--n_best=3'], '--n_best=3 is more than --beam_size=2'),
    (['--max_tokens=-1'], '--max_tokens=-1 must be a non-negative integer'),
    (['--too_long=cut'], '--too_long=cut must be one of error, truncate, split'),
  ],
)
def test_mistakes_are_one_line(arguments, message, workdir):
  given = (f'--workdir={workdir}', *arguments)
  assert message in in_process.mistake('translate', *given, text='eins\n')


@pytest.mark.parametrize(
  ('arg', 'language', 'message'),
  [
    ('', 'en', '--target_lang=en: the task of this run has no target language'),
    ('languages', None, '--target_lang is not given, and the task needs it: data.task: target_la'),
    ('languages', 'de', "data.task: target_language='de'"),
    (
      'classes',
      None,
      "data.converter='lm.tasks.classification:classifier' makes no prompt",
    ),
  ],
)
def test_runs_that_cannot_translate_raise(arg, language, message, folder):
  config = experiment.load(f'{folder / FILE}:{arg}' if arg else str(folder / FILE))
  loaded = load.Loaded(folder, config, pipeline.tokenizer(config.data), None, {}, None, None, 1)
  with pytest.raises(UserError) as error:
    opened(loaded, language=language)
  assert message in str(error.value)


def test_a_language_that_the_task_knows_is_taken(folder):
  config = experiment.load(f'{folder / FILE}:languages')
  tokenizer = pipeline.tokenizer(config.data)
  made = opened(load.Loaded(folder, config, tokenizer, None, {}, None, None, 1), language='fr')
  (prompt,) = made._parts('eins', 1)
  assert prompt.source['source'][0] == tokenizer.token_to_id('<|to fr|>')


def test_logits_lead_to_the_greedy_translation(workdir, translator):
  """The argmax of teacher-forced logits is the greedy text, in rows with and without padding."""
  loaded = load.load(workdir)
  lines = list(PAIRS)[:3]
  end = end_id(loaded.tokenizer)
  sources = [[*loaded.tokenizer.encode(line, add_special_tokens=False).ids, end] for line in lines]
  texts = best(translator()(lines))
  targets = [[end, *loaded.tokenizer.encode(t, add_special_tokens=False).ids] for t in texts]
  (longest_source, longest_target) = (max(map(len, rows)) for rows in (sources, targets))
  ids = np.array([row + [0] * (longest_source - len(row)) for row in sources])
  mask = np.arange(longest_source)[None] < np.array([[len(row)] for row in sources])
  inputs = np.array([row + [0] * (longest_target - len(row)) for row in targets])
  found = np.asarray(loaded.logits(ids, mask, inputs)).argmax(-1)
  for row, target in zip(found.tolist(), targets, strict=True):
    assert row[: len(target)] == [*target[1:], end]
  alone = loaded.logits([sources[0]], None, [targets[0]])
  both = loaded.logits(ids, mask, inputs)[:1, : len(targets[0])]
  np.testing.assert_allclose(alone, both, atol=1e-4)
