// Elements without markup: text only ever becomes text nodes, so a token may be any markup it likes.

export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "tip") tipped(element, value);
    else if (key === "style") for (const [name, part] of Object.entries(value)) element.style.setProperty(name, part);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export function panel(title, ...children) {
  return h("section", { class: "panel" }, title ? h("h2", {}, title) : null, ...children);
}

// ---- a tooltip that follows the pointer; its text comes from a function, when it is wanted

let tip = null;

export function tipped(element, text) {
  element.addEventListener("pointerenter", (event) => showTip(typeof text === "function" ? text() : text, event));
  element.addEventListener("pointermove", placeTip);
  element.addEventListener("pointerleave", hideTip);
}

export function showTip(text, event) {
  hideTip();
  if (!text) return;
  tip = h("div", { id: "tip", role: "tooltip" }, text);
  document.body.append(tip);
  placeTip(event);
}

function placeTip(event) {
  if (!tip) return;
  const box = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 13, innerWidth - box.width - 8);
  const y = event.clientY + 20 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18;
  tip.style.left = `${Math.max(6, x)}px`;
  tip.style.top = `${y}px`;
}

export function hideTip() {
  tip?.remove();
  tip = null;
}
