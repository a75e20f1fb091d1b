// A validation image at full size beside the one before training, or beside that of any other epoch.

import { element } from "./dom.js";
import { source } from "./strip.js";
import { viewerWords } from "./viewer_words.js";

export class Viewer {
  // `strip` holds the images. `actions` have a name, a title, missing(sample) -> why it cannot be done or "", act(sample, message shown) -> a message.
  constructor(strip, actions) {
    this.strip = strip;
    this.actions = actions;
  }

  open(sample) {
    const texts = viewerWords();
    this.prompt = sample.index;
    this.shown = { left: this.strip.epochs()[0], right: sample.epoch };
    if (this.shown.left === this.shown.right && this.strip.epochs().length > 1) this.shown.left = this.strip.epochs().at(-1);
    this.sides = Object.fromEntries(["left", "right"].map((side) => [side, this.side(side)]));
    this.text = element("p", { class: "prompt" });
    this.note = element("span", { class: "note", role: "status" });
    this.buttons = this.actions.map((action) => this.action(action));
    const close = element("button", { type: "button", class: "close" }, texts.close);
    close.addEventListener("click", () => this.dialog.close());
    this.dialog = element(
      "dialog",
      { class: "animelora-viewer", "aria-label": texts.title },
      element("div", { class: "sides" }, this.sides.left.figure, this.sides.right.figure),
      this.text,
      element("div", { class: "row" }, ...this.buttons.map(({ button }) => button), this.note, close),
    );
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    this.dialog.addEventListener("close", () => {
      this.dialog.remove();
      this.dialog = null;
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close()); // beside the content
    for (const name of ["pointerdown", "wheel"]) this.dialog.addEventListener(name, (event) => event.stopPropagation());
    document.body.append(this.dialog);
    this.draw();
    this.dialog.showModal();
    this.sides.right.menu.focus();
  }

  side(name) {
    const menu = element("select", { "aria-label": viewerWords()[name] });
    menu.addEventListener("change", () => this.choose(name, Number(menu.value)));
    const image = element("img", { alt: "", draggable: false });
    return { menu, image, figure: element("figure", {}, image, element("figcaption", {}, menu)) };
  }

  action({ name, title, missing, act }) {
    const button = element("button", { type: "button", title }, name);
    button.addEventListener("click", async () => {
      const shown = this.note.textContent, { note } = this;
      note.textContent = "";
      note.textContent = await act(this.sample("right"), shown);
    });
    return { button, title, missing };
  }

  sample(side) {
    return this.strip.samples.get(this.shown[side])?.[this.prompt];
  }

  choose(side, epoch) {
    this.shown[side] = epoch;
    this.note.textContent = "";
    this.draw();
  }

  // Arrow keys: other epochs, and up and down other prompts.
  key(event) {
    event.stopPropagation(); // keys are shortcuts of the canvas
    const epochs = this.strip.epochs();
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], next = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (step) this.choose("right", epochs[Math.max(0, Math.min(epochs.length - 1, epochs.indexOf(this.shown.right) + step))]);
    else if (next) {
      const last = (this.strip.samples.get(this.shown.right)?.length ?? 1) - 1;
      this.prompt = Math.max(0, Math.min(last, this.prompt + next));
      this.draw();
    } else return;
    event.preventDefault();
  }

  // Also called when an image has been added.
  draw() {
    if (!this.dialog) return;
    for (const [name, { menu, image }] of Object.entries(this.sides)) {
      const epochs = this.strip.epochs();
      menu.replaceChildren(...epochs.map((epoch) => element("option", { value: epoch }, this.strip.name(epoch))));
      menu.value = String(this.shown[name]);
      const sample = this.sample(name);
      if (sample) image.src = source(sample);
      image.alt = sample ? `${this.strip.name(sample.epoch)}: ${sample.prompt}` : "";
    }
    const sample = this.sample("right");
    this.text.textContent = sample?.prompt ?? "";
    for (const { button, title, missing } of this.buttons) {
      const reason = sample ? missing(sample) : "";
      button.disabled = !!reason;
      button.title = reason || title;
    }
  }
}
