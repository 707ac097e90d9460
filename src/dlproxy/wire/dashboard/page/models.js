// The overview: is it well, and what does each model do? Of many models only the rows that can be seen are drawn.

import { actionButton } from "./actions.js";
import { h, keyed, mark, panel, plainTable, svg, write } from "./dom.js";
import { eventRow } from "./events.js";
import { NONE, bytes, number, percent, plural, rate, seconds } from "./format.js";
import { active, addressOf, concerns, keyOf, stateOf, worst } from "./health.js";
import { bar, drawBar, legend } from "./phases.js";
import { ask } from "./server.js";

const ALL_DRAWN = 60; // up to so many rows all are drawn, so that the browser's own search finds them
const SPARE = 8; // rows above and below what is seen
const SORT_MS = 5000; // rows keep their places so long, and for as long as the pointer is on them
const MOST_CONCERNS = 8;
const HOLD_S = 10;

const COLUMNS = [
  { id: "name", title: "Model", sort: (m) => m.name },
  { id: "state", title: "State", sort: (m) => ["bad", "warn", "busy", "good", "rest"].indexOf(stateOf(m).level) },
  { id: "rate", title: "Rate", sort: (m) => -(m.rate ?? 0), num: true, largest: true },
  {
    id: "p99",
    title: "p99",
    sort: (m) => -(m.p99_s ?? -1),
    num: true,
    largest: true,
    help: "99 % of the answers take no longer; beside it what is wanted",
  },
  {
    id: "time",
    title: "Where the time goes",
    sort: (m) => -(m.p50_s ?? -1),
    largest: true,
    help: "of a request, in the mean; in order of its p50",
  },
  {
    id: "batch",
    title: "Batch",
    sort: (m) => -(m.batch_rows ?? -1),
    num: true,
    largest: true,
    help: "rows of a batch in the mean",
  },
  { id: "queue", title: "Queue", sort: (m) => -(m.queued ?? 0), num: true, largest: true, help: "requests that wait" },
  {
    id: "use",
    title: "Busy",
    sort: (m) => -(m.utilisation ?? 0),
    num: true,
    largest: true,
    help: "share of the time in which its instances compute",
  },
];
const FILTERS = [
  ["all", "All", () => true],
  ["active", "Active", active],
  ["troubled", "Need attention", (model) => worst(concerns(model)) !== ""],
];

export function modelsView(state) {
  const summary = summaryPanel();
  const list = modelTable(state);
  const events = h("ol", { class: "events" });
  const eventsPanel = panel("Latest events", events, h("p", { class: "more" }, h("a", { href: "#/events" }, "All events")));
  const upstreams = listPanel("Upstreams", ["Server", "Model", "State", "Batches under way"]);
  const tenants = listPanel("Quotas", ["Whose", "Admitted", "Refused", "Under way", "Limits"]);
  const element = h(
    "div",
    {},
    h("h1", { class: "unseen" }, "Models"),
    summary.element,
    list.element,
    h("div", { class: "columns" }, h("div", {}, eventsPanel), h("div", {}, upstreams.element, tenants.element)),
  );
  return {
    element,
    update(changed) {
      summary.update(state);
      list.update(changed);
      const newest = state.events.slice(-8).reverse();
      keyed(
        events,
        newest,
        (event) => `${event.at} ${event.model} ${event.words}`,
        (event) => eventRow(event, state.at),
      );
      eventsPanel.hidden = !newest.length;
      upstreams.update(state.upstreams, (one) => [
        one.address,
        one.model.replace(/\/1$/, "").replace(/\/([^/]*)$/, " $1"),
        one.state,
        number(one.busy),
      ]);
      tenants.update(state.tenants, (one) => [
        one.name === "*" ? "anybody else" : one.name,
        rate(one.rate),
        rate(one.refused_rate),
        number(one.running),
        limitsOf(one),
      ]);
    },
    close: list.close,
  };
}

function limitsOf(one) {
  const limits = [
    one.requests_per_s && rate(one.requests_per_s),
    one.rows_per_s && `${number(one.rows_per_s)} rows/s`,
    one.concurrent && `${number(one.concurrent)} at a time`,
  ];
  return limits.filter(Boolean).join(", ") || "none";
}

function listPanel(title, headings) {
  const body = h("tbody");
  const element = panel(title, plainTable(headings, body));
  return {
    element,
    update(items, cells) {
      element.hidden = !items.length;
      keyed(
        body,
        items,
        (one) => `${one.name} ${one.model ?? one.of}`,
        () =>
          h(
            "tr",
            {},
            headings.map(() => h("td")),
          ),
        (row, one) => cells(one).forEach((text, index) => write(row.cells[index], text ?? NONE)),
      );
    },
  };
}

function summaryPanel() {
  const held = heldConcerns();
  const verdict = h("p", { class: "verdict" });
  const troubles = h("ul", { class: "troubles" });
  const names = ["Requests", "Failed", "Refused", "Queue", "CPU", "Memory"];
  const tiles = names.map((name) => h("div", {}, h("dt", {}, name), h("dd")));
  const element = h(
    "section",
    { class: "summary", "aria-label": "Summary" },
    h("div", { class: "well" }, verdict, troubles),
    h("dl", { class: "tiles" }, tiles),
  );
  return {
    element,
    update({ models, server, at }) {
      const all = [...models.values()];
      const found = held(all, at);
      mark(verdict, "data-level", found.length ? worst(found[0].concerns) : server.ready === false ? "busy" : "good");
      write(verdict, verdictOf(all, found, server));
      drawTroubles(troubles, found);
      const sum = (field) => all.reduce((total, model) => total + (model[field] ?? 0), 0);
      const values = [
        rate(sum("rate")),
        rate(sum("failures_rate")),
        rate(sum("rejects_rate")),
        plural(sum("queued"), "request"),
        `${number(server.cpu)} of ${plural(server.cores ?? 0, "core")}`,
        bytes(server.memory_bytes),
      ];
      tiles.forEach((tile, index) => write(tile.lastChild, values[index]));
      mark(tiles[1], "data-level", sum("failures_rate") > 0 ? "bad" : null);
      mark(tiles[2], "data-level", sum("rejects_rate") > 0 ? "warn" : null);
    },
  };
}

// A concern stays for a while after it has gone: a list that comes and goes every second moves all that is below it.
function heldConcerns() {
  const held = new Map();
  return (models, now) => {
    const found = [];
    for (const model of models) {
      const fresh = concerns(model);
      if (fresh.length) held.set(keyOf(model), { until: now + HOLD_S, found: fresh });
      const known = held.get(keyOf(model));
      if (known && known.until > now) found.push({ model, concerns: known.found });
    }
    for (const [key, { until }] of held) if (until <= now) held.delete(key);
    const order = ({ model, concerns: of }) => `${worst(of)} ${keyOf(model)}`; // "bad" goes before "warn"
    return found.sort((a, b) => (order(a) < order(b) ? -1 : 1));
  };
}

function verdictOf(models, found, server) {
  const all = plural(models.length, models.some((model) => model.version !== "1") ? "model version" : "model");
  if (found.length) return `${found.length} of ${all} ${found.length === 1 ? "needs" : "need"} attention`;
  if (!models.length) return "No model is served";
  const up = models.filter((model) => model.state === "up").length;
  const waiting = models.filter((model) => model.state === "unloaded").length;
  if (server.ready === false || up + waiting < models.length) return `${up} of ${all} up`;
  return `All is well: ${waiting ? `${up} of ${all} up, the rest load on demand` : `${all} up`}`;
}

function drawTroubles(troubles, found) {
  const shown = found.slice(0, MOST_CONCERNS);
  const rest = found.length - shown.length;
  keyed(
    troubles,
    rest ? [...shown, null] : shown,
    (one) => (one ? keyOf(one.model) : "rest"),
    (one) => (one ? h("li", {}, h("a", { href: addressOf(one.model) }), " ", h("span")) : h("li")),
    (item, one) => {
      if (!one) return write(item, `and ${plural(rest, "more", "more")}, under “Need attention”`);
      mark(item, "data-level", worst(one.concerns));
      write(item.firstChild, nameOf(one.model));
      return write(item.lastChild, one.concerns.map((concern) => concern.words).join("; "));
    },
  );
}

export const nameOf = (model) =>
  model.version === "1" && model.default !== false ? model.name : `${model.name} ${model.version}`;

function modelTable(state) {
  const choice = remembered();
  let order = [];
  let sortedAt = 0;
  let held = false; // the pointer is on the rows
  const drawn = new Map();
  const search = h("input", {
    type: "search",
    placeholder: "Search models",
    "aria-label": "Search models",
    autocomplete: "off",
    spellcheck: "false",
  });
  const chips = FILTERS.map(([id, title]) =>
    h(
      "button",
      { type: "button", class: "chip", "data-filter": id, onclick: () => choose({ filter: id }) },
      title,
      " ",
      h("b"),
    ),
  );
  const heads = COLUMNS.map((column) =>
    h(
      "th",
      { scope: "col", class: `c-${column.id}${column.num ? " num" : ""}` },
      h(
        "button",
        {
          type: "button",
          title: column.help ?? null,
          onclick: () => choose({ by: column.id, turned: choice.by === column.id && !choice.turned }),
        },
        column.title,
      ),
    ),
  );
  const above = h("tr", { class: "space", "aria-hidden": "true" });
  const below = h("tr", { class: "space", "aria-hidden": "true" });
  const body = h("tbody", {}, above, below);
  const head = h("thead", {}, h("tr", {}, heads));
  const none = h("p", { class: "empty" });
  const table = h(
    "table",
    { class: "models" },
    h("caption", { class: "unseen" }, "Models, their load and their state"),
    h(
      "colgroup",
      {},
      COLUMNS.map((column) => h("col", { class: `c-${column.id}` })),
    ),
    head,
    body,
  );
  const box = h("div", { class: "rows", role: "region", "aria-label": "Models", tabindex: "0" }, table);
  const element = h(
    "section",
    { class: "panel models-panel" },
    h(
      "div",
      { class: "tools" },
      search,
      h("div", { class: "chips", role: "group", "aria-label": "Which models" }, chips),
      h("span", { class: "grow" }),
      actionButton("load", () => null),
    ),
    box,
    none,
    legend(["queue", "batch", "compute", "split"]),
  );

  function choose(changes) {
    Object.assign(choice, changes);
    localStorage.setItem("models", JSON.stringify(choice));
    sort();
    draw(null);
  }

  function sort() {
    const words = search.value.trim().toLowerCase().split(/\s+/);
    const keep = FILTERS.find(([id]) => id === choice.filter)[2];
    const value = COLUMNS.find((column) => column.id === choice.by).sort;
    const models = [...state.models.values()].filter(
      (model) => keep(model) && words.every((word) => nameOf(model).toLowerCase().includes(word)),
    );
    const sign = choice.turned ? -1 : 1;
    const keyed_ = models.map((model) => [value(model), model]);
    keyed_.sort(([a, one], [b, other]) => sign * (a < b ? -1 : a > b ? 1 : 0) || (nameOf(one) < nameOf(other) ? -1 : 1));
    order = keyed_.map(([, model]) => keyOf(model));
    sortedAt = performance.now();
    heads.forEach((head, index) =>
      mark(
        head,
        "aria-sort",
        COLUMNS[index].id !== choice.by ? null : choice.turned === Boolean(COLUMNS[index].largest) ? "ascending" : "descending",
      ),
    );
    for (const [index, chip] of chips.entries()) {
      const count = index ? [...state.models.values()].filter(FILTERS[index][2]).length : state.models.size;
      write(chip.lastChild, count.toLocaleString("en"));
      mark(chip, "aria-pressed", chip.dataset.filter === choice.filter);
    }
    mark(table, "aria-rowcount", order.length + 1);
    write(none, order.length ? "" : state.models.size ? "No model matches." : "No model is served yet.");
    none.hidden = order.length > 0;
    box.hidden = !order.length;
    box.classList.toggle("long", order.length > ALL_DRAWN);
  }

  // Draws the rows that can be seen; of those that stood already only what has `changed`, or everything (null).
  function draw(changed) {
    let [first, last] = [0, order.length];
    if (order.length > ALL_DRAWN) {
      const height = drawn.values().next().value?.element.offsetHeight || 36;
      first = Math.max(0, Math.min(Math.floor(box.scrollTop / height) - SPARE, order.length - 1));
      last = Math.min(order.length, first + Math.ceil((box.clientHeight || innerHeight) / height) + 2 * SPARE);
      above.style.height = `${first * height}px`;
      below.style.height = `${(order.length - last) * height}px`;
    }
    above.hidden = first === 0;
    below.hidden = last === order.length;
    const seen = new Set(order.slice(first, last));
    for (const [key, row] of drawn) {
      if (!seen.has(key)) {
        row.element.remove();
        drawn.delete(key);
      }
    }
    let place = above;
    for (const [index, key] of [...seen].entries()) {
      let row = drawn.get(key);
      const fresh = !row;
      if (fresh) drawn.set(key, (row = modelRow(state, key)));
      if (place.nextSibling !== row.element) place.after(row.element);
      place = row.element;
      mark(place, "aria-rowindex", first + index + 2);
      if (fresh || !changed || changed.has(key) || changed.has("*")) row.update();
      row.spark();
    }
  }

  const scrolled = () => requestAnimationFrame(() => element.isConnected && order.length > ALL_DRAWN && draw(new Set()));
  box.addEventListener("scroll", scrolled, { passive: true });
  addEventListener("resize", scrolled, { passive: true });
  search.addEventListener("input", () => {
    sort();
    draw(new Set());
  });
  search.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      search.value = "";
      search.blur();
      sort();
      draw(new Set());
    } else if (event.key === "Enter" && order.length) {
      location.hash = addressOf(state.models.get(order[0]));
    }
  });
  body.addEventListener("pointerenter", () => (held = true));
  body.addEventListener("pointerleave", () => (held = false));
  body.addEventListener("click", (event) => {
    const key = event.target.closest("tr")?.dataset.key;
    if (key && !event.target.closest("a") && !getSelection().toString()) location.hash = addressOf(state.models.get(key));
  });
  return {
    element,
    update(changed) {
      if (changed.has("*") || (!held && performance.now() - sortedAt > SORT_MS)) sort();
      draw(changed);
    },
    close: () => removeEventListener("resize", scrolled),
  };
}

function remembered() {
  const choice = { by: "name", turned: false, filter: "all" };
  try {
    Object.assign(choice, JSON.parse(localStorage.getItem("models")));
  } catch {
    // was written by something else
  }
  if (!COLUMNS.some((column) => column.id === choice.by)) choice.by = "name";
  return { ...choice, filter: "all" };
}

function modelRow(state, key) {
  const link = h("a", { href: addressOf(state.models.get(key)) });
  const tags = h("span", { class: "tags" });
  const status = h("span", { class: "state" });
  const count = h("small");
  const line = svg("polyline", { points: "" });
  const spark = svg("svg", { class: "spark", viewBox: "0 0 60 20", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  const amount = h("span");
  const p99 = h("span");
  const wanted = h("small");
  const time = bar();
  const [batch, goal, queue, use] = [h("span"), h("small"), h("span"), h("span")];
  const meter = h("span", { class: "meter", "aria-hidden": "true" }, h("i"));
  const contents = [
    [link, tags],
    [status, count],
    [spark, amount],
    [p99, wanted],
    [time],
    [batch, goal],
    [queue],
    [meter, use],
  ];
  const element = h(
    "tr",
    { "data-key": key },
    COLUMNS.map((column, index) =>
      h(
        index ? "td" : "th",
        { scope: index ? null : "row", class: `c-${column.id}${column.num ? " num" : ""}` },
        contents[index],
      ),
    ),
  );
  askRates(state, key, () => drawSpark());

  function drawSpark() {
    const rates = state.rates.get(key) ?? [];
    const most = Math.max(...rates, 1e-9);
    mark(
      line,
      "points",
      rates.length < 2 || most < 1e-6
        ? "0,19 60,19"
        : rates
            .map(
              (value, index) =>
                `${((index + 60 - rates.length) * (60 / 59)).toFixed(1)},${(19 - (value / most) * 17).toFixed(1)}`,
            )
            .join(" "),
    );
  }

  return {
    element,
    spark: drawSpark,
    update() {
      const model = state.models.get(key);
      if (!model) return;
      const { level, words, concerns: found } = stateOf(model);
      const instances = model.instances ?? [];
      write(link, nameOf(model));
      drawTags(tags, model);
      mark(status, "data-level", level);
      write(status, words);
      mark(status, "title", found.map((one) => one.words).join("\n") || null);
      write(count, instances.length ? `${instances.filter((one) => one.state === "up").length}/${instances.length}` : "");
      mark(count, "title", "instances up, of those there are");
      write(amount, rate(model.rate));
      write(p99, seconds(model.p99_s));
      const objective = model.objective;
      write(wanted, objective ? `of ${seconds(objective.seconds)}` : "");
      mark(p99, "data-level", objective && model.p99_s > objective.seconds ? "warn" : null);
      drawBar(time, model.phases);
      write(batch, rows_(model.batch_rows));
      write(goal, model.batch_goal && model.batch_rows !== null ? `of ${model.batch_goal}` : "");
      write(queue, number(model.queued));
      write(use, percent(model.utilisation));
      meter.firstChild.style.width = `${Math.min(1, model.utilisation ?? 0) * 100}%`;
    },
  };
}

const rows_ = (value) => (value === null || value === undefined ? NONE : number(value));

export function drawTags(element, model) {
  const tags = [];
  if (model.canary) tags.push(`canary ${percent(model.canary.share)}`);
  if (model.pipeline) tags.push("pipeline");
  keyed(
    element,
    tags,
    (tag) => tag,
    (tag) => h("span", { class: "tag" }, tag),
  );
}

// So that a sparkline has its last minute as soon as it is seen; one question at a time.
const asked = new Set();
let asking = Promise.resolve();

function askRates(state, key, done) {
  const model = state.models.get(key);
  if (asked.has(key) || !model || !active(model)) return;
  asked.add(key);
  const query = new URLSearchParams({ model: model.name, version: model.version, seconds: 60 });
  asking = asking.then(async () => {
    try {
      const past = await ask(`dashboard/history?${query}`);
      const rates = state.rates.get(key);
      if (rates && rates.length < 60)
        rates.unshift(...past.rate.slice(0, -rates.length || undefined).slice(-(60 - rates.length)));
      done();
    } catch {
      asked.delete(key); // it fills up by itself
    }
  });
}
