// The map of directions, clusters of close ones, and a cluster's reconstructions as a cloud.

import { get, go, link, parameters, remember } from "./api.js";
import { forceGraph } from "./charts.js";
import { h, panel } from "./dom.js";
import { count, floats, integers, number, percent, shown } from "./format.js";
import { literal, plot, SHADES } from "./plots.js";
import { scatter } from "./scatter.js";

const BY = { latent: "strongest latent", position: "position in the document", token: "token" };

// From blue over grey to orange.
function mixed(share) {
  const ends = [
      [60, 120, 190],
      [150, 152, 155],
      [232, 120, 30],
    ],
    place = share * 2,
    low = Math.min(1, Math.floor(place));
  return `rgb(${ends[low].map((one, n) => Math.round(one + (ends[low + 1][n] - one) * (place - low))).join(" ")})`;
}

function drawManifolds(data, main) {
  let density = [],
    cluster = [];
  let map = parameters().get("map") ?? "umap",
    chosen = (parameters().get("latents") ?? "").split(",").filter(Boolean).map(Number),
    by = parameters().get("by") ?? "latent",
    cloudData = null;
  const place = h("div", {}),
    cloud = h("div", {}),
    list = h("div", { style: { "max-height": "520px", "overflow-y": "auto" } });
  const slider = h("input", {
    type: "range",
    min: 0.3,
    max: 0.98,
    step: 0.01,
    value: data.threshold,
    "aria-label": "threshold",
    onchange: (event) =>
      go(`/run/${data.run}/manifolds?threshold=${event.target.value}${map === "pca" ? "&map=pca" : ""}`),
    oninput: (event) => {
      value.textContent = event.target.value;
    },
  });
  const value = h("b", { class: "num" }, data.threshold.toFixed(2));
  const tabs = h("span", { class: "tabs" });
  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("h1", { class: "grow" }, "Manifolds of ", data.run),
      h("span", { class: "dim" }, "one cluster from a cosine of "),
      value,
      slider,
      h("span", { class: "dim num" }, `${count(data.n_clusters)} clusters, ${count(data.edges)} edges`),
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "section",
        { class: "panel" },
        h(
          "div",
          { class: "bar" },
          tabs,
          h(
            "span",
            { class: "faint small grow right" },
            "blue is rare, orange frequent · wheel zooms, drag moves, click opens a cluster or neighbours",
          ),
        ),
        place,
      ),
      panel("Clusters", list),
    ),
    told(),
    cloud,
  );

  function told() {
    if (!data.told) return "";
    const line = (one) =>
      h(
        "div",
        { class: "line" },
        h("button", { class: "quiet", onclick: () => choose(one.latents) }, `${one.size} latents`),
        h("b", { class: "grow" }, one.kind),
        h(
          "span",
          { class: "dim small num" },
          `Jaccard ${number(one.jaccard)}${one.two_nearest === null ? "" : ` · dimension ${number(one.two_nearest)}`}`,
        ),
      );
    return panel(
      `What clusters from a cosine of ${data.told.threshold} on are, by when they fire`,
      h(
        "div",
        { style: { "max-height": "240px", "overflow-y": "auto" } },
        data.told.clusters.map(line),
        data.told.clusters.length ? "" : h("div", { class: "notice" }, "none"),
      ),
    );
  }

  const rare = (n) => Math.min(1, Math.max(0, 1 + Math.log10(Math.max(density[n], 1e-9)) / 4)); // from 1e-4 to 1
  const shade = (n) => (cluster[n] >= 0 ? SHADES[cluster[n] % SHADES.length] : mixed(rare(n)));
  let canvas = null;
  async function drawMap() {
    tabs.replaceChildren(
      ...["umap", "pca"].map((name) =>
        h(
          "button",
          {
            class: name === map ? "on" : "",
            onclick: () => {
              map = name;
              remember({ map: name === "umap" ? null : name });
              drawMap();
            },
          },
          name.toUpperCase(),
        ),
      ),
      map === "pca"
        ? h("span", { class: "dim small" }, `components explain ${data.share.slice(0, 2).map(percent).join(" and ")}`)
        : "",
    );
    const found = await get(`/run/${data.run}/map.json?map=${map}&threshold=${data.threshold}`).catch((error) => ({
      error: error.message,
    }));
    if (found.error) return place.replaceChildren(h("div", { class: "error" }, found.error));
    const x = floats(found.x),
      y = floats(found.y);
    density = floats(found.density);
    cluster = integers(found.cluster);
    canvas = scatter(x, y, {
      height: 520,
      colour: shade,
      marked: chosen.length ? new Set(chosen) : null,
      tip: (n) => `latent ${n}\ndensity ${percent(density[n])}${cluster[n] >= 0 ? `\ncluster ${cluster[n]}` : ""}`,
      act: (n) =>
        cluster[n] >= 0 && data.clusters[cluster[n]] ? choose(data.clusters[cluster[n]].latents) : around(n),
    });
    place.replaceChildren(canvas);
  }
  drawMap();
  list.replaceChildren(
    ...data.clusters.map((one, n) =>
      h(
        "div",
        { class: "line" },
        h("span", {
          style: {
            width: "9px",
            height: "9px",
            "border-radius": "50%",
            background: SHADES[n % SHADES.length],
            flex: "none",
          },
        }),
        h("button", { class: "quiet", onclick: () => choose(one.latents) }, `${one.size} latents`),
        h(
          "span",
          { class: "toks grow" },
          one.words.filter(Boolean).map((word) => h("span", { class: "tok" }, shown(word))),
        ),
      ),
    ),
    data.clusters.length ? "" : h("div", { class: "notice" }, "none: lower the cosine"),
  );

  async function around(latent) {
    try {
      choose((await get(`/run/${data.run}/around.json?latent=${latent}`)).latents);
    } catch (error) {
      cloud.replaceChildren(h("div", { class: "panel error" }, error.message));
    }
  }

  async function choose(latents) {
    chosen = latents;
    remember({ latents: latents.join(",") }, true);
    canvas?.mark(new Set(latents));
    try {
      cloudData = await get(`/run/${data.run}/cloud.json?latents=${latents.join(",")}`);
      drawCloud();
    } catch (error) {
      cloud.replaceChildren(h("div", { class: "panel error" }, error.message));
    }
  }

  function drawCloud() {
    const found = cloudData,
      chart = h("div", { class: "plot", style: { height: "460px" } });
    const graph = forceGraph(found.latents, found.graph, {
      act: (one) => go(`/run/${data.run}/latent/${one.latent}`),
      label: (one, long) => (long ? `latent ${one.latent}\n${shown(one.word)}` : shown(one.word).slice(0, 10)),
    });
    cloud.replaceChildren(
      h(
        "div",
        { class: "columns" },
        h(
          "section",
          { class: "panel" },
          h(
            "div",
            { class: "bar" },
            h(
              "h2",
              { class: "grow", style: { margin: 0 } },
              `Reconstructions of ${found.latents.length} latents, ${count(found.points.length)} ${found.unit}`,
            ),
            h(
              "select",
              {
                "aria-label": "colour by",
                onchange: (event) => {
                  by = event.target.value;
                  remember({ by: by === "latent" ? null : by });
                  drawCloud();
                },
              },
              Object.entries(BY).map(([name, title]) => h("option", { value: name, selected: name === by }, title)),
            ),
          ),
          chart,
          h(
            "div",
            { class: "dim small" },
            `three components explain ${percent(found.share.reduce((sum, one) => sum + one, 0))}${found.dimension ? ` · participation ratio ${number(found.dimension)}` : ""}`,
          ),
        ),
        panel(
          "Close directions",
          graph,
          h(
            "div",
            { class: "toks", style: { "flex-wrap": "wrap" } },
            found.latents
              .slice(0, 24)
              .map((one) =>
                h(
                  "a",
                  {
                    class: "tok",
                    style: { "margin-right": "4px" },
                    href: link(`/run/${data.run}/latent/${one.latent}`),
                  },
                  `${one.latent} ${shown(one.word)}`,
                ),
              ),
          ),
        ),
      ),
    );
    const names = [...new Set(by === "token" ? found.tokens : found.strongest)];
    const colour =
      by === "position"
        ? found.places
        : (by === "token" ? found.tokens : found.strongest).map((one) => SHADES[names.indexOf(one) % SHADES.length]);
    const [x, y, z] = [0, 1, 2].map((axis) => found.points.map((point) => point[axis]));
    plot(
      chart,
      [
        {
          type: "scatter3d",
          mode: "markers",
          x,
          y,
          z,
          text: found.contexts.map(
            (context, n) => `${literal(context.replace(/\n/g, "↵"))}<br>latent ${found.strongest[n]}`,
          ),
          hovertemplate: "%{text}<extra></extra>",
          customdata: found.strongest,
          marker: { size: 3, color: colour, colorscale: "Cividis", opacity: 0.8 },
        },
      ],
      { height: 460, scene: {}, margin: { l: 0, r: 0, t: 0, b: 0 } },
      (point) => go(`/run/${data.run}/latent/${point.customdata}`),
    );
  }
  if (chosen.length) choose(chosen);
}

export const draw = { manifolds: drawManifolds };
