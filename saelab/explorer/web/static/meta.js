// Meta-latents: what directions are made of. Links lead both ways.

import { link } from "./api.js";
import { histogram } from "./charts.js";
import { h, panel } from "./dom.js";
import { count, number, percent, shown, words } from "./format.js";
import { metaBox } from "./latent.js";
import { chips } from "./tokens.js";

function drawMeta(data, main) {
  const bar = h("div", { class: "bar" }, h("h1", { class: "grow" }, "Meta-latents of ", data.run));
  if (data.why_not) return main.replaceChildren(bar, h("div", { class: "panel notice" }, data.why_not));
  const { about } = data;
  bar.append(
    h(
      "span",
      { class: "dim" },
      `${count(about.n_meta)} explain ${percent(about.explained?.held_out)} of held-out directions, ${number(about.l0?.held_out)} each`,
    ),
  );
  main.replaceChildren(
    bar,
    h(
      "div",
      { class: "panel flush scrolls" },
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["meta", "latents", "mean", "goes most through"].map((name, n) =>
              h("th", { class: n === 1 || n === 2 ? "num" : "" }, name),
            ),
          ),
        ),
        h(
          "tbody",
          {},
          data.metas.map((line) =>
            h(
              "tr",
              {},
              h("td", {}, h("a", { href: link(`/run/${data.run}/meta/${line.meta}`) }, String(line.meta))),
              h("td", { class: "num" }, count(line.count)),
              h("td", { class: "num" }, number(line.mean)),
              h(
                "td",
                {},
                chips(
                  line.base.map((one) => words(one.tokens)[0] ?? String(one.latent)),
                  6,
                ),
              ),
            ),
          ),
        ),
      ),
    ),
    about.controls ? controls(about.controls) : "",
  );
}

function controls(found) {
  const rows = Object.entries(found).map(([name, one]) =>
    h(
      "tr",
      {},
      h("td", {}, name),
      h("td", { class: "num" }, percent(one.explained)),
      h("td", { class: "num dim" }, `${number(one.bits)} bits`),
    ),
  );
  return panel("Against controls", h("div", { class: "scrolls" }, h("table", {}, h("tbody", {}, rows))));
}

function drawMetaLatent(data, main) {
  const step = (by) => link(`/run/${data.run}/meta/${(data.meta + by + data.n_meta) % data.n_meta}`);
  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("a", { class: "button", href: step(-1) }, "←"),
      h("a", { class: "button", href: step(1) }, "→"),
      h("h1", { class: "grow" }, `Meta-latent ${data.meta}`),
      h("span", { class: "dim" }, `in ${count(data.count)} directions`),
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        {},
        panel(
          ["Latents that it goes through", h("span", { class: "aside" }, "value in their direction")],
          data.base.map((one) =>
            h(
              "div",
              { class: "line" },
              h("span", { class: "num" }, number(one.value)),
              h("a", { class: "num", href: link(`/run/${data.run}/latent/${one.latent}`) }, String(one.latent)),
              chips(one.tokens, 5),
            ),
          ),
        ),
        h(
          "div",
          { class: "halves" },
          data.tree
            .filter((one) => one.metas.length)
            .slice(0, 4)
            .map((one) => metaBox(one, data.run)),
        ),
      ),
      h(
        "div",
        {},
        panel("Values over latents", histogram(data.histogram.counts, 0, data.histogram.high, { log: true })),
        data.boosted.length
          ? panel(
              "Tokens that it boosts",
              data.boosted.map(([token, value]) =>
                h(
                  "div",
                  { class: "line" },
                  h("span", { class: "num" }, number(value)),
                  h("span", { class: "tok" }, shown(token)),
                ),
              ),
            )
          : panel("Tokens that it boosts", h("div", { class: "small dim" }, `Left out: ${data.why_not_boosted}.`)),
      ),
    ),
  );
}

export const draw = { meta: drawMeta, meta_latent: drawMetaLatent };
