// What can be asked of a training while it runs, and before it: save, sample, pause, stop after the epoch, other prompts, what Run will do.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { controlWords } from "./control_words.js";
import { element } from "./dom.js";
import { loadBeside } from "./epoch_lora.js";
import { nodes, settingsOf } from "./graph.js";
import { viewerWords } from "./viewer_words.js";

const LOOK = 1500; // milliseconds between two looks at the widgets
const MORE = 5; // epochs that the button on a finished run adds

export class Controls {
  constructor(panel) {
    this.panel = panel;
    this.paused = this.stopping = false;
    this.prompts = null; // the validation prompts of the run, as text
    this.next = element("div", { class: "next", role: "status" });
    this.row = element("div", { class: "buttons controls" });
    const texts = controlWords();
    this.save = this.button(texts.saveNow, texts.saveNowTip, () => this.ask("save_now"));
    this.sample = this.button(texts.sampleNow, texts.sampleNowTip, () => this.ask("sample_now"));
    this.pause = this.button(texts.pause, texts.pauseTip, () => this.ask(this.paused ? "resume" : "pause"));
    this.epoch = this.button(texts.stopEpoch, texts.stopEpochTip, () => this.ask("stop_after_epoch"));
    this.edit = this.button(texts.usePrompts, texts.usePromptsTip, () => this.ask("edit_prompts", this.lines()));
    this.use = this.button(viewerWords().use, texts.useTip, () => loadBeside(this.panel, this.panel.saved.at(-1)));
    this.more = this.button(texts.more(MORE), texts.moreTip, () => this.extend());
    this.parts = [this.next, this.row];
    this.timer = setInterval(() => this.look(), LOOK);
  }

  button(label, title, clicked) {
    const made = element("button", { type: "button", title, hidden: true }, label);
    made.addEventListener("click", clicked);
    this.row.append(made);
    return made;
  }

  // Ask the active training for something; it does it after its current step.
  async ask(action, prompts) {
    const { run } = this.panel;
    const answer = await api.fetchApi(`/animelora/runs/${encodeURIComponent(run)}/control`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(prompts ? { action, prompts } : { action }),
    });
    if (run !== this.panel.run) return;
    this.showMessage(answer.ok ? controlWords().asked : controlWords().refused);
  }

  // An event of the run: the training took up a request.
  take(event) {
    if (event.action === "pause" || event.action === "resume") this.paused = event.action === "pause";
    if (event.action === "stop_after_epoch") this.stopping = true;
    if (event.action === "edit_prompts") this.prompts = event.prompts.join("\n");
    this.showMessage(controlWords().done[event.action] ?? "");
  }

  // Another run is shown.
  clear() {
    this.paused = this.stopping = false;
    this.prompts = this.asked = null;
    this.showMessage("");
  }

  showMessage(text, title = "") {
    this.next.textContent = text;
    this.next.title = title;
    this.next.hidden = !text;
  }

  refresh() {
    const { live, step, run } = this.panel, texts = controlWords();
    if (live && this.prompts === null) this.prompts = this.lines().join("\n");
    for (const button of [this.save, this.sample, this.pause, this.epoch]) button.hidden = !(live && step);
    this.pause.textContent = this.paused ? texts.resume : texts.pause;
    this.epoch.disabled = this.stopping;
    this.edit.hidden = !(live && step) || this.lines().length === 0 || this.lines().join("\n") === this.prompts;
    this.use.hidden = live || !this.panel.ended || !this.panel.saved.length;
    this.more.hidden = live || !run || this.panel.ended !== "done";
    this.row.hidden = [...this.row.children].every((button) => button.hidden);
  }

  widget(name) {
    return this.panel.node.widgets?.find((each) => each.name === name);
  }

  lines() {
    return String(this.widget("validation_prompts")?.value ?? "").split("\n").map((line) => line.trim()).filter(Boolean);
  }

  // Train a finished run on: the server continues from its last state.
  extend() {
    const epochs = this.widget("epochs"), limit = this.widget("max_steps");
    epochs.value = (this.panel.plan?.epochs ?? epochs.value) + MORE;
    epochs.callback?.(epochs.value);
    if (limit?.value) {
      limit.value = 0;
      limit.callback?.(0);
    }
    app.queuePrompt(0, 1);
  }

  // When the widgets have changed and rest, ask the server what Run will do with them.
  async look() {
    if (document.hidden || !this.panel.run || !this.panel.node.graph) return; // without a graph: the node was moved into a subgraph, as a copy
    this.refresh();
    if (this.panel.live) return;
    const id = idOf(this.panel.node);
    const body = JSON.stringify({ graph: graphOf(this.panel.node, id), node: id, run: this.panel.run });
    const rests = body === this.seen;
    this.seen = body;
    if (!rests || body === this.asked) return;
    this.asked = body;
    const answer = await api.fetchApi("/animelora/next_run", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const next = answer.ok ? await answer.json() : { kind: "unknown" };
    if (this.asked !== body || this.panel.live) return;
    this.showMessage(controlWords().next[next.kind]?.(next.step, next.steps) ?? "", next.message ?? "");
  }

  destroy() {
    clearInterval(this.timer);
  }
}

// The server's id of a node.
function idOf(node) {
  for (const [id, each] of nodes()) if (each === node) return id;
  return String(node.id);
}

// The node and its options nodes in ComfyUI's API format. The queue's own function is not used: it makes widgets of other nodes act.
function graphOf(node, id, graph = {}) {
  const inputs = settingsOf(node);
  for (const input of node.inputs ?? []) {
    if (input.link == null) continue;
    const link = node.graph.getLink?.(input.link) ?? node.graph.links?.[input.link];
    inputs[input.name] = [String(link?.origin_id), link?.origin_slot ?? 0];
    const origin = input.name === "options" ? node.graph.getNodeById(link?.origin_id) : null;
    if (origin && !graph[origin.id]) graphOf(origin, String(origin.id), graph);
  }
  graph[id] = { class_type: node.comfyClass, inputs };
  return graph;
}
