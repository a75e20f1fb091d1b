// Which training run belongs to which node. Another page, or another workflow of this one, may have a node with the same id.

import { isLinked, settingsOf } from "./graph.js";

const REMEMBERED = 8; // queued versions of the settings

export class Ownership {
  constructor(node) {
    this.node = node;
    this.queued = []; // settings as they were when the graph was queued; the widgets may have been changed since
  }

  noteQueued() {
    this.queued = [...this.queued, settingsOf(this.node)].slice(-REMEMBERED);
  }

  // Whether a run with these settings was queued from this node.
  includes(settings) {
    return [settingsOf(this.node), ...this.queued].some((own) => agree(own, settings, (name) => isLinked(this.node, name)));
  }
}

function agree(own, settings, linked) {
  return Object.entries(settings ?? {}).every(([name, value]) => linked(name) || !(name in own) || JSON.stringify(own[name]) === JSON.stringify(value));
}
