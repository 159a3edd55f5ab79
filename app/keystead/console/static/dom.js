// Builds what is shown, from elements and text alone: nothing that comes from data is ever markup.

const SVG = "http://www.w3.org/2000/svg";
const ATTRIBUTES = new Set(
  (
    "accept alt autocomplete checked class cols colspan datetime disabled download for height hidden href id inputmode " +
    "lang max maxlength min multiple name novalidate open pattern placeholder readonly rel required role rows scope " +
    "selected spellcheck step tabindex title type value width wrap"
  ).split(" "),
);

// An element: attributes of the list above, `aria-…` and `data-…`; a function is a listener. Children are elements or text.
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "value") element.value = value;
    else if (name === "href") element.setAttribute(name, safe(value));
    else if (ATTRIBUTES.has(name) || /^(aria|data)-[a-z-]+$/.test(name)) {
      element.setAttribute(name, value === true ? "" : String(value));
    } else throw new Error(`${name} is not an attribute of the console`);
  }
  element.append(...shownOf(children));
  return element;
}

const shownOf = (children) =>
  children.flat(Infinity).filter((each) => each !== undefined && each !== null && each !== false);

// Only to this server, or to what the page itself has made.
function safe(href) {
  const url = new URL(href, document.baseURI);
  if (url.protocol !== "blob:" && url.origin !== location.origin) throw new Error("links lead to this server alone");
  return href;
}

// An element of a picture; its attributes are the caller's own and never data.
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.append(...shownOf(children));
  return element;
}

export function show(parent, ...children) {
  parent.replaceChildren(...shownOf(children));
}

// Tell it to screen readers, and show it for a while.
let forget = 0;
export function say(text) {
  const status = document.getElementById("status");
  status.textContent = text;
  clearTimeout(forget);
  forget = setTimeout(() => {
    status.textContent = "";
  }, 8000);
}

export function button(text, action, kind = "") {
  return el("button", { type: "button", class: kind, click: action }, text);
}

// Runs `action` while the button waits; its failure is shown in `where`.
export function acting(text, action, where, kind = "") {
  const made = button(
    text,
    async () => {
      made.setAttribute("aria-disabled", "true");
      if (made.dataset.runs) return;
      made.dataset.runs = "1";
      show(where);
      try {
        await action();
      } catch (error) {
        fail(where, error);
      } finally {
        delete made.dataset.runs;
        made.removeAttribute("aria-disabled");
      }
    },
    kind,
  );
  return made;
}

// A sentence for a failure, with its code and a link to the error reference.
export function failure(error) {
  const list = error.errors ?? [
    { code: "", message: "The console has a fault here; the browser's console has its words." },
  ];
  if (!error.errors) console.error(error);
  return el(
    "div",
    { class: "failure", role: "alert" },
    list.map((each) => el("p", {}, sentence(each, error.status))),
  );
}

function sentence(each, status) {
  const place = each.pointer && each.pointer !== "/" ? `${each.pointer.replace(/^\//, "")}: ` : "";
  const code = each.code === "" || each.code === undefined ? null : String(each.code);
  const linked = each.link ? el("a", { href: each.link, rel: "noopener" }, code) : code;
  const denied =
    status === 403 && (each.code === 9109 || each.code === 403)
      ? " Your token may not do this, or what it needs is not there for it."
      : "";
  return [place, each.message, denied, code ? [" (", linked, ")"] : null];
}

// Shows a failure, or that the person did not want to wait.
export function fail(where, error) {
  show(where, error.name === "AbortError" ? el("p", { class: "quiet" }, "Cancelled.") : failure(error));
}

// What the API has to say beside its answer.
export function advice(messages) {
  if (!messages?.length) return null;
  return el(
    "ul",
    { class: "advice" },
    messages.map((each) => el("li", {}, `${each.message} (${each.code})`)),
  );
}

export function chip(text, kind = "") {
  return el("span", { class: `chip ${kind}` }, text);
}

// `columns`: [{name, cell: (row) => child, class}].
export function table(caption, columns, rows, none = "None.") {
  if (rows.length === 0) return el("p", { class: "none" }, none);
  const head = el(
    "tr",
    {},
    columns.map((column) => el("th", { scope: "col", class: column.class }, column.name)),
  );
  const body = rows.map((row) =>
    el(
      "tr",
      {},
      columns.map((column) => el("td", { class: column.class, "data-label": column.name }, column.cell(row))),
    ),
  );
  const made = el("table", {}, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body));
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": caption }, made);
}

// Buttons for the pages of a list; `info` is the envelope's result_info.
export function pager(info, go) {
  if (!info || info.total_pages <= 1) return null;
  const step = (text, page, possible) =>
    el("button", { type: "button", disabled: !possible, click: () => go(page) }, text);
  return el(
    "nav",
    { class: "pager", "aria-label": "Pages of the list" },
    step("Previous", info.page - 1, info.page > 1),
    el("span", {}, `Page ${info.page} of ${info.total_pages}, ${info.total_count} in all`),
    step("Next", info.page + 1, info.page < info.total_pages),
  );
}

let fields = 0;

// `field` is {name, label, hint, type, required, value, options: [[value, text]], rows, ...attributes}.
function fieldOf({ name, label, hint, type = "text", required, options, rows, value, ...others }) {
  const id = `f${++fields}`;
  const about = `${id}-hint ${id}-error`;
  const common = { id, name, "aria-describedby": about, required, autocomplete: "off", spellcheck: "false", ...others };
  let input;
  if (options)
    input = el(
      "select",
      common,
      options.map(([each, text]) => el("option", { value: each }, text)),
    );
  else if (rows) input = el("textarea", { ...common, rows });
  else input = el("input", { ...common, type });
  if (type === "checkbox") input.checked = Boolean(value);
  else if (value !== undefined) input.value = value;
  const title = el(
    "label",
    { for: id },
    label,
    required || options || type === "checkbox" ? null : el("span", { class: "optional" }, " optional"),
  );
  const notes = [
    el("span", { class: "hint", id: `${id}-hint` }, hint ?? ""),
    el("span", { class: "wrong", id: `${id}-error` }),
  ];
  const parts = type === "checkbox" ? [input, title] : [title, input];
  return el("div", { class: `field ${type}` }, parts, notes);
}

// A form whose failures stand at their fields. `submit(values)` gets the texts of the fields by name (checkbox: boolean);
// `fields` are in the order of the form; a pointer such as /sans/2 is of the field `sans`.
export function form({ fields: wanted, verb, submit, extra, compact, narrow }) {
  const problems = el("div", { class: "problems" });
  const send = el("button", { type: "submit", class: compact ? "" : "first" }, verb);
  const made = el(
    "form",
    { novalidate: true, class: compact ? "compact" : narrow ? "narrow" : "" },
    problems,
    el("div", { class: "fields" }, wanted.map(fieldOf)),
    el("p", { class: "actions" }, send, extra),
  );
  made.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (made.dataset.runs) return;
    made.dataset.runs = "1";
    send.setAttribute("aria-disabled", "true");
    clear(made, problems);
    try {
      if (complete(made)) await submit(valuesOf(made));
    } catch (error) {
      place(made, problems, error);
    } finally {
      delete made.dataset.runs;
      send.removeAttribute("aria-disabled");
    }
  });
  return made;
}

function valuesOf(made) {
  const inputs = [...made.elements].filter((each) => each.name);
  return Object.fromEntries(inputs.map((each) => [each.name, each.type === "checkbox" ? each.checked : each.value]));
}

function clear(made, problems) {
  show(problems);
  for (const input of made.elements) {
    input.removeAttribute("aria-invalid");
    const wrong = document.getElementById(`${input.id}-error`);
    if (wrong) show(wrong);
  }
}

function complete(made) {
  const empty = [...made.elements].filter((each) => each.required && each.value.trim() === "");
  for (const input of empty) mark(input, ["This is needed."]);
  empty[0]?.focus();
  return empty.length === 0;
}

function mark(input, what) {
  input.setAttribute("aria-invalid", "true");
  document.getElementById(`${input.id}-error`).append(el("span", { class: "one" }, what));
}

function place(made, problems, error) {
  const elsewhere = [];
  let first = null;
  for (const each of error.errors ?? []) {
    const name = (each.pointer ?? "").split("/")[1];
    const input = name ? made.elements.namedItem(name) : null;
    if (input instanceof HTMLElement && input.id) {
      mark(input, sentence({ ...each, pointer: undefined }, error.status));
      first ??= input;
    } else elsewhere.push(each);
  }
  if (elsewhere.length > 0) show(problems, failure({ errors: elsewhere, status: error.status }));
  else if (!error.errors) fail(problems, error);
  first?.focus();
}

// A dialog; `content(close)` gives what is in it. Escape closes it, and the focus goes back to where it was.
export function dialog(title, content) {
  const id = `d${++fields}`;
  const made = el("dialog", { "aria-labelledby": id });
  const close = () => made.close();
  made.append(el("h2", { id, tabindex: "-1" }, title), ...[content(close)].flat(Infinity).filter(Boolean));
  made.addEventListener("close", () => made.remove());
  // A page that is left takes its dialogs with it.
  document.getElementById("main").append(made);
  made.showModal();
  return made;
}

// Asks before what cannot be taken back; `action` runs while the dialog is open, and its failure is shown there.
export function ask(title, text, verb, action) {
  const where = el("div");
  dialog(title, (close) => [
    [text].flat().map((each) => el("p", {}, each)),
    where,
    el(
      "p",
      { class: "actions" },
      acting(
        verb,
        async () => {
          await action();
          close();
        },
        where,
        "danger",
      ),
      button("Cancel", close),
    ),
  ]);
}

export function copyButton(text, label = "Copy") {
  return button(label, async () => {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied.");
    } catch {
      say("The browser does not let this page copy. Select the text and copy it.");
    }
  });
}

export function download(name, content, type = "application/octet-stream") {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// A text to be read and copied as it is, such as PEM.
export function block(text, label) {
  return el("pre", { tabindex: "0", role: "region", "aria-label": label }, text);
}

const DAY = 86400000;
export const daysUntil = (time) => Math.floor((new Date(time) - Date.now()) / DAY);

export function date(time) {
  const at = new Date(time);
  if (Number.isNaN(at.getTime())) return "";
  const text = at.toISOString();
  return el("time", { datetime: text, title: `${text.slice(0, 19).replace("T", " ")} UTC` }, text.slice(0, 10));
}

export function moment(time) {
  const at = new Date(time);
  return Number.isNaN(at.getTime())
    ? ""
    : el("time", { datetime: at.toISOString() }, `${at.toISOString().slice(0, 19).replace("T", " ")}`);
}

// How long it is until then, as a chip whose words say what its colour says.
export function until(time, soon = 14, near = 30) {
  const days = daysUntil(time);
  if (days < 0) return chip(days === -1 ? "ended today" : `ended ${-days} days ago`, "bad");
  const text = days === 0 ? "ends today" : days === 1 ? "1 day left" : `${days} days left`;
  return chip(text, days < soon ? "bad" : days < near ? "warn" : "good");
}
