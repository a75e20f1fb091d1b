// Putting the settings of a run into Train LoRA and its options nodes.

import { app } from "../../../scripts/app.js";
import { freeTop, isLinked, noteChange } from "../panel/graph.js";
import { labelOf, optionsBefore, optionsSlot, widgetOf } from "../widgets/options_chain.js";
import { readSettings } from "./server.js";
import { historyWords } from "./words.js";

const NODE = "AnimeLoRA_TrainLora";
const GAP = 60; // pixels between nodes

// Use the selected Train LoRA node, the only one, or a new one, and add the options nodes that it lacks. Returns what was done and what could not be set.
export async function openSettings({ run, name }) {
  const texts = historyWords();
  const settings = await readSettings(run);
  if (settings.error) return texts.failed(settings.error);
  const graph = app.canvas.graph ?? app.graph;
  const all = graph._nodes.filter((node) => node.comfyClass === NODE);
  const selected = all.filter((node) => app.canvas.selected_nodes?.[node.id]);
  if (all.length > 1 && selected.length !== 1) return texts.several;
  const existing = selected[0] ?? all[0];
  const train = existing ?? add(graph, NODE, ...middle());
  for (const kind of settings.needed) if (![...optionsBefore(train)].some((node) => node.comfyClass === kind)) chain(graph, train, kind);
  const linked = [train, ...optionsBefore(train)].flatMap((node) => put(node, settings.values[node.comfyClass]));
  app.canvas.selectNodes?.([train]);
  if (!existing) app.canvas.centerOnNode?.(train);
  app.canvas.setDirty(true, true);
  noteChange();
  const missing = [...settings.not_set.map(({ node, widget, key, value, reason }) => [node ? labelOf(node, widget) : key, value, reason]), ...linked];
  const lines = missing.map(([label, value, reason]) => `${label} = ${value} (${texts.reasons[reason]})`);
  return [
    (existing ? texts.opened : texts.added)(name),
    ...(settings.dataset ? [texts.wasDataset(settings.dataset)] : []),
    ...(lines.length ? [`${texts.notSet} ${lines.join(", ")}.`] : []),
  ].join(" ");
}

// Set the widgets of a node; [label, value, "linked"] of each whose value comes from a link instead.
function put(node, values = {}) {
  const linked = [];
  const preset = widgetOf(node, "preset");
  const all = preset ? { preset: "none", ...values } : values; // the values are all there: no preset fills any in
  for (const [name, value] of Object.entries(all)) {
    const widget = widgetOf(node, name);
    if (!widget) continue;
    if (isLinked(node, name)) {
      linked.push([labelOf(node.comfyClass, name), value, "linked"]);
    } else if (widget.value !== value) {
      widget.value = value;
      widget.callback?.(value, app.canvas, node);
    }
  }
  return linked;
}

function add(graph, kind, left, top) {
  const node = LiteGraph.createNode(kind);
  node.pos = [left, freeTop(graph, left, top, node.size)];
  graph.add(node);
  return node;
}

// Put a new options node between Train LoRA and the options node that it has.
function chain(graph, train, kind) {
  const slot = optionsSlot(train), before = train.getInputNode(slot);
  const node = LiteGraph.createNode(kind);
  const left = train.pos[0] - node.size[0] - GAP;
  node.pos = [left, freeTop(graph, left, train.pos[1], node.size)];
  graph.add(node);
  if (before) before.connect(before.outputs.findIndex((output) => output.name === "options"), node, optionsSlot(node));
  node.connect(node.outputs.findIndex((output) => output.name === "options"), train, slot);
}

// Where the middle of the window is on the canvas.
function middle() {
  const { scale, offset } = app.canvas.ds;
  return [window.innerWidth / 2 / scale - offset[0] - 300, window.innerHeight / 2 / scale - offset[1] - 250];
}
