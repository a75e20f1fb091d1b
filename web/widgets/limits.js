// A number beyond the limits of its widget is corrected by ComfyUI without a word: say which value it has now.

import { app } from "../../../scripts/app.js";
import { beforeWords } from "../before_run/words.js";

const PACK = "AnimeLoRA_";

const limited = (widget) => typeof widget?.options?.min === "number" && typeof widget.options.max === "number" && typeof widget.value === "number";

function sayIfCorrected(widget, value) {
  const { min, max } = widget.options;
  if (!Number.isFinite(value) || (value >= min && value <= max)) return;
  const texts = beforeWords(), label = widget.label ?? widget.name;
  const detail = `${texts.beyond(value, min, max)}. ${texts.isSet(label, value < min ? min : max)}.`;
  app.extensionManager?.toast?.add?.({ severity: "warn", summary: label, detail, life: 8000 });
}

// The classic rendering: typed values arrive in `setValue`. Arrows and dragging end at a limit as expected.
function watch(widget) {
  const set = widget.setValue;
  if (typeof set !== "function") return;
  let steps = 0;
  widget.setValue = function (value, ...rest) {
    if (!steps) sayIfCorrected(this, Number(value));
    return set.call(this, value, ...rest);
  };
  for (const name of ["incrementValue", "decrementValue", "onDrag"]) {
    const original = widget[name];
    if (typeof original !== "function") continue;
    widget[name] = function (...args) {
      steps++;
      try {
        return original.apply(this, args);
      } finally {
        steps--;
      }
    };
  }
}

// The Vue rendering: a text box holds what was typed until Enter, or until it loses the focus.
function typedIn({ target }) {
  if (!(target instanceof HTMLInputElement) || !target.value.trim()) return;
  const row = target.closest(".lg-node-widget"), id = target.closest("[data-node-id]")?.dataset.nodeId;
  const node = row && (app.canvas?.graph ?? app.graph)?.getNodeById(id);
  if (!node?.comfyClass?.startsWith(PACK)) return;
  const widget = node.widgets?.find((each) => limited(each) && (each.label ?? each.name) === row.innerText.trim());
  if (widget) sayIfCorrected(widget, Number(target.value));
}
document.addEventListener("blur", typedIn, true);
document.addEventListener("keydown", (event) => event.key === "Enter" && typedIn(event), true);

app.registerExtension({
  name: "AnimeLoRA.Limits",
  nodeCreated(node) {
    if (node.comfyClass?.startsWith(PACK)) (node.widgets ?? []).filter(limited).forEach(watch);
  },
});
