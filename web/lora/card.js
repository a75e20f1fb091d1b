// The card of a LoRA: thumbnail, type, trigger words to copy or insert, and training settings.

import { problemParts } from "../before_run/problems.js";
import { element, keepFromCanvas, toClipboard } from "../panel/dom.js";
import { loraCard } from "./data.js";
import { insertWords } from "./insert.js";
import { forPrompt } from "./prompt_words.js";
import { words } from "./words.js";

const PRECISION = { float16: "fp16", bfloat16: "bf16", float32: "fp32" };
const HEIGHT = 190; // in pixels, with or without a LoRA

export class LoraCard {
  constructor(node, grown) {
    this.node = node;
    this.grown = grown;
    this.root = element("div", { class: "animelora-lora empty" });
    this.root.style.minHeight = `${HEIGHT - 20}px`; // without the margins of the classic rendering
    keepFromCanvas(this.root);
  }

  height() {
    return HEIGHT;
  }

  // Show what the node reported when it used the LoRA.
  report(text) {
    this.text = text;
    this.used?.remove();
    if (!text || this.root.classList.contains("empty")) return;
    this.used = element("div", { class: "used", title: text }, text);
    this.root.append(this.used);
  }

  // Show why the node failed: the sentence first, the names of layers folded.
  fail(problem) {
    this.used?.remove();
    this.text = "";
    this.used = problemParts(this.node, problem);
    this.root.prepend(this.used);
  }

  async show(name, linked) {
    if (this.name !== name) this.text = "";
    this.name = name;
    if (!name) {
      this.root.classList.add("empty");
      this.root.replaceChildren(linked ? words().afterTraining : words().choose);
      return;
    }
    const card = await loraCard(name);
    if (this.name !== name) return; // another LoRA has been chosen in the meantime
    this.root.classList.toggle("empty", !card);
    this.root.replaceChildren(...(card ? cardParts(card, this.node) : [words().missing(name)]));
    this.report(this.text);
    this.grown();
  }
}

// The elements of a card. Trigger words are inserted into the prompt that `node` leads to.
export function cardParts(card, node) {
  const texts = words();
  const facts = [card.rank ? texts.rank(card.rank, card.alpha) : "", card.algorithm, PRECISION[card.precision] ?? card.precision].filter(Boolean);
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
      ...(card.base ? [element("span", { title: card.base }, `${texts.trainedOn} ${card.base}`)] : []),
      ...(card.strength ? [element("span", {}, `${texts.strength} ${card.strength}`)] : []),
    ),
  );
  const problem = card.problem ? [element("div", { class: "problem", role: "alert" }, card.problem)] : [];
  const called = card.problem && !card.trigger_words.length ? [] : [triggers(card, node, texts)];
  return [head, ...problem, ...called, details(card, texts)];
}

function triggers(card, node, texts) {
  const known = card.trigger_words.length > 0;
  const shown = known ? card.trigger_words : card.tags.map(([tag]) => tag).slice(0, 8);
  const chips = shown.map((word) => chip([word], node, texts));
  if (known && shown.length > 1) chips.push(chip(shown, node, texts, texts.all));
  const label = known ? texts.triggers : shown.length ? texts.frequent : texts.noTriggers;
  return element("div", { class: "triggers" }, element("span", { class: "label" }, label), ...chips);
}

function chip(words, node, texts, label = words[0]) {
  const text = words.map(forPrompt).join(", ");
  const copy = element("button", { type: "button", class: "copy", title: texts.copyTip }, label);
  copy.addEventListener("click", () => toClipboard(text, copy, texts.copied));
  const insert = element("button", { type: "button", class: "insert", title: texts.insertTip, "aria-label": `${texts.insertTip} ${label}` }, "+");
  insert.addEventListener("click", () => {
    const done = insertWords(node, words);
    insert.textContent = done ? "✓" : "–";
    insert.title = done ? texts.inserted(done) : texts.noTarget;
    setTimeout(() => {
      insert.textContent = "+";
      insert.title = texts.insertTip;
    }, 1500);
  });
  return element("span", { class: "chip" }, copy, insert);
}

function details(card, texts) {
  const facts = [
    ...Object.entries(card.training).map(([name, value]) => [texts.training[name] ?? name, value]),
    [texts.layers, card.layers || ""],
    [texts.file, `${(card.size / 2 ** 20).toFixed(1)} MB, ${card.modified}`],
    [texts.author, card.author],
    [texts.licence, card.licence],
  ].filter(([, value]) => value !== "");
  const list = facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]);
  const known = Object.keys(card.training).length > 0;
  const parts = [element("summary", {}, known ? texts.trainingTitle : texts.fileTitle), element("dl", {}, ...list)];
  if (card.description) parts.push(element("p", {}, card.description));
  return element("details", {}, ...parts);
}
