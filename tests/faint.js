// Texts of a page whose contrast with what lies below is under WCAG's 4.5 (large ones: 3).
() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const rgb = (text) => {
    const values = (text.match(/[\d.]+/g) ?? []).map(Number);
    return text.startsWith("color(") ? values.map((v, i) => (i < 3 ? 255 * v : v)) : values;
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((i) => a * top[i] + (1 - a) * below[i]);
  };
  const ground = (element) => {
    if (!element) return dark.matches ? [18, 18, 18] : [255, 255, 255]; // the browser's own
    const own = rgb(getComputedStyle(element).backgroundColor);
    if (own.length === 3 || own[3] === 1) return own.slice(0, 3);
    return over(own, ground(element.parentElement));
  };
  // In a drawing the ground is also what rectangles drawn before a text have put below it.
  const painted = (element, below) => {
    const { x, y, width, height } = element.getBoundingClientRect();
    for (const rect of element.closest("svg").querySelectorAll("rect")) {
      const box = rect.getBoundingClientRect();
      const after = rect.compareDocumentPosition(element) & Node.DOCUMENT_POSITION_FOLLOWING;
      const inside = Math.abs(box.x + box.width / 2 - x - width / 2) < box.width / 2 &&
        Math.abs(box.y + box.height / 2 - y - height / 2) < box.height / 2;
      const { fill, fillOpacity } = getComputedStyle(rect);
      if (!after || !inside || fill === "none") continue;
      const [r, g, b, a = 1] = rgb(fill);
      below = over([r, g, b, a * Number(fillOpacity)], below);
    }
    return below;
  };
  const faint = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim().slice(0, 30);
    if (!words || element.closest("script, style, .anchor-link, .skip")) continue;
    if (!element.checkVisibility({ opacityProperty: true })) continue;
    const look = getComputedStyle(element);
    const drawn = element.closest("svg");
    const below = drawn ? painted(element, ground(element)) : ground(element);
    const colour = drawn && look.fill !== "none" ? look.fill : look.color;
    const [a, b] = [light(over(rgb(colour), below)), light(below)].sort((x, y) => y - x);
    const size = parseFloat(look.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(look.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) {
      const name = `${element.tagName}.${element.getAttribute("class")}`;
      faint.add(`${name} "${words}" ${ratio.toFixed(1)}`);
    }
  }
  return [...faint].slice(0, 10);
}
