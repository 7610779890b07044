// A text through an SAE: what fires on each token, what ablation does there, and the model's continuation, steered.

import { copy, get, link, parameters, post, remember } from "./api.js";
import { h, panel } from "./dom.js";
import { number, shown } from "./format.js";
import { key } from "./keys.js";
import { chips, tokenText, view } from "./tokens.js";

const SAMPLE =
  'def mean(values):\n    if not values:\n        raise ValueError("no values")\n    return sum(values) / len(values)\n';
const BY = {
  value: "activation",
  logit: "effect on the next token's logit",
  loss: "effect on the loss (first order)",
  exact: "loss without it (exact)",
};

function drawPrompt(data, main) {
  if (!data.model)
    return main.replaceChildren(
      h("div", { class: "panel notice" }, `${data.run} does not read the rows of a model, so there is no text to try.`),
    );
  view.layout = true;
  const state = {
    found: null,
    by: parameters().get("by") ?? "value",
    token: Number(parameters().get("token") ?? -1),
    changes: parse(parameters().get("steer")),
    exact: null,
  };
  const text = h("textarea", { rows: 6, spellcheck: "false", maxlength: data.limits.characters, "aria-label": "text" });
  text.value = parameters().get("text") ?? SAMPLE;
  const run = h("button", { class: "primary", onclick: () => read() }, "Read");
  const said = h("span", { class: "dim" });
  const result = h("div", {}),
    list = h("div", {}),
    steer = h("div", {}),
    other = h("div", {});
  const versus = data.others.length
    ? h(
        "select",
        { "aria-label": "compare with", onchange: () => readOther() },
        h("option", { value: "" }, "beside another SAE …"),
        data.others.map((name) => h("option", { value: name, selected: parameters().get("with") === name }, name)),
      )
    : null;
  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h("h1", { class: "grow" }, "Prompt"),
      h("span", { class: "dim mono small" }, `${data.model ?? ""} through ${data.run}`),
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        {},
        panel(
          null,
          text,
          h(
            "div",
            { class: "bar", style: { margin: "9px 0 0" } },
            run,
            versus,
            h(
              "button",
              {
                class: "quiet",
                onclick: (event) =>
                  copy(location.href).then(() => {
                    event.target.textContent = "copied";
                  }),
              },
              "copy link",
            ),
            said,
          ),
        ),
        result,
        other,
        steer,
      ),
      list,
    ),
  );
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) read();
  });
  key("/", "write a text", () => text.focus());
  key("j", "next token", () => pick(Math.min((state.found?.tokens.length ?? 1) - 1, state.token + 1)));
  key("k", "token before", () => pick(Math.max(0, state.token - 1)));

  async function read() {
    run.disabled = true;
    said.className = "dim";
    said.textContent = "reading …";
    try {
      state.found = await post(`/run/${data.run}/prompt.json`, { text: text.value });
      remember({ text: text.value });
      said.textContent = `${state.found.tokens.length} tokens`;
      state.token = Math.min(state.token, state.found.tokens.length - 1);
      state.exact = null;
      draw();
      drawSteer();
      readOther();
    } catch (error) {
      said.className = "error";
      said.textContent = error.message;
    }
    run.disabled = false;
  }

  const of = (one) => (state.by === "exact" ? (state.exact?.get(one.latent) ?? 0) : one[state.by]);

  function draw() {
    const { tokens, latents, why_no_logit: why } = state.found;
    if (why && state.by === "logit") state.by = "value";
    const by = state.by === "exact" ? "loss" : state.by;
    const strongest = latents.map((own) =>
      own.reduce((best, one) => (Math.abs(one[by]) > Math.abs(best) ? one[by] : best), 0),
    );
    const most = Math.max(1e-9, ...strongest.map(Math.abs));
    const tellWhich = (place) => {
      const best = latents[place].toSorted((a, b) => Math.abs(b[by]) - Math.abs(a[by])).slice(0, 3);
      return `${shown(tokens[place])}\n${best.map((one) => `${one.latent}  ${number(one[by])}`).join("\n")}`;
    };
    result.replaceChildren(
      h(
        "section",
        { class: "panel" },
        h(
          "div",
          { class: "bar" },
          h(
            "div",
            { class: "tabs" },
            Object.entries(BY)
              .slice(0, 3)
              .filter(([name]) => name !== "logit" || !why)
              .map(([name, title]) =>
                h(
                  "button",
                  {
                    class: state.by === name ? "on" : "",
                    onclick: () => {
                      state.by = name;
                      remember({ by: name });
                      draw();
                    },
                  },
                  title,
                ),
              ),
          ),
        ),
        why ? h("div", { class: "small dim" }, `Effects on logits are left out: ${why}.`) : null,
        tokenText(tokens, strongest, most, { pick, here: state.token, said: tellWhich }),
      ),
    );
    drawList();
  }

  function pick(place) {
    state.token = place === state.token ? -1 : place;
    state.exact = null;
    remember({ token: state.token < 0 ? null : state.token });
    if (state.by === "exact") state.by = "loss";
    draw();
  }

  function drawList() {
    const { tokens, latents, about } = state.found;
    const rows = state.token >= 0 ? [...latents[state.token]] : totals(latents);
    rows.sort((a, b) => Math.abs(of(b)) - Math.abs(of(a)));
    const exact =
      state.token >= 0
        ? h("button", { class: state.by === "exact" ? "on" : "", onclick: ablate }, "ablate each, exactly")
        : null;
    list.replaceChildren(
      h(
        "section",
        { class: "panel" },
        h(
          "h2",
          {},
          state.token >= 0
            ? ["Latents on ", h("span", { class: "tok" }, shown(tokens[state.token]))]
            : "Latents of the whole text",
        ),
        h(
          "div",
          { class: "small dim", style: { "margin-bottom": "6px" } },
          `by ${BY[state.by]}${state.token < 0 ? ", largest on any token; click a token to see its own" : ""}`,
        ),
        exact,
        rows
          .slice(0, 40)
          .map((one) =>
            h(
              "div",
              { class: "line" },
              h("span", { class: "num", style: { "min-width": "56px" } }, number(of(one))),
              h("a", { class: "num", href: link(`/run/${data.run}/latent/${one.latent}`) }, String(one.latent)),
              about[one.latent]?.explanation
                ? h("span", { class: "grow small" }, about[one.latent].explanation)
                : chips(about[one.latent]?.tokens, 3),
              h("button", { class: "quiet", tip: "steer with it", onclick: () => addChange(one.latent) }, "steer"),
            ),
          ),
      ),
    );
  }

  function totals(latents) {
    const best = new Map();
    for (const own of latents)
      for (const one of own)
        if (!best.has(one.latent) || Math.abs(one[state.by]) > Math.abs(best.get(one.latent)[state.by]))
          best.set(one.latent, one);
    return [...best.values()];
  }

  async function ablate() {
    try {
      const found = await post(`/run/${data.run}/ablate.json`, { text: text.value, token: state.token });
      state.exact = new Map(found.effects.map((one) => [one.latent, one.loss]));
      state.by = "exact";
      draw();
    } catch (error) {
      said.className = "error";
      said.textContent = error.message;
    }
  }

  async function readOther() {
    if (!versus?.value) {
      remember({ with: null });
      return other.replaceChildren();
    }
    remember({ with: versus.value });
    try {
      const found = await post(`/run/${versus.value}/prompt.json`, { text: text.value });
      const strongest = found.latents.map((own) => own[0]?.value ?? 0);
      other.replaceChildren(
        panel(
          ["The same through ", versus.value],
          tokenText(found.tokens, strongest, Math.max(...strongest), {
            said: (place) =>
              `${shown(found.tokens[place])}\n${found.latents[place]
                .slice(0, 4)
                .map(
                  (one) =>
                    `${one.latent}  ${number(one.value)}  ${(found.about[one.latent]?.tokens ?? "").split("\u001f").slice(0, 3).map(shown).join(" ")}`,
                )
                .join("\n")}`,
          }),
        ),
      );
    } catch (error) {
      other.replaceChildren(panel(null, h("span", { class: "error" }, error.message)));
    }
  }

  // ---- steering

  const settings = {
    tokens: Number(parameters().get("n") ?? 24),
    temperature: Number(parameters().get("t") ?? 0),
    seed: Number(parameters().get("seed") ?? 0),
  };
  let answer = null;

  function addChange(latent) {
    if (state.changes.length >= data.limits.changes) return;
    if (!state.changes.some((one) => one.latent === latent)) state.changes.push({ latent, mode: "add", value: 1 });
    drawSteer();
    steer.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  function keep() {
    remember({
      steer: state.changes.map((one) => `${one.latent}:${one.mode}:${one.value}`).join(",") || null,
      n: settings.tokens === 24 ? null : settings.tokens,
      t: settings.temperature || null,
      seed: settings.seed || null,
    });
  }

  function drawSteer() {
    const sliders = state.changes.map((one, place) => {
      const shownValue = h("span", { class: "num" }, number(one.value));
      const range = h("input", {
        type: "range",
        min: one.mode === "add" ? -4 : 0,
        max: 4,
        step: 0.05,
        value: one.value,
        "aria-label": `strength of ${one.latent}`,
        oninput: (event) => {
          one.value = Number(event.target.value);
          shownValue.textContent = number(one.value);
          keep();
        },
      });
      const mode = h(
        "select",
        {
          onchange: (event) => {
            one.mode = event.target.value;
            one.value = one.mode === "scale" ? 0 : 1;
            keep();
            drawSteer();
          },
        },
        h("option", { value: "add", selected: one.mode === "add" }, "add × max"),
        h("option", { value: "scale", selected: one.mode === "scale" }, "scale, 0 ablates"),
      );
      return h(
        "div",
        { class: "slider" },
        h("a", { class: "num", href: link(`/run/${data.run}/latent/${one.latent}`) }, String(one.latent)),
        range,
        shownValue,
        h(
          "span",
          { class: "nowrap" },
          mode,
          h(
            "button",
            {
              class: "quiet",
              "aria-label": "remove",
              onclick: () => {
                state.changes.splice(place, 1);
                keep();
                drawSteer();
              },
            },
            "✕",
          ),
        ),
        state.found?.about[one.latent] ? chips(state.found.about[one.latent].tokens, 5) : null,
      );
    });
    const add = h("input", {
      type: "number",
      min: 0,
      placeholder: "latent",
      style: { width: "90px" },
      "aria-label": "latent to steer",
      onchange: (event) => {
        if (event.target.value !== "") addChange(Number(event.target.value));
      },
    });
    const field = (name, title, attributes) =>
      h(
        "label",
        { class: "small dim" },
        `${title} `,
        h("input", {
          type: "number",
          value: settings[name],
          style: { width: "68px" },
          ...attributes,
          onchange: (event) => {
            settings[name] = Number(event.target.value);
            keep();
          },
        }),
      );
    const go_ = h("button", { class: "primary", id: "steer", onclick: continueBoth }, "Continue");
    steer.replaceChildren(
      h(
        "section",
        { class: "panel" },
        h("h2", {}, "Steer and continue", h("span", { class: "aside" }, "every position, same random numbers")),
        sliders,
        h(
          "div",
          { class: "bar", style: { margin: "10px 0 0" } },
          add,
          field("tokens", "tokens", { min: 1, max: data.limits.new_tokens }),
          field("temperature", "temperature", { min: 0, max: 2, step: 0.1 }),
          field("seed", "seed", { min: 0 }),
          go_,
        ),
        answer
          ? h(
              "div",
              { class: "halves", style: { "margin-top": "14px" } },
              continuation("unchanged", answer.plain, answer.steered),
              continuation("steered", answer.steered, answer.plain),
            )
          : null,
      ),
    );
  }

  function continuation(title, tokens, others) {
    return h(
      "div",
      {},
      h("div", { class: "small dim" }, title),
      h(
        "div",
        { class: "text", id: `said-${title}` },
        tokens.map((token, place) =>
          h("span", { style: { "background-color": token === others[place] ? "" : "rgb(var(--heat) / 18%)" } }, token),
        ),
      ),
    );
  }

  async function continueBoth(event) {
    event.target.disabled = true;
    keep();
    try {
      answer = await post(`/run/${data.run}/steer.json`, { text: text.value, changes: state.changes, ...settings });
      said.textContent = "";
    } catch (error) {
      said.className = "error";
      said.textContent = error.message;
    }
    drawSteer();
  }

  read().then(() => {
    if (state.changes.length && parameters().has("steer") && state.found) steer.querySelector("#steer")?.click();
  });
}

function parse(text) {
  return (text ?? "")
    .split(",")
    .filter(Boolean)
    .map((part) => {
      const [latent, mode, value] = part.split(":");
      return { latent: Number(latent), mode: mode === "scale" ? "scale" : "add", value: Number(value) };
    })
    .filter((one) => Number.isInteger(one.latent) && Number.isFinite(one.value));
}

export const draw = { prompt: drawPrompt };
