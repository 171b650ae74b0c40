'use strict';
const dom = {
  html: (tag, parent, name = '', text = '') => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.textContent = text;
    return parent.appendChild(node);
  },
  svg: (tag, parent, attributes = {}, text = '') => {
    const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    node.textContent = text;
    return parent.appendChild(node);
  },
  // Returns the data that the page embeds with an id; null if there is none.
  data: (name) => {
    const source = document.getElementById(name);
    return source && JSON.parse(source.textContent);
  },
};
// The curves.
(() => {
  const groups = dom.data('data');
  if (!groups) return;
  const root = document.getElementById('charts');
  const logarithmic = document.getElementById('logarithmic');
  const smoothing = document.getElementById('smoothing');
  const MARGIN = {left: 54, right: 10, top: 8, bottom: 24};

  const {html, svg} = dom;

  const steps = (x) => x.toLocaleString('en-US');
  const number = (y) => {
    const size = Math.abs(y);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return y.toExponential(2);
    return size >= 1e4 ? Math.round(y).toLocaleString('en-US') : String(+y.toPrecision(4));
  };
  const short = (y) => {
    const size = Math.abs(y);
    for (const [factor, prefix] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']])
      if (size >= factor) return +(y / factor).toPrecision(4) + prefix;
    const plain = String(+y.toPrecision(4));
    return size < 1e-2 && plain.length > 6 ? (+y.toPrecision(3)).toExponential() : plain;
  };
  const dashes = ['', ' dashed', ' dotted'];
  const style = (index) => 'line' + index % 3 + dashes[Math.floor(index / 3) % 3];

  // Round ticks: 1, 2 or 5 times a power of ten.
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const width = [1, 2, 5, 10].map((m) => m * power).find((w) => w >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / width - 1e-9); i * width <= high + width * 1e-9; i++)
      found.push(+(i * width).toPrecision(12));
    return found;
  };
  // Powers of ten, and also 2 and 5 times these if there are at most two powers.
  const decades = (low, high) => {
    const within = (factors) => {
      const found = [];
      for (let power = 1; power <= high; power *= 10)
        for (const f of factors) if (f * power >= low && f * power <= high) found.push(f * power);
      return found;
    };
    const powers = within([1]);
    return powers.length > 2 ? powers : within([1, 2, 5]);
  };

  // Exponential moving average with bias correction; values that are not finite leave a gap.
  const smooth = (values, rate) => {
    let sum = 0, weight = 0;
    return values.map((y) => {
      if (y === null) return null;
      sum = rate * sum + (1 - rate) * y;
      weight = rate * weight + (1 - rate);
      return sum / weight;
    });
  };

  const path = (x, y, toX, toY) => {
    let text = '', pen = 'M';
    for (let i = 0; i < x.length; i++) {
      if (y[i] === null) { pen = 'M'; continue; }
      text += pen + toX(x[i]).toFixed(1) + ' ' + toY(y[i]).toFixed(1);
      pen = 'L';
    }
    return text;
  };

  const nearest = (x, step) => {
    let low = 0, high = x.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (x[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - x[low - 1] <= x[low] - step ? low - 1 : low;
  };

  const axes = (chart, width, height, scale) => {
    for (const t of ticks(scale.bottom, scale.top, height > 200 ? 6 : 4)) {
      const y = scale.toY(t);
      svg('line', chart, {class: 'rule', x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y});
      svg('text', chart, {x: MARGIN.left - 7, y: y + 4, 'text-anchor': 'end'}, short(t));
    }
    const count = Math.max(2, Math.floor(width / 110));
    const marks = logarithmic.checked ? decades(scale.first, scale.last)
      : ticks(scale.first, scale.last, count);
    for (const t of marks) {
      const x = scale.toX(t), end = x > width - MARGIN.right - 14;
      svg('text', chart, {x: end ? width - 2 : x, y: height - 5,
        'text-anchor': end ? 'end' : 'middle'}, short(t));
    }
  };

  const scales = (lines, width, height) => {
    const xs = lines.flatMap((l) => l.x);
    const ys = lines.flatMap((l) => l.y).filter((y) => y !== null);
    const reduce = (values, pick, start) => values.reduce((a, b) => pick(a, b), start);
    const first = reduce(xs, Math.min, Infinity), last = reduce(xs, Math.max, -Infinity);
    let bottom = reduce(ys, Math.min, Infinity), top = reduce(ys, Math.max, -Infinity);
    if (!ys.length) [bottom, top] = [0, 1];
    const room = (top - bottom) * 0.05 || Math.abs(top) * 0.1 || 1;
    bottom -= bottom >= 0 && bottom < room ? bottom : room;
    top += room;
    const warp = (x) => logarithmic.checked ? Math.log10(Math.max(x, 1)) : x;
    const span = warp(last) - warp(first) || 1, alone = first === last;
    const inner = width - MARGIN.left - MARGIN.right, tall = height - MARGIN.top - MARGIN.bottom;
    return {
      first, last, bottom, top,
      toX: (x) => MARGIN.left + inner * (alone ? 0.5 : (warp(x) - warp(first)) / span),
      toY: (y) => MARGIN.top + tall * (1 - (y - bottom) / (top - bottom)),
      toStep: (px) => {
        const at = warp(first) + span * (px - MARGIN.left) / inner;
        return logarithmic.checked ? 10 ** at : at;
      },
    };
  };

  const strokes = (chart, lines, scale, height) => {
    const rate = +smoothing.value;
    lines.forEach((line, i) => {
      const draw = (kind, y) =>
        svg('path', chart, {class: kind + style(i), d: path(line.x, y, scale.toX, scale.toY)});
      if (line.noisy && rate > 0) draw('raw ', line.y);
      draw('', line.noisy ? smooth(line.y, rate) : line.y);
      // A point between two gaps has no stroke of its own.
      const gap = (k) => line.y[k] === null || line.y[k] === undefined;
      line.x.forEach((x, k) => {
        if (!gap(k) && gap(k - 1) && gap(k + 1))
          svg('circle', chart, {class: style(i), r: 2, cx: scale.toX(x), cy: scale.toY(line.y[k])});
      });
      for (const step of line.bad) {
        const x = scale.toX(step), foot = height - MARGIN.bottom;
        svg('line', chart, {class: 'bad', x1: x, x2: x, y1: foot, y2: foot - 6});
      }
    });
  };

  const point = (cursor, lines, at, scale, height) => {
    const x = scale.toX(at), foot = height - MARGIN.bottom;
    svg('line', cursor, {class: 'cursor', x1: x, x2: x, y1: MARGIN.top, y2: foot});
    lines.forEach((line, i) => {
      const k = nearest(line.x, at);
      if (line.y[k] !== null)
        svg('circle', cursor, {class: 'line' + i % 3, r: 2.8,
          cx: scale.toX(line.x[k]), cy: scale.toY(line.y[k])});
    });
  };

  // The legend also shows values: the last ones, or those at the cursor.
  const readout = (box, {title, lines}) => {
    const head = html('div', box, 'title', title);
    const where = html('span', head);
    const legend = html('div', box, 'legend');
    const readings = lines.map((line, i) => {
      const item = html('span', legend);
      if (lines.length > 1) {
        svg('path', svg('svg', item), {class: style(i), d: 'M0 4h20'});
        item.append(line.name + ' ');
      }
      return html('b', item);
    });
    return (at) => {
      where.textContent = at === null ? '' : 'step ' + steps(at);
      lines.forEach((line, i) => {
        const k = at === null ? line.y.length - 1 : nearest(line.x, at);
        readings[i].textContent = line.y[k] === null ? 'not finite' : number(line.y[k]);
      });
    };
  };

  const panel = (parent, content, height) => {
    const lines = content.lines;
    const box = html('div', parent, 'panel');
    const read = readout(box, content);
    const chart = svg('svg', box);
    // The cursor snaps to the densest line, so that its readings belong to one step.
    const dense = lines.reduce((a, b) => b.x.length > a.x.length ? b : a);
    return () => {
      const width = box.clientWidth, scale = scales(lines, width, height);
      chart.replaceChildren();
      chart.setAttribute('viewBox', `0 0 ${width} ${height}`);
      chart.setAttribute('height', height);
      axes(chart, width, height, scale);
      strokes(chart, lines, scale, height);
      const cursor = svg('g', chart);
      const leave = () => { cursor.replaceChildren(); read(null); };
      chart.onpointerleave = leave;
      chart.onpointermove = (event) => {
        const step = scale.toStep(event.clientX - chart.getBoundingClientRect().left);
        const at = dense.x[nearest(dense.x, step)];
        cursor.replaceChildren();
        point(cursor, lines, at, scale, height);
        read(at);
      };
      leave();
    };
  };

  const draws = [];
  for (const group of groups) {
    const wide = group.title === 'Loss';
    if (!wide) html('h3', root, '', group.title);
    const grid = html('div', root, wide ? 'grid wide' : 'grid');
    for (const one of group.panels) draws.push(panel(grid, one, wide ? 300 : 170));
  }
  const draw = () => {
    smoothing.nextElementSibling.textContent = (+smoothing.value).toFixed(2);
    for (const one of draws) one();
  };
  logarithmic.onchange = smoothing.oninput = draw;
  window.addEventListener('resize', draw);
  draw();
})();
// The order of a set's outputs. The page has more rows than the fixed number that it shows.
(() => {
  const keys = {
    worst: (row) => +row.dataset.rank,
    best: (row) => -row.dataset.rank,
    index: (row) => +row.dataset.index,
  };
  for (const set of document.querySelectorAll('.outputs')) {
    const order = set.querySelector('select');
    const sort = () => {
      const key = keys[order.value];
      for (const body of set.querySelectorAll('tbody')) {
        const rows = [...body.rows].sort((a, b) => key(a) - key(b));
        const shown = rows.filter((row) => !row.hidden).length;
        rows.forEach((row, i) => { row.hidden = i >= shown; });
        body.replaceChildren(...rows);
      }
    };
    order.onchange = sort;
    sort();  // a browser may restore another choice after a reload
  }
})();
// Attention maps with words on both axes; a cell is darker for a larger weight.
(() => {
  const maps = dom.data('attention-data');
  if (!maps) return;
  const {html, svg} = dom;
  const root = document.getElementById('attention');
  const form = root.previousElementSibling;
  const {example: examples, layer: layers, head: heads} = form.elements;
  const GAP = 8, MIN_SIDE = 11, MAX_SIDE = 30;  // pixels: around labels, and of a cell

  const choose = (select, first, count, name) => {
    if (first && count > 1) html('option', select, '', first).value = -1;
    for (let i = 0; i < count; i++) html('option', select, '', name(i)).value = i;
    select.parentNode.hidden = select.length < 2;
  };
  const opening = (words) => {
    const text = words.slice(0, 6).join(' ');
    return words.length > 6 ? text + ' …' : text;
  };
  choose(examples, '', maps.examples.length, (i) => i + 1 + ': ' + opening(maps.examples[i].keys));
  choose(layers, 'mean of all', maps.layers, (i) => i + 1);
  choose(heads, 'mean of all', maps.heads, (i) => i + 1);

  const bytes = maps.examples.map(({weights}) =>
    Uint8Array.from(atob(weights), (c) => c.charCodeAt(0)));

  // The weights of the selected layer and head, or the mean over all, as an array of rows.
  const chosen = () => {
    const {queries, keys} = maps.examples[+examples.value], all = bytes[+examples.value];
    const among = (value, count) => value < 0 ? [...Array(count).keys()] : [value];
    const count = Math.max(1, maps.heads), size = queries.length * keys.length;
    const sums = new Float64Array(size);
    const pairs = among(+layers.value, maps.layers).flatMap((l) =>
      among(+heads.value, count).map((h) => (l * count + h) * size));
    for (const start of pairs)
      for (let i = 0; i < size; i++) sums[i] += all[start + i] / 255 / pairs.length;
    return queries.map((_, t) => sums.subarray(t * keys.length, (t + 1) * keys.length));
  };

  const ruler = document.createElement('canvas').getContext('2d');
  const widths = (words, font) => {
    ruler.font = font;
    return words.map((word) => ruler.measureText(word).width);
  };
  const column = (chart, word, x, y, turned) => {
    const at = turned ? {transform: `translate(${x + 4} ${y}) rotate(-60)`}
      : {x, y, 'text-anchor': 'middle'};
    return svg('text', chart, at, word);
  };

  const shares = (of, shown) => of > shown ? `the first ${shown} of ${of}` : `${of}`;

  const draw = () => {
    const {queries, keys, of} = maps.examples[+examples.value], rows = chosen();
    root.replaceChildren();
    const read = html('p', root, 'reading');
    const chart = svg('svg', html('div', root, 'heatmap'));
    const font = '12px ' + getComputedStyle(document.body).fontFamily;
    const left = Math.ceil(Math.max(...widths(queries, font))) + GAP;
    const room = (root.clientWidth - left - 40) / keys.length;
    const side = Math.max(MIN_SIDE, Math.min(MAX_SIDE, Math.floor(room)));
    // Labels wider than their columns are rotated; if these are many, all labels are.
    const wide = widths(keys, font), over = wide.map((w) => w > side - 2);
    const crowded = over.filter(Boolean).length > keys.length / 4;
    const turned = over.map((is) => crowded || is);
    const longest = Math.max(0, ...wide.filter((_, s) => turned[s]));
    const top = Math.max(14, Math.ceil(longest * 0.87) + 8) + GAP;
    const width = left + side * keys.length + Math.ceil(longest / 2) + 4;
    const height = top + side * queries.length + 2;
    for (const [key, value] of Object.entries({viewBox: `0 0 ${width} ${height}`, width, height}))
      chart.setAttribute(key, value);
    const strongest = Math.max(1e-9, ...rows.map((row) => Math.max(...row)));
    const labels = {
      columns: keys.map((word, s) =>
        column(chart, word, left + side * (s + 0.5), top - GAP + 2, turned[s])),
      rows: queries.map((word, t) => svg('text', chart,
        {x: left - GAP, y: top + side * (t + 0.5) + 4, 'text-anchor': 'end'}, word)),
    };
    svg('rect', chart, {class: 'frame', x: left - 0.5, y: top - 0.5,
      width: side * keys.length + 1, height: side * queries.length + 1});
    rows.forEach((row, t) => row.forEach((weight, s) => svg('rect', chart, {class: 'cell',
      x: left + side * s, y: top + side * t, width: side - 1, height: side - 1,
      'fill-opacity': (weight / strongest).toFixed(3)})));
    const marked = svg('rect', chart, {class: 'marked', width: side, height: side});
    const leave = () => {
      for (const label of [...labels.rows, ...labels.columns]) label.classList.remove('near');
      marked.style.display = 'none';
      read.textContent = `rows: ${shares(of[0], queries.length)} words; columns: ` +
        `${shares(of[1], keys.length)} words; the strongest cell is ${strongest.toFixed(2)}`;
    };
    chart.onpointerleave = leave;
    chart.onpointermove = (event) => {
      const box = chart.getBoundingClientRect();
      const s = Math.floor((event.clientX - box.left - left) / side);
      const t = Math.floor((event.clientY - box.top - top) / side);
      leave();
      if (s < 0 || t < 0 || s >= keys.length || t >= queries.length) return;
      labels.rows[t].classList.add('near');
      labels.columns[s].classList.add('near');
      marked.style.display = '';
      marked.setAttribute('x', left + side * s - 0.5);
      marked.setAttribute('y', top + side * t - 0.5);
      read.replaceChildren();
      html('b', read, '', queries[t]);
      read.append(' attends to ');
      html('b', read, '', keys[s]);
      read.append(': ' + rows[t][s].toFixed(3));
    };
    leave();
  };
  form.onchange = draw;
  window.addEventListener('resize', draw);
  draw();
})();
