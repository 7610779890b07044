// Where data comes from: the server, or, in an exported folder, scripts that lie beside the page.

const store = globalThis.SAELAB_STATIC ?? null;

export const isStatic = store !== null;

export async function get(path) {
  if (store) return store.get(path);
  const response = await fetch(path, { headers: { accept: "application/json" } });
  return checked(response);
}

export async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  return checked(response);
}

async function checked(response) {
  const data = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (!response.ok) throw new Error(data.error ?? `the server answered ${response.status}`);
  return data;
}

// Addresses of pages: paths on a server, fragments in an exported folder.
export function link(path) {
  return store ? `#${path}` : path;
}

export function go(path) {
  location.href = link(path);
}

// The part of the address that says what a page shows.
export function parameters() {
  const text = store ? (location.hash.slice(1).split("?")[1] ?? "") : location.search;
  return new URLSearchParams(text);
}

export function remember(values, step = false) {
  const found = parameters();
  for (const [key, value] of Object.entries(values)) {
    if (value === null || value === undefined || value === "") found.delete(key);
    else found.set(key, value);
  }
  const text = found.toString() ? `?${found}` : "";
  const path = store ? `${location.pathname}#${location.hash.slice(1).split("?")[0]}${text}` : location.pathname + text;
  history[step ? "pushState" : "replaceState"](null, "", path);
}

export async function copy(text) {
  await navigator.clipboard.writeText(text);
}
