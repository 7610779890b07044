// Two SAEs side by side. The threshold is dragged here: who is matched, split, merged or unique follows at once.

import { go, link, parameters, remember } from "./api.js";
import { h, panel, svg } from "./dom.js";
import { count, floats, integers, number, percent, shown } from "./format.js";
import { literal, plot, SHADES } from "./plots.js";
import { scoreText } from "./runs.js";

const KIND = {
  matched: "one here, one there",
  split: "several of the other point at it",
  merged: "shares its nearest with others",
  unique: "nothing there is close",
};
const GROUPS = {
  shared: "one here with one there",
  split: "one here with several there",
  merged: "several here with one there",
  tangled: "several with several",
  unique: "close to none there",
  dead: "never fired, left out",
};

function drawCompare(data, main) {
  const pick = (side) =>
    h(
      "select",
      {
        "aria-label": `SAE ${side}`,
        onchange: (event) =>
          go(
            `/compare?${new URLSearchParams({ ...Object.fromEntries(parameters()), a: data.a?.name, b: data.b?.name, [side]: event.target.value })}`,
          ),
      },
      data.names.map((name) => h("option", { value: name, selected: data[side]?.name === name }, name)),
    );
  const bar = h(
    "div",
    { class: "bar" },
    h("h1", { class: "grow" }, "Compare"),
    pick("a"),
    h("span", { class: "dim" }, "with"),
    pick("b"),
  );
  if (data.why_not)
    return main.replaceChildren(
      bar,
      h("div", { class: "panel notice" }, data.why_not),
      data.scores ? scoreTable(data) : "",
    );
  const near = { a: unpack(data.nearest.a), b: unpack(data.nearest.b) };
  let threshold = Number(parameters().get("threshold") ?? 0.7),
    side = parameters().get("side") ?? "b",
    kind = parameters().get("kind") ?? "unique";
  const match = data.match ? { a: unpackMatch(data.match.a), b: unpackMatch(data.match.b) } : null;
  let grouped = match !== null && parameters().get("classes") !== "cosine"; // as `saelab match` found, or by the slider
  const slider = h("input", {
    type: "range",
    min: 0.1,
    max: 1,
    step: 0.01,
    value: threshold,
    class: "grow",
    "aria-label": "threshold",
    oninput: (event) => {
      threshold = Number(event.target.value);
      moved();
    },
  });
  const moved = () => {
    remember({ threshold });
    if (grouped) group(false);
    else update();
  };
  const group = (on) => {
    grouped = on;
    remember({ classes: on ? null : "cosine" });
    update();
  };
  const ways = match
    ? [
        h(
          "button",
          {
            onclick: () => group(true),
            tip: "connected components of all pairs this close, as `saelab match` found them",
          },
          `matched at ${number(data.match.threshold)}`,
        ),
        h("button", { onclick: () => group(false) }, "by nearest cosine"),
      ]
    : [];
  const value = h("b", { class: "num" }),
    sums = h("div", {}),
    chart = h("div", { class: "plot", style: { height: "330px" } }),
    lists = h("div", {}),
    delta = h("div", {});
  main.replaceChildren(
    bar,
    h(
      "div",
      { class: "panel" },
      h(
        "div",
        { class: "bar", style: { margin: "0" } },
        h("span", { class: "dim" }, "same latent from a cosine of"),
        value,
        slider,
        ways,
      ),
    ),
    h("div", { class: "halves" }, panel("Latents of either", sums), panel("Nearest cosine in the other", chart)),
    match ? matchPanel(data) : "",
    delta,
    panel(null, lists),
    scoreTable(data),
  );

  function update() {
    const at = grouped ? data.match.threshold : threshold;
    value.textContent = at.toFixed(2);
    slider.value = at;
    const names = grouped ? GROUPS : KIND;
    const kinds = grouped
      ? { a: kindsOf(data.match, match.a), b: kindsOf(data.match, match.b) }
      : { a: sorted(near.a, near.b, threshold), b: sorted(near.b, near.a, threshold) };
    if (!(kind in names)) kind = grouped ? "shared" : "matched";
    ways.forEach((button, n) => {
      button.className = grouped === (n === 0) ? "on" : "";
    });
    sums.replaceChildren(
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", {}),
            ["a", "b"].map((s) => h("th", { class: "num" }, data[s].name)),
          ),
        ),
        h(
          "tbody",
          {},
          Object.keys(names).map((name) =>
            h(
              "tr",
              {},
              h(
                "td",
                {},
                h("span", { class: `chip ${name}` }, name),
                h("span", { class: "faint small" }, ` ${names[name]}`),
              ),
              ["a", "b"].map((s) => {
                const n = kinds[s].filter((one) => one === name).length;
                return h(
                  "td",
                  { class: "num" },
                  h(
                    "a",
                    {
                      href: "#list",
                      onclick: (event) => {
                        event.preventDefault();
                        side = s;
                        kind = name;
                        remember({ side, kind });
                        drawList(kinds);
                      },
                    },
                    count(n),
                  ),
                  h("span", { class: "pm" }, ` ${percent(n / kinds[s].length)}`),
                );
              }),
            ),
          ),
        ),
      ),
    );
    plot(
      chart,
      ["a", "b"].map((s, n) => ({
        type: "histogram",
        x: Array.from(near[s].cosine),
        name: data[s].name,
        opacity: 0.6,
        xbins: { start: -0.1, end: 1.001, size: 0.02 },
        marker: { color: SHADES[n] },
      })),
      {
        height: 330,
        barmode: "overlay",
        showlegend: true,
        legend: { orientation: "h", y: 1.1 },
        xaxis: { title: { text: "cosine" }, range: [0, 1] },
        yaxis: { title: { text: "latents" } },
        shapes: [
          { type: "line", x0: at, x1: at, yref: "paper", y0: 0, y1: 1, line: { dash: "dot", color: SHADES[1] } },
        ],
      },
    );
    drawList(kinds);
    drawDelta(data, delta, at, (found) => {
      threshold = found;
      moved();
    });
  }

  function drawList(kinds) {
    const own = near[side],
      there = side === "a" ? "b" : "a";
    const partners = (n) =>
      (grouped
        ? match[there].members
            .get(match[side].group[n])
            ?.map((m) => [m, m === match[side].partner[n] ? match[side].cosine[n] : null])
            .sort((x, y) => (y[1] !== null) - (x[1] !== null))
        : null) ?? [[own.latent[n], own.cosine[n]]];
    const other = ([m, cosine]) => [
      h("span", { class: "faint small" }, cosine === null ? "with " : `${cosine.toFixed(2)} to `),
      h("a", { class: "small", href: link(`/run/${data[there].name}/latent/${m}`) }, String(m)),
      data[there].words[m] ? h("span", { class: "tok" }, shown(data[there].words[m])) : null,
    ];
    const density = floats(data[side].density);
    const chosen = [...kinds[side].keys()]
      .filter((n) => kinds[side][n] === kind)
      .sort((m, n) => (density[n] ?? 0) - (density[m] ?? 0))
      .slice(0, 60);
    lists.replaceChildren(
      h(
        "h2",
        { id: "list" },
        `${kind} latents of ${data[side].name}`,
        h("span", { class: "aside" }, "most frequent first"),
      ),
      h(
        "div",
        { class: "thirds", style: { gap: "2px 24px" } },
        chosen.map((n) =>
          h(
            "div",
            { class: "line" },
            h("a", { class: "num", href: link(`/run/${data[side].name}/latent/${n}`) }, String(n)),
            data[side].words[n] ? h("span", { class: "tok" }, shown(data[side].words[n])) : null,
            h("span", { class: "grow" }),
            partners(n).slice(0, 3).map(other),
            partners(n).length > 3 ? h("span", { class: "faint small" }, `+${partners(n).length - 3}`) : null,
          ),
        ),
      ),
      chosen.length ? "" : h("div", { class: "notice" }, "none"),
    );
  }
  update();
}

function unpack(packed) {
  return { cosine: floats(packed.cosine), latent: integers(packed.latent) };
}

function unpackMatch(packed) {
  const found = {
    kind: integers(packed.kind),
    partner: integers(packed.partner),
    group: integers(packed.group),
    cosine: floats(packed.cosine),
    members: new Map(),
  };
  found.group.forEach((group, n) => {
    if (group >= 0) found.members.set(group, [...(found.members.get(group) ?? []), n]);
  });
  return found;
}

function kindsOf(match, side) {
  return Array.from(side.kind, (code) => match.kinds[code]);
}

function matchPanel(data) {
  const { match } = data,
    chart = h("div", { class: "plot", style: { height: "300px" } }),
    whose = data[match.curve_of].name;
  plot(
    chart,
    [
      {
        x: match.curve.cosine,
        y: match.curve.share,
        mode: "lines",
        line: { color: SHADES[0] },
        hovertemplate: "%{y:.1%} of partners at %{x:.2f} or closer<extra></extra>",
      },
    ],
    {
      height: 300,
      xaxis: { title: { text: "cosine with the partner" }, range: [0, 1] },
      yaxis: { title: { text: `share of ${whose}'s latents` }, rangemode: "tozero" },
      shapes: [
        {
          type: "line",
          x0: match.threshold,
          x1: match.threshold,
          yref: "paper",
          y0: 0,
          y1: 1,
          line: { dash: "dot", color: SHADES[1] },
        },
        {
          type: "line",
          x0: match.random_cosine,
          x1: match.random_cosine,
          yref: "paper",
          y0: 0,
          y1: 1,
          line: { dash: "dot", color: SHADES[7] },
        },
      ],
    },
  );
  const lines = [
    ["pairs by", match.by],
    ["median cosine", number(match.median_cosine)],
    ["mean cosine", number(match.mean_cosine)],
    [`pairs at ${number(match.threshold)} or closer`, percent(match.share_matched)],
    ["nearest of random directions", number(match.random_cosine)],
    ["mean similarity, below the best by at most", number(match.bound)],
  ];
  return panel(
    "One to one",
    h(
      "div",
      { class: "halves" },
      chart,
      h(
        "dl",
        { class: "stats", style: { "grid-template-columns": "1fr" } },
        lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
      ),
    ),
  );
}

// Links go from each latent to its nearest in the other SAE, where that is close enough.
function sorted(own, other, threshold) {
  const close = (side, n) => side.cosine[n] >= threshold;
  const into = (side, size) => {
    const found = new Int32Array(size);
    side.latent.forEach((to, n) => {
      if (close(side, n)) found[to] += 1;
    });
    return found;
  };
  const toOwn = into(other, own.latent.length),
    toOther = into(own, other.latent.length);
  return Array.from(own.latent, (to, n) => {
    if (toOwn[n] > 1) return "split";
    if (
      close(own, n) &&
      (toOther[to] > 1 || (toOwn[n] === 0 && toOther[to] >= 1 && other.latent[to] !== n && close(other, to)))
    )
      return "merged";
    return close(own, n) || toOwn[n] === 1 ? "matched" : "unique";
  });
}

function drawDelta(data, box, threshold, drop) {
  if (!data.stitch) {
    if (!box.firstChild)
      box.append(
        h(
          "div",
          { class: "panel dim small" },
          "ΔMSE of each latent and the way from one SAE to the other: load the folder that `saelab stitch` wrote for these two.",
        ),
      );
    return;
  }
  const { latents, path, large } = data.stitch;
  if (!box.firstChild)
    box.append(
      h(
        "div",
        { class: "halves" },
        panel("What each latent adds", h("div", { class: "plot", style: { height: "360px" } })),
        panel(
          "The way from one to the other",
          h("div", { class: "plot", style: { height: "300px" } }),
          h("div", { class: "bar", id: "way" }),
        ),
      ),
    );
  const [first, second] = box.querySelectorAll(".plot");
  const colours = { novel: SHADES[2], reconstruction: SHADES[1], undecided: SHADES[7], dead: SHADES[7] };
  const run = data[large].name;
  const traces = Object.keys(colours).map((name) => {
    const places = latents.class.map((one, n) => (one === name ? n : -1)).filter((n) => n >= 0);
    return {
      mode: "markers",
      name: `${name} ${places.length}`,
      x: places.map((n) => latents.cosine[n]),
      y: places.map((n) => latents.delta_mse[n]),
      customdata: places.map((n) => latents.latent[n]),
      text: places.map(
        (n) => `latent ${latents.latent[n]}  ${literal(shown(data[large].words[latents.latent[n]] ?? ""))}`,
      ),
      hovertemplate: "%{text}<br>cosine %{x:.3f}<br>ΔMSE %{y:.3g}<extra></extra>",
      marker: { size: 4.5, color: colours[name], opacity: 0.7 },
    };
  });
  plot(
    first,
    traces,
    {
      height: 360,
      showlegend: true,
      legend: { orientation: "h", y: 1.1 },
      xaxis: { title: { text: `largest cosine of ${run}'s latents with the other's` } },
      yaxis: { title: { text: "ΔMSE when put in" } },
      shapes: [
        {
          type: "line",
          x0: threshold,
          x1: threshold,
          yref: "paper",
          y0: 0,
          y1: 1,
          line: { dash: "dot", color: SHADES[0], width: 2 },
        },
      ],
    },
    (point) => go(`/run/${run}/latent/${point.customdata}`),
  ).then(() => {
    if (first.dataset.edits) return;
    first.dataset.edits = "1"; // the line can be dragged in the plot as well
    globalThis.Plotly.react(first, first.data, first.layout, {
      displayModeBar: false,
      responsive: true,
      edits: { shapePosition: true },
    });
    first.on("plotly_relayout", (event) => {
      const moved = event["shapes[0].x0"];
      if (moved !== undefined) drop(Math.min(1, Math.max(0.1, Math.round(moved * 100) / 100)));
    });
  });
  plot(
    second,
    [
      {
        x: path.step,
        y: path.fvu,
        name: "FVU",
        mode: "lines+markers",
        marker: { size: 4 },
        line: { color: SHADES[0] },
      },
      { x: path.step, y: path.l0, name: "L0", yaxis: "y2", mode: "lines", line: { color: SHADES[1], dash: "dot" } },
    ],
    {
      height: 300,
      showlegend: true,
      legend: { orientation: "h", y: 1.12 },
      xaxis: { title: { text: "steps" } },
      yaxis: { title: { text: "FVU" } },
      yaxis2: { overlaying: "y", side: "right", showgrid: false, title: { text: "L0" } },
      margin: { l: 52, r: 48, t: 10, b: 42 },
    },
  );
  const way = box.querySelector("#way");
  if (!way.firstChild) {
    const told = h("span", { class: "num small" });
    const tell = (n) => {
      told.textContent = `step ${path.step[n]} · ${path.phase[n]} · ${count(path.n_latents[n])} latents · FVU ${number(path.fvu[n], 4)} · L0 ${number(path.l0[n])}${path.ce_delta?.[n] != null ? ` · ΔCE ${number(path.ce_delta[n])}` : ""}`;
    };
    way.append(
      h("input", {
        type: "range",
        min: 0,
        max: path.step.length - 1,
        value: 0,
        style: { width: "100%" },
        "aria-label": "step",
        oninput: (event) => tell(Number(event.target.value)),
      }),
      told,
    );
    tell(0);
  }
}

// A difference with its interval about zero, each line on a scale of its own: metrics have different units.
function whisker(line, apart) {
  const reach = 1.08 * (Math.abs(line.difference) + line.margin),
    x = (value) => 60 + (58 * value) / reach;
  const low = line.difference - line.margin,
    high = line.difference + line.margin;
  return svg(
    "svg",
    {
      class: "chart",
      viewBox: "0 0 120 16",
      style: { width: "120px" },
      role: "img",
      "aria-label": `difference ${number(low)} to ${number(high)}`,
    },
    svg("line", { class: "axis", x1: 60, x2: 60, y1: 0, y2: 16 }),
    svg("rect", { class: apart ? "fill warm" : "fill", x: x(low), y: 7, width: x(high) - x(low), height: 2 }),
    svg("circle", { class: apart ? "fill warm" : "fill", cx: x(line.difference), cy: 8, r: 3.5 }),
  );
}

function scoreTable(data) {
  if (!data.scores?.length) return "";
  return panel(
    "Scores",
    h(
      "div",
      { class: "scrolls" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", {}, "metric"),
            h("th", { class: "num" }, data.a.name),
            h("th", { class: "num" }, data.b.name),
            h("th", { class: "num" }, "difference"),
            h("th", { class: "wide" }),
            h("th", {}),
          ),
        ),
        h(
          "tbody",
          {},
          data.scores.map((line) => {
            const apart = line.margin !== undefined && Math.abs(line.difference) > line.margin;
            return h(
              "tr",
              {},
              h("td", {}, line.metric),
              h("td", { class: "num" }, scoreText(line.a)),
              h("td", { class: "num" }, scoreText(line.b)),
              h(
                "td",
                { class: "num" },
                line.difference === undefined
                  ? "–"
                  : [
                      h(apart ? "b" : "span", {}, `${line.difference > 0 ? "+" : ""}${number(line.difference)}`),
                      line.margin ? h("span", { class: "pm" }, ` ±${number(line.margin, 2)}`) : null,
                    ],
              ),
              h("td", { class: "wide" }, line.margin ? whisker(line, apart) : null),
              h("td", { class: "faint small wide" }, line.a?.unit ?? line.b?.unit ?? ""),
            );
          }),
        ),
      ),
    ),
  );
}

export const draw = { compare: drawCompare };
