// What every part uses. The room puts this text before a part's own, so that each is one module
// without imports: sliders, choices, an SVG that scales, axes. Colours follow the page.
const SVG = "http://www.w3.org/2000/svg";
const SHADES = ["#2a8fd0", "#d08a00", "#12a37a", "#c66fa0", "#e06a1b", "#888888"];
const MINUS = "\u2212";
// JupyterLab's shortcuts leave the arrow keys to a control that has this, itself.
const KEYS = { "data-lm-suppress-shortcuts": "true" };

function node(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function panel(el) {
  el.style.color = "var(--jp-ui-font-color1, inherit)";
  const controls = node("div", {
    style: "display:flex;flex-wrap:wrap;gap:.4em 1.4em;align-items:end;margin:.4em 0",
  });
  const box = node("div", { style: "max-width:46em;font-size:.95em" }, controls);
  el.append(box);
  return { box, controls };
}

function told(name, shown) {
  return node("span", { style: "display:block" }, `${name}: `, shown);
}

// A slider on model[key]; `log` moves it by ratios. `show` says a value in words.
function slider(controls, model, key, { label, low, high, step, log = false, show = short }) {
  const to = log ? Math.log10 : (x) => x;
  const from = log ? (x) => 10 ** x : (x) => x;
  const input = node("input", {
    type: "range", min: to(low), max: to(high), step: step ?? (to(high) - to(low)) / 200,
    "aria-label": label, style: "width:13em;max-width:90%", ...KEYS,
  });
  const shown = node("b");
  const follow = () => {
    const value = model.get(key);
    if (Math.abs(from(Number(input.value)) - value) > 1e-9) input.value = to(value);
    shown.textContent = show(value);
    input.setAttribute("aria-valuetext", show(value));
  };
  input.addEventListener("input", () => {
    model.set(key, from(Number(input.value)));
    model.save_changes();
    follow();
  });
  model.on(`change:${key}`, follow);
  follow();
  controls.append(node("label", {}, told(label, shown), input));
}

// A choice of model[key] among `options`, pairs of a value and its words.
function choice(controls, model, key, { label, options }) {
  const style = "max-width:100%;font:inherit";
  const input = node("select", { "aria-label": label, style, ...KEYS });
  for (const [value, words] of options) input.append(node("option", { value }, words));
  const follow = () => (input.value = String(model.get(key)));
  input.addEventListener("change", () => {
    model.set(key, options[input.selectedIndex][0]);
    model.save_changes();
  });
  model.on(`change:${key}`, follow);
  follow();
  controls.append(node("label", {}, told(label, ""), input));
}

// An SVG in the page's pixels, as wide as there is room, and functions that draw on it. `paint` is
// called when the width changes, and begins with `draw.begin(height)`, which says how wide it is.
function canvas(box, paint) {
  const svg = document.createElementNS(SVG, "svg");
  let width = 0;
  const room = () => Math.min(640, Math.max(330, box.clientWidth || 640));
  const begin = (height) => {
    width = room();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    return width;
  };
  new ResizeObserver(() => room() === width || paint()).observe(box);
  svg.setAttribute("role", "img");
  svg.style.cssText = "width:100%;max-width:640px;height:auto;display:block";
  box.append(svg);
  const put = (name, attributes, words) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (words !== undefined) made.textContent = words;
    svg.append(made);
    return made;
  };
  return {
    put,
    begin,
    say: (words) => svg.setAttribute("aria-label", words),
    text: (x, y, words, more = {}) =>
      put("text", { x, y, fill: "currentColor", "font-size": 12, ...more }, words),
    line: (x1, y1, x2, y2, more = {}) =>
      put("line", { x1, y1, x2, y2, stroke: "currentColor", "stroke-opacity": 0.6, ...more }),
    path: (points, stroke, more = {}) =>
      put("path", {
        d: "M" + points.map(([x, y]) => `${x.toFixed(2)},${y.toFixed(2)}`).join("L"),
        fill: "none", stroke, "stroke-width": 2, ...more,
      }),
  };
}

// Axes in the frame [left, top, right, bottom]; returns the maps from values to places.
function axes(draw, [left, top, right, bottom], [x0, x1], [y0, y1], xlabel, ylabel) {
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (right - left);
  const y = (value) => bottom - ((value - y0) / (y1 - y0 || 1)) * (bottom - top);
  draw.line(left, bottom, right, bottom);
  draw.line(left, top, left, bottom);
  for (const value of xlabel ? ticks(x0, x1) : []) {
    draw.text(x(value), bottom + 15, short(value), { "text-anchor": "middle", "font-size": 11 });
  }
  for (const value of ticks(y0, y1)) {
    draw.line(left, y(value), right, y(value), { "stroke-opacity": 0.12 });
    draw.text(left - 5, y(value) + 4, short(value), { "text-anchor": "end", "font-size": 11 });
  }
  draw.text((left + right) / 2, bottom + 32, xlabel, { "text-anchor": "middle" });
  draw.text(left, top - 8, ylabel);
  return { x, y };
}

function ticks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    found.push(Number((k * step).toPrecision(12)));
  }
  return found;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4 || (size > 0 && size < 1e-3)) return value.toExponential(1).replace("-", MINUS);
  return String(Number(value.toPrecision(3))).replace("-", MINUS);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
