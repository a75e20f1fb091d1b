// The live panel in Train LoRA: curves, numbers and test pictures of a run, while it goes on and afterwards.
// It listens to the events that the node sends and asks the pack's read-only routes for what came before: what a run has logged, which runs
// go on, and which are over.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Chart } from "./panel/chart.js";
import { element, loadStyle, toClipboard } from "./panel/dom.js";
import { isLinked, nodes, noteChange } from "./panel/graph.js";
import { Strip } from "./panel/strip.js";
import { duration, words } from "./panel/words.js";

const NODE = "AnimeLoRA_TrainLora";
const EVENT = "animelora.train";
const PROPERTY = "animelora_run"; // the run that a node showed last; saved with the workflow
const HEIGHT = 420; // pixels that the panel asks for at least

loadStyle(new URL("./panel/panel.css", import.meta.url));
loadStyle(new URL("./lib/uplot/uPlot.min.css", import.meta.url));

class Panel {
  constructor(node) {
    this.node = node;
    this.build();
    this.clear();
  }

  build() {
    const say = words();
    this.status = element("div", { class: "status" }, say.idle);
    this.bar = element("div", { class: "bar" }, element("div"));
    this.plot = element("div", { class: "plot" });
    this.facts = element("div", { class: "facts" });
    this.legend = element("div", { class: "legend" });
    this.strip = new Strip(words);
    this.stop = element("button", { type: "button", class: "stop", title: say.stopTip }, say.stop);
    this.stop.addEventListener("click", () => this.interrupt());
    this.path = element("button", { type: "button", title: say.pathTip }, say.path);
    this.path.addEventListener("click", () => toClipboard(this.folder, this.path, say.copied));
    this.settings = element("button", { type: "button", title: say.settingsTip }, say.settings);
    this.settings.addEventListener("click", () => toClipboard(this.settingsText(), this.settings, say.copied));
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

  // Show a run from its log, then whatever arrives live.
  async show(run, live) {
    if (run !== this.run) this.clear();
    this.run = run;
    this.live = live;
    this.remember();
    this.arrived = []; // what is sent while the log is being read
    const answer = await api.fetchApi(`/animelora/runs/${encodeURIComponent(run)}`);
    if (this.run !== run) return; // another run began in the meantime
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
    const say = words();
    switch (event.event) {
      case "plan":
        this.plan = event;
        break;
      case "phase":
        this.status.textContent = say.phase(event.phase) + (event.total > 1 ? ` ${event.done}/${event.total}` : "");
        break;
      case "step":
        this.step = event;
        if (draw) this.chart.add(event);
        this.status.textContent = say.step(event.step, event.steps, event.epoch, this.plan?.epochs);
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
    const say = words();
    this.live = false;
    if (event?.event === "done") this.status.textContent = say.done(event.steps, event.seconds, event.loss);
    else if (event?.event === "error") this.status.textContent = `${say.failed}: ${event.message}`;
    else if (event?.event === "stopped") this.status.textContent = event.step > 0 ? say.stopped(event.step) : say.nothingKept;
    this.refresh();
  }

  refresh() {
    const say = words();
    const step = this.step && this.run ? this.step : null;
    if (!this.run) {
      this.step = null;
      this.status.textContent = say.idle;
    }
    this.root.classList.toggle("empty", !this.run);
    this.stop.hidden = !this.live;
    this.path.hidden = !this.folder;
    this.bar.firstChild.style.width = step ? `${Math.min(100, (100 * step.step) / Math.max(1, step.steps))}%` : "0";
    const facts = step
      ? [
          [say.loss, (step.loss_average ?? step.loss)?.toFixed(4) ?? "–"],
          ...(this.validation ? [[say.validation, this.validation.loss?.toFixed(4) ?? "–"]] : []),
          [say.rate, step.lr?.toExponential(1) ?? "–"],
          [say.speed, step.images_per_second?.toFixed(2) ?? "–"],
          [say.memory, `${step.memory_gb?.toFixed(1) ?? "–"} GB`],
          ...(this.live ? [[say.left, duration(step.eta)]] : []),
        ]
      : [];
    this.facts.replaceChildren(...facts.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, value))));
    const drawn = this.chart.series().map(([name, ink]) => element("span", {}, element("i", { style: `background:${ink}` }), say[name]));
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

// [id, panel] of all Train LoRA nodes of the open graph, those inside subgraphs too.
function* panels() {
  for (const [id, node] of nodes()) if (node.animeloraPanel) yield [id, node.animeloraPanel];
}

// The panel that an event is for: the node with that id whose LoRA has that name (other graphs have such ids, too).
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
  else panel.show(event.run, true); // this page was opened in mid-training
});

// ComfyUI took the node's result from its cache and did not call it: the run is the one that the node had last.
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

// A computer that slept, or a server that was started again: what was sent meanwhile is in the log.
api.addEventListener("reconnected", () => {
  for (const panel of new Set([...panels()].map(([, each]) => each))) restore(panel);
});

// After a reload, or when a saved graph is opened: what runs now, else what the node showed last.
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
    widget.serialize = false; // neither in the workflow nor in the prompt: the panel has no value
    const removed = node.onRemoved;
    node.onRemoved = function (...args) {
      panel.chart.destroy();
      return removed?.apply(this, args);
    };
    setTimeout(() => restore(panel), 300); // a graph that is being loaded gives the node its values first
  },
});
