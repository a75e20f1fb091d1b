// LoRA data from the server: ComfyUI's list, and the pack's card for each file.

import { api } from "../../../scripts/api.js";

const cards = new Map(); // name -> promise of a card, or of null if the file has none
let names = null;

// ComfyUI's list of LoRAs.
export function loraNames() {
  names ??= api.fetchApi("/models/loras").then((answer) => (answer.ok ? answer.json() : []));
  return names;
}

export function loraCard(name) {
  if (!cards.has(name)) {
    const asked = api.fetchApi(`/animelora/lora?${new URLSearchParams({ name })}`);
    cards.set(name, asked.then((answer) => (answer.ok ? answer.json() : null)));
  }
  return cards.get(name);
}

// Discard cached data after files have changed.
export function forget() {
  cards.clear();
  names = null;
}
