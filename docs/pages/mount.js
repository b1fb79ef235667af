// A part's model without a kernel: what anywidget gives it, of a state that lies in the page.
function modelOf(state) {
  const heard = new Map();
  return {
    get: (key) => state[key],
    set(key, value) {
      const changes = typeof key === "object" ? key : { [key]: value };
      for (const [name, now] of Object.entries(changes)) {
        if (state[name] === now) continue;
        state[name] = now;
        for (const event of [`change:${name}`, "change"]) {
          for (const listener of heard.get(event) ?? []) listener();
        }
      }
    },
    save_changes() {},
    on: (event, listener) => heard.set(event, [...(heard.get(event) ?? []), listener]),
    off: (event) => heard.delete(event),
  };
}

async function mount(parts) {
  for (const [name, part, state] of parts) {
    for (const place of document.querySelectorAll(`[data-part="${name}"]`)) {
      const el = document.createElement("div");
      place.prepend(el);
      const model = modelOf(structuredClone(state));
      await part.initialize?.({ model });
      await part.render({ model, el });
      place.closest(".output_wrapper")?.classList.add("alive"); // its picture is at the defaults
    }
  }
}
