// Charts over one time axis: one cursor over all of them, marks where something happened.

import { h, keyed, mark, write } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 150;
const EDGE_PX = 30;
const COLOURS = { alarm: "--bad", circuit: "--bad", autopilot: "--level", knobs: "--level", canary: "--level" };
const NEAR_PX = 5; // of a mark, so that its words are shown

// The style sheet's colours as a canvas understands them.
const probe = document.body.appendChild(h("i", { hidden: true }));
const colours = new Map();
addEventListener("themechange", () => colours.clear());

function css(name) {
  if (!colours.has(name)) {
    probe.style.color = `var(${name})`;
    colours.set(name, getComputedStyle(probe).color);
  }
  return colours.get(name);
}

// `series`: [{field, label, colour, fill, sparse}]; `show`, `axis`: a value in words, with its unit and on the axis.
// `level`: {label, value()}, a line across, or null. `marks()`: events. `near`: is told of the one under the cursor.
export function chart({ title, series, show, axis = show, sync, marks, near, level = null, most = null }) {
  const legend = h("span", { class: "legend" });
  const place = h("div", { class: "plot", role: "img" });
  const element = h("figure", {}, h("figcaption", {}, h("b", {}, title), legend), place);
  let data = [[], ...series.map(() => [])];
  const plot = new window.uPlot(options(), data, place);
  const sized = new ResizeObserver(() => place.clientWidth && plot.setSize({ width: place.clientWidth, height: HEIGHT }));
  sized.observe(place);
  const redraw = () => plot.redraw(false, true);
  addEventListener("themechange", redraw);

  function options() {
    const grid = { stroke: () => css("--rule"), width: 1 };
    const common = { stroke: () => css("--soft"), font: "11px system-ui, sans-serif", grid, ticks: { ...grid, size: 4 } };
    return {
      width: 300,
      height: HEIGHT,
      padding: [8, 6, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: sync }, drag: { x: false, y: false }, points: { size: 6 } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, ceiling(high)] } },
      axes: [
        {
          ...common,
          space: 70,
          size: 26,
          gap: 3,
          values: times,
        },
        { ...common, space: 34, size: 62, gap: 4, values: (_, splits) => splits.map(axis) },
      ],
      series: [
        {},
        ...series.map((one) => ({
          label: one.label,
          stroke: () => css(one.colour),
          width: 1.6,
          fill: one.fill ? () => `color-mix(in srgb, ${css(one.colour)} 14%, transparent)` : undefined,
          points: { show: false },
          spanGaps: false,
        })),
      ],
      hooks: { draw: [drawMarks], setCursor: [told] },
    };
  }

  // None at the right edge, where it would be cut off.
  function times(u, splits) {
    const { min, max } = u.scales.x;
    const edge = max - ((max - min) * EDGE_PX) / Math.max(u.width, 1);
    return splits.map((at) => (at > edge ? "" : clock(at, max - min < 400)));
  }

  function ceiling(high) {
    const line = level?.value();
    let top = high ?? 0;
    if (line && line < 4 * Math.max(top, 1e-12)) top = Math.max(top, line);
    if (line && top === 0) top = line;
    if (most) return Math.min(most, Math.max(top * 1.1, most / 10));
    return top > 0 ? top * 1.1 : 1;
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    const line = level?.value();
    if (line && line <= u.scales.y.max) {
      const y = Math.round(u.valToPos(line, "y", true));
      stroke(ctx, css("--level"), [6, 4], [bbox.left, y], [bbox.left + bbox.width, y]);
    }
    for (const event of marks()) {
      if (event.at < u.scales.x.min || event.at > u.scales.x.max) continue;
      const x = Math.round(u.valToPos(event.at, "x", true));
      const colour = css(COLOURS[event.kind] ?? "--soft");
      ctx.globalAlpha = 0.45;
      stroke(ctx, colour, [2, 3], [x, bbox.top], [x, bbox.top + bbox.height]);
      ctx.globalAlpha = 1;
      ctx.fillStyle = colour;
      ctx.beginPath();
      ctx.moveTo(x - 4 * devicePixelRatio, bbox.top - 6 * devicePixelRatio);
      ctx.lineTo(x + 4 * devicePixelRatio, bbox.top - 6 * devicePixelRatio);
      ctx.lineTo(x, bbox.top);
      ctx.fill();
    }
    ctx.restore();
  }

  function told(u) {
    const index = u.cursor.idx;
    const at = index ?? data[0].length - 1;
    const items = series.map((one, number) => ({ ...one, value: data[number + 1][at] }));
    if (level?.value()) items.push({ label: level.label, colour: "--level", value: level.value() });
    keyed(
      legend,
      items,
      (one) => one.label,
      (one) => h("span", {}, h("i", { class: "key", "data-colour": one.colour }), `${one.label} `, h("b")),
      (item, one) => write(item.lastChild, show(one.value)),
    );
    if (index === null || index === undefined) return near(null);
    const found = marks().find((event) => Math.abs(u.valToPos(event.at, "x") - u.cursor.left) <= NEAR_PX);
    return near(found ?? { at: data[0][index] });
  }

  return {
    element,
    set(columns, from, to) {
      data = [columns.at, ...series.map((one) => columns[one.field])];
      plot.batch(() => {
        plot.setData(
          [data[0], ...series.map((one, number) => (one.sparse ? withoutRests(data[number + 1]) : data[number + 1]))],
          false,
        );
        plot.setScale("x", { min: from, max: to });
      });
      told(plot);
      mark(
        place,
        "aria-label",
        `${title}: ${series.map((one, number) => `${one.label} ${show(data[number + 1].at(-1))}`).join(", ")}`,
      );
    },
    close() {
      sized.disconnect();
      removeEventListener("themechange", redraw);
      plot.destroy();
    },
  };
}

// A line at 0 says nothing, and hides others that do: it is drawn where it rises and falls only.
const withoutRests = (values) =>
  values.map((value, at) => (value > 0 || values[at - 1] > 0 || values[at + 1] > 0 ? value : null));

function stroke(ctx, colour, dash, from, to) {
  ctx.strokeStyle = colour;
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash(dash.map((length) => length * devicePixelRatio));
  ctx.beginPath();
  ctx.moveTo(...from);
  ctx.lineTo(...to);
  ctx.stroke();
}
