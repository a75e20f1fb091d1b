// A LoRA's card: picture, kind, trigger words to copy or insert, and how it was trained.

import { element, toClipboard } from "../panel/dom.js";
import { loraCard } from "./data.js";
import { insertWords } from "./insert.js";
import { forPrompt } from "./prompt_words.js";
import { words } from "./words.js";

const PRECISION = { float16: "fp16", bfloat16: "bf16", float32: "fp32" };
const HEIGHT = 178, LOW = 40; // pixels with and without a LoRA

export class LoraCard {
  constructor(node, grown) {
    this.node = node;
    this.grown = grown;
    this.root = element("div", { class: "animelora-lora empty" });
    keepFromCanvas(this.root);
  }

  height() {
    return this.name ? HEIGHT : LOW;
  }

  async show(name, linked) {
    this.name = name;
    if (!name) {
      this.root.classList.add("empty");
      this.root.replaceChildren(linked ? words().afterTraining : words().choose);
      return;
    }
    const card = await loraCard(name);
    if (this.name !== name) return; // another one was chosen in the meantime
    this.root.classList.toggle("empty", !card);
    this.root.replaceChildren(...(card ? cardParts(card, this.node) : [words().missing(name)]));
    this.grown();
  }
}

// The pointer works on the card, not on the canvas below; a wheel scrolls the card where it can.
export function keepFromCanvas(root) {
  for (const name of ["pointerdown", "mousedown", "dblclick"]) root.addEventListener(name, (event) => event.stopPropagation());
  root.addEventListener("wheel", (event) => {
    if (root.scrollHeight > root.clientHeight) event.stopPropagation();
  });
}

// The elements of a card; `node` is whose trigger words they are, to find where to insert them.
export function cardParts(card, node) {
  const say = words();
  const facts = [card.rank ? say.rank(card.rank, card.alpha) : "", card.algorithm, PRECISION[card.precision] ?? card.precision].filter(Boolean);
  const head = element(
    "div",
    { class: "head" },
    card.thumbnail
      ? element("img", { src: card.thumbnail, alt: "", draggable: false })
      : element("div", { class: "noimage", "aria-hidden": "true" }, "LoRA"),
    element(
      "div",
      { class: "about" },
      element("b", { title: card.name }, card.title),
      ...(card.family ? [element("span", {}, card.family)] : []),
      element("span", {}, facts.join(" · ")),
      ...(card.base ? [element("span", { title: card.base }, `${say.trainedOn} ${card.base}`)] : []),
      ...(card.strength ? [element("span", {}, `${say.strength} ${card.strength}`)] : []),
    ),
  );
  const problem = card.problem ? [element("div", { class: "problem", role: "alert" }, card.problem)] : [];
  const called = card.problem && !card.trigger_words.length ? [] : [triggers(card, node, say)];
  return [head, ...problem, ...called, details(card, say)];
}

function triggers(card, node, say) {
  const known = card.trigger_words.length > 0;
  const shown = known ? card.trigger_words : card.tags.map(([tag]) => tag).slice(0, 8);
  const chips = shown.map((word) => chip([word], node, say));
  if (known && shown.length > 1) chips.push(chip(shown, node, say, say.all));
  const label = known ? say.triggers : shown.length ? say.frequent : say.noTriggers;
  return element("div", { class: "triggers" }, element("span", { class: "label" }, label), ...chips);
}

function chip(words, node, say, label = words[0]) {
  const text = words.map(forPrompt).join(", ");
  const copy = element("button", { type: "button", class: "copy", title: say.copyTip }, label);
  copy.addEventListener("click", () => toClipboard(text, copy, say.copied));
  const insert = element("button", { type: "button", class: "insert", title: say.insertTip, "aria-label": `${say.insertTip} ${label}` }, "+");
  insert.addEventListener("click", () => {
    const done = insertWords(node, words);
    insert.textContent = done ? "✓" : "–";
    insert.title = done ? say.inserted(done) : say.noTarget;
    setTimeout(() => {
      insert.textContent = "+";
      insert.title = say.insertTip;
    }, 1500);
  });
  return element("span", { class: "chip" }, copy, insert);
}

function details(card, say) {
  const facts = [
    ...Object.entries(card.training).map(([name, value]) => [say.training[name] ?? name, value]),
    [say.layers, card.layers || ""],
    [say.file, `${(card.size / 2 ** 20).toFixed(1)} MB, ${card.modified}`],
    [say.author, card.author],
    [say.licence, card.licence],
  ].filter(([, value]) => value !== "");
  const list = facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
  const known = Object.keys(card.training).length > 0;
  const parts = [element("summary", {}, known ? say.trainingTitle : say.fileTitle), element("dl", {}, ...list)];
  if (card.description) parts.push(element("p", {}, card.description));
  return element("details", {}, ...parts);
}
