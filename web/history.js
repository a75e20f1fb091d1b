// The tab "LoRA runs" of the side bar: past trainings, those that wait in the queue, and what can be done with them.

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { HistoryTab } from "./history/tab.js";
import { historyWords } from "./history/words.js";
import { loadStyle } from "./panel/dom.js";

loadStyle(new URL("./history/history.css", import.meta.url));
loadStyle(new URL("./lib/uplot/uPlot.min.css", import.meta.url));

app.registerExtension({
  name: "AnimeLoRA.History",
  setup() {
    const texts = historyWords();
    let tab;
    const shown = () => (tab ??= new HistoryTab());
    app.extensionManager?.registerSidebarTab?.({
      id: "animelora-history",
      icon: "pi pi-history",
      title: texts.tab,
      tooltip: texts.tabTip,
      type: "custom",
      render: (place) => shown().show(place), // called again whenever ComfyUI draws its side bar
    });
    for (const event of ["status", "reconnected", "animelora.loras"]) api.addEventListener(event, () => tab?.later());
    api.addEventListener("animelora.train", ({ detail }) => tab?.take(detail));
  },
});
