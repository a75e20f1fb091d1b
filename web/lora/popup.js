// A pop-up next to the clicked element: a list to choose from, or a card. Only one is open at a time.

import { element } from "../panel/dom.js";
import { words } from "./words.js";

let close = () => {};

// Show `content` below `anchor` until Escape or a click elsewhere.
export function popup(anchor, content, kind) {
  close();
  const box = element("div", { class: `animelora-popup ${kind}`, role: "dialog" }, ...content);
  document.body.append(box);
  const place = () => putBeside(box, anchor);
  const sizes = new ResizeObserver(place); // a list is filled, or a card unfolded, after it has been placed
  sizes.observe(box);
  place();
  const outside = (event) => !box.contains(event.target) && close();
  const escape = (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    close();
    anchor.focus?.();
  };
  close = () => {
    sizes.disconnect();
    box.remove();
    document.removeEventListener("pointerdown", outside, true);
    document.removeEventListener("wheel", outside, true);
    box.removeEventListener("keydown", escape);
    close = () => {};
  };
  document.addEventListener("pointerdown", outside, true);
  document.addEventListener("wheel", outside, true);
  box.addEventListener("keydown", escape);
  return { box, close: () => close() };
}

// Below the anchor, above it if there is more room, and always inside the window.
function putBeside(box, anchor) {
  if (!anchor.isConnected) return; // a list that was drawn again
  const { left, top, bottom } = anchor.getBoundingClientRect();
  const room = { below: window.innerHeight - bottom - 12, above: top - 12 };
  const isBelow = box.offsetHeight <= room.below || room.below >= room.above;
  box.style.maxHeight = `${Math.min(420, isBelow ? room.below : room.above)}px`;
  box.style.left = `${Math.max(8, Math.min(left, window.innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${isBelow ? bottom + 4 : top - 4 - box.offsetHeight}px`;
}

// Choose one of `names` by typing parts of it, with the arrow keys, or by a click.
export function choose(anchor, names, current, chosen) {
  const texts = words();
  const search = element("input", {
    type: "search", role: "combobox", placeholder: texts.search, "aria-label": texts.search, "aria-expanded": "true",
    "aria-controls": "animelora-choices", autocomplete: "off", spellcheck: "false",
  });
  const list = element("div", { class: "list", role: "listbox", id: "animelora-choices", "aria-label": texts.list });
  const shown = popup(anchor, [search, list], "choose");
  let active = 0;
  const take = (name) => {
    shown.close();
    chosen(name);
  };
  const options = () => [...list.querySelectorAll("button")];
  const mark = (number) => {
    active = Math.max(0, Math.min(options().length - 1, number));
    options().forEach((each, index) => each.classList.toggle("active", index === active));
    search.setAttribute("aria-activedescendant", options()[active]?.id ?? "");
    options()[active]?.scrollIntoView({ block: "nearest" });
  };
  const draw = () => {
    const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = names.filter((name) => parts.every((part) => name.toLowerCase().includes(part)));
    const buttons = found.map((name, index) => {
      const id = `animelora-choice-${index}`;
      const button = element("button", { type: "button", role: "option", id, tabindex: -1, title: name, "aria-selected": String(name === current) }, shortName(name));
      button.addEventListener("click", () => take(name));
      return button;
    });
    list.replaceChildren(...(buttons.length ? buttons : [element("div", { class: "nothing" }, names.length ? texts.nothing : texts.noLoras)]));
    mark(parts.length ? 0 : Math.max(0, found.indexOf(current)));
  };
  search.addEventListener("input", draw);
  search.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are shortcuts of the canvas
    if (event.key === "ArrowDown") mark(active + 1);
    else if (event.key === "ArrowUp") mark(active - 1);
    else if (event.key === "Enter") options()[active]?.click();
    else if (event.key === "Escape") shown.close();
    else return;
    event.preventDefault();
  });
  draw();
  search.focus();
}

// A LoRA's name without its ending.
export function shortName(name) {
  return name.replace(/\.(safetensors|pt|ckpt|bin)$/i, "");
}
