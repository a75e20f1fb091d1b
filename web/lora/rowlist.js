// The text of LoRA Stack's list, as anybody may have saved or sent it.

// The rows in `text`; null for text that is no list of rows with values of the right kinds.
export function parseRows(text) {
  let rows;
  try {
    rows = JSON.parse(text || "[]");
  } catch {
    return null;
  }
  if (!Array.isArray(rows) || !rows.every(isRow)) return null;
  return rows.map(({ on = true, name = "", strength = 1, clip, ...rest }) => {
    const row = { on, name, strength, ...rest };
    return clip == null ? row : { ...row, clip };
  });
}

function isRow(row) {
  if (!row || typeof row !== "object" || Array.isArray(row)) return false;
  const { on = true, name = "", strength = 1, clip } = row;
  return typeof on === "boolean" && typeof name === "string" && Number.isFinite(strength) && (clip == null || Number.isFinite(clip));
}
