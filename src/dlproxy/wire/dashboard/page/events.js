// What happened and what was decided, newest first.

import { h, keyed, write } from "./dom.js";
import { moment, plural } from "./format.js";

export const KINDS = {
  instance: "instances",
  load: "loads",
  unload: "unloads",
  knobs: "knobs",
  autopilot: "autopilot",
  canary: "canaries",
  alarm: "alarms",
  circuit: "circuits",
};
const SHOWN = 200;

export function eventRow(event, now, withModel = true) {
  return h(
    "li",
    { "data-kind": event.kind },
    h("time", { datetime: new Date(event.at * 1e3).toISOString() }, moment(event.at, now)),
    h("span", { class: "kind" }, event.kind),
    h("span", { class: "words" }, withModel && event.model ? h("b", {}, `${event.model}: `) : null, event.words),
  );
}

export function drawEvents(list, events, now, withModel = true) {
  keyed(
    list,
    events,
    (event) => `${event.at} ${event.model} ${event.words}`,
    (event) => eventRow(event, now, withModel),
  );
}

export function eventsView(state) {
  const kind = h(
    "select",
    { "aria-label": "Kind of event" },
    h("option", { value: "" }, "All kinds"),
    Object.entries(KINDS).map(([value, title]) => h("option", { value }, title)),
  );
  const search = h("input", {
    type: "search",
    placeholder: "Search events",
    "aria-label": "Search events",
    autocomplete: "off",
  });
  const count = h("span", { class: "hint" });
  const list = h("ol", { class: "events" });
  const element = h(
    "div",
    {},
    h("h1", {}, "Events"),
    h("section", { class: "panel" }, h("div", { class: "tools" }, search, kind, count), list),
  );
  const draw = () => {
    const words = search.value.trim().toLowerCase();
    const found = state.events.filter(
      (event) => (!kind.value || event.kind === kind.value) && `${event.model} ${event.words}`.toLowerCase().includes(words),
    );
    drawEvents(list, found.slice(-SHOWN).reverse(), state.at);
    write(count, `${plural(found.length, "event")}${found.length > SHOWN ? `, the newest ${SHOWN} shown` : ""}`);
  };
  kind.addEventListener("change", draw);
  search.addEventListener("input", draw);
  return { element, update: (changed, fresh) => (changed.has("*") || fresh.length) && draw() };
}
