// Where the time of a request goes: a stacked bar and its legend, the same colours everywhere.

import { h, keyed, mark, write } from "./dom.js";
import { percent, seconds } from "./format.js";

export const PHASES = [
  ["receive", "receive", "until its last byte was here"],
  ["load", "wait for load", "until its model was loaded"],
  ["cache", "cache", "looked up among remembered answers, or waited for one that was under way"],
  ["check", "check", "until the model’s queue had heard of it"],
  ["queue", "queue", "waited for its batch to begin"],
  ["earlier_run", "earlier run", "ran in a batch that gave it no answer"],
  ["batch", "hand over", "its batch was put together and handed to an instance, and its end was heard of"],
  ["compute", "compute", "the model computed"],
  ["split", "split", "the batch’s answers were taken apart"],
  ["send", "send", "until the client’s socket had taken the answer"],
];
const NAMES = Object.fromEntries(PHASES.map(([name, shown]) => [name, shown]));

const parts = (phases) => {
  const known = PHASES.map(([name]) => name).filter((name) => phases[name] > 0);
  return [...known, ...Object.keys(phases).filter((name) => !(name in NAMES) && phases[name] > 0)];
};

// What the colours of these phases mean.
export function legend(names = PHASES.map(([name]) => name)) {
  return h(
    "p",
    { class: "legend" },
    names.map((name) => h("span", {}, h("i", { class: "key", "data-phase": name }), NAMES[name])),
  );
}

export function bar(classes = "") {
  return h("div", { class: `phases ${classes}`, role: "img" });
}

export function drawBar(element, phases) {
  const names = parts(phases ?? {});
  const total = names.reduce((sum, name) => sum + phases[name], 0);
  mark(
    element,
    "aria-label",
    total ? names.map((name) => `${NAMES[name] ?? name} ${seconds(phases[name])}`).join(", ") : "no requests",
  );
  mark(element, "title", total ? element.getAttribute("aria-label") : null);
  keyed(
    element,
    names,
    (name) => name,
    (name) => h("span", { "data-phase": name }),
    (part, name) => {
      part.style.flexGrow = phases[name] / total;
    },
  );
}

// A row for each phase: its share, its seconds and, where known, what is usual.
export function table(phases, usual = null) {
  const body = h("tbody");
  const element = h(
    "table",
    { class: "plain" },
    h(
      "thead",
      {},
      h(
        "tr",
        {},
        h("th", {}, "Phase"),
        h("th", { class: "num" }, "Time"),
        h("th", { class: "num" }, usual ? "Usually" : "Share"),
      ),
    ),
    body,
  );
  drawTable(element, phases, usual);
  return element;
}

export function drawTable(element, phases, usual = null) {
  const names = parts(phases ?? {});
  const total = names.reduce((sum, name) => sum + phases[name], 0);
  keyed(
    element.tBodies[0],
    names,
    (name) => name,
    (name) => {
      const words = PHASES.find(([known]) => known === name)?.[2];
      return h(
        "tr",
        {},
        h("th", { scope: "row", title: words ?? null }, h("i", { class: "key", "data-phase": name }), NAMES[name] ?? name),
        h("td", { class: "num" }),
        h("td", { class: "num" }),
      );
    },
    (row, name) => {
      write(row.cells[1], seconds(phases[name]));
      write(row.cells[2], usual ? seconds(usual[name] ?? null) : percent(phases[name] / total));
      row.classList.toggle("unusual", Boolean(usual) && phases[name] > 2 * (usual[name] ?? 0) && phases[name] > total * 0.1);
    },
  );
}
