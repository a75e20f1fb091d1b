// LoRAs on the canvas: the card in Load LoRA, the list in LoRA Stack, and menus that are refreshed when a LoRA is trained.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { LoraCard } from "./lora/card.js";
import { LoraRows } from "./lora/rows.js";
import { forget } from "./lora/data.js";
import { words } from "./lora/words.js";
import { addDisplay, keepWidth, loadStyle } from "./panel/dom.js";
import { isLinked, nodes, noteChange } from "./panel/graph.js";

const CARD_NODE = "AnimeLoRA_LoadLora";
const ROWS_WIDGET = "ANIMELORA_LORAS";
const FROM_INPUT = "(lora input)";
const PROPERTY = "animelora_lora"; // the last LoRA from the socket, saved with the workflow
const WIDE = 420; // pixels for switch, name, two strengths and four buttons in one row

loadStyle(new URL("./lora/lora.css", import.meta.url));

// Enlarge the node to fit its content, which the classic canvas does not do by itself.
function grow(node) {
  const [width, height] = node.computeSize();
  if (node.size[0] < width || node.size[1] < height) node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas?.(true, true);
}

// ---- the card in Load LoRA

function addCard(node) {
  const card = new LoraCard(node, () => grow(node));
  node.animeloraCard = card;
  addDisplay(node, "animelora_card", words().card, card.root, () => card.height());
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
  setTimeout(() => showChosen(node), 200); // when a graph is loaded, the node gets its values first
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
    hideInPanel: true, // which would take the list out of the node
    getValue: () => rows.text(),
    setValue: (text) => rows.read(text),
    getMinHeight: () => rows.height(),
  });
  keepWidth(widget);
  node.animeloraRows = rows;
  rows.read(spec?.[1]?.default ?? "[]");
  setTimeout(() => {
    if (node.size[0] < WIDE) node.setSize([WIDE, node.size[1]]);
    grow(node);
  }, 0);
  return { widget };
}

// ---- refresh when a LoRA was written

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

api.addEventListener("animelora.text", ({ detail: { node_id: id, text } }) => {
  for (const [each, node] of nodes()) if (each === String(id)) (node.animeloraCard ?? node.animeloraRows)?.report(text);
});

api.addEventListener("animelora.failed", ({ detail }) => {
  for (const [id, node] of nodes()) {
    const isSame = id === String(detail.node_id) && node.widgets?.find((each) => each.name === "lora_name")?.value === detail.settings.lora_name;
    if (isSame) node.animeloraCard?.fail(detail);
  }
});

api.addEventListener("animelora.loras", refreshed); // sent by Pick Epoch

api.addEventListener("animelora.lora", ({ detail: event }) => {
  for (const [id, node] of nodes()) {
    // skip nodes without a connected LoRA: the event may belong to another open workflow
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
