// One run in the history: what it is, and, when it is opened, what can be done with it.

import { api } from "../../../scripts/api.js";
import { element } from "../panel/dom.js";
import { openSettings } from "./open_settings.js";
import { ask } from "./question.js";
import { deleteRun, deleteStep, readPublished } from "./server.js";
import { diskSize, factsText, historyWords, stateText, title } from "./words.js";

export class Row {
  // `chosen(row)` is called when the run is ticked or unticked for comparing, `changed(message)` when something was deleted.
  constructor(run, { chosen, changed }) {
    const texts = historyWords();
    this.changed = changed;
    this.image = element("img", { alt: "", loading: "lazy", draggable: false, class: "thumb" });
    this.name = element("span", { class: "name" });
    this.state = element("span", { class: "state" });
    this.facts = element("span", { class: "facts" });
    this.open = element("button", { type: "button", class: "open", "aria-expanded": false }, this.image, element("span", { class: "text" }, this.name, this.state, this.facts));
    this.open.addEventListener("click", () => this.toggle());
    this.tick = element("input", { type: "checkbox", title: texts.compare });
    this.tick.addEventListener("change", () => chosen(this));
    this.settings = element("button", { type: "button", title: texts.settingsTip }, texts.settings);
    this.settings.addEventListener("click", async () => this.report(await openSettings(this.run)));
    this.remove = element("button", { type: "button", class: "danger" }, texts.remove);
    this.remove.addEventListener("click", () => this.delete());
    this.note = element("p", { class: "note", role: "status" });
    this.place = element("div");
    this.saved = element("ul", { class: "saved", "aria-label": texts.saved });
    this.details = element(
      "div", { class: "details", hidden: true },
      element("div", { class: "buttons" }, this.settings, this.remove), this.note, this.place, element("h4", {}, texts.saved), this.saved,
    );
    this.root = element("li", { class: "run" }, element("div", { class: "summary" }, this.open, this.tick), this.details);
    this.update(run);
  }

  update(run) {
    const texts = historyWords();
    this.run = run;
    const name = title(run), running = run.state === "running";
    this.name.textContent = this.name.title = name;
    this.root.classList.toggle("running", running);
    this.root.classList.toggle("failed", run.state === "failed");
    this.state.textContent = stateText(run);
    this.facts.textContent = this.facts.title = factsText(run);
    this.tick.setAttribute("aria-label", texts.compareRun(name));
    this.image.hidden = !run.view;
    const address = run.view ? api.apiURL(`/view?${new URLSearchParams({ ...run.view, preview: "webp;70", rand: run.step })}`) : "";
    if (address && this.image.getAttribute("src") !== address) this.image.src = address;
    this.remove.disabled = running;
    this.remove.title = running ? texts.busy : texts.removeTip;
    if (!this.details.hidden) this.drawSaved();
  }

  // A step of the active training, from its event.
  step(event) {
    this.update({ ...this.run, state: "running", step: event.step, steps: event.steps, loss: event.loss_average });
  }

  toggle() {
    this.details.hidden = !this.details.hidden;
    this.open.setAttribute("aria-expanded", String(!this.details.hidden));
    if (!this.details.hidden) this.drawSaved();
  }

  drawSaved() {
    const texts = historyWords(), { states, steps, epochs, state } = this.run;
    const key = JSON.stringify([states, state]);
    if (this.saved.dataset.shown === key) return;
    this.saved.dataset.shown = key;
    const perEpoch = epochs ? steps / epochs : 0;
    const rows = states.map((saved) => {
      const { step } = saved;
      const epoch = perEpoch && step % perEpoch === 0 ? `${texts.epoch(step / perEpoch)} · ${texts.step(step)}` : texts.step(step);
      const name = `${epoch} · ${texts.kept(saved)}`;
      const button = element("button", { type: "button", class: "danger", "aria-label": texts.removeStep(step), title: state === "running" ? texts.busy : texts.removeStep(step) }, texts.remove);
      button.disabled = state === "running";
      button.addEventListener("click", () => this.deleteStep(saved, button));
      return element("li", {}, element("span", {}, name), button);
    });
    this.saved.replaceChildren(...(rows.length ? rows : [element("li", {}, texts.notSaved)]));
  }

  async delete() {
    const texts = historyWords(), { run, name, states, images, bytes } = this.run;
    const { lora, error } = await readPublished(run);
    if (error) return this.report(texts.failed(error));
    const sure = texts.sure({ states: states.length, images, size: diskSize(bytes) });
    const text = `${sure} ${lora ? texts.keptLora(lora) : texts.noLora}`;
    const withLora = await ask(this.place, this.remove, { text, option: lora && texts.withLora(lora), yes: texts.remove, no: texts.cancel });
    if (withLora === null) return;
    const deleted = await deleteRun(run, withLora);
    if (deleted.error) return this.report(texts.failed(deleted.error));
    this.changed(texts.removed({ name, size: diskSize(deleted.bytes), lora: deleted.lora }));
  }

  async deleteStep({ step, lora, state }, button) {
    const texts = historyWords();
    const sure = await ask(this.place, button, { text: texts.sureStep(step, lora, state), yes: texts.remove, no: texts.cancel });
    if (sure === null) return;
    const deleted = await deleteStep(this.run.run, step);
    if (deleted.error) return this.report(texts.failed(deleted.error));
    this.report(texts.removedStep(step, diskSize(deleted.bytes)));
    this.remove.focus(); // the button of the step goes
    this.changed("");
  }

  report(text) {
    this.note.textContent = text;
  }
}
