// One latent: examples on the left, what is known about it on the right.

import { copy, get, go, isStatic, link, parameters, post, remember } from "./api.js";
import { histogram, radial } from "./charts.js";
import { h, panel } from "./dom.js";
import { count, number, percent, shown, words } from "./format.js";
import { key } from "./keys.js";
import { chips, example, view } from "./tokens.js";

const KINDS = { top: "Top", intervals: "Intervals", random: "Random", near: "Near misses" };

function drawLatent(data, main) {
  const own = data.numbers,
    path = `/run/${data.run}/latent/${data.latent}`;
  const query = parameters();
  query.delete("show");
  const suffix = query.toString() ? `?${query}` : "";
  const to = (latent) => `/run/${data.run}/latent/${latent}${suffix}`;
  const step = (latent) => latent !== null && go(to(latent));
  const jump = h("input", {
    type: "number",
    min: 0,
    max: data.n_latents - 1,
    value: data.latent,
    style: { width: "92px" },
    "aria-label": "latent",
    onchange: (event) => go(to(event.target.value)),
  });
  view.layout = false;

  const examples = h("div", {});
  let shownKind = query.get("show") ?? parameters().get("show") ?? "top";
  const tabs = h("div", { class: "tabs grow" });
  const drawExamples = () => {
    tabs.replaceChildren(
      ...Object.entries(KINDS).map(([kind, title]) =>
        h(
          "button",
          {
            class: kind === shownKind ? "on" : "",
            onclick: () => {
              shownKind = kind;
              remember({ show: kind === "top" ? null : kind });
              drawExamples();
            },
          },
          title,
        ),
      ),
    );
    examples.replaceChildren(...examplesOf(data, shownKind, path));
  };
  drawExamples();

  const layout = h(
    "button",
    { class: "quiet", onclick: () => flip(), tip: "the text's own lines, or signs for line breaks" },
    "↵ layout",
  );
  const flip = () => {
    view.layout = !view.layout;
    layout.classList.toggle("on", view.layout);
    drawExamples();
  };

  main.replaceChildren(
    h(
      "div",
      { class: "bar" },
      h(
        "button",
        { onclick: () => step(data.steps.previous), disabled: data.steps.previous === null, tip: "previous  k" },
        "←",
      ),
      jump,
      h("button", { onclick: () => step(data.steps.next), disabled: data.steps.next === null, tip: "next  j" }, "→"),
      h("h1", { class: "grow" }, own.explanation || h("span", {}, "Latent ", String(data.latent))),
      h("span", { class: `chip ${own.kind}` }, own.kind),
      chips(own.tokens, 4),
    ),
    h(
      "div",
      { class: "columns" },
      h(
        "div",
        {},
        h("section", { class: "panel" }, h("div", { class: "bar" }, tabs, layout), examples),
        noteBox(data, path),
      ),
      h(
        "div",
        {},
        statistics(data),
        logitBox(data),
        tokenBox(data),
        patternBox(data, path),
        listBox("Nearest directions", "cosine", data.neighbours, data.run, suffix),
        listBox("Fires together with", "r", data.correlated, data.run, suffix),
        more(data, path),
      ),
    ),
  );

  key("j", "next latent", () => step(data.steps.next));
  key("k", "latent before", () => step(data.steps.previous));
  key("/", "jump to a latent", () => {
    jump.focus();
    jump.select();
  });
  key("w", "line breaks as signs, or as they are", flip);
  key("n", "write a note", () => main.querySelector("textarea")?.focus());
  for (const [place, kind] of Object.keys(KINDS).entries())
    key(String(place + 1), `${KINDS[kind].toLowerCase()} examples`, () => tabs.children[place].click());
}

function examplesOf(data, kind, path) {
  const most = Math.abs(data.numbers.largest || 1);
  const none = (text) => [h("div", { class: "notice" }, text)];
  const nothing = () => none(data.numbers.count ? "None of its examples were kept." : "It is never active here.");
  const shownAs = (one, options = {}) => example(one, most, path, { text: data.has_text, ...options });
  if (kind === "intervals") {
    const parts = data.intervals.filter((part) => part.count);
    const total = data.numbers.count || 1;
    if (!parts.length) return nothing();
    return parts.map((part) =>
      h(
        "div",
        {},
        h(
          "div",
          { class: "small dim", style: { "padding-top": "12px" } },
          h("b", { class: "num" }, `${number(part.low)} to ${number(part.high)}`),
          ` · ${count(part.count)} ${data.has_text ? "tokens" : "rows"}, ${percent(part.count / total)} of its activations`,
        ),
        part.examples.map((one) => shownAs(one)),
      ),
    );
  }
  if (kind === "near") {
    const { silent, near } = data.examples;
    if (!silent.length && !near.length) return none("There are none.");
    return [
      near.length
        ? h("div", { class: "small dim" }, "Silent, with its largest pre-activations in a sample of rows (in brackets)")
        : null,
      near.map((one) => shownAs(one, { effects: false })),
      silent.length
        ? h("div", { class: "small dim", style: { "padding-top": "12px" } }, "Silent on one of its foremost tokens")
        : null,
      silent.map((one) => shownAs(one, { effects: false })),
    ]
      .flat()
      .filter(Boolean);
  }
  const found = data.examples[kind] ?? [];
  if (!found.length) return nothing();
  const list = found.map((one) => shownAs(one));
  if (isStatic || found.length >= (data.kept[kind] ?? 0)) return list;
  const rest = h(
    "button",
    {
      class: "quiet",
      onclick: async () => {
        const next = await get(`${path}/examples.json?kind=${kind}&offset=${found.length}`);
        rest.replaceWith(...next.examples.map((one) => shownAs(one)));
      },
    },
    `show ${data.kept[kind] - found.length} more`,
  );
  return [...list, rest];
}

function statistics(data) {
  const own = data.numbers;
  const lines = [
    ["density", percent(own.density)],
    [data.has_text ? "tokens" : "rows", count(own.count)],
    ["max", number(own.largest)],
    ["mean active", number(own.mean)],
    ["median", number(own.median)],
    ["E[a²]", number(own.mean_square)],
    ["skew", number(own.skew)],
    ["kurtosis", number(own.kurtosis)],
    ["norm", number(own.norm)],
    ["nearest cosine", number(own.cosine)],
    ...(own.negative ? [["negative", percent(own.negative)]] : []),
    ...(own.score !== null ? [["explanation's score", number(own.score)]] : []),
    ...(own.probe ? [["probe", `${own.probe} ${number(own.probe_score)}`]] : []),
  ];
  const box = h("div", { style: { "margin-top": "12px" } });
  let log = true;
  const draw = () => box.replaceChildren(histogram(data.histogram, 0, Math.abs(own.largest || 1), { log }));
  draw();
  return h(
    "section",
    { class: "panel" },
    h(
      "h2",
      {},
      "Activations",
      h(
        "button",
        {
          class: "quiet aside",
          onclick: () => {
            log = !log;
            draw();
          },
        },
        "log / linear",
      ),
    ),
    data.scale
      ? h("div", { class: "small dim" }, `Each in units of its row's own size (${data.scale}).`)
      : null,
    h(
      "dl",
      { class: "stats" },
      lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    box,
  );
}

function logitBox(data) {
  const { logits } = data;
  if (!logits) return panel("Logits", h("div", { class: "small dim" }, `Left out: ${data.why_no_logits}.`));
  const most = Math.max(Math.abs(logits.low), Math.abs(logits.high));
  const side = (pairs) =>
    pairs
      .slice(0, 10)
      .map(([token, value]) =>
        h(
          "div",
          { class: "line" },
          h("span", { class: "num" }, `${value > 0 ? "+" : ""}${number(value, 2)}`),
          h(
            "span",
            {
              class: "tok",
              style: {
                "background-color": `rgb(var(${value > 0 ? "--heat" : "--cool"}) / ${Math.round(8 + (40 * Math.abs(value)) / most)}%)`,
              },
            },
            shown(token),
          ),
        ),
      );
  return panel(
    ["Logits", h("span", { class: "aside" }, "direct path, at a row of norm √width")],
    h(
      "div",
      { class: "pairs" },
      h("div", {}, h("div", { class: "small dim" }, "promotes"), side(logits.top)),
      h("div", {}, h("div", { class: "small dim" }, "suppresses"), side(logits.bottom)),
    ),
    h(
      "div",
      { style: { "margin-top": "10px" } },
      histogram(logits.histogram, logits.low, logits.high, { height: 84, kind: "warm" }),
    ),
  );
}

function tokenBox(data) {
  if (!data.tokens.length) return null;
  return panel(
    ["Fires on", h("span", { class: "aside" }, "share of its activation")],
    data.tokens.map(([token, share, times]) =>
      h(
        "div",
        { class: "line" },
        h("span", { class: "num" }, percent(share)),
        h("span", { class: "tok" }, shown(token)),
        h("span", { class: "faint small" }, `${count(times)} times`),
      ),
    ),
  );
}

export function listBox(title, unit, items, run, suffix = "") {
  if (!items.length) return null;
  return panel(
    [title, h("span", { class: "aside" }, unit)],
    items
      .slice(0, 10)
      .map((one) =>
        h(
          "div",
          { class: "line" },
          h("span", { class: "num" }, one.values[0].toFixed(2)),
          h("a", { href: link(`/run/${run}/latent/${one.latent}${suffix}`), class: "num" }, String(one.latent)),
          one.explanation ? h("span", { class: "grow small" }, one.explanation) : chips(one.tokens, 4),
          one.values.length > 1
            ? h(
                "span",
                { class: "faint small nowrap", tip: "rows in which both are active, of those in which this one is" },
                percent(one.values[1]),
              )
            : null,
        ),
      ),
  );
}

// What has to be worked out, after the page is there.
function more(data, path) {
  const box = h("div", {});
  if (isStatic) return box;
  if (data.others.length) {
    get(`${path}/counterparts.json`)
      .then(({ counterparts }) => {
        for (const [name, items] of Object.entries(counterparts))
          box.append(listBox(`Counterparts in ${name}`, "cosine", items, name) ?? "");
      })
      .catch(() => {});
  }
  get(`${path}/meta.json`)
    .then((found) => {
      if (found.metas.length) box.append(metaBox(found, data.run));
    })
    .catch(() => {});
  return box;
}

export function metaBox(found, run) {
  const word = (one) => (words(one.tokens)[0] ? shown(words(one.tokens)[0]) : String(one.latent));
  const tree = {
    label: `latent ${found.latent}`,
    children: found.metas.map((meta) => ({
      label: `meta ${meta.meta}`,
      tip: `meta-latent ${meta.meta}\nvalue ${number(meta.value)}\n${meta.base.map(word).join("  ")}`,
      size: meta.value,
      act: () => go(`/run/${run}/meta/${meta.meta}`),
      children: meta.base.map((one) => ({
        label: word(one),
        tip: `latent ${one.latent}\n${words(one.tokens).map(shown).join("  ")}`,
        size: one.value,
        act: () => go(`/run/${run}/latent/${one.latent}`),
      })),
    })),
  };
  return panel(
    "Meta-latents",
    radial(tree),
    found.metas.map((meta) =>
      h(
        "div",
        { class: "line" },
        h("span", { class: "num" }, number(meta.value, 2)),
        h("a", { href: link(`/run/${run}/meta/${meta.meta}`) }, `meta ${meta.meta}`),
        chips(
          meta.base.map((one) => words(one.tokens)[0] ?? ""),
          4,
        ),
      ),
    ),
  );
}

function patternBox(data, path) {
  if (isStatic || !data.has_text || !data.examples.top.length) return null;
  const box = h("div", {});
  const ask = h(
    "button",
    {
      class: "quiet aside",
      onclick: async () => {
        ask.disabled = true;
        try {
          const { patterns } = await get(`${path}/pattern.json`);
          box.replaceChildren(
            ...patterns.map((one) =>
              h(
                "div",
                { class: "line" },
                h("span", { class: "num" }, number(one.activation)),
                h(
                  "span",
                  { class: "toks" },
                  one.at_start ? h("span", { class: "chip" }, "start") : null,
                  one.tokens.map((token) =>
                    h("span", { class: token === null ? "tok faint" : "tok" }, token === null ? "any" : shown(token)),
                  ),
                ),
                h(
                  "span",
                  { class: "faint small nowrap" },
                  `${one.examples} of ${data.examples.top.length > 8 ? 8 : data.examples.top.length}`,
                ),
              ),
            ),
          );
        } catch (error) {
          box.replaceChildren(h("span", { class: "error" }, error.message));
        }
        ask.disabled = false;
      },
    },
    "work out",
  );
  return h("section", { class: "panel" }, h("h2", {}, "Token patterns (N2G)", ask), box);
}

function noteBox(data, path) {
  if (isStatic)
    return data.note.note || data.note.tags.length
      ? panel(
          "Note",
          h("p", {}, data.note.note),
          data.note.tags.map((tag) => h("span", { class: "chip" }, tag)),
        )
      : null;
  const note = h("textarea", { rows: 3, placeholder: "What does it stand for?" });
  note.value = data.note.note;
  note.addEventListener("input", () => {
    data.note.note = note.value;
  });
  const tags = h("input", { placeholder: "tags, separated by spaces", value: data.note.tags.join(" "), class: "grow" });
  const said = h("span", { class: "faint small" });
  tags.addEventListener("input", () => {
    data.note.tags = tags.value.split(/\s+/).filter(Boolean);
  });
  const save = async () => {
    said.className = "faint small";
    said.textContent = "saving …";
    try {
      const kept = await post(`${path}/note.json`, { note: note.value, tags: tags.value.split(/\s+/).filter(Boolean) });
      said.textContent = kept.changed ? "saved" : "removed";
    } catch (error) {
      said.className = "error small";
      said.textContent = error.message;
    }
  };
  const share = h(
    "button",
    {
      class: "quiet",
      onclick: () =>
        copy(location.href).then(() => {
          share.textContent = "copied";
        }),
    },
    "copy link",
  );
  return panel(
    "Note",
    note,
    h("div", { class: "bar", style: { margin: "8px 0 0" } }, tags, h("button", { onclick: save }, "Save"), share, said),
  );
}

export const draw = { latent: drawLatent };
