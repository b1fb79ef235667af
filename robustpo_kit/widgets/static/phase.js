// The phase diagram: every method minus its tuned baseline by dose, and one row of it in words.
const VERDICTS = {
  win: ["#7fb8d8", "\u25b2"], tie: ["#d9d9d9", "="], lose: ["#f2b880", "\u25bc"], open: ["none", ""],
};

// "+0.15", with a minus that is one.
function signed(value) {
  const text = Math.abs(value).toFixed(2);
  return (Number(text) === 0 ? "" : value > 0 ? "+" : MINUS) + text;
}

// The cells of one harm and outcome as rows: a method, its baseline, its cells by dose.
export function rows(cells, harm, outcome) {
  const found = new Map();
  for (const cell of cells) {
    if (cell.harm !== harm || cell.outcome !== outcome) continue;
    const { method, baseline } = cell;
    if (!found.has(method)) found.set(method, { method, baseline, cells: [] });
    found.get(method).cells.push(cell);
  }
  for (const row of found.values()) row.cells.sort((a, b) => a.dose - b.dose);
  return [...found.values()];
}

// How many cells have each verdict.
export function counts(found) {
  const all = found.flatMap((row) => row.cells.map((cell) => cell.verdict));
  return Object.keys(VERDICTS).map((name) => [name, all.filter((v) => v === name).length]);
}

function render({ model, el }) {
  const { box, controls } = panel(el);
  const cells = model.get("cells");
  choice(controls, model, "harm", { label: "what is wrong", options: model.get("harms") });
  choice(controls, model, "outcome", { label: "outcome", options: model.get("outcomes") });
  const slot = node("div");
  controls.append(slot);
  const words = node("p", { "aria-live": "polite", style: "min-height:3.6em;margin:.4em 0" });
  box.append(words);
  const draw = canvas(box, () => paint());

  const paint = () => {
    const found = rows(cells, model.get("harm"), model.get("outcome"));
    const doses = [...new Set(found.flatMap((row) => row.cells.map((cell) => cell.dose)))];
    doses.sort((a, b) => a - b);
    const own = found.find((row) => row.method === model.get("method")) ?? found[0];
    const width = draw.begin(34 + 19 * found.length);
    const narrow = width < 520;
    const left = narrow ? 172 : 256;
    const pitch = (width - left) / doses.length;
    doses.forEach((dose, k) =>
      draw.text(left + (k + 0.5) * pitch, 14, short(dose), { "text-anchor": "middle" }),
    );
    draw.text(0, 14, "method \u2212 baseline, by dose", { "font-size": 11 });
    found.forEach((row, place) => {
      const top = 22 + 19 * place;
      const bold = row === own ? { "font-weight": "bold" } : {};
      draw.text(0, top + 14, `${row.method} ${MINUS} ${row.baseline}`, { "font-size": narrow ? 10 : 11.5, ...bold });
      for (const cell of row.cells) {
        const [fill, sign] = VERDICTS[cell.verdict];
        const x = left + doses.indexOf(cell.dose) * pitch;
        const frame = { stroke: "currentColor", "stroke-opacity": row === own ? 1 : 0.2 };
        draw.put("rect", { x, y: top, width: pitch - 2, height: 17, fill, ...frame });
        const ink = fill === "none" ? "currentColor" : "#1a1a1a";
        const look = { "text-anchor": "middle", "font-size": narrow ? 9.5 : 11, fill: ink, ...bold };
        draw.text(x + pitch / 2, top + 13, `${signed(cell.difference)} ${sign}`.trim(), look);
      }
    });
    const spoken = own.cells.map(
      (cell) =>
        `dose ${short(cell.dose)}: ${signed(cell.difference)} ` +
        `[${signed(cell.low)}, ${signed(cell.high)}], ${cell.seeds} worlds, ${cell.verdict}`,
    );
    const chosen = `${own.method} ${MINUS} ${own.baseline}, ${model.get("outcome")}: `;
    words.textContent = chosen + spoken.join("; ");
    const tally = counts(found).map(([name, count]) => `${count} ${name}`).join(", ");
    draw.say(`Phase diagram of ${model.get("harm")}, ${tally}. ${chosen}${spoken.join("; ")}`);
  };

  // The methods differ by harm, so their list is made anew.
  const list = () => {
    slot.replaceChildren();
    const found = rows(cells, model.get("harm"), model.get("outcome"));
    const options = found.map((row) => [row.method, row.method]);
    if (!found.some((row) => row.method === model.get("method"))) {
      model.set("method", options[0][0]);
      model.save_changes();
    }
    choice(slot, model, "method", { label: "method", options });
  };
  list();
  for (const key of ["harm", "outcome"]) model.on(`change:${key}`, () => (list(), paint()));
  model.on("change:method", paint);
  paint();
}

export default { render };
