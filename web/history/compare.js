// Two runs side by side: loss, numbers, validation images, and the settings in which they differ.

import { element } from "../panel/dom.js";
import { source } from "../panel/strip.js";
import { labelOf } from "../widgets/options_chain.js";
import { COLOURS, drawBoth } from "./compare_chart.js";
import { readRun, readSettings } from "./server.js";
import { diskSize, historyWords, stateText, title } from "./words.js";

// Show `runs`, two entries of the list. The focus returns to `from`.
export async function compare(runs, from) {
  const texts = historyWords();
  const [logs, settings] = await Promise.all([readRun, readSettings].map((read) => Promise.all(runs.map(({ run }) => read(run)))));
  const close = element("button", { type: "button", class: "close" }, texts.close);
  const plot = element("div", { class: "plot", role: "img", "aria-label": texts.chart });
  const dialog = element(
    "dialog",
    { class: "animelora-compare", "aria-label": texts.compareTitle },
    element("div", { class: "head" }, element("h2", {}, texts.compareTitle), close),
    plot,
    images(runs, logs),
    factsTable(runs, logs, settings),
    ...differences(settings),
  );
  let removeChart = () => {};
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => event.stopPropagation()); // keys are shortcuts of the canvas
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the content
  for (const name of ["pointerdown", "wheel"]) dialog.addEventListener(name, (event) => event.stopPropagation());
  dialog.addEventListener("close", () => {
    removeChart();
    dialog.remove();
    from.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  removeChart = drawBoth(plot, logs.map((log) => log.curves ?? { step: [], loss_average: [], held: [] }));
}

// The colour of the first or the second run.
const chip = (index) => element("i", { style: `background:${COLOURS[index]}` });

// A table with a column for each run.
function factsTable(runs, logs, settings) {
  const texts = historyWords(), names = texts.facts;
  const head = runs.map((run, index) => element("th", { scope: "col" }, chip(index), title(run)));
  const rows = [
    [names.state, runs.map((run) => stateText(run))],
    [names.loss, runs.map((run) => run.loss?.toFixed(4) ?? "–")],
    [`${names.validation} (${texts.held})`, logs.map((log) => log.validation?.loss?.toFixed(4) ?? "–")],
    [names.base, runs.map((run) => run.base || "–")],
    [names.dataset, settings.map((each) => each.dataset || "–")],
    [names.size, runs.map((run) => diskSize(run.bytes))],
  ];
  return table(head, rows);
}

function table(head, rows) {
  const body = rows.map(([name, cells]) => element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell))));
  return element("table", {}, element("thead", {}, element("tr", {}, element("td"), ...head)), element("tbody", {}, ...body));
}

// The validation images of both runs: any epoch of each, with one prompt.
function images(runs, logs) {
  const texts = historyWords();
  const all = logs.map((log) => log.samples ?? []);
  const prompts = [...new Set(all.flat().map((sample) => sample.index))].sort((a, b) => a - b);
  const named = (index) => all.flat().find((sample) => sample.index === index)?.prompt ?? "";
  const prompt = element("select", { "aria-label": texts.prompt }, ...prompts.map((index) => element("option", { value: index }, named(index))));
  const sides = all.map((samples, index) => {
    const epochs = [...new Set(samples.map((sample) => sample.epoch))].sort((a, b) => a - b);
    const menu = element("select", { "aria-label": index ? texts.right : texts.left }, ...epochs.map((epoch) => element("option", { value: epoch }, epoch ? texts.epoch(epoch) : texts.before)));
    if (epochs.length) menu.value = String(epochs.at(-1));
    const image = element("img", { draggable: false });
    return { samples, menu, image, figure: element("figure", {}, image, element("figcaption", {}, element("span", {}, chip(index), title(runs[index])), menu)) };
  });
  const draw = () => {
    for (const [index, { samples, menu, image }] of sides.entries()) {
      const sample = samples.findLast((each) => each.epoch === Number(menu.value) && each.index === Number(prompt.value));
      image.hidden = !sample;
      if (sample) image.src = source(sample);
      image.alt = sample ? `${runs[index].name}, ${menu.selectedOptions[0]?.textContent}: ${sample.prompt}` : texts.noImage;
    }
  };
  for (const menu of [prompt, ...sides.map((side) => side.menu)]) menu.addEventListener("change", draw);
  draw();
  const place = element("div", { class: "images" }, element("div", { class: "sides" }, ...sides.map((side) => side.figure)), prompt);
  place.hidden = !all.flat().length;
  prompt.hidden = prompts.length < 2;
  return place;
}

// The settings that differ, by their names on the nodes.
function differences(settings) {
  const texts = historyWords();
  const heading = (text) => [element("p", { class: "quiet" }, text)];
  if (settings.some((each) => each.error)) return heading(texts.unknownSettings);
  const [first, second] = settings.map(shownValues);
  const rows = [...new Set([...first.keys(), ...second.keys()])]
    .filter((key) => first.get(key) !== second.get(key))
    .map((key) => [labelOf(...key.split("\n")), [first, second].map((each) => each.get(key) ?? "–")]);
  if (!rows.length) return heading(texts.same);
  return [element("h3", {}, texts.differ), table(settings.map((_, index) => element("th", { scope: "col" }, chip(index))), rows)];
}

// "node\nwidget" -> value as text, also of what no widget can show here
function shownValues({ values, not_set: missing }) {
  const shown = new Map();
  for (const [node, widgets] of Object.entries(values)) for (const [name, value] of Object.entries(widgets)) shown.set(`${node}\n${name}`, String(value));
  for (const { node, widget, key, value } of missing) shown.set(node ? `${node}\n${widget}` : `\n${key}`, value);
  return shown;
}
