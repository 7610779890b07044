// The table of latents: only rows in sight exist, whatever their number; all that it shows is in the address.

import { get, go, isStatic, link, parameters, remember } from "./api.js";
import { h } from "./dom.js";
import { count, number, percent } from "./format.js";
import { key } from "./keys.js";
import { chips } from "./tokens.js";

const HEIGHT = 34,
  CHUNK = 100;
const COLUMNS = [
  { name: "id", title: "latent", width: "62px" },
  { name: "density", title: "density", width: "122px", draw: (row) => [percent(row.density), meter(row.density)] },
  { name: "largest", title: "max", width: "64px", wide: true },
  { name: "mean", title: "mean", width: "64px", wide: true },
  { name: "norm", title: "norm", width: "56px", wide: true },
  { name: "cosine", title: "nearest", width: "64px", wide: true, tip: "cosine of the nearest other direction" },
  {
    name: "kind",
    title: "kind",
    width: "104px",
    wide: true,
    draw: (row) => h("span", { class: `chip ${row.kind}` }, row.kind),
  },
  {
    name: "tokens",
    title: "top tokens",
    width: "minmax(120px, 1.5fr)",
    draw: (row) => chips(row.tokens),
    only: (rows, filled, unit) => unit === "tokens",
  },
  {
    name: "explanation",
    title: "explanation",
    width: "minmax(100px, 1fr)",
    wide: true,
    draw: (row) => [row.explanation, row.tags ? h("span", { class: "chip" }, row.tags) : null],
    only: (rows, filled) => filled.includes("explanation") || rows.some((row) => row.explanation || row.tags),
  },
  { name: "score", title: "score", width: "56px", wide: true, only: (rows, filled) => filled.includes("score") },
  {
    name: "probe",
    title: "probe",
    width: "minmax(150px, .5fr)",
    wide: true,
    tip: "the task that this latent answers best of all latents, and how often it is right",
    only: (rows, filled) => filled.includes("probe"),
    draw: (row) => (row.probe ? [h("span", { class: "pm" }, percent(row.probe_score)), ` ${row.probe}`] : null),
  },
];

// A density of 1e-5 to 1, on a logarithmic scale.
function meter(density) {
  const share = density > 0 ? Math.max(4, 100 * (1 + Math.log10(density) / 5)) : 0;
  return h("span", { class: "meter" }, h("i", { style: { width: `${Math.min(100, share)}%` } }));
}

function drawLatents(data, main) {
  const path = `/run/${data.run}/latents.json`;
  const state = () => Object.fromEntries(parameters());
  let cache = new Map(),
    total = data.table.total,
    marked = -1,
    asked = 0;
  const narrow = matchMedia("(max-width: 640px)").matches;
  const columns = COLUMNS.filter(
    (column) => (!column.wide || !narrow) && (!column.only || column.only(data.table.rows, data.filled, data.unit)),
  );
  const grid = columns.map((column) => column.width).join(" ");

  const search = h("input", {
    type: "search",
    placeholder: "search tokens, contexts, notes   /",
    value: state().q ?? "",
    style: { width: "260px" },
    "aria-label": "search",
  });
  const kind = h(
    "select",
    { "aria-label": "kind" },
    ["", "ordinary", "dense", "silent", "novel", "reconstruction"].map((name) =>
      h("option", { value: name, selected: state().kind === name }, name || "every kind"),
    ),
  );
  const filter = h("input", {
    placeholder: "density:0.001..0.1, cosine:0.8..",
    value: state().filter ?? "",
    style: { width: "230px" },
    "aria-label": "filter",
    tip: "column:least..most, either may be left out\ncolumns: density, mean, largest, norm, cosine, skew, kurtosis, count, score, probe_score",
  });
  const noted = h(
    "button",
    { class: state().noted ? "on" : "", onclick: () => change({ noted: state().noted ? null : 1 }) },
    "noted",
  );
  const said = h("span", { class: "dim num" });
  const head = h("div", { class: "vhead", style: { "--cols": grid } });
  const body = h("div", { class: "vbody", tabindex: "0" });
  const inner = h("div", { style: { position: "relative" } });
  body.append(inner);
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", { class: "grow" }, "Latents of ", data.run), said),
    h(
      "div",
      { class: "bar" },
      search,
      kind,
      filter,
      noted,
      h(
        "button",
        { onclick: () => go(`/run/${data.run}/latent/${Math.floor(Math.random() * data.n_latents)}`) },
        "random",
      ),
    ),
    h("div", { class: "panel flush" }, head, body),
  );

  function drawHead() {
    const { sort = "id", desc } = state();
    head.replaceChildren(
      ...columns.map((column) =>
        h(
          "span",
          {
            tip: column.tip,
            onclick: () =>
              change({
                sort: column.name,
                desc: (sort === column.name ? !desc : !["id", "tokens", "explanation"].includes(column.name))
                  ? 1
                  : null,
              }),
          },
          column.title + (sort === column.name ? (desc ? " ↓" : " ↑") : ""),
        ),
      ),
    );
  }

  async function chunk(place) {
    if (cache.has(place)) return;
    cache.set(place, null);
    const mine = asked,
      query = new URLSearchParams({ ...state(), offset: place * CHUNK, limit: CHUNK });
    query.delete("at");
    const found = await get(`${path}?${query}`).catch((error) => ({ error: error.message }));
    if (mine !== asked) return;
    if (found.error) {
      said.replaceChildren(h("span", { class: "error" }, found.error));
      return;
    }
    cache.set(place, found.table.rows);
    setTotal(found.table.total);
    drawRows();
  }

  function setTotal(found) {
    total = found;
    inner.style.height = `${total * HEIGHT}px`;
    said.textContent = `${count(total)}${total === data.n_latents ? "" : ` of ${count(data.n_latents)}`} latents on ${count(data.rows_seen)} ${data.unit}`;
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(body.scrollTop / HEIGHT) - 8);
    const last = Math.min(total, Math.ceil((body.scrollTop + body.clientHeight) / HEIGHT) + 8);
    const rows = [];
    for (let place = first; place < last; place++) {
      const part = cache.get(Math.floor(place / CHUNK));
      if (!part) {
        chunk(Math.floor(place / CHUNK));
        continue;
      }
      const row = part[place % CHUNK];
      if (row) rows.push(rowOf(row, place));
    }
    inner.replaceChildren(...rows);
  }

  function rowOf(row, place) {
    const query = parameters();
    query.delete("at");
    const address = `/run/${data.run}/latent/${row.id}${query.toString() ? `?${query}` : ""}`;
    return h(
      "a",
      {
        class: `vrow ${place === marked ? "here" : ""}`,
        href: link(address),
        style: { top: `${place * HEIGHT}px`, "--cols": grid },
      },
      columns.map((column) =>
        h(
          "span",
          { class: column.name === "id" ? "id num" : "num" },
          column.draw ? column.draw(row) : column.name === "id" ? row.id : number(row[column.name]),
        ),
      ),
    );
  }

  function change(values) {
    remember({ ...values, at: null }, true);
    reload();
  }

  function reload() {
    asked += 1;
    cache = new Map();
    marked = -1;
    body.scrollTop = 0;
    noted.className = state().noted ? "on" : "";
    search.value = state().q ?? "";
    kind.value = state().kind ?? "";
    filter.value = state().filter ?? "";
    drawHead();
    chunk(0);
  }

  let wait = null;
  const later = (act) => () => {
    clearTimeout(wait);
    wait = setTimeout(act, 160);
  };
  search.addEventListener(
    "input",
    later(() => {
      remember({ q: search.value, at: null });
      const own = search.value;
      reload();
      search.value = own;
    }),
  );
  filter.addEventListener("change", () => change({ filter: filter.value }));
  kind.addEventListener("change", () => change({ kind: kind.value }));
  body.addEventListener("scroll", () => {
    drawRows();
    later(() => remember({ at: Math.round(body.scrollTop / HEIGHT) || null }))();
  });
  addEventListener("popstate", reload);
  new ResizeObserver(drawRows).observe(body);

  const step = (by) => {
    marked = Math.max(
      0,
      Math.min(total - 1, (marked < 0 ? Math.round(body.scrollTop / HEIGHT) - (by > 0 ? 1 : 0) : marked) + by),
    );
    const top = marked * HEIGHT;
    if (top < body.scrollTop) body.scrollTop = top;
    if (top + HEIGHT > body.scrollTop + body.clientHeight) body.scrollTop = top + HEIGHT - body.clientHeight;
    drawRows();
  };
  key("j", "next row", () => step(1));
  key("k", "row before", () => step(-1));
  key("Enter", "open the row", () => inner.querySelector(".here")?.click());
  key("/", "search", () => {
    search.focus();
    search.select();
  });
  key("G", "last row", () => {
    body.scrollTop = body.scrollHeight;
  });
  key("g", "first row", () => {
    body.scrollTop = 0;
  });

  cache.set(
    Math.floor(data.table.offset / CHUNK),
    data.table.offset % CHUNK === 0 && data.table.rows.length >= Math.min(CHUNK, total)
      ? data.table.rows.slice(0, CHUNK)
      : undefined,
  );
  if (!cache.get(Math.floor(data.table.offset / CHUNK))) cache.clear();
  setTotal(total);
  drawHead();
  body.scrollTop = Number(state().at ?? 0) * HEIGHT;
  drawRows();
  if (isStatic) filter.disabled = false;
}

export const draw = { latents: drawLatents };
