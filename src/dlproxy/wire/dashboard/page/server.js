// Everything that is asked of the server: the feed, and single questions and orders. Asks for a key where one is needed.

import { h } from "./dom.js";

const SILENT_MS = 40000; // the feed says something every 15 s
const LONGEST_WAIT_MS = 5000;
let prompted = null;

const KEY = "dlproxy key";
const headers = (more = {}) => {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
};

// The JSON of an answer. Throws an Error with the server's own words, then `refused`, or because it cannot be reached.
export async function ask(path, { method = "GET", body } = {}) {
  for (;;) {
    const more = body === undefined ? {} : { "Content-Type": "application/json" };
    let reply;
    try {
      reply = await fetch(path, {
        method,
        headers: headers(more),
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      throw new Error("The server cannot be reached.");
    }
    if (reply.status === 401) {
      await askForKey(await wordsOf(reply));
      continue;
    }
    if (!reply.ok) throw Object.assign(new Error(await wordsOf(reply)), { refused: true });
    return reply.json();
  }
}

async function wordsOf(reply) {
  const text = await reply.text();
  try {
    const said = JSON.parse(text);
    if (typeof said.error === "string") return said.error;
  } catch {
    // no JSON: an intermediary's answer, shown as it is
  }
  return text.slice(0, 300) || `The server answered ${reply.status}.`;
}

// Whoever needs a key waits for the same prompt.
function askForKey(words) {
  prompted ??= new Promise((given) => {
    const input = h("input", {
      type: "password",
      name: "key",
      autocomplete: "off",
      required: true,
      "aria-describedby": "key-words",
    });
    const dialog = h(
      "dialog",
      { "aria-labelledby": "key-title" },
      h(
        "form",
        { method: "dialog" },
        h("h2", { id: "key-title" }, "This server asks for a key"),
        h("p", { id: "key-words" }, words),
        h("label", {}, "API key or token", input),
        h("p", { class: "hint" }, "It is kept until this tab is closed, and sent to this server only."),
        h("div", { class: "buttons" }, h("button", { class: "main" }, "Use this key")),
      ),
    );
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, input.value.trim());
      dialog.remove();
      prompted = null;
      given();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return prompted;
}

// Follows the feed for ever: `heard(event, message)` for each message, `connected(is, words)` when that changes.
export async function follow(path, heard, connected) {
  let wait = 500;
  for (;;) {
    const control = new AbortController();
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => control.abort(), SILENT_MS);
    };
    let why = "The server has ended the connection";
    try {
      alive();
      const reply = await fetch(path, { headers: headers(), signal: control.signal, cache: "no-store" });
      if (reply.status === 401) {
        connected(false, "A key is needed");
        await askForKey(await wordsOf(reply));
        continue;
      }
      if (!reply.ok) throw new Error(await wordsOf(reply));
      for await (const [event, data] of events(reply.body, alive)) {
        heard(event, JSON.parse(data));
        connected(true, "Live");
        wait = 500;
      }
    } catch (error) {
      why = error instanceof TypeError || error.name === "AbortError" ? "The server cannot be reached" : error.message;
    } finally {
      clearTimeout(timer);
      control.abort();
    }
    connected(false, why);
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 1.7, LONGEST_WAIT_MS);
  }
}

async function* events(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      let event = "message";
      let data = "";
      for (const line of part.split("\n")) {
        if (line.startsWith("event:")) event = line.slice(6).trim();
        if (line.startsWith("data:")) data += line.slice(5);
      }
      if (data) yield [event, data];
    }
  }
}
