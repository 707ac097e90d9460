// Whether it is well: what an operator should look at, worst first. Pure: it looks at the values of the feed.

import { percent, plural, rate, seconds } from "./format.js";

export const keyOf = (model) => `${model.name}/${model.version}`;
export const addressOf = (model) => `#/models/${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;
export const active = (model) => model.rate > 0 || model.queued > 0 || model.running > 0;

const rank = { bad: 0, warn: 1 };

// [{level: "bad" | "warn", words}] of one model.
export function concerns(model) {
  const found = [];
  const add = (level, words) => found.push({ level, words });
  if (model.state === "failed") add("bad", model.reason ? `cannot be served: ${model.reason}` : "cannot be served");
  if (model.state === "down") add("bad", "no instance is up");
  const away = (model.instances ?? []).filter((instance) => instance.state !== "up");
  if (model.state === "up" && away.length) {
    const states = [...new Set(away.map((instance) => instance.state))].join(", ");
    add("warn", `${away.length} of ${plural(model.instances.length, "instance")} not up (${states})`);
  }
  if (model.failures_rate > 0) add("bad", `${rate(model.failures_rate)} requests fail`);
  const wanted = model.objective;
  if (wanted && wanted.met < wanted.share && wanted.met !== null) {
    const better = model.p99_s !== null && model.p99_s <= wanted.seconds ? `; now p99 is ${seconds(model.p99_s)}` : "";
    const within = `were answered within ${seconds(wanted.seconds)}, wanted ${percent(wanted.share)}`;
    add("warn", `of this hour’s requests ${percent(wanted.met)} ${within}${better}`);
  }
  if (model.alarm) add("warn", model.alarm);
  if (model.rejects_rate > 0) add("warn", `${rate(model.rejects_rate)} requests are refused`);
  return found.sort((a, b) => rank[a.level] - rank[b.level]);
}

export const worst = (found) => (found.length ? found[0].level : "");

// How a model's state is called, and which colour it gets.
export function stateOf(model) {
  const found = concerns(model);
  const level = worst(found) || (model.state === "up" ? "good" : model.state === "unloaded" ? "rest" : "busy");
  return { level, words: model.state, concerns: found };
}
