// The validation images of a run: one epoch's, with one prompt's at full size, and a film strip of all epochs to scrub through.

import { api } from "../../../scripts/api.js";
import { element } from "./dom.js";

export class Strip {
  // `words` returns the panel's texts in the frontend's language, `enlarge` shows the image of an epoch in front of the page.
  constructor(words, enlarge = () => {}) {
    this.words = words;
    this.enlarge = enlarge;
    this.samples = new Map(); // epoch -> images by prompt
    this.epoch = null; // chosen by hand; null follows the newest
    this.prompt = 0; // whose images are shown
    this.large = element("div", { class: "large" });
    this.prompts = element("div", { class: "prompts", role: "group", "aria-label": words().prompts });
    this.pictures = element("div", { class: "pictures" }, this.large, this.prompts);
    this.film = element("div", { class: "film", role: "group", "aria-label": words().epochs });
    new ResizeObserver(() => this.reveal()).observe(this.film); // it scrolls back to its start when it is moved in the page
    this.slider = element("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": words().epoch });
    this.slider.addEventListener("input", () => this.choose(this.epochs()[Number(this.slider.value)]));
    this.caption = element("span", { class: "caption" });
    this.scrub = element("div", { class: "scrub" }, this.slider, this.caption);
  }

  clear() {
    this.samples.clear();
    this.epoch = null;
    this.prompt = 0;
  }

  add(sample) {
    if (!sample.view) return;
    const images = this.samples.get(sample.epoch) ?? [];
    images[sample.index] = sample;
    this.samples.set(sample.epoch, images);
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
    const images = (this.samples.get(epoch) ?? []).filter(Boolean);
    const chosen = images.find((sample) => sample.index === this.prompt) ?? images[0];
    this.scrub.hidden = this.film.hidden = epochs.length < 2;
    this.pictures.hidden = !epochs.length;
    this.prompts.hidden = images.length < 2;
    this.slider.max = Math.max(0, epochs.length - 1);
    this.slider.value = Math.max(0, epochs.indexOf(epoch));
    this.caption.textContent = this.name(epoch);
    this.slider.setAttribute("aria-valuetext", this.name(epoch));
    const enlarged = (sample) => picture(sample, `${this.words().enlarge}: ${sample.prompt}`, () => this.enlarge(sample));
    replace(this.large, chosen ? [{ key: source(chosen), make: () => enlarged(chosen) }] : []);
    replace(this.prompts, images.map((sample) => ({ key: source(sample), make: () => picture(sample, sample.prompt, () => this.follow(sample.index)) })));
    mark(this.prompts, images.indexOf(chosen));
    const frames = epochs.filter((each) => this.samples.get(each)[this.prompt]);
    replace(this.film, frames.map((each) => this.frame(each)));
    mark(this.film, frames.indexOf(epoch));
    this.reveal();
  }

  // Scroll to the chosen epoch.
  reveal() {
    const frame = this.film.querySelector(".chosen");
    if (frame) this.film.scrollLeft = frame.offsetLeft - (this.film.clientWidth - frame.clientWidth) / 2;
  }

  // Show the images of another prompt.
  follow(prompt) {
    this.prompt = prompt;
    this.draw();
  }

  name(epoch) {
    return epoch === 0 ? this.words().before : `${this.words().epoch} ${epoch ?? ""}`;
  }

  frame(epoch) {
    const sample = this.samples.get(epoch)[this.prompt];
    return { key: source(sample), make: () => picture(sample, this.name(epoch), () => this.choose(epoch)) };
  }
}

// The address of a validation image.
export function source(sample) {
  return api.apiURL(`/view?${new URLSearchParams({ ...sample.view, rand: `${sample.step}-${sample.time ?? ""}` })}`);
}

function picture(sample, title, clicked) {
  const button = element("button", { type: "button", title, "aria-label": title }, element("img", { src: source(sample), alt: "", draggable: false }));
  button.addEventListener("click", clicked);
  return button;
}

function mark(place, chosen) {
  [...place.children].forEach((each, index) => {
    each.classList.toggle("chosen", index === chosen);
    each.setAttribute("aria-pressed", String(index === chosen));
  });
}

// Show images in a place. Images that are already there are not replaced, which would flicker.
function replace(place, wanted) {
  const key = JSON.stringify(wanted.map((each) => each.key));
  if (place.dataset.shown === key) return;
  place.dataset.shown = key;
  place.replaceChildren(...wanted.map((each) => each.make()));
}
