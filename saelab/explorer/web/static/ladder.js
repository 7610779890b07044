// What `saelab scaling` wrote: laws with their intervals, plans, allocations, diagnoses.

import { parameters, link, remember } from "./api.js";
import { h, panel } from "./dom.js";
import { count, number, percent } from "./format.js";
import { plot, SHADES } from "./plots.js";

const NAMES = { n: "latents n", k: "active latents k", fvu: "FVU", loss: "loss" };

export function drawLadder(results, box) {
  const { law, plan, allocation, diagnosis, damaged } = results;
  if (!law.length && !plan.length && !allocation.length && !diagnosis.length && !damaged.length) {
    box.replaceChildren(
      h(
        "div",
        { class: "panel dim small" },
        "Laws with intervals, plans, allocations and diagnoses: load what `saelab scaling fit`, `plan`, `allocate` and `diagnose` wrote.",
      ),
    );
    return;
  }
  box.replaceChildren(
    ...damaged.map((one) => h("div", { class: "panel error" }, one.error)),
    ...(law.length ? [lawPanel(law)] : []),
    ...plan.map(planPanel),
    ...allocation.map(allocationPanel),
    ...diagnosis.map(diagnosisPanel),
  );
}

const space = (height) => h("div", { class: "plot", style: { height: `${height}px` } });
const head = (...names) =>
  h(
    "thead",
    {},
    h(
      "tr",
      {},
      names.map((name, n) => h("th", { class: n ? "num" : "" }, name)),
    ),
  );
const row = (first, ...cells) =>
  h(
    "tr",
    {},
    h("td", {}, first),
    cells.map((cell) => h("td", { class: "num" }, cell)),
  );
const table = (heads, rows) => h("div", { class: "scrolls" }, h("table", {}, head(...heads), h("tbody", {}, rows)));
const within = (low, high, digits = 3) =>
  h("span", { class: "pm" }, ` ${number(low, digits)} to ${number(high, digits)}`);
const log = (text) => ({ type: "log", title: { text }, exponentformat: "power" });
const soft = (shade) => `${shade}22`;

// ---- laws

function lawPanel(laws) {
  const wanted = parameters().get("law"),
    first = laws.find((one) => one.name === wanted) ?? laws.find((one) => one.name.endsWith("law-joint")) ?? laws[0];
  const chart = space(420),
    about = h("div", {});
  const choose = h(
    "select",
    {
      "aria-label": "law",
      onchange: (event) => {
        remember({ law: event.target.value });
        show(laws.find((one) => one.name === event.target.value));
      },
    },
    laws.map((one) => h("option", { value: one.name, selected: one === first }, one.name)),
  );
  const show = (one) => {
    drawLaw(one, chart);
    about.replaceChildren(...aboutLaw(one));
  };
  show(first);
  return panel(
    ["Fitted laws", h("span", { class: "aside" }, choose)],
    h(
      "div",
      { class: "halves" },
      h(
        "div",
        {},
        chart,
        h("div", { class: "dim small" }, "Dots are cells; bands hold 95 %; dashed is beyond the widest cell."),
      ),
      about,
    ),
  );
}

function drawLaw(law, chart) {
  const [across, ...others] = law.variables,
    traces = [];
  for (const [number_, line] of law.lines.entries()) {
    const shade = SHADES[number_ % SHADES.length],
      name = others.map((key, n) => `${key} ${number(line.others[n])}`).join(", ") || law.target;
    const own = law.cells.filter((cell) => others.every((key, n) => cell[key] === line.others[n]));
    const edge = line.x.findIndex((x) => x >= line.seen_to * (1 - 1e-9)),
      part = (from, to) => ({ x: line.x.slice(from, to), y: line.y.slice(from, to) });
    traces.push({
      x: [...line.x, ...line.x.toReversed()],
      y: [...line.high, ...line.low.toReversed()],
      fill: "toself",
      fillcolor: soft(shade),
      line: { width: 0 },
      mode: "lines",
      hoverinfo: "skip",
      showlegend: false,
    });
    traces.push({
      ...part(0, edge + 1),
      mode: "lines",
      line: { color: shade, width: 1.5 },
      hoverinfo: "skip",
      showlegend: false,
    });
    traces.push({
      ...part(edge),
      mode: "lines",
      line: { color: shade, width: 1.5, dash: "dash" },
      showlegend: false,
      hovertemplate: `${name}<br>${across} %{x:.4s}<br>${law.target} %{y:.4g}<extra>beyond the cells</extra>`,
    });
    traces.push({
      x: own.map((cell) => cell[across]),
      y: own.map((cell) => cell.y),
      text: own.map(
        (cell) =>
          `${cell.name}<br>fitted ${number(cell.fitted, 4)}${cell.weight < 0.5 ? "<br>outlier: low weight" : ""}`,
      ),
      mode: "markers",
      name,
      marker: { color: shade, size: 7 },
      hovertemplate: `%{text}<br>${law.target} %{y:.4g}<extra></extra>`,
    });
  }
  plot(chart, traces, {
    height: 420,
    showlegend: law.lines.length > 1,
    legend: { orientation: "h", y: 1.1 },
    xaxis: log(NAMES[across] ?? across),
    yaxis: log(NAMES[law.target] ?? law.target),
  });
}

function aboutLaw(law) {
  const { held_out } = law,
    without = law.irreducible ? "without" : "with";
  const lines = [
    `${law.law}${law.k === null ? "" : ` for k = ${number(law.k)}`}: ${law.cells.length} cells, spread ${percent(law.sigma)}${law.r2 === null ? "" : `, R² ${number(law.r2, 4)}`}`,
  ];
  if (law.aicc !== null && law.rival_aicc !== null)
    lines.push(
      `AICc ${law.aicc.toFixed(1)}; ${without} an irreducible part ${law.rival_aicc.toFixed(1)}${law.rival_holds ? ": both hold, and bands allow for both" : ""}`,
    );
  if (held_out)
    lines.push(
      `held out: ${held_out.inside} of ${held_out.cells.length} inside their intervals, mean error ${percent(held_out.mean_abs_log_error)}`,
    );
  const parameter = ([name, one]) =>
    one.value === null
      ? h("tr", {}, h("td", {}, name), h("td", { colspan: 2, class: "dim small" }, `not identified: ${one.why}`))
      : row(name, number(one.value), within(one.low, one.high));
  const tested = (one) =>
    row(
      one.name,
      number(one.y, 4),
      [number(one.predicted, 4), within(one.low, one.high, 4)],
      one.low <= one.y && one.y <= one.high ? "inside" : h("b", {}, "outside"),
    );
  return [
    table(["parameter", "value", "95 %"], Object.entries(law.parameters).map(parameter)),
    ...[...lines, ...law.notes].map((line) => h("div", { class: "dim small" }, line)),
    held_out
      ? h(
          "details",
          {},
          h("summary", { class: "small" }, "cells that the fit did not see"),
          table(["cell", "trained", "predicted", ""], held_out.cells.map(tested)),
        )
      : null,
  ].filter(Boolean);
}

// ---- a plan

function planPanel(plan) {
  const budget = Object.entries(plan.budget)
    .filter(([, value]) => value !== null)
    .map(([key, value]) =>
      key === "seconds"
        ? `${time(value)}`
        : ["memory", "disk"].includes(key)
          ? `${bytes(value)} of ${key}`
          : key === "target_fvu"
            ? `to reach FVU ${number(value)}`
            : `${count(value)} ${key}`,
    )
    .join(", ");
  const rows = plan.rows.map((one) =>
    row(
      [
        count(one.n),
        one.notes.length
          ? h(
              "span",
              { class: "chip unique", tip: one.notes.join("\n") },
              one.notes.some((note) => note.startsWith("a guess")) ? "guess" : "notes",
            )
          : null,
      ].map((part, n) => (n ? [" ", part] : part)),
      number(one.k),
      [number(one.fvu), within(one.fvu_low, one.fvu_high)],
      [number(one.tokens), within(one.tokens_low, one.tokens_high)],
      number(one.lr, 2),
      count(one.batch),
      time(one.seconds),
      bytes(one.memory),
      bytes(one.disk),
      one.limit,
    ),
  );
  const notes = [...new Set(plan.rows.flatMap((one) => one.notes))];
  return panel(
    ["Plan", h("span", { class: "aside" }, budget)],
    table(["n", "k", "expected FVU", "tokens", "lr", "batch", "time", "memory", "disk", "limit"], rows),
    notes.map((note) => h("div", { class: "dim small" }, note)),
  );
}

const time = (seconds) =>
  seconds < 120
    ? `${number(seconds)} s`
    : seconds < 7200
      ? `${number(seconds / 60)} min`
      : seconds < 172800
        ? `${number(seconds / 3600)} h`
        : `${number(seconds / 86400)} days`;
const bytes = (size) => {
  const place = Math.max(0, Math.min(4, Math.floor(Math.log10(size || 1) / 3)));
  return `${number(size / 1000 ** place)} ${["B", "KB", "MB", "GB", "TB"][place]}`;
};

// ---- an allocation

function allocationPanel(one) {
  const chart = space(320),
    { theory, allocation, rows, settings, local_exponents: slopes } = one;
  plot(
    chart,
    [
      {
        x: allocation.rank,
        y: allocation.count,
        mode: "markers",
        name: "best",
        marker: { size: 5, color: SHADES[0] },
        hovertemplate: "rank %{x}<br>%{y} latents<extra></extra>",
      },
      {
        x: allocation.rank,
        y: allocation.expected,
        mode: "lines",
        name: `rank^${number(theory.n_i)}`,
        line: { dash: "dot", color: SHADES[1] },
        hoverinfo: "skip",
      },
    ],
    {
      height: 320,
      showlegend: true,
      legend: { orientation: "h", y: 1.12 },
      xaxis: log("rank of the feature"),
      yaxis: log(`latents, of ${count(rows.at(-1).latents)}`),
    },
  );
  const lines = rows.map((line, n) =>
    row(
      count(line.latents),
      count(line.found),
      count(line.first),
      number(line.loss),
      n ? number(slopes.found[n - 1]) : "",
      n ? number(slopes.loss[n - 1]) : "",
      percent(line.share_on_manifolds),
    ),
  );
  const said = `${theory.regime}: theory says D ~ N^${number(theory.found)}, L ~ N^${number(theory.loss)}, n_i ~ i^${number(theory.n_i)}`;
  const set = Object.entries(settings)
    .map(([key, value]) => `${key.replace("_", " ")} ${typeof value === "number" ? number(value) : value}`)
    .join(", ");
  return panel(
    ["Allocation", h("span", { class: "aside" }, one.name)],
    h(
      "div",
      { class: "halves" },
      chart,
      h(
        "div",
        {},
        h("div", { class: "dim small" }, set),
        h("div", { class: "small" }, said),
        table(["N", "D found", "n₁", "L", "d ln D", "d ln L", "on manifolds"], lines),
      ),
    ),
  );
}

// ---- a diagnosis

const VERDICT = { benign: "novel", pathological: "unique" };

function diagnosisPanel(one) {
  const cosines = space(280),
    firing = space(280),
    growth = space(280),
    { frequencies, predicted, growth: found } = one;
  plot(
    cosines,
    Object.entries(one.nearest).map(([name, spread], n) => {
      const all = spread.histogram.reduce((sum, some) => sum + some, 0) || 1;
      return {
        x: one.middles,
        y: spread.histogram.map((some) => some / all),
        name,
        mode: "lines",
        line: { color: SHADES[n % SHADES.length], shape: "hvh", dash: name === "random" ? "dot" : "solid" },
      };
    }),
    {
      height: 280,
      showlegend: true,
      legend: { orientation: "h", y: 1.15 },
      xaxis: { title: { text: "nearest cosine" }, range: [-0.2, 1] },
      yaxis: { title: { text: "share of latents" } },
    },
  );
  plot(firing, [{ x: frequencies.rank, y: frequencies.density, mode: "lines", line: { color: SHADES[0] } }], {
    height: 280,
    xaxis: log("rank of the latent"),
    yaxis: log("share of rows"),
  });
  const times = predicted.map((line) => line.times),
    part = (key) => predicted.map((line) => line[key]);
  plot(
    growth,
    ["found", "tiling"].map((key, n) => ({
      x: times,
      y: part(key),
      name: key === "found" ? "features found" : "latents that tile",
      mode: "markers+lines",
      line: { color: SHADES[n] },
      error_y: {
        type: "data",
        symmetric: false,
        array: part(`${key}_high`).map((high, at) => high - part(key)[at]),
        arrayminus: part(`${key}_low`).map((low, at) => part(key)[at] - low),
        thickness: 1,
      },
    })),
    {
      height: 280,
      showlegend: true,
      legend: { orientation: "h", y: 1.15 },
      xaxis: { type: "log", title: { text: "times the width" }, tickvals: times },
      yaxis: { title: { text: "number" }, rangemode: "tozero" },
    },
  );
  const clusters = one.clusters.map((cluster) =>
    row(
      one.run
        ? h(
            "a",
            { href: link(`/run/${one.run}/manifolds?latents=${cluster.latents.slice(0, 60).join(",")}`) },
            `${cluster.latents.length} latents`,
          )
        : `${cluster.latents.length} latents`,
      percent(cluster.density),
      cluster.beta === null ? "–" : [number(cluster.beta), within(cluster.beta_low, cluster.beta_high)],
      number(cluster.dimension),
    ),
  );
  return panel(
    [
      "Diagnosis",
      h(
        "span",
        { class: "aside" },
        one.run
          ? h("a", { href: link(`/run/${one.run}`) }, one.run)
          : one.sae.split("/").slice(-2).join("/") || one.name,
      ),
    ],
    h(
      "div",
      { class: "bar" },
      h("span", { class: `chip ${VERDICT[one.verdict] ?? ""}` }, one.verdict),
      h(
        "span",
        {},
        `features found grow as N^${found.median.toFixed(2)}`,
        h("span", { class: "pm" }, ` ${found.low.toFixed(2)} to ${found.high.toFixed(2)}`),
      ),
      h(
        "span",
        { class: "dim small" },
        `${count(one.n_latents)} latents on ${count(one.rows)} rows, ${percent(one.share_in_clusters)} in clusters that tile`,
      ),
    ),
    one.why.map((line) => h("div", { class: "dim small" }, line)),
    h("div", { class: "thirds", style: { "margin-top": "12px" } }, cosines, firing, growth),
    clusters.length ? table(["cluster", "density", "β", "dimension"], clusters) : null,
  );
}
