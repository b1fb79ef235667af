// One preference pair: tokens, log-probabilities, the loss, its weight among the pairs of a batch.
const REPLIES = ["chosen", "rejected"];
const sum = (values) => values.reduce((total, value) => total + value, 0);

// What a loss sees of a reply, of which a share has been read.
function scored({ logps, refs }, read = 1) {
  const count = Math.max(1, Math.round(read * logps.length));
  return { count, logp: sum(logps.slice(0, count)), ref: sum(refs.slice(0, count)) };
}

// The reward gap of a pair: DPO's beta D, or SimPO's per token.
export function gap(pair, loss, beta, read = 1) {
  const [chosen, rejected] = REPLIES.map((name) => scored(pair[name], read));
  if (loss === "simpo") {
    return beta * (chosen.logp / chosen.count - rejected.logp / rejected.count);
  }
  return beta * (chosen.logp - chosen.ref - (rejected.logp - rejected.ref));
}

// -log sigmoid(gap - target): losses/pairwise's dpo (target 0) and simpo (ratio * beta).
export function loss(pair, name, beta, ratio, read = 1) {
  const clear = gap(pair, name, beta, read) - (name === "simpo" ? ratio * beta : 0);
  return Math.max(-clear, 0) + Math.log1p(Math.exp(-Math.abs(clear)));
}

// DRO's weights of the batch: softmax(losses / lambda).
export function weights(losses, lam) {
  const top = Math.max(...losses);
  const powers = losses.map((value) => Math.exp((value - top) / lam));
  return powers.map((power) => power / sum(powers));
}

function render({ model, el }) {
  const { box, controls } = panel(el);
  const pairs = model.get("pairs");
  const ratio = model.get("ratio");
  choice(controls, model, "pair", { label: "pair", options: pairs.map((_, i) => [i, `${i + 1}`]) });
  const names = [["dpo", "DPO"], ["simpo", "SimPO"]];
  choice(controls, model, "loss", { label: "loss", options: names });
  slider(controls, model, "beta", { label: "beta", low: 0.01, high: 20, log: true });
  slider(controls, model, "lam", { label: "lambda of DRO", low: 0.05, high: 20, log: true });
  const percent = (value) => `${Math.round(100 * value)} %`;
  slider(controls, model, "read", { label: "tokens read", low: 0.02, high: 1, show: percent });
  const texts = REPLIES.map((name) => {
    const line = node("p", { style: "margin:.3em 0;line-height:1.7;overflow-wrap:anywhere" });
    box.append(node("b", {}, name), line);
    return line;
  });
  const numbers = node("table", { style: "border-spacing:.8em .1em;font-size:.9em" });
  const words = node("p", { style: "margin:.4em 0" });
  box.append(numbers, words);
  const draw = canvas(box, () => paint());

  // Tokens on a ground that says what the policy thinks of them beside the reference.
  const write = (line, { tokens, logps, refs }, count) => {
    line.replaceChildren();
    tokens.forEach((token, i) => {
      const ratio = logps[i] - refs[i];
      const strength = Math.min(60, 30 * Math.abs(ratio));
      const shade = SHADES[ratio > 0 ? 0 : 4];
      const ground = `color-mix(in srgb, ${shade} ${strength}%, transparent)`;
      const style = i < count ? `background:${ground}` : "opacity:.35";
      const title = `log p ${logps[i].toFixed(2)}, reference ${refs[i].toFixed(2)}`;
      line.append(node("span", { style: `${style};white-space:pre-wrap`, title }, token));
    });
  };
  const paint = () => {
    const [own, name, beta, lam, read] = ["pair", "loss", "beta", "lam", "read"].map((key) =>
      model.get(key),
    );
    const pair = pairs[own];
    const found = REPLIES.map((reply) => scored(pair[reply], read));
    REPLIES.forEach((reply, i) => write(texts[i], pair[reply], found[i].count));
    const all = pairs.map((other, i) => loss(other, name, beta, ratio, i === own ? read : 1));
    const shares = weights(all, lam);
    const cells = [["", "tokens", "log p", "reference", "log p \u2212 ref", "per token"]];
    found.forEach(({ count, logp, ref }, row) => {
      const values = [logp, ref, logp - ref, logp / count].map((value) => value.toFixed(2));
      cells.push([REPLIES[row], String(count), ...values]);
    });
    numbers.replaceChildren(
      ...cells.map((line, row) => {
        const name = row ? "td" : "th";
        return node("tr", {}, ...line.map((cell) => node(name, {}, cell.replace("-", MINUS))));
      }),
    );
    const reward = gap(pair, name, beta, read);
    const target = name === "simpo" ? ` ${MINUS} ${short(ratio * beta)}` : "";
    const said = `gap ${short(reward)}, loss ${MINUS}log sigmoid(${short(reward)}${target}) = ` +
      `${all[own].toFixed(3)}`;
    const mine = `weight in a batch of ${pairs.length}: ERM ${(1 / pairs.length).toFixed(3)}, ` +
      `DRO ${shares[own].toFixed(3)}`;
    words.textContent = `${said}; ${mine}`;
    const pitch = draw.begin(92) / pairs.length;
    shares.forEach((share, i) => {
      const height = (66 * share) / Math.max(...shares);
      const fill = SHADES[i === own ? 4 : 0];
      draw.put("rect", { x: i * pitch, y: 70 - height, width: 0.85 * pitch, height, fill });
      const look = { "text-anchor": "middle", "font-size": 11 };
      draw.text((i + 0.43) * pitch, 86, `${i + 1}: ${share.toFixed(2)}`, look);
    });
    draw.say(`Pair ${own + 1} under ${name} at beta ${short(beta)}, ${percent(read)} of its ` +
      `tokens read: ${said}; ${mine} at lambda ${short(lam)}`);
  };
  for (const key of ["pair", "loss", "beta", "lam", "read"]) model.on(`change:${key}`, paint);
  paint();
}

export default { render };
