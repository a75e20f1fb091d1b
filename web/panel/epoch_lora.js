// What can be done with what a run saved at one epoch: load its LoRA beside the node, keep it among ComfyUI's LoRAs, or delete it.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { deleteStep } from "../history/server.js";
import { diskSize } from "../history/words.js";
import { freeTop, noteChange } from "./graph.js";
import { viewerWords } from "./viewer_words.js";

const GAP = 60; // pixels between nodes

// The actions of the viewer for the run that `panel` shows.
export function epochActions(panel) {
  const texts = viewerWords();
  const missing = (sample) => (sample.epoch === 0 ? texts.base : panel.saved.includes(sample.step) ? "" : texts.missing);
  return [
    { name: texts.use, title: texts.useTip, missing, act: (sample) => loadBeside(panel, sample.step) },
    { name: texts.save, title: texts.saveTip, missing, act: (sample) => save(panel, sample) },
    { name: texts.remove, title: texts.removeTip, missing: (sample) => (panel.live ? texts.live : missing(sample)), act: (sample, shown) => remove(panel, sample, shown) },
  ];
}

// Delete what was saved at the epoch of an image if the question about it is the message that the viewer shows; ask it otherwise.
async function remove(panel, sample, shown) {
  const texts = viewerWords(), question = texts.sure(sample.epoch);
  if (shown !== question) return question;
  const { error, bytes } = await deleteStep(panel.run, sample.step);
  if (error) return texts.notRemoved(error);
  panel.saved = panel.saved.filter((step) => step !== sample.step);
  panel.refresh();
  return texts.removed(sample.epoch, diskSize(bytes));
}

// Put Load LoRA with the LoRA of a saved step beside the node. Returns a message.
export async function loadBeside({ node, run }, step) {
  await app.refreshComboInNodes(); // Pick Epoch's menu lists the run
  const [pick, load] = ["AnimeLoRA_PickEpoch", "AnimeLoRA_LoadLora"].map((type) => LiteGraph.createNode(type));
  for (const [name, value] of Object.entries({ run, step })) pick.widgets.find((widget) => widget.name === name).value = value;
  const graph = node.graph ?? app.graph;
  let left = node.pos[0] + node.size[0] + GAP;
  for (const each of [pick, load]) {
    each.pos = [left, freeTop(graph, left, node.pos[1], each.size)];
    graph.add(each);
    left += each.size[0] + GAP;
  }
  pick.connect(0, load, load.inputs.findIndex((input) => input.name === "lora"));
  app.canvas.selectNodes?.([load]);
  noteChange();
  return viewerWords().used;
}

async function save({ run }, { step, epoch }) {
  const answer = await api.fetchApi(`/animelora/runs/${encodeURIComponent(run)}/keep`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ step, epoch }),
  });
  const { name, error } = await answer.json();
  return answer.ok ? viewerWords().saved(name) : viewerWords().notSaved(error);
}
