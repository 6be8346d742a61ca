// Elements without markup: what comes from a run is only ever text.

/** An element with attributes, and children that are elements or text. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Put children in place of what a node has, unless they are the same: so that focus and scrolling stay. */
export function fill(node, key, make) {
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...[make()].flat().filter(Boolean));
}

/** One of several, by buttons; `choices` are [value, label]. */
export function choice(label, choices, chosen, choose) {
  return el("div", { class: "choice", role: "group", "aria-label": label }, choices.map(([value, text]) =>
    el("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text)));
}

/** A custom property of the style sheet. */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Set a custom property of an element. */
export function vary(node, name, value) {
  node.style.setProperty(name, value);
  return node;
}
