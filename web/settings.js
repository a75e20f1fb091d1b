// How the widgets of the pack's nodes are presented: the preset comes first, and settings that few people change are folded. The Vue
// rendering folds them by itself. Saved workflows keep their order of values.

import { app } from "../../scripts/app.js";
import { foldWidgets } from "./widgets/folding.js";
import { orderWidgets } from "./widgets/order.js";

const FIRST = { AnimeLoRA_TrainLora: "preset" };

app.registerExtension({
  name: "AnimeLoRA.Settings",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("AnimeLoRA_") || !node.widgets?.length) return;
    for (const widget of node.widgets) {
      if (widget.element instanceof HTMLTextAreaElement && widget.label) widget.element.placeholder = widget.label; // instead of its id
    }
    const button = foldWidgets(node);
    orderWidgets(node, FIRST[node.comfyClass], button);
  },
});
