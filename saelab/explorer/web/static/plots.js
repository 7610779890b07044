// Plotly, fetched from the server when a page first needs it, in the colours of the theme.

import { isStatic } from "./api.js";

export const SHADES = ["#0b6e99", "#e0701a", "#2a9d78", "#b3569b", "#8a7a2e", "#5566c4", "#c44536", "#6b7280"]; // tell apart without red and green

// Plotly reads some markup in texts; a token that looks like it must stay what it is.
export function literal(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

let loading = null;

function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = isStatic ? "plotly.min.js" : "/plotly.min.js";
    script.onload = () => resolve(globalThis.Plotly);
    script.onerror = () => reject(new Error("plotly could not be loaded"));
    document.head.append(script);
  });
  return loading;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export async function plot(element, traces, layout = {}, act = null) {
  const drawn = await plotly();
  const axis = {
    gridcolor: colour("--line"),
    zerolinecolor: colour("--line"),
    linecolor: colour("--line"),
    automargin: true,
  };
  const full = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--dim"), family: "system-ui, sans-serif", size: 11.5 },
    margin: { l: 52, r: 14, t: 10, b: 42 },
    showlegend: false,
    hoverlabel: { font: { family: "ui-monospace, monospace", size: 11.5 } },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
  if (layout.scene) {
    const side = { ...axis, backgroundcolor: colour("--sunk"), showbackground: true, color: colour("--dim") };
    full.scene = {
      xaxis: { ...side, ...layout.scene.xaxis },
      yaxis: { ...side, ...layout.scene.yaxis },
      zaxis: { ...side, ...layout.scene.zaxis },
    };
  }
  await drawn.react(element, traces, full, { displaylogo: false, responsive: true, displayModeBar: false });
  element.removeAllListeners?.("plotly_click");
  if (act) element.on("plotly_click", (event) => act(event.points[0]));
}
