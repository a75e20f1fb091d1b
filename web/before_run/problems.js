// A problem as sentence, advice and buttons that set the widgets which would correct it.

import { app } from "../../../scripts/app.js";
import { element } from "../panel/dom.js";
import { freeTop, isLinked, noteChange } from "../panel/graph.js";
import { labelOf, optionsBefore, optionsSlot, widgetOf } from "../widgets/options_chain.js";
import { beforeWords } from "./words.js";

const GAP = 60; // pixels between nodes
const LONG = 5; // lines, more of which are folded

// The element that shows a problem of the Train LoRA node `node`: `{ refused, message, hint, fixes }` as the server sends it.
export function problemParts(node, { refused, message, hint, fixes = [] }) {
  const note = element("span", { class: "note", role: "status" });
  const [sentence, ...lines] = message.split("\n"), [advice, ...more] = (hint ?? "").split("\n");
  const open = lines.length > LONG ? [] : lines, details = [...(lines.length > LONG ? lines : []), ...more];
  const buttons = fixes.map((fix) => {
    const button = element("button", { type: "button", title: fix.text }, beforeWords().use(labelOf(fix.node, fix.widget), fix.value));
    button.addEventListener("click", () => (note.textContent = apply(node, fix)));
    return button;
  });
  return element(
    "div",
    { class: refused ? "problem refused" : "problem", role: refused ? "alert" : "note" },
    element("p", {}, element("b", {}, sentence)),
    ...[...open, advice].filter(Boolean).map((line) => element("p", {}, line)),
    ...(buttons.length ? [element("div", { class: "buttons" }, ...buttons, note)] : []),
    ...(details.length ? [element("details", {}, element("summary", {}, beforeWords().details), element("pre", {}, details.join("\n")))] : []),
  );
}

// Set the widget that a fix names, in Train LoRA or in the options node that has it, which is added where it is missing. Returns what happened.
function apply(train, fix) {
  const texts = beforeWords(), label = labelOf(fix.node, fix.widget);
  const node = holder(train, fix) ?? addOptions(train, fix.node);
  const widget = node && widgetOf(node, fix.widget);
  if (!widget) return "";
  if (isLinked(node, fix.widget)) return texts.isLinked(label);
  widget.value = fix.value;
  widget.callback?.(fix.value, app.canvas, node);
  node.setDirtyCanvas?.(true, true);
  noteChange();
  return texts.isSet(label, fix.value);
}

function holder(train, fix) {
  return [train, ...optionsBefore(train)].find((each) => each.comfyClass === fix.node);
}

// Add an options node between Train LoRA and the options that it has now.
function addOptions(train, type) {
  const made = LiteGraph.createNode(type);
  if (!made) return null;
  const slot = optionsSlot(train), before = train.getInputNode(slot), link = train.getInputLink?.(slot);
  const graph = train.graph ?? app.graph;
  made.pos = [train.pos[0] - made.size[0] - GAP, freeTop(graph, train.pos[0] - made.size[0] - GAP, train.pos[1], made.size)];
  graph.add(made);
  if (before) before.connect(link?.origin_slot ?? 0, made, optionsSlot(made));
  made.connect(0, train, slot);
  return made;
}
