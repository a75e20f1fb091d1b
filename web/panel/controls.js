// What can be asked of a training while it runs, and after it: save, sample, pause, stop after the epoch, other prompts, more epochs.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { controlWords } from "./control_words.js";
import { element } from "./dom.js";
import { loadBeside } from "./epoch_lora.js";
import { viewerWords } from "./viewer_words.js";

const LOOK = 1500; // milliseconds between two looks at the prompts
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
    this.timer = setInterval(() => this.refresh(), LOOK); // the prompts may have been edited
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
    this.prompts = null;
    this.showMessage("");
  }

  showMessage(text) {
    this.next.textContent = this.next.title = text;
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

  destroy() {
    clearInterval(this.timer);
  }
}
