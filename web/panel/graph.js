// The nodes of the open graph by the ids that the server uses, their links and the values of their widgets.

import { app } from "../../../scripts/app.js";

const ROOM = 60; // pixels between nodes

// [id, node] for every node, including those in subgraphs. The id is the server's: "12:5" is node 5 inside the subgraph node 12.
// The nodes of a subgraph that is used twice appear twice, as the same objects.
export function* nodes(graph = app.graph, inside = "") {
  for (const node of graph?._nodes ?? []) {
    const id = `${inside}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* nodes(node.subgraph, `${id}:`);
  }
}

// [target node, input slot] for every link from the node's outputs.
export function linksFrom(node) {
  const graph = node.graph ?? app.graph;
  const ids = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  const all = ids.map((id) => graph.getLink?.(id) ?? graph.links?.[id]).filter(Boolean);
  return all.map((link) => [graph.getNodeById(link.target_id), link.target_slot]).filter(([each]) => each);
}

// Whether the input `name` is linked.
export function isLinked(node, name) {
  return !!node.inputs?.some((input) => input.name === name && input.link != null);
}

// Whether a widget has a value that is saved in workflows. Some are not queued, such as what happens to a seed after each run.
export function isSaved(widget) {
  return widget.serialize !== false;
}

// The values of a node's widgets by name, as they are queued; those of linked inputs are left out.
export function settingsOf(node) {
  const isOwn = (widget) => isSaved(widget) && widget.options?.serialize !== false && !isLinked(node, widget.name);
  const own = (node.widgets ?? []).filter(isOwn);
  return Object.fromEntries(own.map((widget) => [widget.name, widget.value]));
}

// The first place from `top` downwards that no node covers.
export function freeTop(graph, left, top, [width, height]) {
  const covers = ({ pos, size }) => pos[0] < left + width && left < pos[0] + size[0] && pos[1] - ROOM < top + height && top < pos[1] + size[1] + ROOM;
  for (let blocking; (blocking = graph._nodes.find(covers)); ) top = blocking.pos[1] + blocking.size[1] + ROOM;
  return top;
}

// Report a change of the workflow to ComfyUI's undo history, which by itself checks only after clicks and keys.
export function noteChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
