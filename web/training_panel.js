// The live panel in Train LoRA: curves, numbers and validation images of a run, during the training and afterwards.
// It listens to the events that the node sends. Earlier events, and which runs are active or finished, come from the pack's read-only routes.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Chart } from "./panel/chart.js";
import { element, loadStyle, toClipboard } from "./panel/dom.js";
import { isLinked, nodes, noteChange } from "./panel/graph.js";
import { Strip } from "./panel/strip.js";
import { duration, words } from "./panel/words.js";

const NODE = "AnimeLoRA_TrainLora";
const EVENT = "animelora.train";
const PROPERTY = "animelora_run"; // the run that a node showed last, saved with the workflow
const HEIGHT = 420; // minimum height of the panel in pixels

loadStyle(new URL("./panel/panel.css", import.meta.url));
loadStyle(new URL("./lib/uplot/uPlot.min.css", import.meta.url));

class Panel {
  constructor(node) {
    this.node = node;
    this.build();
    this.clear();
  }

  build() {
    const texts = words();
    this.status = element("div", { class: "status" }, texts.idle);
    this.bar = element("div", { class: "bar" }, element("div"));
    this.plot = element("div", { class: "plot" });
    this.facts = element("div", { class: "facts" });
    this.legend = element("div", { class: "legend" });
    this.strip = new Strip(words);
    this.stop = element("button", { type: "button", class: "stop", title: texts.stopTip }, texts.stop);
    this.stop.addEventListener("click", () => this.interrupt());
    this.path = element("button", { type: "button", title: texts.pathTip }, texts.path);
    this.path.addEventListener("click", () => toClipboard(this.folder, this.path, texts.copied));
    this.settings = element("button", { type: "button", title: texts.settingsTip }, texts.settings);
    this.settings.addEventListener("click", () => toClipboard(this.settingsText(), this.settings, texts.copied));
    this.root = element(
      "div",
      { class: "animelora-panel" },
      element("div", { class: "head" }, this.status, this.stop),
      this.bar,
      this.legend,
      this.plot,
      this.facts,
      ...this.strip.parts,
      element("div", { class: "buttons" }, this.path, this.settings),
    );
    this.chart = new Chart(this.plot);
  }

  clear() {
    this.run = null;
    this.folder = null;
    this.plan = null;
    this.validation = null;
    this.live = false;
    this.strip.clear();
    this.chart.clear();
    this.refresh();
  }

  // Show a run from its log, then follow its live events.
  async show(run, live) {
    if (run !== this.run) this.clear();
    this.run = run;
    this.live = live;
    this.remember();
    this.arrived = []; // events that arrive while the log is read
    const answer = await api.fetchApi(`/animelora/runs/${encodeURIComponent(run)}`);
    if (this.run !== run) return; // another run has started in the meantime
    if (!answer.ok) {
      this.arrived = this.folder = null;
      this.status.textContent = words().gone;
      return this.refresh();
    }
    const history = await answer.json();
    this.folder = history.folder;
    this.plan = history.plan;
    this.chart.fill(history.curves);
    for (const sample of history.samples) this.strip.add(sample);
    this.validation = history.validation;
    if (history.step) this.take(history.step, false);
    else if (live) this.status.textContent = words().starting;
    if (!live) this.end(history.ending);
    const missed = this.arrived ?? [];
    this.arrived = null;
    for (const event of missed) this.take(event);
    this.refresh();
  }

  take(event, draw = true) {
    if (draw && this.arrived) return this.arrived.push(event);
    const texts = words();
    switch (event.event) {
      case "plan":
        this.plan = event;
        break;
      case "phase":
        this.status.textContent = texts.phase(event.phase) + (event.total > 1 ? ` ${event.done}/${event.total}` : "");
        break;
      case "step":
        this.step = event;
        if (draw) this.chart.add(event);
        this.status.textContent = texts.step(event.step, event.steps, event.epoch, this.plan?.epochs);
        break;
      case "validation":
        this.validation = event;
        if (draw) this.chart.hold(event.step, event.loss);
        break;
      case "sample":
        this.strip.add(event);
        break;
      case "done":
      case "error":
      case "stopped":
        this.end(event);
        break;
    }
    this.refresh();
  }

  end(event) {
    const texts = words();
    this.live = false;
    if (event?.event === "done") this.status.textContent = texts.done(event.steps, event.seconds, event.loss);
    else if (event?.event === "error") this.status.textContent = `${texts.failed}: ${event.message}`;
    else if (event?.event === "stopped") this.status.textContent = event.step > 0 ? texts.stopped(event.step) : texts.nothingKept;
    this.refresh();
  }

  refresh() {
    const texts = words();
    const step = this.step && this.run ? this.step : null;
    if (!this.run) {
      this.step = null;
      this.status.textContent = texts.idle;
    }
    this.root.classList.toggle("empty", !this.run);
    this.stop.hidden = !this.live;
    this.path.hidden = !this.folder;
    this.bar.firstChild.style.width = step ? `${Math.min(100, (100 * step.step) / Math.max(1, step.steps))}%` : "0";
    const facts = step
      ? [
          [texts.loss, (step.loss_average ?? step.loss)?.toFixed(4) ?? "–"],
          ...(this.validation ? [[texts.validation, this.validation.loss?.toFixed(4) ?? "–"]] : []),
          [texts.rate, step.lr?.toExponential(1) ?? "–"],
          [texts.speed, step.images_per_second?.toFixed(2) ?? "–"],
          [texts.memory, `${step.memory_gb?.toFixed(1) ?? "–"} GB`],
          ...(this.live ? [[texts.left, duration(step.eta)]] : []),
        ]
      : [];
    this.facts.replaceChildren(...facts.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, value))));
    const drawn = this.chart.series().map(([name, ink]) => element("span", {}, element("i", { style: `background:${ink}` }), texts[name]));
    this.legend.replaceChildren(...drawn);
    this.strip.draw();
  }

  interrupt() {
    this.status.textContent = words().stopping;
    api.interrupt(null);
  }

  settingsText() {
    const kept = this.node.widgets.filter((widget) => widget.options?.serialize !== false && widget.serialize !== false);
    return JSON.stringify(Object.fromEntries(kept.map((widget) => [widget.name, widget.value])), null, 2);
  }

  remember() {
    if (this.node.properties[PROPERTY] === this.run) return;
    this.node.properties[PROPERTY] = this.run;
    noteChange();
  }
}

// [id, panel] of all Train LoRA nodes in the open graph, including those in subgraphs.
function* panels() {
  for (const [id, node] of nodes()) if (node.animeloraPanel) yield [id, node.animeloraPanel];
}

// The panel an event belongs to: the node with that id and LoRA name (another open graph may use the same id).
function panelOf(event) {
  for (const [id, panel] of panels()) {
    if (id !== String(event.node_id)) continue;
    const name = panel.node.widgets.find((widget) => widget.name === "name")?.value;
    if (isLinked(panel.node, "name") || panel.run === event.run || String(name).trim() === event.name) return panel;
  }
  return null;
}

api.addEventListener(EVENT, ({ detail: event }) => {
  const panel = panelOf(event);
  if (!panel) return;
  if (event.event === "run") panel.show(event.run, true);
  else if (event.event === "end") panel.show(event.run, false);
  else if (panel.run === event.run) panel.take(event);
  else panel.show(event.run, true); // the page was opened during the training
});

// ComfyUI reused the cached result and did not call the node, so its last run is shown.
api.addEventListener("execution_cached", async ({ detail }) => {
  const cached = new Set((detail?.nodes ?? []).map(String));
  if (![...panels()].some(([id, panel]) => !panel.run && cached.has(id))) return;
  const answer = await api.fetchApi("/animelora/finished");
  const finished = answer.ok ? await answer.json() : {};
  for (const [id, { run, name }] of Object.entries(finished)) {
    const panel = cached.has(id) ? panelOf({ node_id: id, run, name }) : null;
    if (panel && !panel.run) panel.show(run, false);
  }
});

// After sleep or a server restart, read the missed events from the log.
api.addEventListener("reconnected", () => {
  for (const panel of new Set([...panels()].map(([, each]) => each))) restore(panel);
});

// After a reload, or when a saved graph is opened: show the active run, else the run the node showed last.
async function restore(panel) {
  const answer = await api.fetchApi("/animelora/running");
  const running = answer.ok ? await answer.json() : {};
  for (const [id, { run, name }] of Object.entries(running)) {
    if (panelOf({ node_id: id, run, name }) === panel) return panel.show(run, true);
  }
  const last = panel.node.properties?.[PROPERTY];
  if (last) await panel.show(last, false);
}

app.registerExtension({
  name: "AnimeLoRA.TrainingPanel",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const panel = new Panel(node);
    node.animeloraPanel = panel;
    const widget = node.addDOMWidget("animelora_panel", "animelora_panel", panel.root, {
      serialize: false,
      hideOnZoom: false,
      getValue: () => "",
      setValue: () => {},
      getMinHeight: () => HEIGHT,
    });
    widget.serialize = false; // not saved in the workflow or the prompt, since the panel has no value
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panel.chart.destroy();
      return removed?.apply(this, args);
    };
    setTimeout(() => restore(panel), 300); // when a graph is loaded, the node gets its values first
  },
});
