// The validation images of a run: one epoch's at full size, and a film strip of all epochs to scrub through.

import { api } from "../../../scripts/api.js";
import { element } from "./dom.js";

export class Strip {
  // `words` returns the panel's texts in the frontend's language.
  constructor(words) {
    this.words = words;
    this.samples = new Map(); // epoch -> images by prompt
    this.epoch = null; // chosen by hand; null follows the newest
    this.prompt = 0; // whose images the strip shows
    this.pictures = element("div", { class: "pictures" });
    this.film = element("div", { class: "film" });
    this.slider = element("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": words().epoch });
    this.slider.addEventListener("input", () => this.choose(this.epochs()[Number(this.slider.value)]));
    // a drag on the slider is not meant for the canvas below
    for (const name of ["pointerdown", "mousedown", "wheel"]) this.slider.addEventListener(name, (event) => event.stopPropagation());
    this.caption = element("span", { class: "caption" });
    this.scrub = element("div", { class: "scrub" }, this.slider, this.caption);
    this.parts = [this.pictures, this.film, this.scrub];
  }

  clear() {
    this.samples.clear();
    this.epoch = null;
    this.prompt = 0;
  }

  add(sample) {
    if (!sample.view) return;
    const pictures = this.samples.get(sample.epoch) ?? [];
    pictures[sample.index] = sample;
    this.samples.set(sample.epoch, pictures);
  }

  epochs() {
    return [...this.samples.keys()].sort((a, b) => a - b);
  }

  choose(epoch) {
    this.epoch = epoch === this.epochs().at(-1) ? null : epoch;
    this.draw();
  }

  draw() {
    const epochs = this.epochs();
    const epoch = this.epoch ?? epochs.at(-1);
    this.scrub.hidden = this.film.hidden = epochs.length < 2;
    this.pictures.hidden = !epochs.length;
    this.slider.max = Math.max(0, epochs.length - 1);
    this.slider.value = Math.max(0, epochs.indexOf(epoch));
    this.caption.textContent = this.name(epoch);
    replace(this.pictures, (this.samples.get(epoch) ?? []).filter(Boolean).map((sample) => this.large(sample)));
    const frames = epochs.filter((each) => this.samples.get(each)[this.prompt]);
    replace(this.film, frames.map((each) => this.frame(each)));
    [...this.film.children].forEach((frame, index) => frame.classList.toggle("chosen", frames[index] === epoch));
    const chosen = this.film.querySelector(".chosen");
    if (chosen) this.film.scrollLeft = chosen.offsetLeft - (this.film.clientWidth - chosen.clientWidth) / 2;
  }

  name(epoch) {
    return epoch === 0 ? this.words().before : `${this.words().epoch} ${epoch ?? ""}`;
  }

  large(sample) {
    return { key: source(sample), make: () => this.picture(sample, sample.prompt, () => { this.prompt = sample.index; this.draw(); }) };
  }

  frame(epoch) {
    const sample = this.samples.get(epoch)[this.prompt];
    return { key: source(sample), make: () => this.picture(sample, this.name(epoch), () => this.choose(epoch)) };
  }

  picture(sample, title, clicked) {
    const made = element("img", { src: source(sample), alt: title, title, draggable: false });
    made.addEventListener("click", clicked);
    return made;
  }
}

function source(sample) {
  return api.apiURL(`/view?${new URLSearchParams({ ...sample.view, rand: `${sample.step}-${sample.time ?? ""}` })}`);
}

// Show images in a place. Images that are already there are not replaced, which would flicker.
function replace(place, wanted) {
  const key = JSON.stringify(wanted.map((each) => each.key));
  if (place.dataset.shown === key) return;
  place.dataset.shown = key;
  place.replaceChildren(...wanted.map((each) => each.make()));
}
