// The graph of the open workflow: its nodes under the names that the server has for them, and what their links lead to.

import { app } from "../../../scripts/app.js";

// [id, node] for every node, those inside subgraphs too. The id is the one that the server runs a node by: "12:5" is node 5 inside the
// subgraph node 12. A subgraph that is used twice has its nodes come twice, as the same objects.
export function* nodes(graph = app.graph, inside = "") {
  for (const node of graph?._nodes ?? []) {
    const id = `${inside}${node.id}`;
    yield [id, node];
    if (node.subgraph) yield* nodes(node.subgraph, `${id}:`);
  }
}

// [node, slot of its inputs] for everything that is linked to the node's outputs.
export function linksFrom(node) {
  const graph = node.graph ?? app.graph;
  const ids = (node.outputs ?? []).flatMap((output) => output.links ?? []);
  const all = ids.map((id) => graph.getLink?.(id) ?? graph.links?.[id]).filter(Boolean);
  return all.map((link) => [graph.getNodeById(link.target_id), link.target_slot]).filter(([each]) => each);
}

// Whether something is linked to the node's input of that name.
export function isLinked(node, name) {
  return !!node.inputs?.some((input) => input.name === name && input.link != null);
}

// Tell ComfyUI that the workflow is another one now, for its undo and its mark of unsaved changes: it looks by itself only after clicks and keys.
export function noteChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
