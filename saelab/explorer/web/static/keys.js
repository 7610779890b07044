// The keyboard: what each key does on this page, and the sheet that lists it.

import { h } from "./dom.js";

const bound = new Map();

export function key(name, what, act) {
  bound.set(name, { what, act });
}

export function forgetKeys() {
  bound.clear();
}

export function listen() {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select");
    if (event.key === "Escape") {
      document.querySelector(".sheet")?.remove();
      typing?.blur();
      return;
    }
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const found = bound.get(event.key);
    if (!found) return;
    event.preventDefault();
    found.act();
  });
}

export function help() {
  const open = document.querySelector(".sheet");
  if (open) return open.remove();
  const lines = [...bound].map(([name, { what }]) => [h("dt", {}, h("kbd", {}, name)), h("dd", {}, what)]);
  const sheet = h(
    "div",
    { class: "sheet", onclick: (event) => event.target === sheet && sheet.remove() },
    h("div", { role: "dialog", "aria-label": "Keys" }, h("h1", {}, "Keys on this page"), h("dl", {}, lines)),
  );
  document.body.append(sheet);
}
