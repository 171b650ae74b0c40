import json
import pathlib
import shutil

import in_process
import jax
import numpy as np
import pytest
import tokenizers

import lm
from lm.errors import UserError
from lm.evaluation import pairs
from lm.pretrained import checkpoint, safetensors
from lm.pretrained.families import family_of

LLAMA = pathlib.Path(__file__).parent / 'checkpoints' / 'llama'
GPT2 = LLAMA.parent / 'gpt2'


@pytest.fixture
def folder(tmp_path):
  """A copy of a tiny Llama, to be damaged."""
  return pathlib.Path(shutil.copytree(LLAMA, tmp_path / 'llama'))


def configured(folder, **changes):
  file = folder / 'config.json'
  config = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in config.items() if v != 'absent'}))


def stored(folder, change):
  """Replaces the tensors of a folder by `change` of them."""
  tensors = {k: t.read() for k, t in safetensors.read_folder(folder).items()}
  safetensors.write_file(folder / 'model.safetensors', change(tensors) or tensors)


def refused(source, workdir, *flags):
  result = in_process.run('convert', 'from_hf', str(source), f'--workdir={workdir}', *flags)
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
  assert not workdir.exists() and not list(workdir.parent.glob('*.tmp'))
  return result.stderr


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'lama'}, "model_type='lama' is not supported (did you mean 'llama'?)"),
    ({'model_type': 'absent'}, 'model_type=None is not supported'),
    ({'hidden_size': 'absent'}, 'hidden_size=None must be a positive integer'),
    ({'num_hidden_layers': 0}, 'num_hidden_layers=0 must be a positive integer'),
    ({'num_hidden_layers': 2**40}, 'must be a positive integer'),
    ({'hidden_size': True}, 'hidden_size=True must be a positive integer'),
    ({'hidden_act': 'geglu'}, "hidden_act='geglu' is not supported"),
    ({'attention_bias': True}, 'missing model.layers.0.self_attn.k_proj.bias'),
    ({'rope_parameters': {'rope_type': 'yarrn'}}, "rope_scaling={'rope_type': 'yarrn'} is not"),
    ({'vocab_size': 20}, 'its tokenizer has 60 tokens, and the embedding has 20 rows'),
    ({'intermediate_size': 32}, 'mlp.gate_proj.weight is (24, 16) and should be (32, 16)'),
    ({'num_hidden_layers': 4}, 'missing model.layers.3.'),
    ({'num_hidden_layers': 2}, 'unexpected model.layers.2.'),
    (
      {'tie_word_embeddings': True},
      'lm_head.weight differs from model.embed_tokens.weight, to which it is tied',
    ),
  ],
)
def test_configs_that_do_not_fit_are_refused(changes, message, folder, tmp_path):
  configured(folder, **changes)
  assert message in refused(folder, tmp_path / 'run')


def renamed(tensors):
  tensors['model.layers.0.mlp.gate_prj.weight'] = tensors.pop('model.layers.0.mlp.gate_proj.weight')


def test_wrong_names_are_listed_with_the_nearest(folder, tmp_path):
  stored(folder, renamed)
  line = refused(folder, tmp_path / 'run')
  name = 'model.layers.0.mlp.gate_{}.weight'
  assert f"missing {name.format('proj')} (24, 16) (did you mean '{name.format('prj')}'?)" in line
  assert f"unexpected {name.format('prj')} (24, 16) (did you mean '{name.format('proj')}'?)" in line


def test_names_that_no_terminal_shows_are_quoted(folder, tmp_path):
  stored(folder, lambda tensors: tensors | {'a\n\x1b[2Jb': np.ones(3, np.float32)})
  assert r"unexpected 'a\n\x1b[2Jb' (3,)" in refused(folder, tmp_path / 'run')


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_missing_and_damaged_files_are_named(name, folder, tmp_path):
  content = (folder / name).read_bytes()
  (folder / name).write_bytes(content[: len(content) // 2])
  assert name in refused(folder, tmp_path / 'run')
  (folder / name).unlink()
  assert name in refused(folder, tmp_path / 'run')


@pytest.mark.parametrize('name', ['tokenizer.json', 'model.safetensors', 'generation_config.json'])
def test_links_out_of_the_folder_are_refused(name, folder, tmp_path):
  (folder / name).rename(tmp_path / name)
  (folder / name).symlink_to(tmp_path / name)
  assert f'{name} is a link to {tmp_path / name}, which is not' in refused(folder, tmp_path / 'run')


def test_links_of_the_cache_of_downloads_are_followed(folder, tmp_path):
  """The cache has snapshots/COMMIT/NAME -> ../../blobs/DIGEST."""
  snapshot = tmp_path / 'models--tiny--llama' / 'snapshots' / '0123'
  blobs = snapshot.parents[1] / 'blobs'
  for each in (snapshot, blobs):
    each.mkdir(parents=True)
  for file in folder.iterdir():
    file.rename(blobs / f'blob-{file.name}')
    (snapshot / file.name).symlink_to(f'../../blobs/blob-{file.name}')
  assert checkpoint.open_source(snapshot).shapes


def test_a_buffer_of_another_value_is_refused(tmp_path):
  """The causal mask that old GPT-2 files hold is checked and comes back."""
  folder = pathlib.Path(shutil.copytree(GPT2, tmp_path / 'gpt2'))
  mask = np.tril(np.ones((24, 24), np.uint8))[None, None]

  def with_mask(value):
    return lambda tensors: (
      {f'h.{i}.attn.bias': value for i in range(3)}
      | {k.removeprefix('transformer.'): x for k, x in tensors.items()}
    )

  plain = {k: t.read() for k, t in safetensors.read_folder(folder).items()}
  safetensors.write_file(folder / 'model.safetensors', with_mask(mask)(plain))
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  before, after = (safetensors.read_folder(each) for each in (folder, tmp_path / 'out'))
  assert list(before) == list(after)
  assert all(t.read().tobytes() == after[k].read().tobytes() for k, t in before.items())
  safetensors.write_file(folder / 'model.safetensors', with_mask(1 - mask)(plain))
  assert 'attn.bias differs from the config' in refused(folder, tmp_path / 'other')


def test_a_buffer_in_half_precision_is_the_rounded_one(tmp_path):
  """PEGASUS stores its table of sines in the dtype of the parameters."""
  folder = pathlib.Path(shutil.copytree(LLAMA.parent / 'pegasus', tmp_path / 'pegasus'))
  plain = {k: t.read() for k, t in safetensors.read_folder(folder).items()}
  table = 'model.encoder.embed_positions.weight'
  model = family_of(json.loads((folder / 'config.json').read_text()))
  sines = np.asarray(model.buffers(table))
  half = {k: x.astype(np.float16) for k, x in (plain | {table: sines}).items()}
  safetensors.write_file(folder / 'model.safetensors', half)
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  checkpoint.export_run(tmp_path / 'run', tmp_path / 'out')
  found = safetensors.read_folder(tmp_path / 'out')[table].read()
  assert found.tobytes() == half[table].tobytes()
  wrong = half | {table: half[table] + np.float16(0.01)}
  safetensors.write_file(folder / 'model.safetensors', wrong)
  assert 'embed_positions.weight differs from the config' in refused(folder, tmp_path / 'other')


def test_a_full_workdir_and_a_full_output_are_refused(folder, tmp_path):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'note').touch()
  result = in_process.run('convert', 'from_hf', str(folder), f'--workdir={tmp_path / "full"}')
  assert result.returncode == 2 and 'is not empty' in result.stderr
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  flags = [f'--workdir={tmp_path / "run"}', f'--out={tmp_path / "full"}']
  result = in_process.run('convert', 'to_hf', *flags)
  assert result.returncode == 2 and 'is not empty' in result.stderr
  result = in_process.run('convert', 'to_hf', flags[0], f'--out={tmp_path / "out"}', '--step=7')
  assert result.returncode == 2 and 'has checkpoints at 0' in result.stderr
  assert [p.name for p in (tmp_path / 'full').iterdir()] == ['note']


def test_a_trained_run_of_no_import_is_refused(tmp_path):
  result = in_process.run('convert', 'to_hf', f'--workdir={tmp_path}', f'--out={tmp_path / "out"}')
  assert result.returncode == 2 and 'config.json is missing' in result.stderr


def test_all_programs_work_on_an_imported_run(folder, tmp_path):
  workdir = f'--workdir={tmp_path / "run"}'
  result = in_process.run('convert', 'from_hf', str(folder), workdir)
  assert result.returncode == 0 and 'llama, 7,' in result.stdout, result.stderr
  result = in_process.run('generate', workdir, '--prompt=!"#', '--max_tokens=4')
  assert result.returncode == 0 and result.stdout.startswith('!"#')


def test_texts_begin_as_the_tokenizer_of_the_checkpoint_says(folder, tmp_path):
  file, first = folder / 'tokenizer.json', 7  # another token than that of the end
  tokenizer = tokenizers.Tokenizer.from_file(str(file))
  name = tokenizer.id_to_token(first)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single=[name, '$A'], special_tokens=[(name, first)]
  )
  tokenizer.save(str(file))
  checkpoint.import_checkpoint(folder, tmp_path / 'run')
  run = lm.load(tmp_path / 'run')
  ids = tokenizer.encode('ABC').ids
  assert ids[0] == first
  for _ in range(5):
    ids.append(int(np.argmax(run.logits(np.array([ids]))[0, -1])))
  assert run.generate(['ABC'], 5) == [tokenizer.decode(ids[4:])]
  pair = pairs.Pair('uid', 'term', 'ABC', 'ABD', '')
  nats = jax.nn.log_softmax(run.logits(np.array([ids[:4]]))[0])
  (scored,) = pairs.score_pairs(run, [pair])
  assert scored.good.tokens == 3
  assert scored.good.nats == pytest.approx(
    sum(float(nats[i, ids[i + 1]]) for i in range(3)), abs=1e-4
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), 'required: from_hf|to_hf'),
    (('frm_hf',), "invalid choice: 'frm_hf'"),
    (('from_hf', 'nowhere'), 'required: --workdir'),
    (('from_hf', 'nowhere', '--workdir=x'), 'nowhere: no such folder'),
    (('to_hf', '--workdir=x', '--out=y', '--step=last'), "invalid int value: 'last'"),
  ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, message):
  result = in_process.run('convert', *arguments)
  assert result.returncode == 2 and len(result.stderr.splitlines()) == 1, result.stderr
  assert message in result.stderr


def test_the_best_checkpoint_is_exported_unless_a_step_is_named(folder, tmp_path, monkeypatch):
  run = tmp_path / 'run'
  checkpoint.import_checkpoint(folder, run)
  monkeypatch.setattr(checkpoint.Checkpoints, 'steps', lambda self: [3, 7])
  read, leaves, tensor = [], checkpoint.Checkpoints.leaves, checkpoint.Checkpoints.restore_subset
  monkeypatch.setattr(
    checkpoint.Checkpoints,
    'leaves',
    lambda self, step, item: read.append(step) or leaves(self, 0, item),
  )
  monkeypatch.setattr(
    checkpoint.Checkpoints, 'restore_subset', lambda self, step, wanted: tensor(self, 0, wanted)
  )
  (run / 'metrics.json').write_text('{"eval/validation/loss": false}')
  lines = [{'step': step, 'eval/validation/loss': loss} for step, loss in ((3, 1.0), (7, 2.0))]
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert 'step 3, the best by' in checkpoint.export_run(run, tmp_path / 'best')
  checkpoint.export_run(run, tmp_path / 'named', 7)
  monkeypatch.setattr(checkpoint.Checkpoints, 'steps', lambda self: [])
  with pytest.raises(UserError, match='no checkpoint there'):
    checkpoint.export_run(run, tmp_path / 'none')
  assert read == [3, 7]
