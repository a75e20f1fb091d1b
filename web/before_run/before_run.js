// What Run will do with the current settings, what it needs and why it would fail: asked of the server when the widgets rest.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { element } from "../panel/dom.js";
import { nodes, settingsOf } from "../panel/graph.js";
import { problemParts } from "./problems.js";
import { beforeWords } from "./words.js";

const LOOK = 1000; // milliseconds between two looks at the widgets
const START_OVER = "animelora_start_over"; // a property that only the queued copy of the node has
const FOLLOWED = ["ANIMELORA_TRAIN_OPTIONS", "DATASET"]; // sockets whose nodes are sent with Train LoRA

export class BeforeRun {
  constructor(panel) {
    const texts = beforeWords();
    this.panel = panel;
    this.headline = element("b", { role: "status" });
    this.go = this.button(texts.goTip, () => app.queuePrompt(0, 1));
    this.over = this.button(texts.overTip, () => this.startOver());
    this.why = element("div", { class: "figures" });
    this.figures = element("div", { class: "figures" });
    this.problems = element("div", { class: "problems" });
    this.warned = element("div", { class: "problems" });
    this.count = element("summary");
    this.warnings = element("details", { class: "notes" }, this.count, this.warned);
    this.root = element(
      "div",
      { class: "before", role: "group", "aria-label": texts.before, hidden: true },
      element("div", { class: "buttons" }, this.headline, this.go, this.over),
      this.why,
      this.figures,
      this.problems,
      this.warnings,
    );
    this.timer = setInterval(() => this.look(), LOOK);
    forgetStartOver(panel.node);
  }

  button(title, clicked) {
    const made = element("button", { type: "button", title, hidden: true });
    made.addEventListener("click", clicked);
    return made;
  }

  clear() {
    this.asked = this.seen = null;
    this.root.hidden = true;
  }

  // What the server is asked: the node with everything before it.
  question() {
    const { node, run } = this.panel, id = idOf(node);
    return JSON.stringify({ graph: graphOf(node, id), node: id, run });
  }

  // These widgets failed. Only later changes make the failure outdated, not those that came between the last look and now.
  noteFailed() {
    if (this.panel.node.graph) this.seen = this.question();
  }

  // When the widgets have changed and rest, ask the server. One question at a time.
  async look() {
    const { node, live, active } = this.panel;
    if (document.hidden || this.isAsking || !node.graph) return; // without a graph: the node was moved into a subgraph, as a copy
    if (live || active) return this.clear();
    const body = this.question();
    const rests = body === this.seen;
    if (this.seen && !rests) this.panel.forgetFailure();
    this.seen = body;
    if (!rests || body === this.asked) return;
    this.asked = body;
    this.isAsking = true;
    try {
      const answer = await api.fetchApi("/animelora/next_run", { method: "POST", headers: { "Content-Type": "application/json" }, body });
      const next = answer.ok ? await answer.json() : { kind: "unknown" };
      if (this.asked === body && !this.panel.live) this.show(next);
    } catch {
      this.asked = null; // the server is restarting: ask again
    } finally {
      this.isAsking = false;
    }
  }

  // Ask again even where the widgets are the same: a node before this one has run, or a training has ended.
  refresh() {
    this.asked = null;
  }

  show(next) {
    const texts = beforeWords(), problems = next.kind === "finished" ? [] : next.problems ?? [];
    const refused = problems.filter((each) => each.refused), warned = problems.filter((each) => !each.refused);
    const known = texts.next[next.kind]?.(next.step, next.steps);
    this.headline.textContent = refused.length ? texts.refused : known ?? (next.missing ? texts.needsDataset : "");
    this.headline.title = next.message ?? "";
    const resumes = !refused.length && ["continues", "resumes"].includes(next.kind);
    this.go.textContent = texts.go(next.step);
    this.over.textContent = texts.over;
    this.over.hidden = !resumes;
    this.go.hidden = !resumes || next.step === next.steps;
    this.why.textContent = next.why ?? "";
    const plan = next.kind === "finished" ? null : next.plan;
    this.figures.textContent = plan ? figures(plan, next, texts).join(" · ") : "";
    this.figures.title = plan?.dataset ?? "";
    const shown = (some) => some.map((each) => problemParts(this.panel.node, each));
    this.problems.replaceChildren(...shown(refused));
    this.warned.replaceChildren(...shown(warned));
    this.count.textContent = texts.warnings(warned.length);
    this.warnings.hidden = !warned.length;
    const alone = !this.panel.run; // beside a run, open warnings would take the room of its images
    if (alone !== this.alone) this.warnings.open = this.alone = alone;
    this.root.hidden = !this.headline.textContent && !problems.length;
  }

  // Queue the graph with a mark in its copy of the node, so that exactly this run starts at the first step.
  async startOver() {
    const { node } = this.panel;
    node.properties[START_OVER] = true;
    try {
      await app.queuePrompt(0, 1);
    } finally {
      delete node.properties[START_OVER];
    }
  }

  destroy() {
    clearInterval(this.timer);
  }
}

function figures(plan, { step, steps }, texts) {
  return [
    texts.images(plan.images),
    texts.steps(steps - step),
    plan.seconds == null ? texts.unknownTime : texts.time(plan.seconds),
    texts.memory(plan.memory_gb.toFixed(1), plan.usable_gb.toFixed(0)),
  ];
}

// A graph that was saved or undone while the mark was set does not keep it.
function forgetStartOver(node) {
  const configured = node.onConfigure;
  node.onConfigure = function (...args) {
    delete this.properties?.[START_OVER];
    return configured?.apply(this, args);
  };
}

// The server's id of a node.
function idOf(node) {
  for (const [id, each] of nodes()) if (each === node) return id;
  return String(node.id);
}

// The node with those before it that collect settings or prepare datasets, in ComfyUI's API format. The queue's own function is not used:
// it makes widgets of other nodes act.
function graphOf(node, id, graph = {}) {
  const inputs = settingsOf(node), inside = id.slice(0, id.lastIndexOf(":") + 1);
  graph[id] = { class_type: node.comfyClass, inputs };
  for (const input of node.inputs ?? []) {
    if (input.link == null) continue;
    const link = node.graph.getLink?.(input.link) ?? node.graph.links?.[input.link];
    const origin = node.graph.getNodeById(link?.origin_id), originId = `${inside}${link?.origin_id}`;
    inputs[input.name] = [originId, link?.origin_slot ?? 0];
    if (origin && FOLLOWED.includes(input.type) && !graph[originId]) graphOf(origin, originId, graph);
  }
  return graph;
}
