// The live panel in Train LoRA: it listens to the events that the node sends. Earlier events, and which runs are active or finished, come
// from the pack's read-only routes.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { previewInApp } from "./panel/app_preview.js";
import { notify } from "./notify/notify.js";
import { notifyWords } from "./notify/words.js";
import { addDisplay, loadStyle } from "./panel/dom.js";
import { nodes } from "./panel/graph.js";
import { Panel } from "./panel/panel.js";
import { placePanel } from "./panel/placement.js";
import { words } from "./panel/words.js";

const NODE = "AnimeLoRA_TrainLora";
const SIZE = [760, 500]; // of a new node, in which everything can be seen at once

loadStyle(new URL("./panel/panel.css", import.meta.url));
loadStyle(new URL("./lib/uplot/uPlot.min.css", import.meta.url));

// [id, panel] of all Train LoRA nodes in the open graph, including those in subgraphs.
function* panels() {
  for (const [id, node] of nodes()) if (node.animeloraPanel) yield [id, node.animeloraPanel];
}

const panelAt = (id) => [...panels()].find(([each]) => each === String(id))?.[1];

async function json(route) {
  const answer = await api.fetchApi(route);
  return answer.ok ? answer.json() : {};
}

const isOf = (panel, { run, settings }) => panel.run === run || panel.remembered === run || panel.ownership.includes(settings);

api.addEventListener("animelora.train", async ({ detail: event }) => {
  const panel = panelAt(event.node_id);
  if (!panel) return;
  if (panel.run === event.run && !["run", "end"].includes(event.event)) {
    if (event.event === "sample") previewInApp(event);
    return panel.take(event);
  }
  if (event.event === "run" || event.event === "end") {
    panel.foreign = null;
    if (isOf(panel, event)) panel.show(event.run, event.event === "run", event.reused);
    return;
  }
  if (panel.foreign === event.run) return;
  panel.foreign = event.run; // asked once: the page was opened during the training, or the run belongs to another graph
  const active = (await json("/animelora/running"))[event.node_id];
  if (active?.run !== event.run || !isOf(panel, active)) return;
  panel.foreign = null;
  panel.show(event.run, true);
});

api.addEventListener("animelora.text", ({ detail: { node_id: id, text } }) => panelAt(id)?.prepare(text));

// The node failed: sentence, advice and the widgets that would correct it come before ComfyUI's own event.
api.addEventListener("animelora.failed", ({ detail }) => {
  const panel = panelAt(detail.node_id);
  if (panel?.ownership.includes(detail.settings)) panel.fail(detail);
});

// A node before this one may have prepared another dataset.
api.addEventListener("executed", () => {
  for (const [, panel] of panels()) panel.before.refresh();
});

api.addEventListener("animelora.train", ({ detail: event }) => {
  if (event.event === "done" && panelAt(event.node_id)?.run === event.run) notify(notifyWords().ended, event.name);
});

// The node failed, or was cancelled before its run began.
api.addEventListener("execution_error", ({ detail }) => {
  const panel = panelAt(detail?.node_id);
  if (!panel) return;
  panel.abandon(detail.exception_message);
  notify(notifyWords().failed, detail.exception_message.split("\n")[0]);
});
api.addEventListener("execution_interrupted", ({ detail }) => panelAt(detail?.node_id)?.abandon(""));

// ComfyUI reused the cached result and did not call the node, so its last run is shown.
api.addEventListener("execution_cached", async ({ detail }) => {
  const cached = new Set((detail?.nodes ?? []).map(String));
  if (![...panels()].some(([id, panel]) => !panel.run && cached.has(id))) return;
  for (const [id, finished] of Object.entries(await json("/animelora/finished"))) {
    const panel = cached.has(id) ? panelAt(id) : null;
    if (panel && !panel.run && isOf(panel, finished)) panel.show(finished.run, false);
  }
});

// After sleep or a server restart, read the missed events from the log.
api.addEventListener("reconnected", () => {
  for (const panel of new Set([...panels()].map(([, each]) => each))) restore(panel);
});

// After a reload, or when a saved graph is opened: show the active run, else the run the node showed last.
async function restore(panel) {
  for (const [id, active] of Object.entries(await json("/animelora/running"))) {
    if (panelAt(id) === panel && isOf(panel, active)) return panel.show(active.run, true);
  }
  if (panel.remembered) await panel.show(panel.remembered, false);
}

app.registerExtension({
  name: "AnimeLoRA.TrainingPanel",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const panel = new Panel(node);
    node.animeloraPanel = panel;
    const widget = addDisplay(node, "animelora_panel", words().panel, panel.root);
    widget.afterQueued = () => panel.ownership.noteQueued();
    placePanel(node, widget, panel.root);
    node.setSize([Math.max(node.size[0], SIZE[0]), SIZE[1]]);
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panel.chart.destroy();
      panel.controls.destroy();
      panel.before.destroy();
      return removed?.apply(this, args);
    };
    setTimeout(() => restore(panel), 300); // when a graph is loaded, the node gets its values first
  },
});
