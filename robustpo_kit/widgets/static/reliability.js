// A classifier's probabilities under temperature: their reliability, and the h~ made of them.

// sigmoid(logit(c) / temperature), as calibration's Temperature.
export function tempered(c, temperature) {
  return 1 / (1 + ((1 - c) / c) ** (1 / temperature));
}

// Bins of equal width that hold anything: count, mean c, share of golden, as `reliability`.
export function bins(c, golden, count) {
  const found = Array.from({ length: count }, () => ({ count: 0, c: 0, golden: 0 }));
  c.forEach((value, i) => {
    const bin = found[Math.min(Math.floor(value * count), count - 1)];
    bin.count += 1;
    bin.c += value;
    bin.golden += golden[i];
  });
  return found
    .filter((bin) => bin.count)
    .map((bin) => ({ count: bin.count, c: bin.c / bin.count, golden: bin.golden / bin.count }));
}

// Expected calibration error: the mean distance from the diagonal over the responses.
export function ece(found) {
  const total = found.reduce((sum, bin) => sum + bin.count, 0);
  return found.reduce((sum, bin) => sum + bin.count * Math.abs(bin.c - bin.golden), 0) / total;
}

// h~ of a row at the uniform mixture: the sum of its c.
export function factor(row) {
  return row.reduce((sum, c) => sum + c, 0);
}

function render({ model, el }) {
  const { box, controls } = panel(el);
  slider(controls, model, "temperature", { label: "temperature", low: 0.2, high: 5, log: true });
  slider(controls, model, "bins", { label: "bins", low: 4, high: 20, step: 1 });
  const draw = canvas(box, () => paint());
  const golden = model.get("golden").flat();
  const wrong = model.get("contaminated");
  const columns = model.get("c")[0].length;

  const paint = () => {
    const temperature = model.get("temperature");
    const rows = model.get("c").map((row) => row.map((c) => tempered(c, temperature)));
    const found = bins(rows.flat(), golden, model.get("bins"));
    const h = rows.map(factor);
    const below = box.clientWidth && box.clientWidth < 520 ? 360 : 0; // the right panel's place
    const width = draw.begin(360 + below);
    const half = below ? width : width / 2;
    const left = axes(draw, [46, 50, half - 14, 310], [0, 1], [0, 1], "predicted c", "share of golden");
    draw.line(left.x(0), left.y(0), left.x(1), left.y(1), { "stroke-dasharray": "3 4" });
    draw.path(found.map((bin) => [left.x(bin.c), left.y(bin.golden)]), SHADES[0]);
    for (const bin of found) {
      const look = { fill: SHADES[0], r: 2.5 + 9 * Math.sqrt(bin.count / golden.length) };
      draw.put("circle", { cx: left.x(bin.c), cy: left.y(bin.golden), ...look });
    }
    const error = ece(found).toFixed(3);
    draw.text(0, 16, `calibration error ${error}`, { "font-weight": "bold" });

    const start = below ? 46 : half + 40;
    const right = axes(draw, [start, 50 + below, width - 10, 310 + below], [-0.5, 1.5], [0, columns], "", "h~ of a sample");
    const means = [false, true].map((kind) => {
      const own = h.filter((_, i) => wrong[i] === kind);
      own.forEach((value, i) =>
        draw.put("circle", {
          cx: right.x(Number(kind) + 0.5 * (((i * 0.618) % 1) - 0.5)), cy: right.y(value), r: 3.2,
          fill: SHADES[kind ? 4 : 0], "fill-opacity": 0.6,
        }),
      );
      const [x, y] = [right.x(Number(kind)), right.y(mean(own))];
      draw.line(x - 45, y, x + 45, y, { "stroke-width": 2.5, "stroke-opacity": 1 });
      return mean(own).toFixed(2);
    });
    draw.text(start - 40, 16 + below, `mean h~: clean ${means[0]}, contaminated ${means[1]}`, {
      "font-weight": "bold",
    });
    ["clean", "contaminated"].forEach((words, kind) =>
      draw.text(right.x(kind), 330 + below, words, { "text-anchor": "middle" }),
    );
    draw.say(
      `Reliability at temperature ${short(temperature)} in ${model.get("bins")} bins: calibration ` +
        `error ${error}; mean h~ of clean samples ${means[0]}, of contaminated ones ${means[1]}`,
    );
  };
  for (const key of ["temperature", "bins"]) model.on(`change:${key}`, paint);
  paint();
}

export default { render };
