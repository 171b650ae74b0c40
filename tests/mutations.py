"""Mutations: faults put into `lm` one at a time, each of which some test must catch.

  python tests/mutations.py [NAME ...] [--all]

Run by hand; pytest does not collect it. A change of the test suite loses nothing that is checked
here. Each fault is made in a temporary copy of the checkout, and the tests named with it run there
until one fails. With --all, a fault that they miss meets their slow tests and the default suite.
A line says which test caught it, or SURVIVED; the last lines are a table for a note. At the end the
tests that failed must pass on the code as it is. Exits 1 where a fault survives or one of these
fails, 2 where the text to replace does not stand exactly once in its file.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIMIT = 1800  # seconds for one call of pytest; a fault may make a loop endless

# (name, file, text that stands there once, text in its place, test modules to run first).
# fmt: off
MUTATIONS = [
  # Gradients and losses.
  ('gradient-sign', 'lm/nn/losses.py', ', _masked_sum(d_BtV, targets_Bt)',
   ', -_masked_sum(d_BtV, targets_Bt)', 'nn/test_losses.py'),
  ('gradient-cotangent', 'lm/nn/losses.py', 'scale, _ = cotangents',
   'scale = jnp.ones(())', 'nn/test_losses.py'),
  ('loss-of-padding', 'lm/nn/losses.py', 'jnp.sum(weights_Bt * (log_z_Bt - picked_Bt))',
   'jnp.sum(log_z_Bt - picked_Bt)', 'nn/test_losses.py'),
  ('label-smoothing', 'lm/nn/losses.py', '(picked_Bt - unembed.mean(',
   '(log_z_Bt - unembed.mean(', 'nn/test_losses.py'),
  ('softplus-gradient', 'lm/nn/losses.py', 't * jax.nn.sigmoid(x)',
   't * jax.nn.sigmoid(-x)', 'objectives/test_word2vec.py'),
  ('window-sum-gradient', 'lm/objectives/word2vec.py',
   '((left_BS, reach + d), (right_BS, reach - d))',
   '((left_BS, reach - d), (right_BS, reach + d))', 'objectives/test_windows.py'),
  ('recurrent-gradient', 'lm/nn/recurrent.py', 'inputs[name], errors[name])',
   'inputs[name][1:], errors[name][:-1])', 'nn/test_recurrent.py'),
  # Attention, masks and positions.
  ('causal-leak', 'lm/types.py', 'allowed = k_BxS <= q_BTx',
   'allowed = k_BxS <= q_BTx + 1', 'models/test_visibility.py'),
  ('segment-leak', 'lm/types.py', 'same = self.q_segments[:, :, None] == ',
   'same = self.q_segments[:, :, None] >= ', 'models/test_visibility.py'),
  ('window-leak', 'lm/types.py', 'near = q_BTx - k_BxS < self.window',
   'near = q_BTx - k_BxS <= self.window', 'models/test_visibility.py'),
  ('prefix-leak', 'lm/types.py', 'self.k_prefix[:, None, :] > 0',
   'self.k_prefix[:, None, :] >= 0', 'models/test_prefix.py'),
  ('source-padding-leak', 'lm/models/transformer.py',
   "      batch['segments'],\n      cached['source_segments'],\n", '      None,\n      None,\n',
   'models/test_encoder_decoder.py'),
  ('recurrent-source-leak', 'lm/models/recurrent.py', '(rows[:, :, None] == source',
   '(rows[:, :, None] >= source', 'models/test_recurrent_models.py'),
  ('block-window', 'lm/nn/attention.py', 'max(0, start - mask.window + 1)',
   'max(0, start - mask.window + 2)', 'nn/test_attention.py'),
  ('rotary-sign', 'lm/nn/position.py', 'second * cos + first * sin',
   'second * cos - first * sin', 'nn/test_position.py'),
  ('rotary-angle', 'lm/nn/position.py', 'jnp.float32) / width)',
   'jnp.float32) / (width + 2))', 'nn/test_position.py'),
  ('relative-direction', 'lm/nn/position.py', 'jnp.where(back_BTS < 0, count, 0)',
   'jnp.where(back_BTS > 0, count, 0)', 'nn/test_position.py'),
  # Layers and models.
  ('norm-epsilon', 'lm/nn/layers.py', 'rsqrt(variance + epsilon)', 'rsqrt(variance)',
   'nn/test_norm.py'),
  ('norm-variance', 'lm/nn/layers.py', 'jnp.square(centered).mean', 'jnp.square(x32).mean',
   'nn/test_norm.py'),
  ('dropout-scale', 'lm/nn/layers.py', 'x / (1 - rate), jnp.zeros_like(x)',
   'x, jnp.zeros_like(x)', 'nn/test_layers.py'),
  ('dropout-of-layers', 'lm/models/transformer.py', "'dropout': True}", "'dropout': False}",
   'models/test_transformer.py'),
  ('gru-update', 'lm/nn/recurrent.py', '(1 - update) * candidate + update * h_BD',
   'update * candidate + (1 - update) * h_BD', 'nn/test_recurrent.py'),
  ('lstm-forget', 'lm/nn/recurrent.py', 'sigmoid(f + forget_bias)', 'sigmoid(f - forget_bias)',
   'nn/test_recurrent.py'),
  ('recurrent-padding', 'lm/nn/recurrent.py', '(segments_BT > 0), segments_BT == 0)',
   '(segments_BT > 0), segments_BT < 0)', 'nn/test_recurrent.py models/test_recurrent_models.py'),
  ('pooling-mean', 'lm/nn/pooling.py', 'jnp.maximum(of_BTP.sum(1, keepdims=True), 1)',
   'of_BTP.shape[1]', 'nn/test_pooling.py'),
  ('cache-lengths', 'lm/nn/kv_cache.py', '(segments_BT > 0).sum(1, dtype=jnp.int32)',
   'segments_BT.shape[1]',
   'models/test_cached_decoding.py'),
  ('decode-position', 'lm/decode/loop.py', 'positions=state.positions + 1, cache',
   'positions=state.positions, cache', 'decode/test_stream.py'),
  ('flops-of-a-token', 'lm/models/transformer.py', '+ 12 * layers *', '+ 6 * layers *',
   'models/test_transformer.py'),
  # Objectives of word vectors.
  ('negatives-power', 'lm/objectives/word2vec.py', 'astype(np.float64) ** power',
   'astype(np.float64)', 'objectives/test_word2vec.py'),
  ('subsampling', 'lm/objectives/word2vec.py', 'np.sqrt(ratio_V) + ratio_V)', 'np.sqrt(ratio_V))',
   'objectives/test_word2vec.py'),
  ('glove-weight', 'lm/objectives/glove.py', '(1, count_BT / x_max) ** power',
   '(1, count_BT / x_max)', 'test_article.py'),
  ('pair-direction', 'lm/data/cooccurrence.py', 'concatenate([counts, counts])',
   'concatenate([counts, 0 * counts])', 'data/test_cooccurrence.py'),
  # Optimizers and steps.
  ('clip-left-out', 'lm/optim/wrappers.py', 'optax.chain(clip_by_norm(clip_norm), direction, ',
   'optax.chain(direction, ', 'test_optim.py'),
  ('decay-of-biases', 'lm/optim/wrappers.py',
   "mask=lambda params: path_mask(params, pattern, 'weight_decay_mask')", 'mask=None',
   'test_optim.py'),
  ('warmup', 'lm/optim/optimizers.py', 'peak * (step + 1) / max', 'peak * step / max',
   'test_optim.py'),
  ('layer-decay', 'lm/optim/wrappers.py', 'below = (below - layer_N)',
   'below = (below - layer_N - 1)', 'test_optim.py'),
  ('thaw', 'lm/optim/wrappers.py', 'state.updates >= until', 'state.updates > until',
   'test_optim.py'),
  ('accumulation-weight', 'lm/training/train_step.py', 'weights.get(name, microbatches) for',
   "jnp.maximum(objective.normalizers(part)[name], 1e-8) / microbatches for",
   'training/test_train_step.py'),
  ('accumulation-key', 'lm/training/train_step.py', 'part_key(key, i)', 'key',
   'training/test_train_step.py'),
  ('step-key', 'lm/training/train_step.py',
   'key = jax.random.fold_in(jax.random.key(seed), state.step)',
   'key = jax.random.key(seed)', 'training/test_train_step.py'),
  # Data.
  ('packing-cut', 'lm/data/packing.py', "part_begins, side='right')", "part_begins, side='left')",
   'data/test_packing.py'),
  ('packing-room', 'lm/data/packing.py', 'each * (len(used) - 1)', 'each * len(used)',
   'data/test_packing.py'),
  ('input-is-target', 'lm/data/packed_rows.py', 'self.stream[token_index - 1]',
   'self.stream[token_index]',
   'data/test_packed_rows.py'),
  ('order-seed', 'lm/data/packed_rows.py', 'default_rng((seed, epoch))', 'default_rng(epoch)',
   'data/test_batches.py'),
  ('mixture-index', 'lm/data/mixture.py', 'before, nth - before', 'before, nth',
   'data/test_mixture.py'),
  ('mixture-transforms', 'lm/data/mixture.py', '(_own_seed(keys[b][0], name), keys[b][1], n)',
   '(*keys[b],)', 'data/test_mixture.py'),
  ('mixture-prefix', 'lm/data/mixture.py', "_ZEROS = ('prefix',)", '_ZEROS = ()',
   'data/test_mixture.py'),
  ('tokenizer-alpha', 'lm/data/pipeline.py', 'size**self.alpha', 'size', 'data/test_mixture.py'),
  ('set-component', 'lm/evaluation/sets.py',
   "data = pipeline.component(config.data, section.get('component', ''))", 'data = config.data',
   'evaluation/test_predict.py'),
  ('set-of-transform', 'lm/data/batches.py', '(of_set, int(index))', '(0, int(index))',
   'data/test_batches.py'),
  ('init-row', 'lm/components.py', 'shapes = row or', 'shapes =', 'training/test_startup.py'),
  ('evaluation-padding', 'lm/data/batches.py', 'indices >= len(rows)', 'indices > len(rows)',
   'data/test_batches.py'),
  ('plan-key', 'lm/data/pipeline.py', "for key in ('seq_len', 'source_len')}\n  if",
   "for key in ('source_len',)}\n  if", 'data/test_pipeline.py'),
  ('feature-key', 'lm/data/pipeline.py', '_task_fingerprint(data, _TASK)',
   "_task_fingerprint(data, ('task', 'converter'))", 'data/test_features.py data/test_pipeline.py'),
  ('pairs-key', 'lm/data/cooccurrence.py', "tokens.name, 'seed': seed}", 'tokens.name}',
   'data/test_pair_rows.py'),
  ('truncation', 'lm/data/features.py', 'kept = slice(limit)', 'kept = slice(-limit, None)',
   'data/test_features.py'),
  ('special-in-text', 'lm/text/tokenizers.py', 'reader.encode_special_tokens = True',
   'reader.encode_special_tokens = False', 'text/test_special_text.py data/test_pipeline.py'),
  ('end-of-document', 'lm/text/tokenizers.py', "  '</s>',\n", '', 'text/test_tokenizers.py'),
  ('subword-alpha', 'lm/text/subword_sampling.py', 'alpha * score', 'score',
   'text/test_subword_sampling.py'),
  ('first-label', 'lm/tasks/classification.py', 'if first is not None:', 'if first:',
   'tasks/test_classification.py'),
  ('window-weights', 'lm/tasks/classification.py',
   "weights=[len(piece['tokens/inputs']) for piece in pieces]", 'weights=None',
   'evaluation/test_trained_model.py'),
  ('first-prompt', 'lm/evaluation/trained_model.py', 'range(first, first + len(prompts))',
   'range(len(prompts))', 'evaluation/test_trained_model.py'),
  ('ngram-opening', 'lm/objectives/ngram.py', 'np.where(opening, occurrences, before)', 'before',
   'objectives/test_ngram.py'),
  ('ngram-document', 'lm/objectives/ngram.py', 'np.flatnonzero(room >= n)',
   'np.arange(len(stream) - n + 1)', 'objectives/test_ngram.py'),
  ('ngram-interpolation', 'lm/models/ngram.py', '].add(tables.added', '].set(tables.added',
   'objectives/test_ngram.py'),
  ('pair-tie', 'lm/evaluation/pairs.py', '<= _TIE', '< 0', 'evaluation/test_pairs.py'),
  ('pair-special-tokens', 'lm/evaluation/pairs.py', 'np.flatnonzero(found.text >= 0)',
   'range(len(found.text))', 'evaluation/test_pairs.py'),
  ('temperature-search', 'lm/evaluation/calibration.py',
   'if nll(high - step) < nll(low + step):', 'if nll(high - step) > nll(low + step):',
   'metrics/test_labels.py'),
  ('calibration-sign', 'lm/metrics/labels.py', 'correct - p_best, bins', 'correct * p_best, bins',
   'metrics/test_labels.py'),
  ('target-weights', 'lm/tasks/seq2seq.py', '[len(prompt) - 1, len(target)]',
   '[len(prompt), len(target) - 1]', 'tasks/test_seq2seq.py'),
  ('validation-in-training', 'lm/data/sources/base.py', "(0, cut) if split == 'train'",
   "(0, count) if split == 'train'", 'data/sources/test_splits.py'),
  # Decoding.
  ('sampler-seed', 'lm/decode/sampling.py', 'jax.random.categorical(key, logits_V)',
   'jax.random.categorical(jax.random.key(0), logits_V)', 'decode/test_sampling.py'),
  ('sampler-position', 'lm/decode/loop.py', '(state.keys, state.positions)',
   '(state.keys, 0 * state.positions)', 'decode/test_decode_loop.py decode/test_stream.py'),
  ('top-p', 'lm/decode/sampling.py', '(before_V < p)', '(jnp.roll(before_V, 1) < p)',
   'decode/test_sampling.py'),
  ('length-penalty', 'lm/decode/beam.py', '((5 + length) / 6)', '((6 + length) / 6)',
   'decode/test_beam.py'),
  ('beam-stop', 'lm/decode/beam.py', 'finished.scores[:, config.n_best - 1]',
   'finished.scores[:, 0]',
   'decode/test_beam.py'),
  ('repeated-ngram', 'lm/decode/sampling.py', '(jnp.arange(L) >= n - 1)',
   '(jnp.arange(L) >= n)', 'decode/test_logits_processors.py'),
  # Metrics.
  ('accuracy-of-padding', 'lm/metrics/tokens.py', 'jnp.sum(weights * value), ',
   'jnp.sum(value), ', 'metrics/test_tokens.py'),
  ('bits-per-byte', 'lm/metrics/tokens.py', "sums['loss'][0] / math.log(2)", "sums['loss'][0]",
   'metrics/test_tokens.py'),
  ('f1-denominator', 'lm/metrics/labels.py', '2 * correct[k] / (predicted[k] + actual[k])',
   'correct[k] / max(1, actual[k])', 'metrics/test_labels.py'),
  ('bleu-of-chinese', 'lm/metrics/translation.py', "('zh', 'zho', 'cmn', 'yue'), 'zh')",
   "('zh', 'zho', 'cmn', 'yue'), '13a')", 'metrics/test_translation.py'),
  ('entity-type', 'lm/metrics/spans.py', " in 'BI' and kind == last_kind", " in 'BI'",
   'metrics/test_entities.py'),
  # Runs: checkpoints, resuming, stopping, records, processes.
  ('resume-optimizer', 'lm/workdir/checkpoints.py', "items |= items.pop('training')",
   "items |= jax.tree.map(lambda x: x * (x.ndim == 0), items.pop('training'))",
   'workdir/test_checkpoints.py'),
  ('resume-skipped', 'lm/workdir/checkpoints.py', "    del items['stopping']\n",
   "    del items['stopping']\n    items['skipped'] *= 0\n",
   'workdir/test_checkpoints.py'),
  ('resume-stopping', 'lm/workdir/checkpoints.py', 'abstract.replace(frozen={})), stopping',
   'abstract.replace(frozen={})), None',
   'workdir/test_checkpoints.py'),
  ('kept-best', 'lm/workdir/checkpoints.py', 'sorted((scores[s], s)', 'sorted((-scores[s], s)',
   'workdir/test_checkpoints.py'),
  ('kept-newest', 'lm/workdir/checkpoints.py', 'set(steps[-last:])', 'set(steps[:last])',
   'workdir/test_checkpoints.py'),
  ('patience', 'lm/training/early_stopping.py', 'seen.since >= config', 'seen.since > config',
   'training/test_early_stopping.py'),
  ('exit-code', 'lm/cli.py', '0, 1, 2, 75, multihost', '0, 1, 2, 1, multihost',
   'test_cli.py'),
  ('first-process', 'lm/parallel/multihost.py',
   '_group.process == 0', '_group.process >= 0',
   'parallel/test_multihost.py'),
  ('fsync-of-files', 'lm/text/files.py', '      os.fsync(file.fileno())\n', '',
   'text/test_vector_files.py'),
  ('fsync-of-cache', 'lm/data/cache.py', '      _sync(file)\n', '      pass\n',
   'data/test_cache.py'),
  ('fsync-of-record', 'lm/workdir/metrics_writer.py', '_forgive(os.fsync, self._file)', 'pass',
   'workdir/test_metrics_writer.py'),
  ('html-escape', 'lm/report/html.py', 'return html.escape(shown)', 'return shown',
   'report/test_report.py'),
  ('analogy-of-itself', 'lm/text/vectors.py', 'own_Q[inside]] = -np.inf',
   'own_Q[inside]] += 0', 'text/test_vectors.py'),
  ('least-risk', 'lm/decode/mbr.py', 'text: own - 1 if others else 1', 'text: own',
   'decode/test_mbr.py'),
  ('table-rows', 'lm/training/sparse_step.py', "mode='drop')", "mode='clip')",
   'training/test_sparse_step.py'),
  ('bytes-sent', 'lm/preflight/hlo.py', "'all-reduce': 2 * share",
   "'all-reduce': share", 'preflight/test_hlo.py'),
  ('retry-policy', 'tpu_scripts/policy.py', 'return 1 if newer else history.failures + 1',
   'return history.failures + 1', 'tpu_scripts/test_babysit.py'),
  # Pretrained encoder-decoders.
  ('t5-attention-scale', 'lm/pretrained/encoder_decoders.py', "Attention', scale=1.0)",
   "Attention', scale=None)", 'pretrained/test_encoder_decoder_parity.py'),
  ('cross-keys-as-values', 'lm/pretrained/layout.py', "(f'{k}.weight', f'{v}.weight')",
   "(f'{v}.weight', f'{k}.weight')", 'pretrained/test_encoder_decoder_parity.py'),
  ('forbidden-tokens', 'lm/evaluation/predict.py', '(tokenizer), *forbidden, *processors)',
   '(tokenizer), *processors)', 'pretrained/test_encoder_decoder_parity.py'),
  ('decoder-start', 'lm/tasks/seq2seq.py', 'if start is None else start',
   'if True else start', 'tasks/test_seq2seq.py'),
  # Framing of texts for imported encoders.
  ('truncation-of-pairs', 'lm/text/framing.py', 'free // (len(places) - k)', 'free // len(places)',
   'text/test_framing.py'),
  ('types-of-template', 'lm/text/framing.py', 'np.array(joined.type_ids, int)',
   'np.zeros(len(joined.ids), int)', 'text/test_framing.py'),
  # Seams of experiments.
  ('layer-index', 'lm/models/transformer.py', 'first + i', 'first', 'models/test_transformer.py'),
  ('edit-of-a-layer', 'lm/nn/hooks.py', 'layer == int(only)', 'layer >= int(only) - 1',
   'models/test_hooks.py'),
  ('callback-interval', 'lm/training/trainer.py', 'step % call.every == 0', 'step >= call.every',
   'training/test_trainer.py'),
  ('sampler-of-a-path', 'lm/evaluation/predict.py', 'sampler or sampling.greedy', 'sampling.greedy',
   'test_defaults_of_programs.py'),
  ('ref-of-another', 'lm/config/resolve.py', 'is not fn and found is not fn', 'is None',
   'test_resolve.py'),
  # Trust.
  ('trust-lists', 'lm/config/trust.py', 'not _is_listed(module) or not name', 'not name',
   'test_trust.py'),
  ('trust-definer', 'lm/config/trust.py', 'if not _is_listed(resolve.defining_module(fn)):',
   'if False:', 'test_trust.py'),
  ('trust-source', 'lm/workdir/load.py', 'if not self.trusted:', 'if False:', 'test_trust.py'),
  ('trust-links', 'lm/workdir/files.py', '  if not inside:', '  if False:', 'test_trust.py'),
  ('standard-library', 'lm/config/resolve.py',
   '  _refuse_standard(defining_module(fn), path, key)\n', '', 'test_resolve.py'),
]
# fmt: on


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help='mutations; all unless given')
  parser.add_argument('--all', action='store_true', help='what survives meets the whole suite')
  args = parser.parse_args(argv)
  known = [name for name, *_ in MUTATIONS]
  if unknown := set(args.names) - set(known):
    parser.error(f'no mutation {", ".join(unknown)}; there are {", ".join(known)}')
  if wrong := stale():
    print(*wrong, sep='\n', file=sys.stderr)
    return 2
  with tempfile.TemporaryDirectory() as scratch:
    copy = checkout(pathlib.Path(scratch))
    caught = {}
    for name, file, old, new, modules in MUTATIONS:
      if not args.names or name in args.names:
        caught[name] = file, tried(copy, file, old, new, modules.split(), args.all)
        print(f'{name:24} {caught[name][1] or "SURVIVED"}', flush=True)
    tests = sorted({test for _, test in caught.values() if test})
    wrong = failed(copy, tests, '-m', '') if tests else ''
  print('\n| mutation | file | caught by |\n|---|---|---|')
  for name, (file, test) in caught.items():
    print(f'| {name} | {file} | {test or "SURVIVED"} |')
  if wrong:
    print(f'{wrong} fails on the unchanged code too')
  return int(bool(wrong) or not all(test for _, test in caught.values()))


def stale() -> list[str]:
  """Returns a line for each mutation whose text does not stand exactly once in its file."""
  counts = [(name, file, (ROOT / file).read_text().count(old)) for name, file, old, *_ in MUTATIONS]
  return [f'{name}: the text stands {n} times in {file}' for name, file, n in counts if n != 1]


def checkout(scratch: pathlib.Path) -> pathlib.Path:
  """Returns a copy of the checkout, as a git repository, with what is not committed yet."""
  copy = scratch / 'lm'
  subprocess.run(['git', 'clone', '-q', ROOT, copy], check=True)
  command = ['git', 'ls-files', '-z', '-m', '-d', '-o', '--exclude-standard']
  changed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
  for name in filter(None, changed.split('\0')):
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    if (ROOT / name).exists():
      shutil.copy(ROOT / name, copy / name)
    else:
      (copy / name).unlink(missing_ok=True)
  return copy


def tried(
  copy: pathlib.Path, file: str, old: str, new: str, modules: list[str], everything: bool
) -> str:
  """Returns the first test that fails with a text replaced in a file of the copy, or ''."""
  original = (copy / file).read_text()
  named = [f'tests/{module}' for module in modules]
  try:
    write(copy / file, original.replace(old, new))
    found = failed(copy, named)
    if everything and not found:
      found = failed(copy, named, '-m', 'slow') or failed(copy, ['tests'])
    return found
  finally:
    write(copy / file, original)


def write(file: pathlib.Path, text: str) -> None:
  file.write_text(text)
  # Python takes bytecode for that of a file of the same size and second.
  pathlib.Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def failed(copy: pathlib.Path, tests: list[str], *options: str) -> str:
  """Returns the first test that fails, by its id, or ''."""
  environment = os.environ | {
    'PYTHONPATH': str(copy),
    'JAX_COMPILATION_CACHE_DIR': str(copy.parent / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  environment.pop('LM_CACHE', None)  # what a fault has prepared is for no other run
  command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *options, *tests]
  done = subprocess.run(
    command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT
  )
  if done.returncode in (0, 5):  # 5: no test is selected
    return ''
  found = re.search(r'^(?:FAILED|ERROR) (.*?)(?: - .*)?$', done.stdout, re.MULTILINE)
  if found is None:
    raise RuntimeError(f'{" ".join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}')
  return found[1]


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
