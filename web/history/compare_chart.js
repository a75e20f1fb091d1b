// The smoothed loss of two runs over their steps, and their loss on held-out images.

import uPlot from "../lib/uplot/uPlot.esm.js";
import { WHOLE } from "../panel/chart.js";
import { colour } from "../panel/dom.js";

export const COLOURS = ["#2f8fff", "#d08a16"]; // of the first and the second run; readable on dark and light
const GRID = "rgba(128, 128, 128, 0.3)";

// Draw into `place`. `curves` are those of the route of a run. Returns a function that removes the chart.
export function drawBoth(place, curves) {
  const ink = colour("--descrip-text", "#999");
  const columns = curves.flatMap(({ step, loss_average: smooth, held }) => [[step, smooth], [step, held ?? step.map(() => null)]]);
  const data = uPlot.join(columns);
  const axis = { stroke: ink, font: "11px Inter, sans-serif", ticks: { show: false }, grid: { stroke: GRID, width: 1 } };
  const line = (run) => ({ stroke: COLOURS[run], width: 2, spanGaps: true, points: { show: columns[2 * run][0].length < 2 } });
  const held = (run) => ({ stroke: COLOURS[run], width: 1, dash: [4, 4], spanGaps: true, points: { show: true, size: 5, fill: COLOURS[run] } });
  const plot = new uPlot(
    {
      width: Math.max(200, place.clientWidth), height: Math.max(100, place.clientHeight), padding: [8, 8, 0, 0],
      cursor: { show: false }, legend: { show: false }, scales: { x: { time: false } },
      axes: [{ ...axis, grid: { show: false }, size: 24, incrs: WHOLE }, { ...axis, size: 52 }],
      series: [{}, line(0), held(0), line(1), held(1)],
    },
    data,
    place,
  );
  const watcher = new ResizeObserver(() => place.clientWidth > 0 && plot.setSize({ width: place.clientWidth, height: place.clientHeight }));
  watcher.observe(place);
  return () => {
    watcher.disconnect();
    plot.destroy();
  };
}
