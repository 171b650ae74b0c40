// The order of a set's outputs. The page holds more rows than it shows; their number stays.
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
    sort();  // a browser may have kept another choice over a reload
  }
})();
