// Small charts as SVG, in the colours of the theme.

import { svg } from "./dom.js";
import { number } from "./format.js";

const WIDTH = 340;

// Counts of equal bins between two ends; logarithmic in height where asked.
export function histogram(counts, low, high, { height = 110, log = false, unit = "", kind = "" } = {}) {
  const tall = log ? (value) => Math.log10(1 + value) : (value) => value;
  const most = Math.max(1e-9, ...counts.map(tall));
  const width = WIDTH / counts.length;
  const total = counts.reduce((sum, one) => sum + one, 0);
  const bars = counts.map((value, place) => {
    const size = value ? Math.max(1.5, (tall(value) / most) * (height - 18)) : 0;
    const from = low + ((high - low) * place) / counts.length;
    const to = low + ((high - low) * (place + 1)) / counts.length;
    const said = () =>
      `${number(from)} to ${number(to)}${unit}\n${value.toLocaleString("en")} (${((100 * value) / Math.max(1, total)).toFixed(1)} %)`;
    return [
      svg("rect", {
        x: place * width,
        y: 0,
        width,
        height: height - 14,
        fill: "transparent",
        class: "bar-hit",
        tip: said,
      }),
      svg("rect", {
        x: place * width + 0.5,
        y: height - 14 - size,
        width: Math.max(0.5, width - 1),
        height: size,
        rx: 1,
        class: `fill ${kind}`,
        "pointer-events": "none",
      }),
    ];
  });
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": "histogram" },
    bars,
    svg("line", { x1: 0, x2: WIDTH, y1: height - 14, y2: height - 14, class: "axis" }),
    svg("text", { x: 0, y: height - 2 }, number(low)),
    svg("text", { x: WIDTH / 2, y: height - 2, "text-anchor": "middle" }, number((low + high) / 2)),
    svg("text", { x: WIDTH, y: height - 2, "text-anchor": "end" }, number(high)),
    svg(
      "text",
      { x: WIDTH, y: 9, "text-anchor": "end" },
      `${log ? "log " : ""}counts, most ${Math.max(...counts).toLocaleString("en")}`,
    ),
  );
}

// A tree of two levels around a root: { label, act, children: [{ label, size, act, children }] }.
export function radial(root, { size = 340, margin = 56 } = {}) {
  const middle = size / 2,
    inner = size * 0.2,
    outer = size * 0.36;
  const edges = [],
    nodes = [];
  const place = (angle, radius) => [middle + radius * Math.cos(angle), middle + radius * Math.sin(angle)];
  const curve = ([x1, y1], [x2, y2]) =>
    `M${x1},${y1} Q${(x1 + x2) / 2 + (y2 - y1) * 0.12},${(y1 + y2) / 2 - (x2 - x1) * 0.12} ${x2},${y2}`;
  const dot = (at, radius, kind, node, angle, far) => {
    nodes.push(
      svg("circle", {
        cx: at[0],
        cy: at[1],
        r: radius,
        class: `node ${kind}`,
        onclick: node.act,
        tip: node.tip ?? node.label,
      }),
    );
    const left = Math.cos(angle) < 0;
    if (far)
      nodes.push(
        svg(
          "text",
          { x: at[0] + (left ? -8 : 8), y: at[1] + 3.5, "text-anchor": left ? "end" : "start", class: "label" },
          node.label.slice(0, 12),
        ),
      );
  };
  root.children.forEach((child, number) => {
    const angle = (2 * Math.PI * number) / root.children.length - Math.PI / 2;
    const at = place(angle, inner);
    edges.push(
      svg("path", { d: curve([middle, middle], at), class: "edge", "stroke-width": 1 + 5 * (child.size ?? 0.3) }),
    );
    const spread = ((2 * Math.PI) / root.children.length) * 0.8;
    child.children.forEach((leaf, place_) => {
      const turn = child.children.length > 1 ? place_ / (child.children.length - 1) - 0.5 : 0;
      const leafAt = place(angle + turn * spread, outer);
      edges.push(svg("path", { d: curve(at, leafAt), class: "edge", "stroke-width": 0.8 + 3 * (leaf.size ?? 0.3) }));
      dot(leafAt, 4.5, "", leaf, angle + turn * spread, true);
    });
    dot(at, 7, "warm", child, angle, false);
  });
  nodes.push(svg("circle", { cx: middle, cy: middle, r: 9, class: "node root", tip: root.label }));
  return svg(
    "svg",
    { class: "chart", viewBox: `${-margin} 0 ${size + 2 * margin} ${size}`, role: "img", "aria-label": "tree" },
    edges,
    nodes,
  );
}

// Nodes pulled together along edges and pushed apart; [[a, b, weight]] between places in `nodes`.
export function forceGraph(nodes, edges, { width = 420, height = 320, act, label }) {
  const at = nodes.map((_, n) => [
    width / 2 + 90 * Math.cos(n * 2.4) * Math.sqrt((n + 1) / nodes.length),
    height / 2 + 90 * Math.sin(n * 2.4) * Math.sqrt((n + 1) / nodes.length),
  ]);
  const room = Math.sqrt((width * height) / Math.max(1, nodes.length)) * 0.55;
  for (let step = 0; step < 160; step++) {
    const heat = 14 * (1 - step / 160);
    const move = at.map(([x, y]) => [(width / 2 - x) * 0.012, (height / 2 - y) * 0.012]);
    for (let i = 0; i < nodes.length; i++) {
      for (let j = 0; j < i; j++) {
        const dx = at[i][0] - at[j][0],
          dy = at[i][1] - at[j][1],
          square = dx * dx + dy * dy + 0.1;
        const push = (room * room) / square;
        move[i][0] += dx * push * 0.12;
        move[i][1] += dy * push * 0.12;
        move[j][0] -= dx * push * 0.12;
        move[j][1] -= dy * push * 0.12;
      }
    }
    for (const [i, j, weight] of edges) {
      const dx = at[i][0] - at[j][0],
        dy = at[i][1] - at[j][1],
        far = Math.hypot(dx, dy) + 0.1;
      const pull = (far / room) * 0.05 * weight;
      move[i][0] -= dx * pull;
      move[i][1] -= dy * pull;
      move[j][0] += dx * pull;
      move[j][1] += dy * pull;
    }
    at.forEach((place, n) => {
      const size = Math.hypot(...move[n]) || 1,
        scale = Math.min(size, heat) / size;
      place[0] = Math.min(width - 26, Math.max(26, place[0] + move[n][0] * scale));
      place[1] = Math.min(height - 14, Math.max(14, place[1] + move[n][1] * scale));
    });
  }
  const lines = edges.map(([i, j, weight]) =>
    svg("line", {
      x1: at[i][0],
      y1: at[i][1],
      x2: at[j][0],
      y2: at[j][1],
      class: "edge",
      "stroke-width": 3 * weight,
      tip: `cosine ${number(weight)}`,
    }),
  );
  const dots = nodes.map((node, n) => [
    svg("circle", {
      cx: at[n][0],
      cy: at[n][1],
      r: 6,
      class: "node",
      onclick: () => act(node),
      tip: () => label(node, true),
    }),
    svg("text", { x: at[n][0] + 9, y: at[n][1] + 3.5, class: "label", "pointer-events": "none" }, label(node, false)),
  ]);
  return svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "graph" },
    lines,
    dots,
  );
}
