// One version of a model: how it does, where its time goes, what was decided, and what may be changed.

import { actionButton } from "./actions.js";
import { chart } from "./chart.js";
import { h, keyed, mark, panel, plainTable, write } from "./dom.js";
import { drawEvents } from "./events.js";
import { NONE, bytes, clock, number, percent, plural, rate, rows, seconds } from "./format.js";
import { addressOf, keyOf, stateOf } from "./health.js";
import { drawTags } from "./models.js";
import { bar, drawBar, drawTable, table } from "./phases.js";
import { ask } from "./server.js";
import { whyList } from "./why.js";

const FIELDS = ["rate", "p50_s", "p99_s", "queued", "batch_rows", "utilisation", "rejects_rate", "failures_rate"];
const SPANS = [
  [300, "5 min"],
  [3600, "1 h"],
];
const MISSED_S = 5;
const KNOBS_EVERY_MS = 10000;

export function modelView(state, name, version = "") {
  const found = () =>
    state.models.get(`${name}/${version}`) ?? [...state.models.values()].find((one) => one.name === name && !version);
  if (!found()) {
    const words = `No model ${name}${version ? ` version ${version}` : ""} is known here.`;
    return {
      element: h("div", {}, h("h1", {}, name), h("p", {}, words), h("p", {}, h("a", { href: "#/" }, "All models"))),
      update() {},
    };
  }
  const model = () => found() ?? last;
  let last = found();
  const parts = [
    headPart,
    tilesPart,
    chartsPart,
    decisionsPart,
    autopilotPart,
    knobsPart,
    stepsPart,
    instancesPart,
    versionsPart,
    cachePart,
    variantsPart,
  ].map((make) => make(model, state));
  const [head, tiles, charts, decisions, autopilot, knobs, ...panels] = parts;
  const why = whyList(() => state.at, last);
  const element = h(
    "div",
    { class: "model" },
    head.element,
    tiles.element,
    charts.element,
    h(
      "div",
      { class: "columns" },
      h("div", {}, decisions.element, autopilot.element),
      h(
        "div",
        {},
        panels.map((one) => one.element),
        knobs.element,
      ),
    ),
    why.element,
  );
  return {
    element,
    update(changed, fresh) {
      last = model();
      for (const part of parts) part.update(last, changed, fresh);
      head.gone(!found());
      why.tick();
    },
    close() {
      for (const part of parts) part.close?.();
      why.close();
    },
  };
}

function headPart(model) {
  const status = h("span", { class: "state" });
  const tags = h("span", { class: "tags" });
  const words = h("ul", { class: "troubles" });
  const gone = h(
    "p",
    { class: "refused", hidden: true },
    "This version is not there any more. What you see is the last that was heard of it.",
  );
  const element = h(
    "section",
    { class: "head" },
    h(
      "div",
      { class: "title" },
      h("a", { href: "#/", class: "back" }, "Models"),
      h("h1", {}, model().name, " ", h("small", {}, `version ${model().version}`)),
      status,
      tags,
      h("span", { class: "grow" }),
      actionButton("unload", model),
    ),
    gone,
    words,
  );
  return {
    element,
    gone(is) {
      gone.hidden = !is;
      if (is) write(status, "gone");
      if (is) mark(status, "data-level", "rest");
    },
    update(now) {
      const { level, words: shown, concerns } = stateOf(now);
      mark(status, "data-level", level);
      write(status, shown);
      drawTags(tags, now);
      keyed(
        words,
        concerns,
        (one) => one.words,
        (one) => h("li", { "data-level": one.level }, one.words),
      );
      words.hidden = !concerns.length;
    },
  };
}

// A name, a value, and what it means beside it.
function tilesPart() {
  const names = ["Requests", "p50", "p99", "In time", "Error budget", "Batch", "Queue", "Busy"];
  const tiles = names.map((name) => h("div", {}, h("dt", {}, name), h("dd", {}, h("b"), h("small"))));
  return {
    element: h("dl", { class: "tiles" }, tiles),
    update(now) {
      const objective = now.objective;
      const met = objective && objective.met !== null;
      const missed = met && objective.met < objective.share;
      const up = (now.instances ?? []).filter((one) => one.state === "up").length;
      const values = [
        [rate(now.rate), `${number(now.rows_rate)} rows/s`],
        [seconds(now.p50_s), "half take no longer"],
        [seconds(now.p99_s), now.p95_s === undefined ? "" : `p95 ${seconds(now.p95_s)}`],
        [
          met ? percent(objective.met) : NONE,
          objective ? `${percent(objective.share)} within ${seconds(objective.seconds)} wanted` : "no objective is set",
        ],
        [
          objective && objective.budget_left !== null ? percent(Math.max(0, objective.budget_left)) : NONE,
          !objective
            ? "no objective is set"
            : objective.budget_left < 0
              ? "spent: more are late than may be"
              : "left of this hour’s",
        ],
        [rows(now.batch_rows), now.batch_goal ? `up to ${number(now.batch_goal)}` : ""],
        [plural(now.queued ?? 0, "request"), `${number(now.running ?? 0)} under way`],
        [percent(now.utilisation), `of ${plural(up, "instance")}`],
      ];
      tiles.forEach((tile, index) => {
        write(tile.lastChild.firstChild, values[index][0]);
        write(tile.lastChild.lastChild, values[index][1]);
      });
      mark(tiles[3], "data-level", missed ? "warn" : null);
      mark(tiles[4], "data-level", objective?.budget_left < 0 ? "bad" : null);
    },
  };
}

// What a field is of a model that does nothing.
const rest = (field) => (field.startsWith("p") || field === "batch_rows" ? null : 0);

function chartsPart(model, state) {
  const { name, version } = model();
  const empty = () => Object.fromEntries([["at", []], ...FIELDS.map((field) => [field, []])]);
  let columns = empty();
  const recorded = state.server.replay; // all of a recording stands still, and fills up
  const whole = recorded && Math.max(Math.ceil(recorded.to - recorded.from), 1);
  const spans = recorded ? [[whole, "All of it"], ...SPANS] : SPANS;
  let length = spans[0][0];
  let busy = false;
  const mine = () => state.events.filter((event) => event.model === name && event.at > state.at - length);
  let marks = [];
  const said = h("p", { class: "said" });
  const near = (event) =>
    write(said, event === null ? hint() : event.words ? `${clock(event.at)}  ${event.kind}: ${event.words}` : clock(event.at));
  const hint = () =>
    marks.length ? `${plural(marks.length, "event")} in this time, marked ▾` : "Nothing was decided or lost in this time";
  const common = { sync: keyOf(model()), marks: () => marks, near };
  const all = [
    chart({
      ...common,
      title: "Requests",
      show: rate,
      series: [
        { field: "rate", label: "answered", colour: "--main", fill: true },
        { field: "rejects_rate", label: "refused", colour: "--warn", sparse: true },
        { field: "failures_rate", label: "failed", colour: "--bad", sparse: true },
      ],
    }),
    chart({
      ...common,
      title: "Response time",
      show: seconds,
      level: { label: "wanted", value: () => model().objective?.seconds },
      series: [
        { field: "p50_s", label: "p50", colour: "--main" },
        { field: "p99_s", label: "p99", colour: "--second" },
      ],
    }),
    chart({
      ...common,
      title: "Batch",
      show: rows,
      axis: number,
      series: [{ field: "batch_rows", label: "mean", colour: "--main", fill: true }],
    }),
    chart({
      ...common,
      title: "Queue",
      show: (value) => (value === null || value === undefined ? NONE : plural(Math.round(value * 10) / 10, "request")),
      axis: number,
      series: [{ field: "queued", label: "waiting", colour: "--second", fill: true }],
    }),
    chart({
      ...common,
      title: "Busy",
      show: percent,
      most: 1,
      series: [{ field: "utilisation", label: "of its instances’ time", colour: "--main", fill: true }],
    }),
  ];
  const chips = spans.map(([value, title]) =>
    h("button", { type: "button", class: "chip", "aria-pressed": value === length, onclick: () => choose(value) }, title),
  );
  const shares = bar("tall");
  const sharesOf = h("span", { class: "legend" });
  const shareTable = table({});
  const element = h(
    "section",
    { class: "panel charts-panel", "aria-label": "Charts" },
    h("div", { class: "tools" }, h("div", { class: "chips", role: "group", "aria-label": "Length of time" }, chips), said),
    h(
      "div",
      { class: "charts" },
      all.map((one) => one.element),
      h("figure", { class: "shares" }, h("figcaption", {}, h("b", {}, "Where the time goes"), sharesOf), shares, shareTable),
    ),
  );

  async function choose(value) {
    length = value;
    chips.forEach((chip, index) => mark(chip, "aria-pressed", spans[index][0] === length));
    busy = true;
    try {
      const past = await ask(`dashboard/history?${new URLSearchParams({ model: name, version, seconds: length })}`);
      columns = withRests(past);
    } catch (error) {
      columns = withRests(empty());
      write(said, error.message);
    }
    busy = false;
    draw();
  }

  function draw() {
    if (!element.isConnected) return;
    marks = mine();
    const to = recorded && length === whole ? recorded.to : Math.max(state.at, columns.at.at(-1) ?? 0);
    for (const one of all) one.set(columns, to - length, to);
  }

  choose(length);
  return {
    element,
    update(now) {
      drawBar(shares, now.phases);
      drawTable(shareTable, now.phases);
      shareTable.hidden = !Object.keys(now.phases ?? {}).length;
      write(sharesOf, shareTable.hidden ? "nothing is computed now" : "of a request, in the mean");
      if (busy) return;
      if (state.at - (columns.at.at(-1) ?? 0) > MISSED_S) {
        choose(length); // nobody looked, or the server was away
        return;
      }
      if (state.at > (columns.at.at(-1) ?? 0)) {
        columns.at.push(state.at);
        for (const field of FIELDS) columns[field].push(now[field] ?? rest(field));
      }
      const old = columns.at.findIndex((at) => at > state.at - length - 20);
      if (old > 60) for (const column of Object.values(columns)) column.splice(0, old);
      draw();
    },
    close: () => all.forEach((one) => one.close()),
  };

  // Where nothing is kept nothing came: rates are 0 there, and no line leads across.
  function withRests(past) {
    const filled = empty();
    const put = (at, values) => {
      filled.at.push(at);
      for (const field of FIELDS) filled[field].push(values(field));
    };
    const restUntil = (at, step) => {
      const before = filled.at.at(-1) ?? state.at - length;
      if (at - before <= 2.5 * step) return;
      put(before + step, rest);
      put(at - step, rest);
    };
    past.at.forEach((at, index) => {
      restUntil(at, past.step_s[index]);
      put(at, (field) => past[field][index]);
    });
    restUntil(state.at + 1, 1);
    return filled;
  }
}

function decisionsPart(model, state) {
  const list = h("ol", { class: "events" });
  const none = h("p", { class: "empty" }, "Nothing has happened to it of late.");
  const element = panel("Decisions and events", list, none);
  return {
    element,
    update(now, changed, fresh) {
      if (!changed.has("*") && !fresh.some((event) => event.model === now.name)) return;
      const mine = state.events
        .filter((event) => event.model === now.name)
        .slice(-12)
        .reverse();
      drawEvents(list, mine, state.at, false);
      none.hidden = mine.length > 0;
    },
  };
}

function withButtons(title, ...buttons) {
  return h("section", { class: "panel" }, h("div", { class: "panel-head" }, h("h2", {}, title), buttons));
}

// Of a pipeline: what each of its steps waits and computes of late, in their order.
function stepsPart() {
  const headings = ["Step", "Waits", "Computes", "Under way", "Ended", "Skipped", "Failed"];
  const body = h("tbody");
  const element = panel("Steps", plainTable(headings, body, { numbers: true }));
  return {
    element,
    update({ steps }) {
      element.hidden = !steps;
      keyed(
        body,
        steps ?? [],
        (one) => one.name,
        (one) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, one.name),
            headings.slice(1).map(() => h("td", { class: "num" })),
          ),
        (row, one) => {
          const times = one.ended ? [seconds(one.usual_wait_s), seconds(one.usual_s)] : [NONE, NONE];
          const counts = [one.running, one.ended, one.skipped, one.failed].map(number);
          [...times, ...counts].forEach((text, index) => write(row.cells[index + 1], text));
        },
      );
    },
  };
}

function instancesPart(model) {
  const element = withButtons("Instances", actionButton("scale", model));
  const list = h("ul", { class: "instances" });
  element.append(list);
  return {
    element,
    update(now) {
      keyed(
        list,
        now.instances ?? [],
        (one) => one.name,
        (one) => h("li", {}, h("span", { class: "state" }), h("b", {}, one.name), h("small")),
        (item, one) => {
          mark(item.firstChild, "data-level", one.state === "up" ? "good" : one.state === "starting" ? "busy" : "bad");
          write(item.firstChild, one.state);
          write(item.lastChild, one.problem || (one.state !== "up" ? "" : one.busy ? "computing" : "idle"));
        },
      );
    },
  };
}

function versionsPart(model, state) {
  const forOthers = [actionButton("canary", model), actionButton("promote", model)]; // the default version has all the rest
  const element = withButtons("Versions", forOthers, actionButton("rollback", model));
  const headings = ["Version", "Gets", "Requests", "p99", "Failed"];
  const body = h("tbody");
  element.append(plainTable(headings, body, { numbers: true }));
  return {
    element,
    update(now) {
      for (const button of forOthers) button.hidden = now.default === true;
      const versions = [...state.models.values()].filter((one) => one.name === now.name);
      keyed(
        body,
        versions,
        (one) => one.version,
        (one) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, h("a", { href: addressOf(one) }, one.version), " ", h("small")),
            headings.slice(1).map(() => h("td", { class: "num" })),
          ),
        (row, one) => {
          const notes = [
            one.default ? "default" : one.canary ? "canary" : "",
            ...(one.labels ?? []),
            one.state === "up" ? "" : one.state,
          ];
          write(row.cells[0].lastChild, notes.filter(Boolean).join(", "));
          [percent(one.share ?? 0), rate(one.rate), seconds(one.p99_s), rate(one.failures_rate)].forEach((text, index) =>
            write(row.cells[index + 1], text),
          );
          mark(row, "aria-current", one.version === now.version ? "true" : null);
        },
      );
    },
  };
}

function autopilotPart(model) {
  const told = () =>
    ask(`autopilot/${encodeURIComponent(model().name)}`).then(
      (all) => all.find((one) => one.version === model().version) ?? all[0],
    );
  const knobs = async () => {
    const pilot = await told();
    return { knobs: Object.keys(pilot.knobs).filter((knob) => !pilot.pinned.includes(knob)), now: pilot.knobs };
  };
  const pinned = async () => {
    const pins = model().autopilot?.pins ?? [];
    if (!pins.length) throw new Error("No knob of this model is pinned.");
    return { knobs: pins };
  };
  const element = withButtons(
    "Autopilot",
    actionButton("pause", model),
    actionButton("resume", model),
    actionButton("pin", model, knobs),
    actionButton("unpin", model, pinned),
  );
  const facts = factList();
  element.append(facts.element);
  return {
    element,
    update({ autopilot }) {
      element.hidden = !autopilot;
      if (autopilot)
        facts.set([
          ["Mode", autopilot.mode],
          ["Now", autopilot.phase],
          ["Pinned", (autopilot.pins ?? []).join(", ") || "nothing"],
        ]);
    },
  };
}

function cachePart(model) {
  const element = withButtons("Result cache", actionButton("clear", model));
  const facts = factList();
  element.append(facts.element);
  return {
    element,
    update({ cache }) {
      element.hidden = !cache;
      if (cache)
        facts.set([
          ["Answered from it", percent(cache.hit_ratio)],
          ["Answers kept", number(cache.entries)],
          ["Memory", bytes(cache.bytes)],
        ]);
    },
  };
}

function variantsPart() {
  const element = panel("Variants");
  const facts = factList();
  element.append(h("p", { class: "hint" }, "Who answers requests of which priority now (1 is the highest)."), facts.element);
  return {
    element,
    update({ variants }) {
      element.hidden = !variants;
      if (variants) facts.set(Object.entries(variants).map(([priority, by]) => [`Priority ${priority}`, String(by)]));
    },
  };
}

function knobsPart(model) {
  const address = () => `models/${encodeURIComponent(model().name)}?${new URLSearchParams({ version: model().version })}`;
  const context = async () => {
    const { knobs } = await ask(address());
    return { knobs: Object.keys(knobs), now: knobs };
  };
  const element = withButtons("Knobs", actionButton("set", model, context));
  const facts = factList();
  const more = h("details", {}, h("summary", {}, "All that can be changed while it serves"), facts.element);
  element.append(more);
  let askedAt = -Infinity;
  more.addEventListener("toggle", () => (askedAt = -Infinity));
  return {
    element,
    async update() {
      if (!more.open || performance.now() - askedAt < KNOBS_EVERY_MS) return;
      askedAt = performance.now();
      try {
        const { knobs, tuned } = await ask(address());
        facts.set(
          Object.entries(knobs).map(([knob, value]) => {
            const held = knob in (tuned ?? {}) ? `${text(tuned[knob])} (autopilot; configured ${text(value)})` : text(value);
            return [knob, held];
          }),
        );
      } catch (error) {
        facts.set([["Not known", error.message]]);
      }
    },
  };
}

const text = (value) =>
  value === "" || (Array.isArray(value) && !value.length) ? NONE : typeof value === "string" ? value : JSON.stringify(value);

function factList() {
  const element = h("dl", { class: "facts" });
  return {
    element,
    set: (pairs) =>
      keyed(
        element,
        pairs,
        ([name]) => name,
        ([name]) => h("div", {}, h("dt", {}, name), h("dd")),
        (item, [, value]) => write(item.lastChild, value ?? NONE),
      ),
  };
}
