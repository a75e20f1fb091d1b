// The order of widgets in a node, apart from the order of their values in saved workflows, which never changes.

import { isSaved } from "../panel/graph.js";

// Put `first` in front, then the common settings, `button`, what it unfolds, and what has no value.
export function orderWidgets(node, first, button) {
  const rank = (widget) => {
    if (widget === button) return 2;
    if (!isSaved(widget)) return 4;
    return widget.name === first ? 0 : widget.options?.advanced && button ? 3 : 1;
  };
  const shown = [...node.widgets].sort((a, b) => rank(a) - rank(b));
  if (shown.every((widget, index) => widget === node.widgets[index]) && !button) return;
  const names = node.widgets.filter(isSaved).map((widget) => widget.name);
  node.widgets = shown;
  keepSavedOrder(node, names);
}

// Save and load the values of a node's widgets in the order of `names`, however the widgets are shown. Those that other extensions add
// later follow.
function keepSavedOrder(node, names) {
  const place = (widget) => (names.includes(widget.name) ? names.indexOf(widget.name) : names.length);
  const inSavedOrder = () => node.widgets.filter(isSaved).sort((a, b) => place(a) - place(b));
  const serialized = node.onSerialize;
  node.onSerialize = function (data) {
    // Not picked from the array: some frontends leave a gap in it for a widget that isn't saved, others (1.58) don't
    if (Array.isArray(data.widgets_values)) data.widgets_values = inSavedOrder().map((widget) => copied(widget.value));
    return serialized?.call(this, data);
  };
  const configure = node.configure;
  node.configure = function (...args) {
    const own = [...this.widgets];
    this.widgets = [...inSavedOrder(), ...own.filter((widget) => !isSaved(widget))];
    try {
      return configure.apply(this, args);
    } finally {
      const now = [...this.widgets]; // other extensions may have added or removed some
      this.widgets = [...own.filter((widget) => now.includes(widget)), ...now.filter((widget) => !own.includes(widget))];
    }
  };
}

// A value as JSON holds it, as the frontend saves it.
function copied(value) {
  return value && typeof value === "object" ? JSON.parse(JSON.stringify(value)) : (value ?? null);
}
