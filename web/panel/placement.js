// Where a panel stands in its node: below the widgets, or beside them in a wide node. Its size does not depend on what it shows.

import { keepWidth } from "./dom.js";

const COLUMN = 360; // width of the widgets beside which the panel stands; panel.css has it for the Vue rendering
const WIDE = 700; // width of a node from which on it does
const BELOW = 360, BESIDE = 400; // least heights of the panel
const ROW = 24; // height of an ordinary widget in the classic rendering
const TEXT = 84; // height of the prompts, with their margins
const MARGIN = 10; // of DOM widgets in the classic rendering

// Keep `root`, the element of the last widget of `node`, in its place in both renderings.
export function placePanel(node, widget, root) {
  const isBeside = () => node.size[0] >= WIDE;
  const shown = () => node.widgets.filter((each) => each !== widget && node.isWidgetVisible(each));
  const show = () => {
    root.classList.toggle("beside", isBeside());
    root.style.minHeight = `${isBeside() ? BESIDE : BELOW}px`;
  };
  const prompts = node.widgets.find((each) => each.element instanceof HTMLTextAreaElement);
  if (prompts) Object.assign(prompts.options, { getMinHeight: () => TEXT, getMaxHeight: () => (isBeside() ? undefined : TEXT) });
  const narrowed = new WeakSet();
  const narrow = () => {
    for (const each of node.widgets) {
      if (each === widget || narrowed.has(each)) continue;
      narrowed.add(each);
      keepWidth(each, () => (isBeside() ? COLUMN : undefined));
    }
  };
  widget.computeLayoutSize = () => {
    if (!isBeside()) return { minHeight: BELOW + 2 * MARGIN, minWidth: 0 };
    const rest = Math.max(0, BESIDE + 2 * MARGIN - shown().reduce((sum, each) => sum + leastHeight(each, node), 0));
    return { minHeight: rest, maxHeight: rest, minWidth: 0 };
  };
  // ComfyUI insets a DOM widget by its margin on every side: a margin as wide as the column moves the panel beside it.
  Object.defineProperty(widget, "margin", { get: () => (isBeside() ? COLUMN : MARGIN), configurable: true });
  keepWidth(widget, () => (isBeside() ? node.size[0] + COLUMN - MARGIN : undefined));
  const arrange = node.arrange;
  node.arrange = function (...args) {
    narrow(); // also a widget that was added later
    const result = arrange.apply(this, args);
    if (isBeside()) {
      const top = Math.min(node.size[1], ...shown().map((each) => each.y));
      widget.y = top - COLUMN + MARGIN;
      widget.computedHeight = Math.max(BESIDE, node.size[1] - top - 2 * MARGIN) + 2 * COLUMN;
    }
    show();
    return result;
  };
  const resized = node.onResize;
  node.onResize = function (...args) {
    show();
    return resized?.apply(this, args);
  };
  show();
}

function leastHeight(widget, node) {
  if (widget.computeSize) return widget.computeSize(node.size[0])[1] + 4;
  return widget.computeLayoutSize ? widget.computeLayoutSize(node).minHeight : ROW;
}
