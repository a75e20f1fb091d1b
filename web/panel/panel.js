// The panel of one Train LoRA node: state, chart, numbers and validation images of a run.

import { api } from "../../../scripts/api.js";
import { Chart } from "./chart.js";
import { BeforeRun } from "../before_run/before_run.js";
import { problemParts } from "../before_run/problems.js";
import { bell } from "../notify/notify.js";
import { Controls } from "./controls.js";
import { element, keepFromCanvas, toClipboard } from "./dom.js";
import { noteChange, settingsOf } from "./graph.js";
import { Ownership } from "./ownership.js";
import { epochActions } from "./epoch_lora.js";
import { Strip } from "./strip.js";
import { Viewer } from "./viewer.js";
import { duration, runTitle, words } from "./words.js";

const PROPERTY = "animelora_run"; // the run that a node showed last, saved with the workflow

export class Panel {
  constructor(node) {
    this.node = node;
    this.ownership = new Ownership(node);
    this.build();
    this.clear();
  }

  build() {
    const texts = words();
    this.status = element("div", { class: "status", role: "status" }, texts.idle);
    this.bar = element("div", { class: "bar", role: "progressbar", "aria-label": texts.progress }, element("div"));
    this.plot = element("div", { class: "plot", role: "img", "aria-label": texts.chart });
    this.facts = element("dl", { class: "facts" });
    this.legend = element("div", { class: "legend" });
    this.notes = element("details", { class: "notes" });
    this.strip = new Strip(words, (sample) => this.viewer.open(sample));
    this.viewer = new Viewer(this.strip, epochActions(this));
    this.stop = element("button", { type: "button", class: "stop", title: texts.stopTip }, texts.stop);
    this.stop.addEventListener("click", () => this.interrupt());
    this.path = element("button", { type: "button", title: texts.pathTip }, texts.path);
    this.path.addEventListener("click", () => toClipboard(this.folder, this.path, texts.copied));
    this.settings = element("button", { type: "button", title: texts.settingsTip }, texts.settings);
    this.settings.addEventListener("click", () => toClipboard(this.settingsText(), this.settings, texts.copied));
    this.title = element("span", { class: "run" });
    this.controls = new Controls(this);
    this.before = new BeforeRun(this);
    this.failure = element("div", { class: "failure", hidden: true });
    this.root = element(
      "div",
      { class: "animelora-panel", role: "group", "aria-label": texts.panel },
      element("div", { class: "head" }, this.status, this.stop),
      this.bar,
      this.failure,
      element("div", { class: "view" }, this.strip.pictures, element("div", { class: "side" }, this.legend, this.plot, this.facts, this.notes)),
      this.strip.film,
      this.strip.scrub,
      this.before.root,
      element("div", { class: "line" }, this.title, this.controls.next),
      this.controls.row,
      element("div", { class: "buttons foot" }, this.path, this.settings, bell()),
    );
    keepFromCanvas(this.root);
    this.chart = new Chart(this.plot);
  }

  clear() {
    this.run = null;
    this.folder = null;
    this.plan = null;
    this.step = null;
    this.validation = null;
    this.live = false; // whether it trains: can be stopped
    this.active = false; // whether its node is executing
    this.ended = null; // the name of the run's last event
    this.warnings = [];
    this.controls.clear();
    this.before.clear();
    this.showFailure(null);
    this.saved = []; // steps whose LoRA can be picked
    this.strip.clear();
    this.chart.clear();
    this.showStatus(words().idle);
    this.refresh();
  }

  showStatus(text) {
    this.status.textContent = this.status.title = text;
  }

  // The run that the node showed last.
  get remembered() {
    return this.node.properties?.[PROPERTY];
  }

  // What happens before the run is known, for example while a checkpoint is hashed.
  prepare(text) {
    if (this.active) return;
    this.clear();
    this.showStatus(text);
    this.root.classList.remove("empty");
  }

  // No run has begun: show why.
  abandon(message) {
    if (this.run || !this.failure.hidden) return;
    this.showStatus(message ? `${words().failed}: ${message.trim()}` : words().idle);
    this.root.classList.toggle("empty", !message);
  }

  // The node failed: what happened and what to do, in place of ComfyUI's dialog alone.
  fail(problem) {
    this.showStatus(words().failed);
    this.root.classList.toggle("empty", !this.run);
    this.showFailure(problem);
    this.before.noteFailed();
  }

  // The settings that failed were changed.
  forgetFailure() {
    if (this.failure.hidden) return;
    this.showFailure(null);
    if (!this.run) this.abandon("");
  }

  showFailure(problem) {
    this.failure.hidden = !problem;
    this.failure.replaceChildren(...(problem ? [problemParts(this.node, { ...problem, refused: true })] : []));
  }

  // Show a run from its log, then follow its live events. `reused`: it was finished before and has not been trained again.
  async show(run, live, reused = false) {
    if (run !== this.run) this.clear();
    this.run = run;
    this.live = this.active = live;
    if (live) this.showFailure(null);
    this.remember();
    this.arrived = []; // events that arrive while the log is read
    const answer = await api.fetchApi(`/animelora/runs/${encodeURIComponent(run)}`);
    if (this.run !== run) return; // another run has started in the meantime
    if (!answer.ok) {
      this.arrived = this.folder = null;
      this.showStatus(words().gone);
      return this.refresh();
    }
    const history = await answer.json();
    this.folder = history.folder;
    this.plan = history.plan;
    this.warnings = history.notes ?? [];
    this.saved = history.saved ?? [];
    this.chart.fill(history.curves);
    for (const sample of history.samples) this.strip.add(sample);
    this.validation = history.validation;
    if (history.step) this.take(history.step, false);
    else if (live) this.showStatus(words().starting);
    if (!live) this.end(history.ending, reused);
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
        if (this.live) this.showStatus(texts.phase(event.phase) + (event.total > 1 ? ` ${event.done}/${event.total}` : ""));
        break;
      case "step":
        this.step = event;
        if (draw) this.chart.add(event);
        this.showStatus(texts.step(event.step, event.steps, event.epoch, this.plan?.epochs));
        break;
      case "outlook":
      case "continued":
        this.showStatus(event.message);
        break;
      case "requested":
        this.controls.take(event);
        break;
      case "validation":
        this.validation = event;
        if (draw) this.chart.hold(event.step, event.loss);
        break;
      case "sample":
        this.strip.add(event);
        break;
      case "checkpoint":
        this.saved.push(event.step);
        break;
      case "warning":
        if (!this.warnings.includes(event.message)) this.warnings.push(event.message);
        break;
      case "done":
      case "error":
      case "stopped":
        this.end(event);
        break;
    }
    this.refresh();
  }

  end(event, reused = false) {
    const texts = words();
    this.live = false;
    this.ended = event?.event;
    this.before.refresh();
    this.controls.showMessage("");
    if (event?.event === "done") this.showStatus((reused ? texts.found : "") + texts.done(event.steps, event.seconds, event.loss));
    else if (event?.event === "error") this.fail(event);
    else if (event?.event === "stopped") this.showStatus(event.step > 0 ? texts.stopped(event.step) : texts.nothingKept);
    this.refresh();
  }

  refresh() {
    const texts = words();
    const step = this.step;
    this.root.classList.toggle("empty", !this.run);
    this.stop.hidden = !this.live;
    this.path.hidden = !this.folder;
    this.title.textContent = this.run ? runTitle(this.run, this.plan?.time) : "";
    this.title.title = this.run ?? "";
    const share = step ? Math.min(100, (100 * step.step) / Math.max(1, step.steps)) : 0;
    this.bar.firstChild.style.width = `${share}%`;
    this.bar.setAttribute("aria-valuenow", String(Math.round(share)));
    const facts = step
      ? [
          ...(this.live ? [[texts.left, duration(step.eta)]] : []),
          [texts.loss, (step.loss_average ?? step.loss)?.toFixed(4) ?? "–"],
          ...(this.validation ? [[texts.validation, this.validation.loss?.toFixed(4) ?? "–"]] : []),
          [texts.rate, step.lr?.toExponential(1) ?? "–"],
          [texts.speed, step.images_per_second?.toFixed(2) ?? "–"],
          [texts.memory, `${step.memory_gb?.toFixed(1) ?? "–"} GB`],
        ]
      : [];
    this.facts.replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    const drawn = this.chart.series().map(([name, ink]) => element("span", {}, element("i", { style: `background:${ink}` }), texts[name]));
    this.legend.replaceChildren(...drawn);
    this.drawNotes(texts);
    this.strip.draw();
    this.controls.refresh();
    this.viewer.draw();
  }

  drawNotes(texts) {
    this.notes.hidden = !this.warnings.length;
    if (this.notes.childElementCount === this.warnings.length + 1) return; // keeps it open
    const title = element("summary", {}, texts.notes(this.warnings.length));
    this.notes.replaceChildren(title, ...this.warnings.map((text) => element("p", {}, text)));
  }

  interrupt() {
    this.showStatus(words().stopping);
    api.interrupt(null);
  }

  settingsText() {
    return JSON.stringify(settingsOf(this.node), null, 2);
  }

  remember() {
    if (this.node.properties[PROPERTY] === this.run) return;
    this.node.properties[PROPERTY] = this.run;
    noteChange();
  }
}
