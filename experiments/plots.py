"""Plots several runs in one figure.

  python experiments/plots.py seconds eval/validation/bleu OUT.png WORKDIR...
  python experiments/plots.py lengths SET OUT.png WORKDIR...

`seconds` plots a metric against the seconds of training, without evaluations. `lengths` plots the
fraction of exact matches in a set against the characters of the input, from the newest predictions
in each workdir. The folder name of a run is its label. Needs matplotlib
(`pip install -e '.[eval]'`).
"""

import collections
import json
import pathlib
import sys

BIN = 20  # characters


def seconds(workdir, metric):
  """Returns [(seconds of training, value)] of a metric, in the order of steps."""
  found, spent, last = [], 0.0, 0
  for line in (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    if 'train/step_seconds' in row:
      spent += (row['step'] - last) * row['train/step_seconds']
      last = row['step']
    if metric in row:
      found.append((spent, row[metric]))
  return found


def lengths(workdir, name):
  """Returns [(characters, exact-match fraction, count)] of a set, by bins of BIN characters."""
  files = (pathlib.Path(workdir) / 'predictions').glob(f'{name}-*.jsonl')
  newest = max(files, key=lambda file: int(file.stem.rpartition('-')[2]))
  bins = collections.defaultdict(list)
  for line in newest.read_text().splitlines():
    row = json.loads(line)
    size = len(''.join(row['inputs']))
    bins[size // BIN].append(row['output'] == row['reference'])
  return [(BIN * (b + 0.5), sum(r) / len(r), len(r)) for b, r in sorted(bins.items())]


def draw(curves, x, y, file):
  """Saves a plot of {name: points}; the first two values of a point are x and y."""
  import matplotlib.figure  # imported here, as the other functions do not need it

  figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout='constrained')
  axes = figure.add_subplot()
  for name, points in curves.items():
    axes.plot([p[0] for p in points], [p[1] for p in points], marker='o', label=name)
  axes.set(xlabel=x, ylabel=y)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(file, dpi=120)


def main(kind, what, out, *workdirs):
  names = [pathlib.Path(workdir).name for workdir in workdirs]
  points = {'seconds': seconds, 'lengths': lengths}[kind]
  curves = {name: points(w, what) for name, w in zip(names, workdirs, strict=True)}
  labels = {
    'seconds': ('seconds of training', what),
    'lengths': ('characters read', 'exactly right'),
  }
  draw(curves, *labels[kind], out)
  print(json.dumps(curves))


if __name__ == '__main__':
  if len(sys.argv) < 5 or sys.argv[1] not in ('seconds', 'lengths'):
    sys.exit(__doc__)
  main(*sys.argv[1:])
