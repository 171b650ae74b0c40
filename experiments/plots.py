"""Runs beside each other, as a picture.

  python experiments/plots.py seconds eval/validation/bleu OUT.png WORKDIR...
  python experiments/plots.py lengths SET OUT.png WORKDIR...

`seconds` draws a metric against the seconds of training that it took (evaluations not counted),
`lengths` the share of outputs of a set that are exactly right against the characters that were
read, of the newest predictions that a run has kept. A run goes by the name of its folder. Needs
matplotlib (`pip install -e '.[eval]'`).
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
  """Returns [(characters, share that is right, how many)] of a set, by bins of BIN characters."""
  files = (pathlib.Path(workdir) / 'predictions').glob(f'{name}-*.jsonl')
  newest = max(files, key=lambda file: int(file.stem.rpartition('-')[2]))
  bins = collections.defaultdict(list)
  for line in newest.read_text().splitlines():
    row = json.loads(line)
    size = len(''.join(row['inputs']))
    bins[size // BIN].append(row['output'] == row['reference'])
  return [(BIN * (b + 0.5), sum(r) / len(r), len(r)) for b, r in sorted(bins.items())]


def draw(curves, x, y, file):
  """Writes a picture of {name: points}, whose first two numbers are drawn."""
  import matplotlib.figure  # here, for the figures alone need no picture

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
