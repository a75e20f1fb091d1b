// The order of widgets in a node, apart from the order of their values in saved workflows, which never changes.

import { isSaved } from "../panel/graph.js";

// Put `first` in front, then the common settings, `button`, what it unfolds, and what has no value.
export function orderWidgets(node, first, button) {
  const saved = node.widgets.filter(isSaved);
  const rank = (widget) => {
    if (widget === button) return 2;
    if (!isSaved(widget)) return 4;
    return widget.name === first ? 0 : widget.options?.advanced && button ? 3 : 1;
  };
  const shown = [...node.widgets].sort((a, b) => rank(a) - rank(b));
  if (shown.every((widget, index) => widget === node.widgets[index]) && !button) return;
  node.widgets = shown;
  const serialized = node.onSerialize;
  node.onSerialize = function (data) {
    const values = data.widgets_values;
    if (Array.isArray(values)) data.widgets_values = saved.map((widget) => values[this.widgets.indexOf(widget)]);
    return serialized?.call(this, data);
  };
  const configure = node.configure;
  node.configure = function (...args) {
    const own = [...this.widgets];
    this.widgets = [...saved, ...own.filter((widget) => !saved.includes(widget))];
    try {
      return configure.apply(this, args);
    } finally {
      this.widgets = own;
    }
  };
}
