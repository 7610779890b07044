// Many points on a canvas: wheel or drag to zoom and move, hover for the nearest, click to open.

import { h, hideTip, showTip } from "./dom.js";

export function scatter(x, y, { height = 480, colour, radius = 2.2, tip, act, marked = null }) {
  const canvas = h("canvas", { class: "scatter", tabindex: "0", style: { height: `${height}px` } });
  const context = canvas.getContext("2d");
  let view = fitted(x, y),
    drag = null,
    near = -1,
    chosen = marked;

  const scale = () => {
    const ratio = devicePixelRatio || 1,
      wide = canvas.clientWidth,
      tall = canvas.clientHeight;
    return { ratio, wide, tall, zoom: Math.min(wide, tall) / view.size };
  };
  const toScreen = (n, at) => [(x[n] - view.x) * at.zoom + at.wide / 2, (view.y - y[n]) * at.zoom + at.tall / 2];

  function draw() {
    const at = scale();
    if (!at.wide) return;
    canvas.width = at.wide * at.ratio;
    canvas.height = at.tall * at.ratio;
    context.scale(at.ratio, at.ratio);
    const size =
      radius * Math.min(2.4, Math.max(0.7, 30 / Math.sqrt(x.length) + Math.log2(1 + first.size / view.size) * 0.4));
    for (let n = 0; n < x.length; n++) {
      const [left, top] = toScreen(n, at);
      if (left < -5 || top < -5 || left > at.wide + 5 || top > at.tall + 5) continue;
      context.fillStyle = colour(n);
      context.globalAlpha = chosen && !chosen.has(n) ? 0.13 : 0.8;
      context.fillRect(left - size, top - size, 2 * size, 2 * size);
    }
    context.globalAlpha = 1;
    if (near >= 0) {
      const [left, top] = toScreen(near, at);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(left, top, 7, 0, 7);
      context.stroke();
    }
  }

  function closest(event) {
    const box = canvas.getBoundingClientRect(),
      at = scale();
    const left = event.clientX - box.left,
      top = event.clientY - box.top;
    let best = -1,
      least = 196;
    for (let n = 0; n < x.length; n++) {
      const [a, b] = toScreen(n, at),
        far = (a - left) ** 2 + (b - top) ** 2;
      if (far < least) {
        least = far;
        best = n;
      }
    }
    return best;
  }

  canvas.addEventListener("pointermove", (event) => {
    if (drag) {
      const { zoom } = scale();
      view.x = drag.x - (event.clientX - drag.left) / zoom;
      view.y = drag.y + (event.clientY - drag.top) / zoom;
      drag.moved ||= Math.hypot(event.clientX - drag.left, event.clientY - drag.top) > 4;
      return draw();
    }
    const found = closest(event);
    if (found !== near) {
      near = found;
      draw();
    }
    if (near >= 0) showTip(tip(near), event);
    else hideTip();
  });
  canvas.addEventListener("pointerleave", () => {
    hideTip();
    near = -1;
    draw();
  });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    drag = { left: event.clientX, top: event.clientY, x: view.x, y: view.y, moved: false };
  });
  canvas.addEventListener("pointerup", (event) => {
    const moved = drag?.moved;
    drag = null;
    if (!moved) {
      const found = closest(event);
      if (found >= 0) act(found);
    }
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const box = canvas.getBoundingClientRect(),
        at = scale();
      const dx = (event.clientX - box.left - at.wide / 2) / at.zoom,
        dy = (event.clientY - box.top - at.tall / 2) / at.zoom;
      const factor = Math.exp(event.deltaY * 0.0014);
      view = { x: view.x + dx * (1 - factor), y: view.y - dy * (1 - factor), size: view.size * factor };
      draw();
    },
    { passive: false },
  );
  canvas.addEventListener("dblclick", () => {
    view = fitted(x, y);
    draw();
  });
  const first = fitted(x, y);
  new ResizeObserver(draw).observe(canvas);
  canvas.mark = (set) => {
    chosen = set;
    draw();
  };
  canvas.redraw = draw;
  return canvas;
}

function fitted(x, y) {
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let n = 0; n < x.length; n++) {
    left = Math.min(left, x[n]);
    right = Math.max(right, x[n]);
    low = Math.min(low, y[n]);
    high = Math.max(high, y[n]);
  }
  if (!x.length) [left, right, low, high] = [0, 1, 0, 1];
  return { x: (left + right) / 2, y: (low + high) / 2, size: Math.max(right - left, high - low, 1e-9) * 1.06 };
}
