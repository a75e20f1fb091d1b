// Choosing a preset in Train LoRA fills its widgets, and those of the options nodes before it, where everybody can see and change them.
// What a preset holds comes from the pack's read-only route: this file knows no value.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { presetWords } from "./panel/preset_words.js";

const NODE = "AnimeLoRA_TrainLora";
const NONE = "none";

let known; // preset -> node -> widget -> value, asked once
async function presets() {
  known ??= await api.fetchApi("/animelora/presets").then((answer) => answer.json());
  return known;
}

// The options nodes that are chained before `node`, nearest first.
function* optionsBefore(node, seen = new Set([node])) {
  const slot = node.inputs?.findIndex((input) => input.name === "options") ?? -1;
  const before = slot < 0 ? null : node.getInputNode(slot);
  if (!before || seen.has(before)) return;
  seen.add(before);
  yield before;
  yield* optionsBefore(before, seen);
}

const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const linked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null && input.widget);

function put(node, values) {
  let changed = 0;
  for (const [name, value] of Object.entries(values ?? {})) {
    const widget = widgetOf(node, name);
    if (!widget || linked(node, name) || widget.value === value) continue;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    changed += 1;
  }
  return changed;
}

async function fill(node) {
  const name = widgetOf(node, "preset")?.value;
  if (!name || name === NONE) return;
  const values = (await presets())[name];
  if (!values || widgetOf(node, "preset").value !== name) return; // another one was chosen in the meantime
  let changed = put(node, values[NODE]);
  const before = [...optionsBefore(node)];
  for (const options of before) changed += put(options, values[options.comfyClass]);
  node.setDirtyCanvas(true, true);
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
  tell(name, changed, Object.entries(values).filter(([kind]) => kind !== NODE && !before.some((one) => one.comfyClass === kind)));
}

// What was filled in, and what the preset sets although no node on the canvas shows it.
function tell(name, changed, unseen) {
  const say = presetWords();
  const rest = unseen.flatMap(([, values]) => Object.entries(values).map(([key, value]) => `${key} = ${value}`));
  const detail = [say.filled(changed), ...(rest.length ? [say.also(rest.join(", "))] : [])].join(" ");
  app.extensionManager?.toast?.add?.({ severity: "info", summary: name, detail, life: 8000 });
}

// An options node that is connected later shows the preset's values too: otherwise its untouched widgets would overrule them.
async function fillConnected(node, slot) {
  if (node.inputs?.[slot]?.name !== "options") return;
  const name = widgetOf(node, "preset")?.value;
  if (!name || name === NONE) return;
  const values = (await presets())[name] ?? {};
  for (const options of optionsBefore(node)) put(options, values[options.comfyClass]);
}

app.registerExtension({
  name: "AnimeLoRA.Presets",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const widget = widgetOf(node, "preset");
    if (!widget) return;
    const chosen = widget.callback;
    widget.callback = function (...args) {
      const answer = chosen?.apply(this, args);
      fill(node);
      return answer;
    };
    const changed = node.onConnectionsChange;
    node.onConnectionsChange = function (side, slot, connected, ...rest) {
      const answer = changed?.call(this, side, slot, connected, ...rest);
      // not while a saved graph is being loaded: its values are its own
      if (connected && side === 1 && !app.configuringGraph) fillConnected(node, slot);
      return answer;
    };
  },
});
