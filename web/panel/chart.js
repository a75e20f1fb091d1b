// The chart of a run: loss per step, smoothed loss, loss on held-out images, and learning rate.

import uPlot from "../lib/uplot/uPlot.esm.js";
import { colour } from "./dom.js";

export const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6]; // steps between two ticks
const PAUSE = 200; // milliseconds between two drawings
const LEAST = 40, WITH_RATES = 300; // pixels: the smallest chart, and the narrowest with an axis of learning rates
// readable on a dark and a light background; by their name in the legend
const COLOURS = { single: "#8b9bb0", smooth: "#2f8fff", rate: "#d08a16", held: "#d8489b" };
const ink = () => colour("--descrip-text", "#999");
const GRID = "rgba(128, 128, 128, 0.3)"; // on dark and light

export class Chart {
  constructor(place) {
    this.place = place;
    this.data = empty();
    this.watcher = new ResizeObserver(() => this.later());
    this.watcher.observe(place);
    // colours are read when drawing: draw again when the palette changes
    this.palette = new MutationObserver(() => this.later());
    this.palette.observe(document.documentElement, { attributes: true, attributeFilter: ["style", "class"] });
  }

  clear() {
    this.data = empty();
    this.later();
  }

  fill(curves) {
    this.data = [curves.step, curves.loss, curves.loss_average, curves.lr, curves.held ?? curves.step.map(() => null)];
    this.later();
  }

  add(event) {
    const [steps] = this.data;
    const known = steps.findLastIndex((step) => step < event.step) + 1; // a resumed run repeats some steps
    for (const column of this.data) column.length = known;
    [event.step, event.loss, event.loss_average, event.lr, null].forEach((value, index) => this.data[index].push(value ?? null));
    this.later();
  }

  // Add the loss on held-out images to a step that is in the chart already.
  hold(step, loss) {
    const place = this.data[0].indexOf(step);
    if (place >= 0) this.data[4][place] = loss;
    this.later();
  }

  // Names and colours of the drawn series, for the legend.
  series() {
    if (!this.data[0].length) return [];
    return Object.entries(COLOURS).filter(([name]) => name !== "held" || this.data[4].some((value) => value != null));
  }

  later() {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.draw();
    }, PAUSE);
  }

  draw() {
    const width = this.place.clientWidth, height = this.place.clientHeight;
    if (width < LEAST || height < LEAST) return; // not laid out yet: the watcher draws it later
    if (this.plot && (!this.data[0].length || this.hasRates !== width >= WITH_RATES)) {
      this.plot.destroy();
      this.plot = null;
    }
    if (!this.data[0].length) return;
    this.hasRates = width >= WITH_RATES;
    this.plot ??= new uPlot(this.options(width, height), this.data, this.place);
    if (this.plot.width !== width || this.plot.height !== height) this.plot.setSize({ width, height });
    this.plot.setData(this.data);
  }

  options(width, height) {
    const font = "10px Inter, sans-serif";
    const axis = { stroke: ink, font, ticks: { show: false }, grid: { stroke: GRID, width: 1 } };
    return {
      width,
      height,
      padding: [8, width >= WITH_RATES ? 4 : 8, 0, 0],
      cursor: { show: false }, // the canvas scales the panel, and pointer positions with it
      legend: { show: false },
      scales: { x: { time: false }, lr: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.05 : 1] } },
      axes: [
        { ...axis, grid: { show: false }, size: 22, incrs: WHOLE },
        { ...axis, size: 36, space: 24, values: (_plot, ticks) => ticks.map((tick) => tick.toFixed(3).replace(/0+$/, "").replace(/\.$/, "")) },
        {
          ...axis, scale: "lr", side: 1, size: 44, space: 40, grid: { show: false }, show: width >= WITH_RATES,
          values: (_plot, ticks) => ticks.map(rate),
        },
      ],
      series: [
        {},
        { stroke: COLOURS.single, width: 1, points: { show: false } },
        { stroke: COLOURS.smooth, width: 2, points: { show: false } },
        { stroke: COLOURS.rate, width: 1.5, dash: [4, 4], scale: "lr", points: { show: false } },
        { stroke: COLOURS.held, width: 2, spanGaps: true, points: { show: true, size: 4, fill: COLOURS.held } },
      ],
    };
  }

  destroy() {
    clearTimeout(this.timer);
    this.watcher.disconnect();
    this.palette.disconnect();
    this.plot?.destroy();
  }
}

// A learning rate in as few digits as it needs: 2e-3, 1.5e-3.
function rate(value) {
  return value ? Number(value.toPrecision(3)).toExponential() : "0";
}

// step, loss, smoothed loss, learning rate, loss on held-out images
function empty() {
  return [[], [], [], [], []];
}
