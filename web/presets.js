// Choosing a preset in Train LoRA fills its widgets and those of the options nodes chained before it, where they can be seen and changed.
// The values come from the pack's read-only route.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { linksFrom, noteChange } from "./panel/graph.js";
import { presetWords } from "./panel/preset_words.js";
import { labelOf, optionsBefore, optionsSlot, widgetOf } from "./widgets/options_chain.js";

const NODE = "AnimeLoRA_TrainLora";
const NONE = "none";

let known; // preset -> node -> widget -> value, fetched once
async function presets() {
  known ??= await api.fetchApi("/animelora/presets").then((answer) => answer.json());
  return known;
}

// node -> widget -> the value that was not chosen by the user: the node's default, or the one a preset filled in.
const given = new WeakMap();

// The Train LoRA nodes that receive the options of `node`: itself, or those at the ends of its chains.
function* trainsBehind(node, seen = new Set()) {
  if (seen.has(node)) return;
  seen.add(node);
  if (node.comfyClass === NODE) yield node;
  for (const [next, slot] of linksFrom(node)) {
    if (slot === optionsSlot(next)) yield* trainsBehind(next, seen);
  }
}

const linked = (node, name) => node.inputs?.some((input) => input.name === name && input.link != null && input.widget);
const untouched = (node, widget) => given.get(node)?.[widget.name] === widget.value;

// Set those widget values of the node that `may` allows. Returns how many changed.
function put(node, values, may = () => true) {
  let changed = 0;
  for (const [name, value] of Object.entries(values ?? {})) {
    const widget = widgetOf(node, name);
    if (!widget || linked(node, name) || widget.value === value || !may(node, widget)) continue;
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    given.set(node, { ...given.get(node), [name]: value });
    changed += 1;
  }
  return changed;
}

// Name and values of the preset chosen in a Train LoRA node; null if there is none.
async function chosenPreset(node) {
  const name = widgetOf(node, "preset")?.value;
  if (!name || name === NONE) return null;
  const values = (await presets())[name];
  return values && widgetOf(node, "preset").value === name ? { name, values } : null; // null if another one has been chosen in the meantime
}

// A preset was chosen: apply all its values.
async function fill(node) {
  const preset = await chosenPreset(node);
  if (!preset) return;
  let changed = put(node, preset.values[NODE]);
  for (const options of optionsBefore(node)) changed += put(options, preset.values[options.comfyClass]);
  filled(node, preset, changed);
}

// An options node that is connected later gets the preset's values too, else its untouched widgets would override them. Values that the user
// chose stay, for example in a chain that is pasted or reconnected.
async function fillConnected(node) {
  const preset = await chosenPreset(node);
  if (!preset) return;
  let changed = 0;
  for (const options of optionsBefore(node)) changed += put(options, preset.values[options.comfyClass], untouched);
  if (changed) filled(node, preset, changed);
}

function filled(node, { name, values }, changed) {
  const before = [...optionsBefore(node)];
  node.setDirtyCanvas(true, true);
  noteChange();
  notify(name, changed, Object.entries(values).filter(([kind]) => kind !== NODE && !before.some((one) => one.comfyClass === kind)));
}

// Notify how many values were filled in, and which ones no connected node shows.
function notify(name, changed, unseen) {
  const texts = presetWords();
  const rest = unseen.flatMap(([kind, values]) => Object.entries(values).map(([key, value]) => `${labelOf(kind, key)} = ${value}`));
  const detail = [texts.filled(changed), ...(rest.length ? [texts.also(rest.join(", "))] : [])].join(" ");
  app.extensionManager?.toast?.add?.({ severity: "info", summary: name, detail, life: 8000 });
}

function watchMenu(node) {
  const widget = widgetOf(node, "preset");
  if (!widget) return;
  const chosen = widget.callback;
  widget.callback = function (...args) {
    const answer = chosen?.apply(this, args);
    fill(node);
    return answer;
  };
}

function watchOptions(node) {
  given.set(node, Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, widget.value])));
  const changed = node.onConnectionsChange;
  node.onConnectionsChange = function (side, slot, connected, link, ...rest) {
    const answer = changed?.call(this, side, slot, connected, link, ...rest);
    // not while a saved graph is loaded, which has its own values
    if (connected && link && side === 1 && slot === optionsSlot(node) && !app.configuringGraph) {
      for (const train of trainsBehind(node)) fillConnected(train);
    }
    return answer;
  };
}

app.registerExtension({
  name: "AnimeLoRA.Presets",
  nodeCreated(node) {
    if (optionsSlot(node) < 0) return;
    watchOptions(node);
    if (node.comfyClass === NODE) watchMenu(node);
  },
});
