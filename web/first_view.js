// Opens a template of ours at its note, at a readable size. The frontend would fit the whole graph into the window, which leaves a few pixels a line.

import { app } from "../../scripts/app.js";

const FIRST_VIEW = "animelora_first_view"; // in a graph's extra: { scale, offset }

function show({ scale, offset }) {
  const { ds } = app.canvas;
  ds.scale = scale;
  [ds.offset[0], ds.offset[1]] = offset;
  app.canvas.setDirty(true, true);
}

app.registerExtension({
  name: "AnimeLoRA.FirstView",
  afterConfigureGraph() {
    const extra = app.graph.extra;
    const view = extra?.[FIRST_VIEW];
    if (!view) return;
    delete extra[FIRST_VIEW]; // once: what the user saves opens where it was left
    show(view);
    requestAnimationFrame(() => requestAnimationFrame(() => show(view))); // some frontends fit the graph after a frame
  },
});
