// LoRAs on the canvas: the card in Load LoRA, the list in LoRA Stack, and menus that know a LoRA as soon as it is trained.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { LoraCard } from "./lora/card.js";
import { LoraRows } from "./lora/rows.js";
import { forget } from "./lora/data.js";
import { loadStyle } from "./panel/dom.js";
import { isLinked, nodes, noteChange } from "./panel/graph.js";

const CARD_NODE = "AnimeLoRA_LoadLora";
const ROWS_WIDGET = "ANIMELORA_LORAS";
const FROM_INPUT = "(lora input)";
const PROPERTY = "animelora_lora"; // the LoRA that came through the socket last; saved with the workflow
const WIDE = 420; // pixels: switch, name, two strengths and four buttons beside each other

loadStyle(new URL("./lora/lora.css", import.meta.url));

// The classic canvas does not let a node grow with its content.
function grow(node) {
  const [width, height] = node.computeSize();
  if (node.size[0] < width || node.size[1] < height) node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}

// ---- the card in Load LoRA

function addCard(node) {
  const card = new LoraCard(node, () => grow(node));
  node.animeloraCard = card;
  const widget = node.addDOMWidget("animelora_card", "animelora_card", card.root, {
    serialize: false,
    hideOnZoom: false,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: () => card.height(),
  });
  widget.serialize = false; // the card has no value
  const menu = node.widgets.find((each) => each.name === "lora_name");
  if (!menu) return;
  const changed = menu.callback;
  menu.callback = function (...args) {
    const result = changed?.apply(this, args);
    showChosen(node);
    return result;
  };
  const linked = node.onConnectionsChange;
  node.onConnectionsChange = function (...args) {
    const result = linked?.apply(this, args);
    showChosen(node);
    return result;
  };
  setTimeout(() => showChosen(node), 200); // a graph that is being loaded gives the node its values first
}

function showChosen(node) {
  const menu = node.widgets.find((each) => each.name === "lora_name");
  const linked = isLinked(node, "lora");
  const name = linked || menu.value === FROM_INPUT ? (linked && node.properties[PROPERTY]) || "" : menu.value;
  node.animeloraCard.show(name, linked);
}

// ---- the list in LoRA Stack

function rowsWidget(node, name, spec) {
  const rows = new LoraRows(node, {
    grown: () => grow(node),
    changed: () => {
      widget.callback?.(widget.value);
      noteChange();
    },
  });
  const widget = node.addDOMWidget(name, ROWS_WIDGET, rows.root, {
    hideOnZoom: false,
    getValue: () => rows.text(),
    setValue: (text) => rows.read(text),
    getMinHeight: () => rows.height(),
  });
  node.animeloraRows = rows;
  rows.read(spec?.[1]?.default ?? "[]");
  setTimeout(() => {
    if (node.size[0] < WIDE) node.setSize([WIDE, node.size[1]]);
    grow(node);
  }, 0);
  return { widget };
}

// ---- when there is a new LoRA

async function refreshed() {
  forget();
  await app.refreshComboInNodes();
  for (const [, node] of nodes()) {
    if (node.animeloraCard) showChosen(node);
    node.animeloraRows?.draw();
  }
}

api.addEventListener("animelora.train", ({ detail: event }) => {
  if (event.event === "end") refreshed();
});

api.addEventListener("animelora.loras", refreshed); // Pick Epoch has put one there

api.addEventListener("animelora.lora", ({ detail: event }) => {
  for (const [id, node] of nodes()) {
    // the event may be about another open workflow: a node that takes no LoRA from its socket is not meant
    if (id !== String(event.node_id) || !node.animeloraCard || !isLinked(node, "lora") || node.properties[PROPERTY] === event.name) continue;
    node.properties[PROPERTY] = event.name;
    showChosen(node);
    noteChange();
  }
});

app.registerExtension({
  name: "AnimeLoRA.Loras",
  getCustomWidgets: () => ({ [ROWS_WIDGET]: rowsWidget }),
  nodeCreated(node) {
    if (node.comfyClass === CARD_NODE) addCard(node);
  },
});
