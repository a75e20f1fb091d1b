// The graph of the open workflow: nodes by the ids that the server uses, and their links.

import { app } from "../../../scripts/app.js";

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

// Report a change of the workflow to ComfyUI's undo history, which by itself checks only after clicks and keys.
export function noteChange() {
  app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
}
