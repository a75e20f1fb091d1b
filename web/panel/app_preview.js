// In App mode no panel is seen: there, validation images are the previews of the running job, which App mode shows large.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { source } from "./strip.js";

const NO_NODE = "animelora"; // no node has this id: the panel shows the image already, and the node would show it a second time

let job = null; // the one of this page that is running

api.addEventListener("execution_start", ({ detail }) => (job = detail?.prompt_id ?? null));
for (const ending of ["execution_success", "execution_error", "execution_interrupted"]) api.addEventListener(ending, () => (job = null));

// Take a validation image of a running training. It is noted in the graph view, too: App mode shows the newest one when it is opened.
export async function previewInApp(sample) {
  const current = job;
  if (!current || !sample.view || !hasAppMode()) return;
  const answer = await fetch(source(sample));
  if (!answer.ok) return;
  const detail = { blob: await answer.blob(), nodeId: NO_NODE, displayNodeId: NO_NODE, parentNodeId: NO_NODE, realNodeId: NO_NODE, jobId: current };
  if (job === current) api.dispatchCustomEvent("b_preview_with_metadata", detail);
}

function hasAppMode() {
  return "activeMode" in (app.extensionManager?.workflow?.activeWorkflow ?? {});
}
