// The frame around every page, and which module draws it.

import { get, isStatic, link } from "./api.js";
import { h, hideTip, svg } from "./dom.js";
import { forgetKeys, help, key, listen } from "./keys.js";

// The pages that there are: name, path, module, title of the tab, and the page under whose tab it stands.
const read = (name) => JSON.parse(document.getElementById(name).textContent);
const names = read("names");
const pages = read("pages");

async function drawerOf(name) {
  const page = pages.find((one) => one.name === name);
  return page ? (await import(`./${page.module}.js`)).draw[name] : drawError;
}

function drawError(data, main) {
  main.replaceChildren(h("div", { class: "panel notice" }, h("h1", {}, data.title), h("p", {}, data.error)));
}

function frame(data) {
  const page = pages.find((one) => one.name === data.page);
  const tab = page?.parent ?? page?.name;
  const run = data.run?.name ?? data.run ?? (names.includes(last()) ? last() : names[0]);
  try {
    sessionStorage.setItem("saelab-run", run);
  } catch {
    /* then pages of no run show the first one's tabs */
  }
  const at = (path, name) => link(path.replace("{name}", name));
  const tabs = pages
    .filter((one) => one.title && (run || !one.path.includes("{name}")))
    .map((one) => h("a", { href: at(one.path, run), class: one.name === tab ? "here" : "" }, one.title));
  const path = pages.find((one) => one.name === tab)?.path;
  const same = path?.includes("{name}") ? path : "/run/{name}";
  const choose =
    run && names.length > 1
      ? h(
          "select",
          {
            "aria-label": "SAE",
            onchange: (event) => {
              location.href = at(same, event.target.value);
            },
          },
          names.map((name) => h("option", { value: name, selected: name === run }, name)),
        )
      : null;
  document
    .getElementById("top")
    .replaceChildren(
      h("a", { class: "brand", href: link("/") }, mark(), "saelab"),
      choose ?? "",
      h("nav", {}, tabs),
      h("span", { class: "grow" }),
      h("button", { class: "quiet", onclick: turn, "aria-label": "light or dark", tip: "light or dark  t" }, "◐"),
      h("button", { class: "quiet", onclick: help, "aria-label": "keys", tip: "keys  ?" }, "?"),
    );
}

// The mark: a grid of dots of which some are lit.
function mark() {
  const dots = Array.from({ length: 9 }, (_, n) =>
    svg("circle", {
      cx: 9 + 7 * (n % 3),
      cy: 9 + 7 * Math.floor(n / 3),
      r: n === 2 || n === 3 ? 3.4 : 2.2,
      fill: n === 2 || n === 3 ? "#ffb366" : "#ffffff88",
    }),
  );
  return svg(
    "svg",
    { viewBox: "0 0 32 32", width: 22, height: 22, "aria-hidden": "true" },
    svg("rect", { width: 32, height: 32, rx: 7, fill: "#0b6e99" }),
    dots,
  );
}

function last() {
  try {
    return sessionStorage.getItem("saelab-run");
  } catch {
    return null;
  }
}

function turn() {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("saelab-theme", theme);
  } catch {
    /* then it lasts as long as the page */
  }
  show(shown_, asked);
}

let shown_ = null;

// Only the last page asked for is shown, in whatever order answers and modules come.
let asked = 0;

async function show(data, own = ++asked) {
  const draw = await drawerOf(data.page);
  if (own !== asked) return;
  shown_ = data;
  hideTip();
  forgetKeys();
  document.title = `${data.title} · saelab`;
  frame(data);
  key("?", "this list", help);
  key("t", "light or dark", turn);
  draw(data, document.getElementById("main"));
  document.documentElement.dataset.ready = data.page;
}

async function route() {
  const own = ++asked;
  const data = await get(location.hash.slice(1) || "/").catch((error) => ({
    page: "error",
    title: "Not found",
    error: error.message,
  }));
  show(data, own);
}

listen();
if (isStatic) {
  addEventListener("hashchange", route);
  route();
} else show(read("data"));
