// The list of LoRAs in LoRA Stack. Its value is JSON text: [{"on": true, "name": "…", "strength": 1, "clip": 0.5}, …];
// clip is present only where the text encoder has a separate strength.

import { element, keepFromCanvas } from "../panel/dom.js";
import { cardParts } from "./card.js";
import { loraCard, loraNames } from "./data.js";
import { choose, popup, shortName } from "./popup.js";
import { parseRows } from "./rowlist.js";
import { words } from "./words.js";

const ROW = 30, FRAME = 102, MARGINS = 20; // height in pixels of a row, of everything above and below, and of the classic margins
const STRONGEST = 100, STEP = 0.05;

export class LoraRows {
  constructor(node, { grown, changed }) {
    this.node = node;
    this.grown = grown;
    this.changed = changed;
    this.rows = [];
    this.broken = null; // text that is not a list, kept until the user edits the list
    this.used = element("div", { class: "used" });
    this.root = element("div", { class: "animelora-rows", role: "group", "aria-label": words().list });
    keepFromCanvas(this.root);
  }

  text() {
    return this.broken ?? JSON.stringify(this.rows);
  }

  read(text) {
    const rows = parseRows(text);
    this.rows = rows ?? [];
    this.broken = rows ? null : String(text);
    this.draw();
  }

  // Show what the node reported when it used the LoRAs, one line each.
  report(text) {
    this.used.textContent = text.replaceAll("\n", " · ");
    this.used.title = text;
  }

  height() {
    return MARGINS + FRAME + ROW * Math.max(1, this.rows.length);
  }

  change(edit) {
    edit?.();
    this.broken = null;
    this.report("");
    this.draw();
    this.changed();
  }

  draw() {
    const texts = words();
    const split = this.rows.some((row) => row.clip != null);
    const on = this.rows.filter((row) => row.on).length;
    const all = toggle(texts.allOn, this.rows.length > 0 && on === this.rows.length, (state) =>
      this.change(() => this.rows.forEach((row) => (row.on = state))),
    );
    const apart = element("button", { type: "button", class: split ? "apart set" : "apart", title: texts.apartTip, "aria-pressed": String(split) }, texts.apart);
    apart.addEventListener("click", () => this.change(() => this.splitClip(!split)));
    const add = element("button", { type: "button", class: "add" }, `+ ${texts.add}`);
    add.addEventListener("click", async () => choose(add, await loraNames(), "", (name) => this.change(() => this.rows.push(this.fresh(name, split)))));
    const nothing = this.broken ? texts.broken : texts.none;
    this.root.replaceChildren(
      element("div", { class: "top" }, all, element("span", { class: "count" }, texts.count(on, this.rows.length)), apart),
      element(
        "div",
        { class: "rows" },
        ...this.rows.map((row, index) => this.drawRow(row, index, texts)),
        ...(this.rows.length ? [] : [element("div", { class: "nothing" }, nothing)]),
      ),
      this.used,
      add,
    );
    this.root.style.minHeight = `${this.height() - MARGINS}px`;
    this.markMissing(texts);
    this.grown();
  }

  fresh(name, split) {
    return { on: true, name, strength: 1, ...(split ? { clip: 1 } : {}) };
  }

  splitClip(wanted) {
    for (const row of this.rows) {
      if (wanted) row.clip ??= row.strength;
      else delete row.clip;
    }
  }

  drawRow(row, index, texts) {
    const name = element("button", { type: "button", class: "name", title: row.name }, shortName(row.name) || texts.chooseOne);
    name.addEventListener("click", async () => choose(name, await loraNames(), row.name, (chosen) => this.change(() => (row.name = chosen))));
    const of = (label) => `${label}: ${shortName(row.name)}`;
    const info = button("i", of(texts.card), "info", async () => {
      const card = row.name && (await loraCard(row.name));
      popup(info, card ? cardParts(card, this.node) : [texts.missing(row.name)], "animelora-lora");
    });
    const up = button("↑", of(texts.up), "up", () => this.change(() => this.move(index, index - 1)));
    const down = button("↓", of(texts.down), "down", () => this.change(() => this.move(index, index + 1)));
    up.disabled = index === 0;
    down.disabled = index === this.rows.length - 1;
    return element(
      "div",
      { class: row.on ? "row" : "row off" },
      toggle(of(texts.on), row.on, (state) => this.change(() => (row.on = state))),
      name,
      this.number(row, "strength", of(texts.modelStrength)),
      ...(row.clip != null ? [this.number(row, "clip", of(texts.clipStrength))] : []),
      info,
      up,
      down,
      button("×", of(texts.remove), "remove", () => this.change(() => this.rows.splice(index, 1))),
    );
  }

  number(row, key, label) {
    const input = element("input", { type: "number", class: key, min: -STRONGEST, max: STRONGEST, step: STEP, value: row[key], title: label, "aria-label": label });
    input.addEventListener("keydown", (event) => event.stopPropagation());
    input.addEventListener("change", () => {
      const value = Number.isFinite(input.valueAsNumber) ? Math.max(-STRONGEST, Math.min(STRONGEST, input.valueAsNumber)) : row[key];
      input.value = value;
      row[key] = value;
      this.changed(); // no redraw, so that the field keeps the focus
    });
    return input;
  }

  move(from, to) {
    if (to < 0 || to >= this.rows.length) return;
    this.rows.splice(to, 0, ...this.rows.splice(from, 1));
  }

  async markMissing(texts) {
    const listed = new Set(await loraNames());
    for (const [index, place] of [...this.root.querySelectorAll(".row")].entries()) {
      const row = this.rows[index];
      const missing = !!row?.name && !listed.has(row.name);
      place.classList.toggle("missing", missing);
      if (missing) place.querySelector(".name").title = texts.missing(row.name);
    }
  }
}

function button(sign, label, kind, clicked) {
  const made = element("button", { type: "button", class: `sign ${kind}`, title: label, "aria-label": label }, sign);
  made.addEventListener("click", clicked);
  return made;
}

function toggle(label, state, switched) {
  const made = element("button", { type: "button", class: "switch", role: "switch", "aria-checked": String(state), title: label, "aria-label": label });
  made.addEventListener("click", () => switched(!state));
  return made;
}
