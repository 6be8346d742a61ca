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

const STATEFUL = "button, input, select, summary, a[href], details, [tabindex]";
const PRESSED_MILLISECONDS = 50;
const waiting = new WeakMap();

/** Elements that can be focused, opened or scrolled, by what they are called: `data-name`, or else their text. */
function stateful(node) {
  const found = new Map(), times = new Map();
  for (const each of node.querySelectorAll(STATEFUL)) {
    const called = each.id || each.dataset.name || each.ariaLabel || (each.tagName === "DETAILS" ? each.firstChild : each).textContent;
    const name = `${each.tagName} ${called}`, time = times.get(name) ?? 0;
    times.set(name, time + 1);
    found.set(`${name} ${time}`, each);
  }
  return found;
}

function replace(node, children) {
  const before = stateful(node), focused = document.activeElement;
  const scrolled = new Map([...before].map(([name, each]) => [name, [each.scrollLeft, each.scrollTop]]));
  node.replaceChildren(...children);
  for (const [name, each] of stateful(node)) {
    const old = before.get(name);
    if (!old) continue;
    if (each.tagName === "DETAILS") each.open = old.open;
    [each.scrollLeft, each.scrollTop] = scrolled.get(name);
    if (old === focused && old !== each) each.focus({ preventScroll: true });
  }
}

/**
 * Put children in place of what a node has, unless they are the same. Focus, scrolling and what was opened go over to
 * what is called the same; while something in the node is pressed it stays, so that a click finds what it began on.
 */
export function fill(node, key, make) {
  if (node.dataset.key === key) {
    waiting.delete(node);
    return;
  }
  if (node.matches(":active")) {
    if (!waiting.has(node)) setTimeout(again, PRESSED_MILLISECONDS, node);
    waiting.set(node, [key, make]);
    return;
  }
  waiting.delete(node);
  node.dataset.key = key;
  replace(node, [make()].flat().filter(Boolean));
}

function again(node) {
  const asked = waiting.get(node);
  waiting.delete(node);
  if (asked) fill(node, ...asked);
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
