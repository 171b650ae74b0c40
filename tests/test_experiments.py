"""Every experiment builds at its full size, and its :smoke really trains."""

import ast
import os
import pathlib
import re

import pytest

from lm import cli, components
from lm.data import pipeline
from lm.errors import UserError
from lm.parallel.host import Never
from lm.training import trainer
from lm.training.train_step import abstract_state
from lm.workdir import experiment

FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'
FILES = sorted(f for f in FOLDER.glob('*.py') if 'def get_config(' in f.read_text())
NAMES = [file.stem for file in FILES]
# Of experiments that differ in their data or their sizes alone, one is enough for the default run.
ALIKE = {
  'ag_news', 'article_generation', 'back_translation', 'chnsenticorp', 'clean_text', 'cmrc2018',
  'dates_fixed_vector', 'distillation', 'ema', 'ensemble_multi30k', 'finetune', 'function_length',
  'llama_160m', 'llama_1b', 'llama_8b', 'llama_70b', 'lm1b', 'lora', 'multi30k_de_en',
  'multi30k_lstm', 'multi30k_multilingual', 'published_gpu_rows', 'published_rows',
  'stage1_to_stage2', 'tatoeba_zh_en', 'translation_3b', 'wikipedia', 'wmt14_en_de', 'wnut17',
  'contrastive_decoding', 'differential_attention', 'eta_sampler', 'focal_loss', 'gated_attention',
  'gpt_bert', 'gpt_multilingual', 'image_prefix', 'lion', 'mixture', 'mixture_of_experts',
  'msra_ner', 'multitask', 'ngram', 'shakespeare_char', 'sst2', 'typos', 'word2vec_text8',
  'word2vec_zh', 'bart_pretrain', 'bert_zh_wwm', 'electra_small', 'families', 't5_pretrain',
}  # fmt: skip
SMOKES = [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in NAMES]


def vocab_size(config):
  """Returns a size for the model's table without training the tokenizer."""
  return config.data.tokenizer.get('vocab_size', 2000)


# Both read a workdir: tests/test_finetune.py has one, and tests/test_seams.py needs none.
@pytest.mark.parametrize('name', [x for x in NAMES if x not in ('finetune', 'distillation')])
def test_experiment_builds_at_full_size(name):
  config = experiment.load(str(FOLDER / f'{name}.py'))
  config.mesh.update({'data': 1, 'fsdp': 1, 'tensor': 1})  # those of a slice need its chips
  functions = components.build_components(config, vocab_size(config))
  abstract, _ = abstract_state(functions)
  assert components.parameter_count(abstract.params) > 1e5
  sources = [section.source for section in (config.data, *config.data.mixture.values())]
  named = (*sources, config.data.mix, config.data.pack, config.data.pair_counter)
  for path in config.data.transforms + config.data.prepare + tuple(filter(None, named)):
    from lm.config import resolve

    resolve.resolve(path, 'data')


def few(config):
  """Has the sources of a config give their first examples alone, and keeps all else."""
  sections = (config.data, *config.data.mixture.values(), *config.eval.sets.values())
  for section in (section for section in sections if section.source):
    section.source = f'first_examples:first(source={section.source!r}, count=400)'


# Some take more than 5 seconds: each trains a tokenizer and compiles a model.
@pytest.mark.parametrize('name', SMOKES)
def test_smoke_trains_two_steps(name, tmp_path, small_library):
  path = f'{FOLDER / name}.py:smoke'
  config = experiment.load(path)
  assert config.steps >= 100
  few(config)
  config.log.every = 1
  trainer.train(config, path, tmp_path / 'run', Never(), until_step=2)
  assert (tmp_path / 'run/checkpoints/2').is_dir()
  assert (tmp_path / 'run/source' / f'{name}.py').is_file()


@pytest.mark.parametrize('name', NAMES)
def test_header_has_the_command(name):
  header = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text()))
  command = re.search(rf'python -m lm\.train --config=experiments/{name}\.py\S* --workdir=', header)
  assert command, header
  assert re.search(r'CPU|GPU|TPU', header), 'the header names no hardware'


@pytest.mark.parametrize('name', NAMES)
def test_unknown_argument_is_an_error(name):
  with pytest.raises(UserError, match='--config: no'):
    experiment.load(f'{FOLDER / name}.py:smoek')


def test_config_of_a_workdir_runs_again(tmp_path):
  path = f'{FOLDER / "quickstart"}.py:smoke'
  config = experiment.load(path)
  (tmp_path / 'config.json').write_text(experiment.to_json(config))
  again, _ = cli.config(['lm', f'--config={tmp_path / "config.json"}', '--config.steps=3'])
  assert (again.steps, again.optim.decay_steps) == (3, 3), 'the schedule ends with the run'
  experiment.check_same(config, again, tmp_path)


def test_every_folder_of_data_is_explained():
  read = {f for file in FILES for f in re.findall(r'LM_DATA/(\w+)/', file.read_text())}
  section = (FOLDER / 'README.md').read_text().partition('\n## Data\n')[2]
  assert {'sst2', 'multi30k', 'word_eval'} <= read <= set(re.findall(r'^\| (\w+) ', section, re.M))


def test_log_has_one_row_of_best_figures_or_a_reason_for_every_experiment():
  log = (FOLDER / 'LOG.md').read_text('utf-8')
  best, _, entries = log.partition('\n## Best figures\n')[2].partition('\n## ')
  table, _, not_run = best.partition('**Not run here**')
  rows = re.findall(r'^\| (\w*) ?\|(.*)\|$', table, re.MULTILINE)[1:]  # without the head
  named = [name for name, _ in rows if name] + re.findall(r'`(\w+)`', not_run)
  assert sorted(named) == NAMES
  dates = {date for _, cells in rows for date in re.findall(r'\d{4}-\d\d-\d\d', cells)}
  assert dates
  assert dates <= set(re.findall(r'^(?:## )?(\d{4}-\d\d-\d\d), ', entries, re.MULTILINE))


@pytest.mark.skipif('LM_DATA' not in os.environ, reason='LM_DATA is not set')
def test_shakespeare_reads_the_text(tmp_path):
  path = str(FOLDER / 'shakespeare_char.py')
  config = experiment.load(path)
  config.steps = 2
  config.eval.sets = {}
  trainer.train(config, path, tmp_path / 'run', Never())
  assert (tmp_path / 'run/checkpoints/2').is_dir()


def test_captions_for_pretraining_are_none_of_the_few_pairs(tmp_path, monkeypatch):
  monkeypatch.setenv('LM_DATA', str(tmp_path))
  folder = tmp_path / 'multi30k'
  folder.mkdir()
  for split, count in {'train': 2905, 'val': 2}.items():
    for language in ('de', 'en'):
      lines = (f'{split} {language} {i}\n' for i in range(count))
      (folder / f'{split}.{language}').write_text(''.join(lines))
  captions = experiment.load(str(FOLDER / 't5_pretrain.py:captions')).data
  read = sorted(example['text'] for example in pipeline.examples(captions, 'train'))
  assert read == [f'train {side} {i}' for side in ('de', 'en') for i in range(5)]
  assert len(list(pipeline.examples(captions, 'validation'))) == 4
  few = experiment.load(str(FOLDER / 'multi30k_de_en.py:few')).data
  pairs = list(pipeline.examples(few, 'train'))
  assert [pair['source'] for pair in pairs] == [f'train de {i}' for i in range(5, 2905)]
  assert list(pipeline.examples(few, 'val'))[1] == {'source': 'val de 1', 'target': 'val en 1'}
