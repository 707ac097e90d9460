// What may be changed from here. Each action has a dialog that says what will happen, and asks first.

import { h, mark, say, write } from "./dom.js";
import { plural } from "./format.js";
import { ask } from "./server.js";

const of = (model) => `${model.name} version ${model.version}`;
const path = (model, action) => `models/${encodeURIComponent(model.name)}/${action}`;
const post = (address, body) => ({ method: "POST", path: address, body });
const order = (action, arguments_) => (model, values) => post(path(model, action), arguments_(model, values));
const knob = (label) => ({ name: "knob", label, choices: (model, context) => context.knobs ?? [] });

// `fields`: what is asked; `says(model, values, context)`: what will happen; `send`: how the server is told.
export const ACTIONS = {
  load: {
    button: "Load a model…",
    title: () => "Load a model",
    fields: [
      { name: "name", label: "Name" },
      {
        name: "path",
        label: "File on the server",
        hint: "such as /models/resnet50.onnx; empty: what the server’s repository has of it",
        optional: true,
      },
      {
        name: "share",
        label: "Share at first (%)",
        type: "number",
        min: 0,
        max: 100,
        optional: true,
        hint: "of the requests that name no version; empty: all",
      },
    ],
    says: (_, { name, path: file, share }) =>
      `The server loads ${file || "what its repository has"} as ${name || "this model"}: as its next ` +
      "version, if there is one already. " +
      (share === ""
        ? "Once it is warm it answers all requests that name no version; the one before goes on serving until then."
        : `Once it is warm it answers ${share} % of the requests that name no version.`),
    verb: () => "Load it",
    send: (_, { name, path: file, share }) =>
      post(path({ name }, "load"), { ...(file && { path: file }), ...(share !== "" && { share: share / 100 }) }),
  },
  unload: {
    button: "Unload…",
    title: (model) => `Unload ${of(model)}?`,
    danger: true,
    says: (model) =>
      `Requests for ${of(model)} are refused from now on. What is queued or under way is answered; then ` +
      "its instances stop and its memory is freed. To have it back, load it again.",
    verb: () => "Unload it",
    send: order("unload", (model) => ({ version: model.version })),
  },
  scale: {
    button: "Scale…",
    title: (model) => `Scale ${of(model)}`,
    fields: [
      {
        name: "instances",
        label: "Instances",
        type: "number",
        min: 0,
        step: 1,
        value: (model) => (model.instances ?? []).length,
      },
    ],
    says: (model, { instances }) =>
      Number(instances) === 0
        ? `All instances of ${of(model)} stop. Requests are refused until it is scaled up again.`
        : `${of(model)} runs ${plural(Number(instances), "instance")} instead of ${(model.instances ?? []).length}, and ` +
          "autoscaling holds that number. No request is lost.",
    verb: (_, { instances }) => `Scale to ${instances}`,
    send: order("scale", (model, { instances }) => ({ instances: Number(instances), version: model.version })),
  },
  set: {
    button: "Change a knob…",
    title: (model) => `Change a knob of ${of(model)}`,
    fields: [
      knob("Knob"),
      { name: "value", label: "New value", value: (_, { now }, values) => shown(now?.[values.knob]), follows: "knob" },
    ],
    says: (model, { knob: name, value }, { now }) =>
      `${name} becomes ${value === "" ? "empty" : value} instead of ${shown(now?.[name]) || "empty"}, at once ` +
      "and for queued requests too. After a restart the configuration holds again, unless the server has a store.",
    verb: (_, { knob: name }) => `Change ${name}`,
    send: (model, { knob: name, value }, { now }) => ({
      method: "PATCH",
      path: `models/${encodeURIComponent(model.name)}?${new URLSearchParams({ version: model.version })}`,
      body: { [name]: read(value, now?.[name]) },
    }),
  },
  pin: {
    button: "Pin a knob…",
    title: (model) => `Pin a knob of ${of(model)}`,
    fields: [knob("Knob")],
    says: (model, { knob: name }, { now }) =>
      `The autopilot leaves ${name} of ${of(model)} as it is` +
      `${now && name in now ? `, at ${shown(now[name])}` : ""}, until it is unpinned.`,
    verb: (_, { knob: name }) => `Pin ${name}`,
    send: order("pin", (model, { knob: name }) => ({ knobs: [name], version: model.version })),
  },
  unpin: {
    button: "Unpin a knob…",
    title: (model) => `Unpin a knob of ${of(model)}`,
    fields: [knob("Knob")],
    says: (model, { knob: name }) => `The autopilot may turn ${name} of ${of(model)} again.`,
    verb: (_, { knob: name }) => `Unpin ${name}`,
    send: order("unpin", (model, { knob: name }) => ({ knobs: [name], version: model.version })),
  },
  pause: {
    button: "Pause…",
    title: (model) => `Pause the autopilot of ${model.name}?`,
    says: (model) =>
      `The autopilot decides nothing for ${model.name} any more; its knobs stay as they are now, until it is resumed.`,
    verb: () => "Pause it",
    send: (model) => post("autopilot/pause", { model: model.name }),
  },
  resume: {
    button: "Resume…",
    title: (model) => `Resume the autopilot of ${model.name}?`,
    says: (model) => `The autopilot tunes ${model.name} again: it changes one knob at a time and undoes what does not help.`,
    verb: () => "Resume it",
    send: (model) => post("autopilot/resume", { model: model.name }),
  },
  canary: {
    button: "Canary…",
    title: (model) => `Send a part of the requests to ${of(model)}`,
    fields: [
      {
        name: "share",
        label: "Share (%)",
        type: "number",
        min: 0,
        max: 100,
        value: (model) => Math.round((model.canary?.share ?? 0.1) * 1000) / 10,
      },
      { name: "guarded", label: "Take it back when it does worse", type: "checkbox", value: () => true },
    ],
    says: (model, { share, guarded }) =>
      `${of(model)} answers ${share} % of the requests that name no version; the default version answers the rest.` +
      (guarded
        ? " If it fails more often or is slower than the default version, it loses its share by itself."
        : " Nothing takes the share back if it does worse."),
    verb: (_, { share }) => `Send it ${share} %`,
    send: order("canary", (model, { share, guarded }) => ({ version: model.version, share: share / 100, guarded })),
  },
  promote: {
    button: "Promote…",
    title: (model) => `Promote ${of(model)}?`,
    fields: [],
    says: (model) =>
      `${of(model)} answers all requests that name no version from now on. ` +
      "The other versions stay loaded; “Roll back” undoes this.",
    verb: (model) => `Promote version ${model.version}`,
    send: order("promote", (model) => ({ version: model.version })),
  },
  rollback: {
    button: "Roll back…",
    title: (model) => `Roll ${model.name} back?`,
    danger: true,
    says: (model) =>
      `If a version of ${model.name} is a canary, it loses its share of the requests; else ` +
      "the last change of its versions or of its default is undone.",
    verb: () => "Roll back",
    send: order("rollback", () => ({})),
  },
  clear: {
    button: "Clear…",
    title: (model) => `Clear the result cache of ${model.name}?`,
    says: (model) =>
      `All remembered answers of ${model.name}` +
      `${model.cache ? ` (${plural(model.cache.entries ?? 0, "entry", "entries")})` : ""} are forgotten. ` +
      "Requests are computed until the cache has filled again, so its load rises for a while.",
    verb: () => "Clear it",
    send: (model) => post("cache/clear", { model: model.name }),
  },
};

const shown = (value) =>
  value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value);

// What was typed, as JSON where the knob holds something else than text.
function read(text, now) {
  if (typeof now === "string") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

// `context`: what else the dialog needs, such as the names of knobs; may ask the server for it.
export function actionButton(name, model, context = async () => ({})) {
  const button = h(
    "button",
    { type: "button", "data-action": name, class: ACTIONS[name].danger ? "danger" : null },
    ACTIONS[name].button,
  );
  button.disabled = document.body.dataset.mayChange === "false";
  button.addEventListener("click", async () => {
    try {
      open(name, model(), await context());
    } catch (error) {
      say(error.message, "bad");
    }
  });
  return button;
}

function open(name, model, context) {
  const action = ACTIONS[name];
  const says = h("p", { class: "says", "aria-live": "polite" });
  const refused = h("p", { class: "refused", role: "alert" });
  const confirm = h("button", { class: action.danger ? "danger main" : "main" });
  const fields = (action.fields ?? []).map((field) => ({ field, ...input(field, model, context) }));
  const form = h(
    "form",
    {},
    h("h2", { id: "dialog-title" }, action.title(model)),
    fields.map((one) => one.element),
    says,
    refused,
    h("div", { class: "buttons" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), confirm),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  const values = () => Object.fromEntries(fields.map(({ field, value }) => [field.name, value()]));
  const draw = () => {
    write(says, action.says(model, values(), context));
    write(confirm, action.verb(model, values(), context));
  };
  form.addEventListener("input", (event) => {
    for (const { field, control } of fields) {
      if (field.follows && field.follows === event.target.name) control.value = field.value(model, context, values());
    }
    draw();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    confirm.disabled = true;
    mark(form, "aria-busy", true);
    write(refused, "");
    try {
      const { method, path: address, body } = action.send(model, values(), context);
      await ask(address, { method, body });
      say(`Done: ${action.says(model, values(), context).split(/[.:] /)[0].replace(/\.$/, "")}.`, "good");
      dialog.close();
    } catch (error) {
      write(refused, error.refused ? `Refused: ${error.message}` : error.message);
    }
    confirm.disabled = false;
    mark(form, "aria-busy", null);
  });
  dialog.addEventListener("close", () => dialog.remove());
  for (const { field, control } of fields)
    if (field.value && control.type !== "checkbox") control.value = field.value(model, context, values());
  draw();
  document.body.append(dialog);
  dialog.showModal();
}

function input(field, model, context) {
  const choices = field.choices?.(model, context);
  const hint = field.hint ? h("small", { class: "hint", id: `hint-${field.name}` }, field.hint) : null;
  const more = {
    name: field.name,
    "aria-describedby": hint?.id,
    required: !field.optional && field.type !== "checkbox" && field.name !== "value",
  };
  const control = choices
    ? h(
        "select",
        more,
        choices.map((choice) => h("option", { value: choice }, choice)),
      )
    : h("input", {
        ...more,
        type: field.type ?? "text",
        min: field.min,
        max: field.max,
        step: field.step ?? (field.type === "number" ? "any" : null),
        autocomplete: "off",
        spellcheck: "false",
      });
  if (field.type === "checkbox") control.checked = field.value(model);
  const label =
    field.type === "checkbox" ? h("label", { class: "check" }, control, field.label) : h("label", {}, field.label, control);
  const element = h("div", { class: "field" }, label, hint);
  return { element, control, value: () => (field.type === "checkbox" ? control.checked : control.value) };
}
