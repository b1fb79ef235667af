// Weights of one batch under four aggregators: DoRA Table 4 and Eq. 9, as in robust.py.
const KINDS = { erm: "ERM", dro: "DRO", reweight: "reweighting", dora: "DoRA" };

function softmax(values) {
  const top = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - top));
  const total = powers.reduce((sum, power) => sum + power, 0);
  return powers.map((power) => power / total);
}

// d value / d loss of every sample.
export function weights(kind, losses, h, lam) {
  const count = losses.length;
  if (kind === "erm") return losses.map(() => 1 / count);
  if (kind === "reweight") return h.map((factor) => factor / count);
  if (kind === "dro") return softmax(losses.map((loss) => loss / lam));
  const tilt = softmax(losses.map((loss, i) => (h[i] * loss) / lam));
  return tilt.map((share, i) => h[i] * share);
}

// How many samples carry the step: 1 over the sum of squared shares.
export function effective(found) {
  const total = found.reduce((sum, weight) => sum + weight, 0);
  return total ** 2 / found.reduce((sum, weight) => sum + weight ** 2, 0);
}

function render({ model, el }) {
  const { box, controls } = panel(el);
  const count = model.get("losses").length;
  const samples = Array.from({ length: count }, (_, i) => [i, `sample ${i + 1}`]);
  slider(controls, model, "lam", { label: "lambda", low: 0.05, high: 50, log: true });
  choice(controls, model, "sample", { label: "change", options: samples });
  for (const [key, label, high] of [["loss", "its loss", 5], ["factor", "its h~", 4]]) {
    slider(controls, model, key, { label, low: 0, high, step: 0.05 });
  }
  const draw = canvas(box, () => paint());

  const paint = () => {
    const [losses, h, wrong] = ["losses", "h", "contaminated"].map((key) => model.get(key));
    const own = model.get("sample");
    const width = draw.begin(420);
    const said = [];
    const all = Object.keys(KINDS).map((kind) => weights(kind, losses, h, model.get("lam")));
    const top = Math.max(...all.flat(), 1 / count);
    const left = Math.min(130, width / 4.2);
    const pitch = (width - left - 8) / count;
    Object.values(KINDS).forEach((name, row) => {
      const base = 84 * (row + 1);
      const size = effective(all[row]);
      draw.text(0, base - 40, name, { "font-weight": "bold" });
      draw.text(0, base - 24, `${size.toFixed(1)} of ${count}`, { "font-size": 11 });
      draw.line(left - 2, base, width, base, { "stroke-opacity": 0.3 });
      said.push(`${name} ${size.toFixed(1)}`);
      all[row].forEach((weight, i) => {
        const height = (62 * weight) / top;
        const x = left + i * pitch;
        draw.put("rect", {
          x, y: base - height, width: pitch * 0.7, height, fill: SHADES[wrong[i] ? 4 : 0],
        });
        const middle = { "text-anchor": "middle", "font-size": 11 };
        draw.text(x + pitch * 0.35, base - height - 4, weight.toFixed(2), middle);
      });
    });
    losses.forEach((loss, i) => {
      const x = left + (i + 0.35) * pitch;
      const look = { "text-anchor": "middle", "font-size": 11 };
      if (i === own) look["font-weight"] = "bold";
      [String(i + 1), loss.toFixed(2), h[i].toFixed(2)].forEach((words, row) =>
        draw.text(x, 356 + 17 * row, words, look),
      );
    });
    ["sample", "loss", "h~"].forEach((words, row) => draw.text(0, 356 + 17 * row, words));
    draw.put("rect", { x: left, y: 404, width: 10, height: 10, fill: SHADES[0] });
    draw.text(left + 15, 413, "clean");
    draw.put("rect", { x: left + 70, y: 404, width: 10, height: 10, fill: SHADES[4] });
    draw.text(left + 85, 413, "contaminated");
    draw.say(
      `Weights of ${count} samples at lambda ${short(model.get("lam"))}, sample ${own + 1} with ` +
        `loss ${losses[own].toFixed(2)} and h~ ${h[own].toFixed(2)}; so many samples carry the ` +
        `step: ${said.join(", ")}`,
    );
  };
  model.on("change:sample", () => {
    const own = model.get("sample");
    model.set("loss", model.get("losses")[own]);
    model.set("factor", model.get("h")[own]);
    model.save_changes();
  });
  for (const [key, all] of [["loss", "losses"], ["factor", "h"]]) {
    model.on(`change:${key}`, () => {
      const values = [...model.get(all)];
      values[model.get("sample")] = model.get(key);
      model.set(all, values);
      model.save_changes();
    });
  }
  for (const key of ["lam", "sample", "losses", "h"]) model.on(`change:${key}`, paint);
  paint();
}

export default { render };
