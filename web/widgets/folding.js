// Settings that few people change, folded behind a button in the classic rendering. ComfyUI's own flag `showAdvanced` of a node says
// whether they are shown; its Vue rendering has a button of its own for it.

import { app } from "../../../scripts/app.js";
import { isLinked, noteChange } from "../panel/graph.js";
import { foldWords } from "./words.js";

const ALWAYS = "Comfy.Node.AlwaysShowAdvancedWidgets"; // a setting of ComfyUI

// Fold the advanced widgets of a node. Returns the button, undefined if the node has none.
export function foldWidgets(node) {
  const folded = node.widgets.filter((widget) => widget.options?.advanced || widget.advanced);
  if (!folded.length) return undefined;
  const isOpen = () => !!node.showAdvanced || !!app.extensionManager?.setting?.get(ALWAYS);
  for (const widget of folded) {
    widget.options.advanced = true;
    const isHidden = () => !isOpen() && !isLinked(node, widget.name);
    Object.defineProperty(widget, "hidden", { get: isHidden, set: () => {}, configurable: true });
    // ComfyUI 0.3.64 leaves room for hidden widgets, with a gap of 4 pixels
    let own = widget.computeSize;
    const computeSize = () => (isHidden() ? () => [0, -4] : own);
    Object.defineProperty(widget, "computeSize", { get: computeSize, set: (value) => (own = value), configurable: true });
  }
  let before; // height of the folded node
  const button = node.addWidget("button", "animelora_more", null, () => {
    node.showAdvanced = !node.showAdvanced;
    const least = node.computeSize()[1];
    if (node.showAdvanced) before = node.size[1];
    node.setSize([node.size[0], node.showAdvanced ? Math.max(node.size[1], least) : Math.max(before ?? 0, least)]);
    node.setDirtyCanvas?.(true, true);
    noteChange();
  });
  Object.assign(button.options, { serialize: false, canvasOnly: true, hideInPanel: true });
  button.serialize = false;
  const label = () => (isOpen() ? foldWords().less : foldWords().more(folded.length));
  Object.defineProperty(button, "label", { get: label, set: () => {}, configurable: true });
  node.setSize([node.size[0], node.computeSize()[1]]);
  return button;
}
