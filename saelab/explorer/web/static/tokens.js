// Text as a heat map: a span for each token, its colour by a value, the value on hover.

import { get, isStatic } from "./api.js";
import { h, tipped } from "./dom.js";
import { number, shown, words } from "./format.js";

export const view = { layout: false };

// Blanks as signs on flowing lines, or the text's own lines.
function spelled(token) {
  if (view.layout) return [token];
  const parts = token.split("\n");
  const found = [];
  parts.forEach((part, place) => {
    if (place) found.push(h("span", { class: "sign" }, "↵"));
    found.push(part.replace(/\t/g, "→"));
  });
  return found;
}

// Warm for what is positive, cool for what is negative.
export function heat(value, most) {
  if (!value || !most) return "";
  const share = Math.min(1, Math.abs(value) / most);
  return `rgb(var(${value > 0 ? "--heat" : "--cool"}) / ${Math.round(8 + 72 * share)}%)`;
}

export function tokenText(tokens, values, most, { focus = -1, said = null, pick = null, here = -1 } = {}) {
  return h(
    "div",
    { class: "text" },
    tokens.map((token, place) => {
      const blank = /^\s*(?=\S)/.exec(token)?.[0] ?? ""; // in front of the token, not its own
      const kinds = [place === focus ? "focus" : "", pick ? "pick" : "", place === here ? "here" : ""]
        .filter(Boolean)
        .join(" ");
      const span = h(
        "span",
        { class: kinds, style: { "background-color": heat(values[place], most) } },
        spelled(token.slice(blank.length)),
      );
      tipped(span, () => (said ? said(place) : `${shown(token)}\n${number(values[place])}`));
      if (pick) span.addEventListener("click", () => pick(place));
      return [spelled(blank), span];
    }),
  );
}

export function chips(joined, most = 6) {
  const list = Array.isArray(joined) ? joined : words(joined);
  return h(
    "span",
    { class: "toks" },
    list.slice(0, most).map((token) => h("span", { class: "tok" }, shown(token))),
  );
}

// One example, with its place, more of its document, and what ablation does there.
// Of a row that stands for no text, its number and the value.
export function example(window_, most, path, { effects = true, text = true } = {}) {
  const box = h("div", { class: "example" });
  const draw = (data) => {
    const place = text ? data.place || `row ${data.row}` : data.place;
    const extra = h("div", {});
    box.replaceChildren(
      h(
        "div",
        { class: "value" },
        data.would_be === undefined
          ? number(data.value)
          : h("span", { class: "dim", tip: "pre-activation: what it would have been" }, `(${number(data.would_be)})`),
      ),
      tokenText(data.tokens, data.values, most, { focus: data.focus }),
      h(
        "div",
        { class: "where" },
        h("span", { class: "mono" }, place),
        !isStatic && data.more.some(Boolean)
          ? h(
              "button",
              {
                class: "quiet",
                onclick: async () =>
                  draw({
                    ...data,
                    ...(
                      await get(
                        `${path}/context.json?row=${data.row}&before=${Math.min(400, data.focus + 120)}&after=${Math.min(400, data.tokens.length - data.focus + 120)}`,
                      )
                    ).example,
                  }),
              },
              "more text",
            )
          : null,
        !isStatic && effects && text
          ? h(
              "button",
              { class: "quiet", onclick: (event) => showEffects(event.target, extra, path, data.row) },
              "ablate",
            )
          : null,
      ),
      extra,
    );
  };
  draw(window_);
  return box;
}

async function showEffects(button, extra, path, row) {
  if (extra.className) {
    extra.className = "";
    return extra.replaceChildren();
  }
  button.disabled = true;
  try {
    const found = await get(`${path}/effects.json?row=${row}`);
    extra.className = "effect";
    extra.replaceChildren(...effectParts(found));
  } catch (error) {
    extra.className = "effect error";
    extra.replaceChildren(error.message);
  }
  button.disabled = false;
}

function effectParts(found) {
  const most = Math.max(0.02, ...found.loss.map(Math.abs));
  const said = (place) =>
    `${shown(found.tokens[place])}\nloss ${found.loss[place] >= 0 ? "+" : ""}${number(found.loss[place])} nats without it\nKL ${number(found.kl[place])}\nactivation ${number(found.values[place])}`;
  const list = (pairs) =>
    pairs.map(([token, change, before]) =>
      h(
        "div",
        { class: "line" },
        h("span", { class: "num" }, `${change > 0 ? "+" : ""}${number(change, 2)}`),
        h("span", { class: "tok" }, shown(token)),
        h("span", { class: "faint small" }, `p ${number(before, 2)}`),
      ),
    );
  return [
    h("div", { class: "small dim" }, "Loss of each token without this latent: orange rises, blue falls"),
    tokenText(found.tokens, found.loss, most, { focus: found.focus, said }),
    h(
      "div",
      { class: "pairs small" },
      h("div", {}, h("div", { class: "dim" }, "next token becomes likelier without it"), list(found.moved.up)),
      h("div", {}, h("div", { class: "dim" }, "and unlikelier"), list(found.moved.down)),
    ),
  ];
}
