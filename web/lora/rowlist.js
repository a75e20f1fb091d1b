// Parse the value of LoRA Stack's list, which may come from any saved workflow.

// The rows in `text`, or null if it is not a list of rows with values of the right types.
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
