// Runs: the table of SAEs, and one of them with its curves, live while it trains.

import { get, isStatic, link } from "./api.js";
import { h, panel } from "./dom.js";
import { count, number } from "./format.js";
import { plot, SHADES } from "./plots.js";
import { parameters, remember } from "./api.js";

const MAIN = ["fvu", "l0", "ce_recovered", "dead", "cosine", "nearest_cosine"];

function drawRuns(data, main) {
  const metrics = MAIN.filter((name) => data.runs.some((run) => run.scores[name]));
  const columns = [
    ["name", (run) => run.name],
    ["activation", (run) => run.activation],
    ["latents", (run) => run.n_latents],
    ["rows", (run) => run.rows],
    ...metrics.map((name) => [name, (run) => run.scores[name]?.value]),
    ["site", (run) => run.site],
  ];
  const box = h("div", { class: "panel flush scrolls" });
  const chosen = { sort: parameters().get("sort") ?? "name", desc: parameters().get("desc") === "1" };
  const draw = () => {
    const [, of] = columns.find(([name]) => name === chosen.sort) ?? columns[0];
    const runs = [...data.runs].sort((a, b) => compareValues(of(a), of(b)) * (chosen.desc ? -1 : 1));
    box.replaceChildren(
      h(
        "table",
        { class: "sortable" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            columns.map(([name]) =>
              h(
                "th",
                {
                  class: `sorts ${["name", "activation", "site"].includes(name) ? "" : "num"}`,
                  onclick: () => {
                    chosen.desc = chosen.sort === name && !chosen.desc;
                    chosen.sort = name;
                    remember({ sort: name, desc: chosen.desc ? 1 : null }, true);
                    draw();
                  },
                },
                name + (chosen.sort === name ? (chosen.desc ? " ↓" : " ↑") : ""),
              ),
            ),
            h("th", {}),
          ),
        ),
        h(
          "tbody",
          {},
          runs.map((run) =>
            h(
              "tr",
              {},
              h(
                "td",
                {},
                h("a", { href: link(`/run/${run.name}`) }, h("b", {}, run.name)),
                " ",
                run.state === "training" ? h("span", { class: "chip training" }, "training") : null,
              ),
              h(
                "td",
                { class: "mono small" },
                run.activation,
                run.losses ? h("div", { class: "faint" }, run.losses) : null,
                run.scale ? h("div", { class: "faint" }, run.scale) : null,
              ),
              h("td", { class: "num" }, count(run.n_latents)),
              h("td", { class: "num" }, count(run.rows)),
              metrics.map((name) => h("td", { class: "num" }, scoreText(run.scores[name]))),
              h(
                "td",
                { class: "mono small dim" },
                run.site ?? "",
                run.model ? h("div", { class: "faint" }, run.model) : null,
              ),
              h(
                "td",
                { class: "nowrap right" },
                run.collected
                  ? h("a", { class: "button", href: link(`/run/${run.name}/latents`) }, "Latents")
                  : h("span", { class: "faint small" }, run.state === "training" ? "" : "not collected"),
              ),
            ),
          ),
        ),
      ),
    );
  };
  draw();
  const found = Object.entries(data.results ?? {}).flatMap(([kind, names]) => names.map((name) => `${kind} ${name}`));
  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("h1", { class: "grow" }, "Sparse autoencoders"),
      h("span", { class: "dim" }, `${data.runs.length} loaded`),
    ),
    box,
    found.length ? h("p", { class: "dim small" }, `Results loaded: ${found.join(", ")}`) : "",
  );
}

export function compareValues(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return 1;
  if (b === null || b === undefined) return -1;
  return a < b ? -1 : 1;
}

export function scoreText(score) {
  if (!score) return h("span", { class: "faint" }, "–");
  const margin = score.low === null || score.low === undefined ? null : (score.high - score.low) / 2;
  return [number(score.value, 4), margin ? h("span", { class: "pm" }, ` ±${number(margin, 2)}`) : null];
}

function drawRun(data, main) {
  const { run } = data;
  const scores = Object.entries(run.scores);
  const curves = h("div", {});
  const live = h("span", { class: "chip training" }, "training · live");
  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("h1", { class: "grow" }, run.name, " ", run.state === "training" ? live : null),
      h("span", { class: "dim mono small" }, run.folder),
    ),
    curves,
    h(
      "div",
      { class: "halves" },
      panel(
        "Scores",
        scores.length
          ? h(
              "div",
              { class: "scrolls" },
              h(
                "table",
                {},
                h(
                  "tbody",
                  {},
                  scores.map(([name, score]) =>
                    h(
                      "tr",
                      {},
                      h("td", {}, name),
                      h("td", { class: "num" }, scoreText(score)),
                      h("td", { class: "faint small wide" }, score.unit),
                    ),
                  ),
                ),
              ),
            )
          : h("div", { class: "dim" }, `not measured: saelab measure ${run.folder}`),
      ),
      panel(
        "Settings",
        h("pre", { class: "config" }, yaml(data.config).trimStart()),
        h("pre", { class: "config dim" }, yaml({ source: data.origin }).trimStart()),
      ),
    ),
  );
  let records = data.log;
  drawCurves(records, curves);
  if (run.state === "training" && !isStatic) {
    const timer = setInterval(async () => {
      const last = records.at(-1)?.step ?? -1;
      const found = await get(`/run/${run.name}/log.json?after=${last}`).catch(() => ({
        records: [],
        state: "training",
      }));
      if (found.records.length) drawCurves((records = [...records, ...found.records].slice(-3000)), curves);
      if (found.state === "trained") {
        clearInterval(timer);
        live.remove();
      }
    }, 2000);
  }
}

function yaml(value, depth = 0) {
  const pad = "  ".repeat(depth);
  if (Array.isArray(value))
    return value.length ? value.map((one) => `\n${pad}- ${yaml(one, depth + 1).trimStart()}`).join("") : " []";
  if (value && typeof value === "object")
    return Object.entries(value)
      .map(([key, one]) => `\n${pad}${key}:${one && typeof one === "object" ? yaml(one, depth + 1) : ` ${one}`}`)
      .join("");
  return ` ${value}`;
}

const CURVES = [
  ["loss", ["reconstruction", "AuxK", "fvu"], "log"],
  ["L0", ["l0"], "linear"],
  ["silent for 100k rows", ["silent_100k"], "linear"],
];

function drawCurves(records, box) {
  if (!records.length) return box.replaceChildren();
  if (!box.firstChild) {
    box.className = "halves";
    for (const [name] of CURVES)
      box.append(panel(name, h("div", { class: "plot", style: { "min-height": "210px", height: "210px" } })));
    if (records.some((record) => record.fired))
      box.append(
        panel(
          "latents by how often they fire in a batch",
          h("div", { class: "plot", style: { "min-height": "210px", height: "210px" } }),
        ),
      );
  }
  const places = box.querySelectorAll(".plot");
  const x = records.map((record) => record.rows);
  const losses = [
    ...new Set([...CURVES[0][1], ...Object.keys(records.at(-1)).filter((key) => /^[A-Z]/.test(key))]),
  ].filter((key) => key in records.at(-1));
  CURVES.forEach(([, names, type], place) => {
    const keys = place ? names : losses;
    plot(
      places[place],
      keys.map((key, n) => ({
        x,
        y: records.map((record) => record[key]),
        name: key,
        mode: "lines",
        line: { width: 1.8, color: SHADES[n % SHADES.length] },
      })),
      {
        height: 210,
        xaxis: { title: { text: "rows" } },
        yaxis: { type },
        showlegend: keys.length > 1,
        legend: { orientation: "h", y: 1.12, font: { size: 10 } },
        margin: { l: 44, r: 8, t: 8, b: 38 },
      },
    );
  });
  if (places[3]) {
    const kept = records.filter((record) => record.fired);
    const bins = kept[0].fired.length;
    const names = Array.from({ length: bins }, (_, n) => (n === 0 ? "0" : n === 1 ? "1" : `≥${2 ** (n - 1)}`));
    plot(
      places[3],
      [
        {
          type: "heatmap",
          x: kept.map((record) => record.rows),
          y: names,
          z: names.map((_, n) => kept.map((record) => Math.log10(1 + record.fired[n]))),
          text: names.map((_, n) => kept.map((record) => `${record.fired[n]} latents`)),
          hovertemplate: "%{x} rows<br>fired in %{y} of the batch<br>%{text}<extra></extra>",
          colorscale: "Cividis",
          showscale: false,
        },
      ],
      {
        height: 210,
        xaxis: { title: { text: "rows" } },
        yaxis: { type: "category" },
        margin: { l: 52, r: 8, t: 8, b: 38 },
      },
    );
  }
}

export const draw = { runs: drawRuns, run: drawRun };
