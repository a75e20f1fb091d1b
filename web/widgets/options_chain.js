// Train LoRA and the options nodes chained before it: their widgets and the names that people read.

const OPTIONS = "ANIMELORA_TRAIN_OPTIONS"; // socket type of chained options nodes

export const optionsSlot = (node) => node.inputs?.findIndex((input) => input.name === "options" && input.type === OPTIONS) ?? -1;

// The options nodes chained before `node`, nearest first.
export function* optionsBefore(node, seen = new Set([node])) {
  const slot = optionsSlot(node);
  const before = slot < 0 ? null : node.getInputNode(slot);
  if (!before || seen.has(before)) return;
  seen.add(before);
  yield before;
  yield* optionsBefore(before, seen);
}

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

// The name that a node shows for a widget.
export function labelOf(kind, name) {
  const data = LiteGraph.registered_node_types[kind]?.nodeData;
  const spec = data?.inputs?.[name] ?? data?.input?.optional?.[name]?.[1] ?? data?.input?.required?.[name]?.[1];
  return spec?.display_name ?? name;
}
