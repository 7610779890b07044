// The frame around every page, and which module draws it.

import { get, isStatic, link } from "./api.js";
import { drawCompare } from "./compare.js";
import { h, hideTip, svg } from "./dom.js";
import { forgetKeys, help, key, listen } from "./keys.js";
import { drawLatent } from "./latent.js";
import { drawLatents } from "./latents.js";
import { drawManifolds } from "./manifolds.js";
import { drawMeta, drawMetaLatent } from "./meta.js";
import { drawPrompt } from "./prompt.js";
import { drawRun, drawRuns } from "./runs.js";
import { drawScaling } from "./scaling.js";

const DRAW = {
  runs: drawRuns,
  run: drawRun,
  latents: drawLatents,
  latent: drawLatent,
  prompt: drawPrompt,
  compare: drawCompare,
  meta: drawMeta,
  meta_latent: drawMetaLatent,
  scaling: drawScaling,
  manifolds: drawManifolds,
  error: drawError,
};
const OF_RUN = [
  ["", "Run", "run"],
  ["/latents", "Latents", "latents latent"],
  ["/prompt", "Prompt", "prompt"],
  ["/manifolds", "Manifolds", "manifolds"],
  ["/meta", "Meta", "meta meta_latent"],
];

function drawError(data, main) {
  main.replaceChildren(h("div", { class: "panel notice" }, h("h1", {}, data.title), h("p", {}, data.error)));
}

function frame(data, names) {
  const here = (kinds) => (kinds.split(" ").includes(data.page) ? "here" : "");
  const run = data.run?.name ?? data.run ?? (names.includes(last()) ? last() : names[0]);
  try {
    sessionStorage.setItem("saelab-run", run);
  } catch {
    /* then pages of no run show the first one's tabs */
  }
  const pages = isStatic ? OF_RUN.slice(1, 2) : OF_RUN;
  const tabs = [h("a", { href: link("/"), class: here("runs") }, "Runs")];
  if (run)
    tabs.push(
      ...pages.map(([path, title, kinds]) => h("a", { href: link(`/run/${run}${path}`), class: here(kinds) }, title)),
    );
  if (!isStatic)
    tabs.push(
      h("a", { href: link("/compare"), class: here("compare") }, "Compare"),
      h("a", { href: link("/scaling"), class: here("scaling") }, "Scaling"),
    );
  const same =
    { latent: "/latents", meta_latent: "/meta" }[data.page] ??
    OF_RUN.find(([, , kinds]) => kinds.split(" ").includes(data.page))?.[0] ??
    "";
  const choose =
    run && names.length > 1
      ? h(
          "select",
          {
            "aria-label": "SAE",
            onchange: (event) => {
              location.href = link(`/run/${event.target.value}${same}`);
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
  show(shown_);
}

let shown_ = null;

function show(data) {
  shown_ = data;
  hideTip();
  forgetKeys();
  document.title = `${data.title} · saelab`;
  frame(data, names);
  key("?", "this list", help);
  key("t", "light or dark", turn);
  DRAW[data.page](data, document.getElementById("main"));
  document.documentElement.dataset.ready = data.page;
}

const read = (name) => JSON.parse(document.getElementById(name).textContent);
const names = read("names");

// Only the last address asked for is shown, in whatever order the answers come.
let asked = 0;

async function route() {
  const own = ++asked;
  const data = await get(location.hash.slice(1) || "/").catch((error) => ({
    page: "error",
    title: "Not found",
    error: error.message,
  }));
  if (own === asked) show(data);
}

listen();
if (isStatic) {
  addEventListener("hashchange", route);
  route();
} else show(read("data"));
