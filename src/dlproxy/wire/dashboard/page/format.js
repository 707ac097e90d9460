// Values as people read them, always with their unit.

export const NONE = "–";
const NB = "\u00a0"; // a number and its unit stay on one line
const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

export function number(value) {
  if (!known(value)) return NONE;
  const size = Math.abs(value);
  if (size >= 1e6) return `${digits(value / 1e6)}${NB}M`;
  if (size >= 1e4) return `${digits(value / 1e3)}${NB}k`;
  return digits(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 100) return Math.round(value).toLocaleString("en");
  return size >= 10 ? String(Number(value.toFixed(1))) : size >= 0.01 ? String(Number(value.toFixed(2))) : value.toPrecision(1);
}

export const rate = (value) => (known(value) ? `${number(value)}/s` : NONE);
export const rows = (value) => (known(value) ? `${number(value)}${NB}${value === 1 ? "row" : "rows"}` : NONE);

export function seconds(value) {
  if (!known(value)) return NONE;
  if (value === 0) return `0${NB}ms`;
  if (Math.abs(value) < 0.9995e-3) return `${digits(value * 1e6)}${NB}µs`;
  return Math.abs(value) < 0.9995 ? `${digits(value * 1e3)}${NB}ms` : `${digits(value)}${NB}s`;
}

export function percent(share) {
  if (!known(share)) return NONE;
  const value = share * 100;
  const near = Math.abs(100 - value);
  return `${Number(value.toFixed(near > 0 && near < 1 ? 2 : Math.abs(value) < 10 ? 1 : near < 10 ? 1 : 0))}${NB}%`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1];
  return `${digits(value)}${NB}${units[unit]}`;
}

export const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

export function span(value) {
  if (!known(value)) return NONE;
  if (value < 60) return `${Math.round(value)}${NB}s`;
  if (value < 3600) return `${Math.floor(value / 60)}${NB}min`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.floor((value % 3600) / 60)}${NB}min`;
  return `${Math.floor(value / 86400)} d ${Math.floor((value % 86400) / 3600)}${NB}h`;
}

const two = (value) => String(value).padStart(2, "0");

export function clock(at, withSeconds = true) {
  const date = new Date(at * 1e3);
  return `${two(date.getHours())}:${two(date.getMinutes())}${withSeconds ? `:${two(date.getSeconds())}` : ""}`;
}

export function moment(at, now) {
  const date = new Date(at * 1e3);
  const day =
    new Date(now * 1e3).toDateString() === date.toDateString() ? "" : `${two(date.getMonth() + 1)}-${two(date.getDate())} `;
  return day + clock(at);
}
