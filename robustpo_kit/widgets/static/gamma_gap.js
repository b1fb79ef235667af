// gamma-PO's target margins against the gap: the exact solution of Eq. 23, as in margins.py.
const sigmoid = (x) => 1 / (1 + Math.exp(-x));

// The root of an increasing function between two bounds, by bisection.
function root(f, low, high) {
  for (let k = 0; k < 100; k++) {
    const middle = (low + high) / 2;
    if (f(middle) < 0) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

// log q of one gap at a given s = (nu - tau) / tau: u + r sigmoid(gamma0 e^u - m) = s.
function logq(gap, s, gamma0, r) {
  return root((u) => u + r * sigmoid(gamma0 * Math.exp(u) - gap) - s, s - r, s);
}

// s at which the mean of q is one: what all pairs have in common.
export function common(gaps, gamma0, tau) {
  const r = gamma0 / tau;
  return root((s) => mean(gaps.map((gap) => Math.exp(logq(gap, s, gamma0, r)))) - 1, 0, r);
}

// gamma_i of every gap.
export function margins(gaps, gamma0, tau, s = common(gaps, gamma0, tau)) {
  return gaps.map((gap) => gamma0 * Math.exp(logq(gap, s, gamma0, gamma0 / tau)));
}

function render({ model, el }) {
  const { box, controls } = panel(el);
  const settings = model.get("settings");
  const names = [["", "my own"], ...settings.map(({ name }) => [name, name])];
  choice(controls, model, "setting", { label: "setting", options: names });
  slider(controls, model, "gamma0", { label: "gamma0", low: 0.1, high: 10, log: true });
  slider(controls, model, "tau", { label: "tau", low: 0.3, high: 100, log: true });
  slider(controls, model, "beta", { label: "beta of the gaps", low: 0.5, high: 20, log: true });
  const draw = canvas(box, () => paint());

  const paint = () => {
    const [gamma0, tau, beta] = ["gamma0", "tau", "beta"].map((key) => model.get(key));
    const gaps = model.get("gaps").map((gap) => beta * gap);
    const s = common(gaps, gamma0, tau);
    const gamma = margins(gaps, gamma0, tau, s);
    const [low, high] = [Math.min(...gaps), Math.max(...gaps)];
    const grid = Array.from({ length: 81 }, (_, k) => low + ((high - low) * k) / 80);
    const line = margins(grid, gamma0, tau, s);
    const span = (Math.max(...gamma) - Math.min(...gamma)) / gamma0;
    const right = draw.begin(390) - 10;
    const tops = [Math.min(0.8, ...gamma.map((g) => g / gamma0)),
                  Math.max(1.2, ...gamma.map((g) => g / gamma0))];
    const { x, y } = axes(draw, [48, 60, right, 345], [low, high], tops,
      "reward gap m (chosen minus rejected)", "target margin gamma over gamma0");
    draw.line(48, y(1), right, y(1), { "stroke-dasharray": "3 4" });
    draw.text(right, y(1) - 5, "constant margin (SimPO)", { "text-anchor": "end", "font-size": 11 });
    draw.path(grid.map((gap, k) => [x(gap), y(line[k] / gamma0)]), SHADES[0]);
    gaps.forEach((gap, i) =>
      draw.put("circle", {
        cx: x(gap), cy: y(gamma[i] / gamma0), r: 3.4, fill: SHADES[0], "fill-opacity": 0.5,
      }),
    );
    const strength = `strength gamma0/tau ${short(gamma0 / tau)}`;
    const spread = `margins span ${(100 * span).toFixed(span < 0.1 ? 1 : 0)} % of gamma0`;
    const words = `${strength}: ${spread}`;
    draw.text(0, 14, strength, { "font-weight": "bold" });
    draw.text(0, 31, spread, { "font-weight": "bold" });
    draw.say(`gamma against gap at gamma0 ${short(gamma0)}, tau ${short(tau)}, beta ` +
      `${short(beta)}; ${words}`);
  };
  let taking = false; // whether a setting's three values are being taken over
  model.on("change:setting", () => {
    const own = settings.find(({ name }) => name === model.get("setting"));
    if (!own) return;
    taking = true;
    for (const key of ["gamma0", "tau", "beta"]) model.set(key, own[key]);
    taking = false;
    model.save_changes();
    paint();
  });
  for (const key of ["gamma0", "tau", "beta"]) {
    model.on(`change:${key}`, () => {
      if (taking) return;
      if (model.get("setting")) {
        model.set("setting", "");
        model.save_changes();
      }
      paint();
    });
  }
  paint();
}

export default { render };
