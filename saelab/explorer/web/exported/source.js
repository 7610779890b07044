// Data of an exported folder: scripts beside the page, because a page on the disk may load nothing else.
"use strict";
(() => {
  const held = new Map(), waiting = new Map();

  globalThis.SAELAB_PUT = (name, value) => held.set(name, value);

  function load(name) {
    if (held.has(name)) return Promise.resolve(held.get(name));
    if (!waiting.has(name)) {
      waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => { script.remove(); resolve(held.get(name)); };
        script.onerror = () => reject(new Error(`data/${name}.js is missing from this folder`));
        document.head.append(script);
      }));
    }
    return waiting.get(name);
  }

  // ---- the table, as the server would answer

  async function chosen(run, query) {
    const table = await load(`${run}/table`), { columns } = table;
    let places = columns.id.map((_, place) => place);
    for (const part of (query.get("filter") ?? "").split(",").filter(Boolean)) {
      const found = /^\s*(\w+):([-+.\deE]*?)\.\.([-+.\deE]*)\s*$/.exec(part);
      if (!found || !columns[found[1]]) throw new Error(`a filter is column:least..most, such as density:0.001..0.1; got '${part}'`);
      const column = columns[found[1]], least = found[2] ? Number(found[2]) : -Infinity, most = found[3] ? Number(found[3]) : Infinity;
      places = places.filter((place) => column[place] !== null && column[place] >= least && column[place] <= most);
    }
    if (query.get("kind")) places = places.filter((place) => columns.kind[place] === query.get("kind"));
    if (query.get("noted")) places = places.filter((place) => columns.tags[place]);
    const asked = query.get("q") ?? "", words = asked.toLowerCase().match(/[\p{L}\p{N}_]+/gu) ?? [];
    if (words.length) {
      const contexts = await load(`${run}/contexts`);
      const tests = words.map((word) => new RegExp(`(^|[^\\p{L}\\p{N}_])${word}`, "u"));
      places = places.filter((place) => tests.every((test) => test.test(contexts[place])));
    } else if (asked.trim()) places = places.filter((place) => (columns.tokens[place] ?? "").includes(asked.trim()));
    const sort = query.get("sort") ?? "id", sign = query.get("desc") === "1" ? -1 : 1, by = columns[sort];
    if (!by) throw new Error(`cannot sort by '${sort}'`);
    places.sort((a, b) => (by[a] === by[b] ? 0 : by[a] === null ? 1 : by[b] === null ? -1 : (by[a] < by[b] ? -1 : 1) * sign) || columns.id[a] - columns.id[b]);
    return { table, places };
  }

  async function latents(run, query) {
    const { table, places } = await chosen(run, query);
    const offset = Number(query.get("offset") ?? 0), limit = Number(query.get("limit") ?? 100);
    const rows = places.slice(offset, offset + limit).map((place) => Object.fromEntries(Object.entries(table.columns).map(([name, column]) => [name, column[place]])));
    return { ...table.page, table: { total: places.length, offset, rows } };
  }

  async function latent(run, number, query) {
    const { table, places } = await chosen(run, query);
    const at = table.columns.id.indexOf(number);
    if (at < 0) throw new Error(`latent ${number} is not in this folder`);
    const shard = await load(`${run}/latents-${Math.floor(at / table.shard)}`);
    const page = structuredClone(shard.pages[at % table.shard]);
    const spell = (one) => { one.tokens = one.tokens.map((word) => shard.words[word]); };
    for (const list of Object.values(page.examples)) list.forEach(spell);
    page.intervals.forEach((part) => part.examples.forEach(spell));
    const place = places.indexOf(at), id = (n) => (n >= 0 && n < places.length ? table.columns.id[places[n]] : null);
    page.steps = place < 0 ? { previous: null, next: id(0) } : { previous: id(place - 1), next: id(place + 1) };
    return page;
  }

  globalThis.SAELAB_STATIC = {
    get(path) {
      const [address, text] = path.replace(".json", "").split("?"), query = new URLSearchParams(text);
      const parts = address.split("/").filter(Boolean).map(decodeURIComponent);
      if (!parts.length) return load("runs");
      if (parts[0] === "run" && parts.length === 2) return load(`${parts[1]}/run`);
      if (parts[0] === "run" && parts[2] === "latents") return latents(parts[1], query);
      if (parts[0] === "run" && parts[2] === "latent") return latent(parts[1], Number(parts[3]), query);
      return Promise.reject(new Error("this page needs the explorer itself: saelab explore"));
    },
  };
})();
