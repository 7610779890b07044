// Numbers and tokens as people read them.

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) return value.toExponential(digits - 2).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

export function percent(share) {
  if (share === null || share === undefined) return "–";
  if (share === 0) return "0 %";
  const value = 100 * share;
  if (value < 0) return `−${percent(-share)}`;
  return `${value >= 10 ? value.toFixed(1) : value >= 0.001 ? Number(value.toPrecision(2)) : value.toExponential(1)} %`;
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  return value >= 1e7
    ? `${(value / 1e6).toFixed(0)}M`
    : value >= 1e6
      ? `${(value / 1e6).toFixed(1)}M`
      : value.toLocaleString("en");
}

// A token in a chip: blanks that would not be seen are shown by signs.
export function shown(token) {
  return (
    token
      .replace(/\n/g, "↵")
      .replace(/\t/g, "→")
      .replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length)) || "∅"
  );
}

export function words(joined) {
  return joined ? joined.split("\u001f") : [];
}

export function floats(base64) {
  return new Float32Array(bytes(base64).buffer);
}

export function integers(base64) {
  return new Int32Array(bytes(base64).buffer);
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0));
}
