// Insert trigger words into a prompt: the text of a selected node, else the positive prompt that the node's CLIP leads to.

import { app } from "../../../scripts/app.js";
import { linksFrom, noteChange } from "../panel/graph.js";
import { withWords } from "./prompt_words.js";

const FURTHEST = 6; // nodes between the LoRA and the prompt at most

// Put those of `words` that the prompt lacks in front of it. Returns the title of the changed node, "" if no prompt was found.
export function insertWords(node, words) {
  const found = target(node);
  if (!found) return "";
  const [place, widget] = found;
  const before = String(widget.value ?? "");
  const after = withWords(before, words);
  if (after !== before) {
    widget.value = after;
    widget.callback?.(widget.value);
    noteChange();
    app.canvas?.setDirty?.(true, true);
  }
  return place.title ?? place.type;
}

function target(node) {
  const selected = Object.values(app.canvas?.selected_nodes ?? {}).filter((each) => each !== node);
  for (const each of selected) {
    const widget = textWidget(each);
    if (widget) return [each, widget];
  }
  const found = downstream(node).flatMap((each) => (textWidget(each) ? [[each, textWidget(each)]] : []));
  return found.find(([each]) => leadsTo(each, "positive")) ?? found.find(([each]) => !leadsTo(each, "negative")) ?? null;
}

// The prompt widget of a node: its first multiline text that is not named negative and not linked.
function textWidget(node) {
  const texts = (node.widgets ?? []).filter((widget) => typeof widget.value === "string" && isText(widget));
  const linked = (widget) => node.inputs?.some((input) => input.widget?.name === widget.name && input.link != null);
  return texts.find((widget) => !/negative/i.test(widget.name) && !linked(widget)) ?? null;
}

function isText(widget) {
  return ["customtext", "textarea"].includes(widget.type) || !!widget.options?.multiline || widget.element instanceof HTMLTextAreaElement;
}

function leadsTo(node, name) {
  return linksFrom(node).some(([each, slot]) => each.inputs?.[slot]?.name === name);
}

// The nodes downstream of `node`, nearest first.
function downstream(node) {
  const found = new Set();
  let edge = [node];
  for (let step = 0; step < FURTHEST && edge.length; step++) {
    edge = edge.flatMap((each) => linksFrom(each).map(([next]) => next)).filter((next) => next !== node && !found.has(next));
    for (const next of edge) found.add(next);
  }
  return [...found];
}
