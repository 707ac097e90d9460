// The bar of a recording that is played again: pause, another instant, another speed. Nothing of it shows on a live server.

import { h, mark, say, write } from "./dom.js";
import { clock } from "./format.js";
import { ask } from "./server.js";

const STEP_S = 10; // by the keys Page Up and Page Down, of which a slider knows nothing better

export function replayBar(state) {
  const play = h("button", { type: "button", class: "quiet", onclick: () => steer({ playing: !state.server.replay.playing }) });
  const at = h("input", { type: "range", step: "any", "aria-label": "Time" });
  const time = h("output", {});
  const speed = h("select", { "aria-label": "Speed" });
  const element = h("div", { class: "replay", role: "group", "aria-label": "Recording", hidden: true }, play, at, time, speed);
  let held = false; // while somebody moves the slider it does not move by itself

  async function steer(how) {
    try {
      await ask("dashboard/replay", { method: "POST", body: how });
    } catch (error) {
      say(error.message, "bad");
    }
  }

  at.addEventListener("input", () => {
    held = true;
    write(time, clock(Number(at.value)));
  });
  at.addEventListener("change", () => {
    held = false;
    steer({ at: Number(at.value) });
  });
  at.addEventListener("keydown", (event) => {
    const step = { PageUp: STEP_S, PageDown: -STEP_S }[event.key];
    if (!step) return;
    event.preventDefault();
    steer({ at: Number(at.value) + step });
  });
  speed.addEventListener("change", () => steer({ speed: Number(speed.value) }));
  return {
    element,
    update() {
      const replay = state.server.replay;
      element.hidden = !replay;
      if (!replay) return;
      write(play, replay.playing ? "Pause" : "Play");
      mark(at, "min", replay.from);
      mark(at, "max", replay.to);
      if (!held) {
        at.value = state.at;
        write(time, clock(state.at));
      }
      if (speed.children.length !== replay.speeds.length)
        speed.replaceChildren(...replay.speeds.map((one) => h("option", { value: one }, `${one} ×`)));
      if (document.activeElement !== speed) speed.value = replay.speed;
    },
  };
}
