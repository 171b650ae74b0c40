// Attention maps: words on both axes, a cell the stronger the more its row looks at its column.
(() => {
  const maps = dom.data('attention-data');
  if (!maps) return;
  const {html, svg} = dom;
  const root = document.getElementById('attention');
  const form = root.previousElementSibling;
  const {example: examples, layer: layers, head: heads} = form.elements;
  const GAP = 8, LEAST = 11, MOST = 30;  // pixels: beside labels, and the side of a cell

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

  // The weights of the chosen layer and head, or the mean over all of them, as rows of columns.
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
    const side = Math.max(LEAST, Math.min(MOST, Math.floor(room)));
    // Labels wider than their columns are turned; a few of them leave the others upright.
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
        `${shares(of[1], keys.length)}; the strongest cell is ${strongest.toFixed(2)}`;
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
      read.append(' looks at ');
      html('b', read, '', keys[s]);
      read.append(': ' + rows[t][s].toFixed(3));
    };
    leave();
  };
  form.onchange = draw;
  window.addEventListener('resize', draw);
  draw();
})();
