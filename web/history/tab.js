// The history of trainings in the side bar: waiting ones, runs, and which two of them are compared.

import { element } from "../panel/dom.js";
import { compare } from "./compare.js";
import { Row } from "./row.js";
import { readHistory } from "./server.js";
import { diskSize, historyWords } from "./words.js";

const PAUSE = 400; // milliseconds in which several events are answered by one request

export class HistoryTab {
  constructor() {
    const texts = historyWords();
    this.rows = new Map(); // run -> Row
    this.chosen = []; // rows to compare, at most two
    this.total = element("span", { class: "total" });
    this.refresh = element("button", { type: "button", title: texts.refresh, "aria-label": texts.refresh }, element("i", { class: "pi pi-refresh", "aria-hidden": true }));
    this.refresh.addEventListener("click", () => this.load());
    this.note = element("p", { class: "note", role: "status" });
    this.waiting = element("ul", { class: "waiting", "aria-label": texts.waiting });
    this.waitingTitle = element("h3", {}, texts.waiting);
    this.list = element("ul", { class: "runs", "aria-label": texts.runs });
    this.compareButton = element("button", { type: "button" }, texts.compare);
    this.compareButton.addEventListener("click", () => compare(this.chosen.map((row) => row.run), this.compareButton));
    this.clearButton = element("button", { type: "button" }, texts.clear);
    this.clearButton.addEventListener("click", () => this.choose([]));
    this.hint = element("span", { role: "status" });
    this.bar = element("div", { class: "bar", hidden: true }, this.hint, element("div", { class: "buttons" }, this.compareButton, this.clearButton));
    this.root = element(
      "div",
      { class: "animelora-history", role: "region", "aria-label": texts.tab },
      element("div", { class: "head" }, element("h2", {}, texts.tab), this.total, this.refresh),
      this.note,
      element("div", { class: "scroll" }, this.waitingTitle, this.waiting, this.list),
      this.bar,
    );
    this.root.addEventListener("keydown", (event) => !event.ctrlKey && !event.metaKey && event.stopPropagation()); // keys are shortcuts of the canvas
  }

  show(place) {
    if (this.root.parentElement !== place) {
      place.classList.add("animelora-history-place");
      place.replaceChildren(this.root);
      this.load();
    }
  }

  // Read the list soon, if it is on the screen: it may have changed.
  later() {
    if (!this.root.isConnected) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), PAUSE);
  }

  // An event of a training.
  take(event) {
    const row = this.root.isConnected ? this.rows.get(event.run) : null;
    if (row && event.event === "step") row.step(event);
    else if (["run", "end", "plan", "checkpoint", "sample"].includes(event.event)) this.later();
  }

  async load() {
    const texts = historyWords(), asked = (this.asked = {});
    const { runs, waiting, bytes, error } = await readHistory();
    if (asked !== this.asked) return; // a newer request is under way
    if (error) {
      this.note.textContent = texts.unread;
      return;
    }
    if (this.note.textContent === texts.unread) this.note.textContent = "";
    this.total.textContent = texts.total(diskSize(bytes));
    this.waitingTitle.hidden = this.waiting.hidden = !waiting.length;
    this.waiting.replaceChildren(...waiting.map((each) => element("li", {}, waitingText(each))));
    this.draw(runs);
  }

  draw(runs) {
    const texts = historyWords();
    const known = this.rows;
    this.rows = new Map(runs.map((run) => [run.run, known.get(run.run) ?? this.row(run)]));
    for (const run of runs) this.rows.get(run.run).update(run);
    const roots = [...this.rows.values()].map((row) => row.root);
    if (!roots.length) this.list.replaceChildren(element("li", { class: "empty" }, texts.none));
    else if (roots.length !== this.list.children.length || roots.some((root, index) => root !== this.list.children[index])) this.list.replaceChildren(...roots);
    this.choose(this.chosen.filter((row) => this.rows.get(row.run.run) === row));
  }

  row(run) {
    const row = new Row(run, {
      chosen: () => this.choose(row.tick.checked ? [...this.chosen, row].slice(-2) : this.chosen.filter((each) => each !== row)),
      changed: (message) => {
        if (message) {
          this.note.textContent = message;
          this.refresh.focus(); // the run that had the focus goes
        }
        this.load();
      },
    });
    return row;
  }

  choose(rows) {
    this.chosen = rows;
    for (const row of this.rows.values()) row.tick.checked = rows.includes(row);
    this.bar.hidden = !rows.length;
    this.compareButton.disabled = rows.length < 2;
    this.hint.textContent = rows.length === 1 ? historyWords().chooseOther : "";
  }
}

function waitingText({ name, epochs, kind, ...counts }) {
  const texts = historyWords();
  return [name, epochs ? texts.epochs(epochs) : "", texts.next[kind]?.(counts) ?? ""].filter(Boolean).join(" · ");
}
