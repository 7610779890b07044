// Loss against size, and the norms of codes against those of rows.

import { get, go, parameters, remember } from "./api.js";
import { h, panel } from "./dom.js";
import { drawLadder } from "./ladder.js";
import { number, shown } from "./format.js";
import { literal, plot, SHADES } from "./plots.js";

function drawScaling(data, main) {
  const { points, fit } = data;
  const loss = h("div", { class: "plot", style: { height: "380px" } }),
    norms = h("div", { class: "plot", style: { height: "420px" } });
  const said = h("div", { class: "dim small" }),
    ladder = h("div", {});
  const name = parameters().get("zf") ?? data.zf[0];
  const choose = h(
    "select",
    {
      "aria-label": "SAE",
      onchange: (event) => {
        remember({ zf: event.target.value });
        drawNorms(event.target.value);
      },
    },
    data.zf.map((one) => h("option", { value: one, selected: one === name }, one)),
  );
  const law = fit
    ? `FVU ≈ ${number(Math.exp(fit.constant))} · ${Object.entries(fit.exponents)
        .map(([key, value]) => `${key}^${number(value)} (±${number(fit.standard_errors[key], 2)})`)
        .join(" · ")}, residual ${number(fit.residual)} in ln FVU`
    : "A fit needs more runs than exponents: runs that differ in the number of latents, in k, or in both.";
  main.replaceChildren(
    h("div", { class: "bar" }, h("h1", {}, "Scaling")),
    h(
      "div",
      { class: "halves" },
      panel(
        "Loss against the number of latents",
        points.length ? loss : h("div", { class: "notice" }, "no run with a loss is loaded"),
        h("div", { class: "dim small" }, law),
      ),
      panel(
        ["Norm of codes against norm of rows", data.zf.length > 1 ? h("span", { class: "aside" }, choose) : null],
        data.zf.length ? [norms, said] : h("div", { class: "notice" }, "needs an SAE of a model, with its database"),
      ),
    ),
    panel("Points", table(points)),
    ladder,
  );
  if (points.length) drawLoss();
  if (name) drawNorms(name);
  drawLadder(data.results, ladder);

  function drawLoss() {
    const ks = [...new Set(points.map((point) => point.k))].sort((a, b) => a - b);
    const traces = ks.map((k, n) => {
      const own = points.filter((point) => point.k === k).sort((a, b) => a.n - b.n);
      return {
        name: `k ${number(k)}`,
        mode: "lines+markers",
        x: own.map((point) => point.n),
        y: own.map((point) => point.loss),
        text: own.map((point) => point.name),
        customdata: own.map((point) => point.name),
        error_y: {
          type: "data",
          symmetric: false,
          array: own.map((point) => (point.high ?? point.loss) - point.loss),
          arrayminus: own.map((point) => point.loss - (point.low ?? point.loss)),
          thickness: 1,
        },
        hovertemplate: "%{text}<br>n %{x}<br>FVU %{y:.4f}<extra></extra>",
        line: { color: SHADES[n % SHADES.length], width: own.length > 1 ? 1.5 : 0 },
        marker: { size: 8 },
      };
    });
    if (fit?.exponents.n) {
      const low = Math.min(...points.map((point) => point.n)) * 0.8,
        high = Math.max(...points.map((point) => point.n)) * 1.25;
      for (const [n, k] of ks.entries()) {
        const at = (x) => Math.exp(fit.constant + fit.exponents.n * Math.log(x) + (fit.exponents.k ?? 0) * Math.log(k));
        traces.push({
          mode: "lines",
          x: [low, high],
          y: [at(low), at(high)],
          line: { dash: "dot", width: 1, color: SHADES[n % SHADES.length] },
          hoverinfo: "skip",
          showlegend: false,
        });
      }
    }
    plot(
      loss,
      traces,
      {
        height: 380,
        showlegend: true,
        xaxis: { type: "log", title: { text: "latents n" }, tickvals: [...new Set(points.map((point) => point.n))] },
        yaxis: { type: "log", title: { text: "FVU" } },
      },
      (point) => point.customdata && go(`/run/${point.customdata}`),
    );
  }

  async function drawNorms(which) {
    said.className = "dim small";
    said.textContent = `reading rows of ${which} …`;
    try {
      const found = await get(`/run/${which}/norms.json`);
      const most = Math.max(...found.points.map(([z]) => z));
      plot(
        norms,
        [
          {
            x: [0, most],
            y: [0, most],
            mode: "lines",
            line: { dash: "dot", color: SHADES[7], width: 1 },
            hoverinfo: "skip",
          },
          {
            x: found.points.map(([z]) => z),
            y: found.points.map(([, f]) => f),
            customdata: found.points.map(([, , row]) => row),
            text: found.points.map(([, , , token]) => literal(shown(token))),
            mode: "markers",
            marker: { size: 5, color: SHADES[0], opacity: 0.55 },
            hovertemplate: "%{text}<br>row %{x:.2f}, codes %{y:.2f}<extra></extra>",
          },
        ],
        {
          height: 420,
          xaxis: { title: { text: "norm of the row, less the bias" } },
          yaxis: { title: { text: "norm of its codes" } },
        },
        (point) => point.customdata !== undefined && showRow(which, point.customdata),
      );
      said.textContent =
        "Each point is a token; on the dotted line the two norms are equal, as for orthogonal directions. Click one to see its text.";
    } catch (error) {
      said.className = "error";
      said.textContent = error.message;
    }
  }

  async function showRow(which, row) {
    const { example } = await get(`/run/${which}/latent/0/context.json?row=${row}&before=60&after=30`);
    said.replaceChildren(
      h("div", { class: "mono" }, example.place),
      h(
        "div",
        { class: "text", style: { color: "var(--ink)" } },
        example.tokens.map((token, n) => h("span", { class: n === example.focus ? "focus" : "" }, token)),
      ),
    );
  }
}

function table(points) {
  return h(
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
          ["run", "n", "k", "FVU", "from"].map((name, n) => h("th", { class: n && n < 4 ? "num" : "" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        points.map((point) =>
          h(
            "tr",
            {},
            h("td", {}, point.name),
            h("td", { class: "num" }, number(point.n)),
            h("td", { class: "num" }, number(point.k)),
            h("td", { class: "num" }, number(point.loss, 4)),
            h("td", { class: "dim small" }, point.measured ? "held out" : "training, last record"),
          ),
        ),
      ),
    ),
  );
}

export const draw = { scaling: drawScaling };
