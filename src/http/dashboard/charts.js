// Lines over rounds, drawn by uPlot in the colours of the page.
import uPlot from "./vendor/uplot.js";
import { h } from "./dom.js";
import { number } from "./format.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Lines {
  /** `series` are `{name, colour, mark}`: a custom property of the sheet, and the class of the mark in the legend. */
  constructor(place, label, series, places) {
    Object.assign(this, { place, label, series, places, plot: null, data: null });
    this.box = h("div", { role: "img" });
    this.values = series.map((one) => h("span"));
    const entry = (one, index) => h("li", {}, h("span", { className: one.mark }), `${one.name} `, this.values[index]);
    this.legend = h("ul", { className: "legend" }, ...series.map(entry));
    place.append(this.box);
    place.after(this.legend);
    new ResizeObserver(() => this.fit()).observe(place);
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.place;
    if (this.plot && width > 0) this.plot.setSize({ width, height });
    else if (this.data && width > 0) this.draw();
  }

  /** Shows `[rounds, ...values]`. */
  show(data) {
    this.data = data;
    const last = data.slice(1).map((values) => values.findLast((value) => value !== null) ?? null);
    const said = this.series.map((one, index) => `${one.name} ${number(last[index], this.places)}`).join(", ");
    this.box.setAttribute("aria-label", `${this.label}. ${data[0].length} rounds; newest: ${said}.`);
    this.tell(last);
    if (!this.plot) this.fit();
    else this.plot.setData(data);
  }

  tell(values) {
    this.values.forEach((node, index) => (node.textContent = number(values[index], this.places)));
  }

  /** Draws anew: the theme or the unit is another. */
  draw() {
    this.plot?.destroy();
    this.plot = null;
    const { clientWidth: width, clientHeight: height } = this.place;
    if (!this.data || width === 0) return;
    const axis = {
      stroke: colour("--soft"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { stroke: colour("--line"), width: 1, size: 4 },
      font: "12px system-ui, sans-serif",
    };
    const whole = (u, splits) => splits.map((at) => (Number.isInteger(at) ? number(at) : ""));
    this.plot = new uPlot(
      {
        width,
        height,
        legend: { show: false },
        cursor: { y: false, points: { size: 6 } },
        padding: [8, 8, 0, 0],
        scales: { x: { time: false } },
        axes: [
          { ...axis, values: whole, size: 30 },
          { ...axis, size: 62, values: (u, splits) => splits.map((at) => number(at, at < 100 ? Math.min(this.places, 2) : 0)) },
        ],
        series: [
          {},
          ...this.series.map((one) => ({
            label: one.name,
            stroke: colour(one.colour),
            width: 1.75,
            spanGaps: true,
            points: { show: this.data[0].length < 60, size: 5, fill: colour("--panel") },
          })),
        ],
        hooks: {
          setCursor: [
            (u) => {
              const at = u.cursor.idx;
              const newest = u.data.slice(1).map((values) => values.findLast((value) => value !== null) ?? null);
              this.tell(at === null || at === undefined ? newest : u.data.slice(1).map((values) => values[at]));
            },
          ],
        },
      },
      this.data,
      this.box,
    );
  }
}
