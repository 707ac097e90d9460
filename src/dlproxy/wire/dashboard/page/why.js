// Slow and failed requests, and why: their causes, where their time went, and what is usual.

import { h, keyed, mark, replace, write } from "./dom.js";
import { moment, plural, seconds } from "./format.js";
import { bar, drawBar, legend, table } from "./phases.js";
import { ask } from "./server.js";

const EVERY_MS = 5000;
const MOST = 50;
const KINDS = [
  ["slow", "Slow"],
  ["failed", "Failed"],
  ["noted", "Noted"],
  ["sample", "Samples"],
];
const KEPT = {
  slow: "among the slowest of its ten seconds",
  failed: "it failed",
  noted: "something rare happened to it",
  sample: "a sample, one each second",
};

export function requestsView(state) {
  const list = whyList(() => state.at);
  return {
    element: h(
      "div",
      {},
      h("h1", {}, "Slow and failed requests"),
      h(
        "p",
        { class: "lead" },
        "Kept are the slowest of each ten seconds, failures, and a sample, each with where its time went and what explains it.",
      ),
      list.element,
    ),
    update: list.tick,
    close: list.close,
  };
}

// Of one model, or of all: asks again every few seconds, but never moves what somebody reads.
export function whyList(now, model = null) {
  let kind = "slow";
  let found = null;
  let askedAt = 0;
  let hovered = false;
  let closed = false;
  const status = h("p", { class: "empty", role: "status" }, "Asking the server…");
  const list = h("ul", { class: "requests" });
  const single = h("div", { class: "single" });
  const chips = KINDS.map(([id, title]) =>
    h("button", { type: "button", class: "chip", "aria-pressed": id === kind, onclick: () => choose(id) }, title),
  );
  const id = h("input", {
    type: "search",
    placeholder: "Find by request id",
    "aria-label": "Find by request id",
    autocomplete: "off",
    spellcheck: "false",
  });
  const form = h("form", { class: "find" }, id, h("button", {}, "Find"));
  const element = h(
    "section",
    { class: "panel" },
    model ? h("h2", {}, "Slow and failed requests") : null,
    h(
      "div",
      { class: "tools" },
      h("div", { class: "chips", role: "group", "aria-label": "Which requests" }, chips),
      h("span", { class: "grow" }),
      form,
    ),
    single,
    status,
    list,
    legend(),
  );

  function choose(next) {
    kind = next;
    chips.forEach((chip, index) => mark(chip, "aria-pressed", KINDS[index][0] === kind));
    refresh(true);
  }

  async function refresh(whole = false) {
    askedAt = performance.now();
    const query = new URLSearchParams({ kind, limit: MOST });
    if (model) query.set("model", model.name);
    try {
      const answer = await ask(`why?${query}`);
      found = answer.filter((one) => !model || !one.version || one.version === model.version);
    } catch (error) {
      found = null;
      write(status, error.message);
    }
    if (closed) return;
    status.hidden = Boolean(found?.length);
    if (found && !found.length)
      write(status, kind === "failed" ? "No request has failed of late." : "None is kept yet: send some requests.");
    if (whole || !found || !reading()) draw();
  }

  const reading = () => hovered || list.querySelector("details[open]") || list.contains(document.activeElement);

  function draw() {
    keyed(
      list,
      found ?? [],
      (one) => one.id,
      (one) => h("li", {}, requestDetails(one, now(), !model)),
    );
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wanted = id.value.trim();
    if (!wanted) return replace(single);
    try {
      const one = await ask(`why/${encodeURIComponent(wanted)}`);
      const shown = Array.isArray(one) ? one : [one];
      replace(
        single,
        shown.map((found_) => requestDetails(found_, now(), !model, true)),
      );
    } catch (error) {
      replace(single, h("p", { class: "refused", role: "alert" }, error.message));
    }
    return undefined;
  });
  id.addEventListener("input", () => id.value || replace(single));
  list.addEventListener("pointerenter", () => (hovered = true));
  list.addEventListener("pointerleave", () => (hovered = false));
  refresh(true);
  return {
    element,
    tick() {
      if (performance.now() - askedAt > EVERY_MS && !document.hidden) refresh();
    },
    close: () => (closed = true),
  };
}

function requestDetails(one, now, withModel, open = false) {
  const phases = bar();
  drawBar(phases, one.phases);
  const failed = one.outcome === "failed";
  const first = failed && one.failure ? one.failure.message : (one.causes[0]?.words ?? "nothing unusual");
  const summary = h(
    "summary",
    {},
    h("time", { datetime: new Date(one.at * 1e3).toISOString() }, moment(one.at, now)),
    h(
      "b",
      { class: "took", "data-level": failed ? "bad" : null },
      failed ? `failed, ${seconds(one.seconds)}` : seconds(one.seconds),
    ),
    h("span", { class: "cause" }, withModel ? h("b", {}, `${one.model}:`) : null, withModel ? " " : null, first),
    phases,
  );
  return h("details", { open }, summary, details(one));
}

function details(one) {
  const causes = one.causes.length
    ? h(
        "ol",
        { class: "causes" },
        one.causes.map((cause) => h("li", {}, h("b", {}, seconds(cause.seconds)), " ", cause.words)),
      )
    : h("p", { class: "hint" }, "No phase took longer than usual.");
  const batch = one.batch;
  const facts = [
    ["Kept because", KEPT[one.kept_as] ?? one.kept_as],
    ["Model", `${one.model} version ${one.version}`],
    ["Request", [one.request_id, `number ${one.id}`].filter(Boolean).join(", ")],
    ["Rows", one.rows],
    [
      "Batch",
      batch &&
        `number ${batch.number}: ${plural(batch.rows, "row")} of ${plural(batch.requests, "request")} on ${batch.instance}`,
    ],
    ["Started because", batch && (REASONS[batch.reason] ?? batch.reason)],
    ["Meanwhile", (one.meanwhile ?? []).map((what) => what.words).join("; ")],
    [
      "Failure",
      one.failure &&
        one.failure.kind.replaceAll("_", " ") +
          `${one.failure.reason ? ` (${one.failure.reason})` : ""}: ${one.failure.message}`,
    ],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h(
    "div",
    { class: "details" },
    h("div", {}, h("h3", {}, "What explains it"), causes),
    h("div", {}, h("h3", {}, "Where its time went"), table(one.phases, one.usual ?? {})),
    h(
      "div",
      {},
      h("h3", {}, "Facts"),
      h(
        "dl",
        { class: "facts" },
        facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value)))),
      ),
    ),
  );
}

// Why its batch started then.
const REASONS = {
  idle: "an instance was idle",
  turn: "it was the model’s turn on the cores",
  retry: "it ran again, after an error or a loss",
  hedge: "it ran a second time, beside a run that was late",
  probe: "one request tried an instance that was slow",
};
