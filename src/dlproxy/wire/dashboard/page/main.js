// The page's state, which the feed keeps new, and which view of it is shown.

import { mark, replace, write } from "./dom.js";
import { eventsView } from "./events.js";
import { bytes, clock, plural, span } from "./format.js";
import { concerns, worst } from "./health.js";
import { modelView } from "./model.js";
import { modelsView } from "./models.js";
import { replayBar } from "./replay.js";
import { follow } from "./server.js";
import { requestsView } from "./why.js";

const MOST_EVENTS = 1000;
const POINTS = 60; // of a sparkline, seconds

export const state = {
  at: 0,
  server: {},
  models: new Map(),
  events: [],
  upstreams: [],
  tenants: [],
  rates: new Map(), // by model: the newest rates
  live: false,
};

const found = (id) => document.getElementById(id);
const replay = replayBar(state);
found("notice").before(replay.element);
let view = null;
let due = false;
let jumps = 0; // of a recording, to another instant
let jumped = false;

function heard(event, message) {
  const before = new Map([...state.models].map(([key, model]) => [key, model.state]));
  const changed = new Set(Object.keys(message.models ?? {}));
  if (event === "whole") {
    if (state.server.version && state.server.version !== message.server.version) location.reload(); // to its own page
    const fresh = state.models.size === 0;
    state.models = new Map(Object.entries(message.models));
    state.events = message.events ?? [];
    if (fresh) before.clear();
  } else {
    for (const [key, fields] of Object.entries(message.models ?? {})) {
      if (!state.models.has(key)) changed.add("*");
      state.models.set(key, { ...state.models.get(key), ...fields });
    }
    for (const key of message.gone ?? []) state.models.delete(key);
    state.events = [...state.events, ...(message.events ?? [])].slice(-MOST_EVENTS);
  }
  state.at = message.at;
  Object.assign(state.server, message.server);
  if (jumps !== (state.server.replay?.jumps ?? 0)) {
    jumps = state.server.replay?.jumps ?? 0;
    jumped = true;
    state.rates.clear();
  }
  for (const list of ["upstreams", "tenants"]) if (message[list]) state[list] = message[list];
  remember();
  announce(before);
  retitle();
  if (event === "whole" || message.gone?.length) changed.add("*");
  draw(changed, message.events ?? []);
}

function remember() {
  for (const [key, model] of state.models) {
    const rates = state.rates.get(key) ?? [];
    rates.push(model.rate ?? 0);
    if (rates.length > POINTS) rates.shift();
    state.rates.set(key, rates);
  }
  for (const key of state.rates.keys()) if (!state.models.has(key)) state.rates.delete(key);
}

function announce(before) {
  if (!before.size) return;
  const words = [];
  for (const [key, model] of state.models) {
    if (before.get(key) !== model.state) words.push(`${model.name} version ${model.version} is ${model.state}`);
  }
  for (const key of before.keys())
    if (!state.models.has(key)) words.push(`${key.replace(/\/([^/]*)$/, " version $1")} is gone`);
  if (words.length)
    write(found("announcements"), words.length > 4 ? `${words.length} models have changed their state` : words.join("; "));
}

// While nobody looks nothing is drawn; what has come meanwhile is, at once, when somebody does.
const missed = { changed: new Set(), events: [] };

function draw(changed, events) {
  for (const key of changed) missed.changed.add(key);
  missed.events.push(...events);
  if (missed.events.length > MOST_EVENTS) missed.events.splice(0, missed.events.length - MOST_EVENTS);
  if (due || document.hidden) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    const { changed: keys, events: fresh } = missed;
    missed.changed = new Set();
    missed.events = [];
    if (!view || jumped) show();
    else view.update(keys, fresh);
    chrome();
  });
}

// Also while nobody looks: that is when it is needed.
function retitle() {
  const troubled = [...state.models.values()].filter((model) => worst(concerns(model))).length;
  const title = `${troubled ? `(${troubled}) ` : ""}dlproxy ${location.host}`;
  if (document.title !== title) document.title = title;
}

function chrome() {
  const server = state.server;
  replay.update();
  found("links").hidden = Boolean(server.replay);
  mark(document.body, "data-may-change", server.may_change !== false);
  for (const button of document.querySelectorAll("button[data-action]")) button.disabled = server.may_change === false;
  found("read-only").hidden = server.may_change !== false;
  write(
    found("about"),
    `dlproxy ${server.version}, ${server.gateways ? `${plural(server.gateways, "gateway")}, ` : ""}` +
    `up ${span(state.at - server.started_at)}, ${plural(server.connections ?? 0, "connection")}, ` +
      `${bytes(server.memory_bytes)} of memory`,
  );
}

function connected(is, words) {
  const pill = found("connection");
  const notice = found("notice");
  mark(pill, "data-level", is ? "good" : "bad");
  write(pill, is ? (state.server.replay ? "Recording" : "Live") : "Not connected");
  if (state.live !== is) {
    mark(document.body, "data-stale", !is && state.at > 0);
    if (state.at) write(found("announcements"), is ? "Connected again" : words);
  }
  state.live = is;
  notice.hidden = is;
  if (!is) write(notice, `${words}; trying again.${state.at ? ` What you see is from ${clock(state.at)}.` : ""}`);
}

const VIEWS = { models: modelView, requests: requestsView, events: eventsView };

function place() {
  try {
    return location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  } catch {
    return [""]; // an address that was cut somewhere
  }
}

function show() {
  if (!state.at) return;
  const [kind, ...rest] = place();
  jumped = false;
  view?.close?.();
  const make =
    kind === "models" && rest.length ? modelView : kind && kind !== "models" ? (VIEWS[kind] ?? modelsView) : modelsView;
  view = make(state, ...rest);
  replace(found("content"), view.element);
  view.update(new Set(["*"]), []);
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash.replace(/^#\//, "");
    mark(link, "aria-current", here === (kind === "models" ? "" : kind) ? "page" : null);
  }
  chrome();
}

function themes() {
  const button = found("theme");
  const root = document.documentElement;
  const names = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };
  const now = () => root.dataset.theme ?? "auto";
  write(button, names[now()]);
  button.addEventListener("click", () => {
    const next = { auto: "light", light: "dark", dark: "auto" }[now()];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    localStorage.setItem("theme", next);
    write(button, names[next]);
    window.dispatchEvent(new Event("themechange"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("themechange")));
}

addEventListener("hashchange", () => {
  show();
  found("content").focus({ preventScroll: true });
  scrollTo(0, 0);
});
addEventListener("visibilitychange", () => draw(new Set(["*"]), []));
addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, select, textarea");
  if (event.key === "/" && !typing) {
    const search = document.querySelector("input[type=search]");
    if (search) {
      event.preventDefault();
      search.focus();
    } else {
      location.hash = "#/";
    }
  }
  if (event.key === "Escape" && !typing && location.hash.startsWith("#/models/")) location.hash = "#/";
});

themes();
follow("dashboard/feed", heard, connected);
