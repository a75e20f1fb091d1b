// The text that a node made in its last run, shown in the node at a fixed height: counts, files, what was left out. Nodes that rarely have
// one get the place for it with their first text.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDisplay, element, keepFromCanvas, loadStyle } from "./panel/dom.js";
import { nodes } from "./panel/graph.js";
import { reportWords } from "./report/words.js";

const PAGE = 132, LINE = 40; // height in pixels, with the margins of the classic rendering
const HEIGHTS = {
  AnimeLoRA_DatasetPrep: PAGE,
  AnimeLoRA_ExportLora: PAGE,
  AnimeLoRA_PickEpoch: PAGE,
  AnimeLoRA_EpochCompare: LINE,
  AnimeLoRA_StyleCompare: LINE,
};
const ON_DEMAND = { AnimeLoRA_AnimeImg2Img: 72 };

loadStyle(new URL("./report/report.css", import.meta.url));

// The first line stands out; indented lines are details.
function draw(place, text) {
  const lines = text.split("\n").filter((line) => line.trim());
  place.classList.toggle("empty", !lines.length);
  place.replaceChildren(
    ...(lines.length
      ? lines.map((line, index) => element("div", { class: index === 0 ? "first" : line.startsWith("  ") ? "detail" : "" }, line.trim()))
      : [reportWords().empty]),
  );
}

// A place for texts in the node, empty at first.
function addReport(node, height) {
  const root = element("div", { class: "animelora-report", role: "status", "aria-label": reportWords().label, tabindex: 0 });
  root.style.minHeight = `${height - 20}px`;
  keepFromCanvas(root);
  draw(root, "");
  node.animeloraReport = root;
  addDisplay(node, "animelora_report", reportWords().label, root, () => height);
  node.setSize([node.size[0], Math.max(node.size[1], node.computeSize()[1])]);
}

api.addEventListener("animelora.text", ({ detail: { node_id: id, text } }) => {
  for (const [each, node] of nodes()) {
    if (each !== String(id)) continue;
    const height = ON_DEMAND[node.comfyClass];
    if (height && text && !node.animeloraReport) addReport(node, height);
    if (node.animeloraReport) draw(node.animeloraReport, text);
  }
});

app.registerExtension({
  name: "AnimeLoRA.Report",
  nodeCreated(node) {
    const height = HEIGHTS[node.comfyClass];
    if (!height) return;
    addReport(node, height);
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      if (output?.text) draw(node.animeloraReport, [output.text].flat().join("\n"));
      return executed?.call(this, output, ...rest);
    };
  },
});
