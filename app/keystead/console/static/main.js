// The frame: signing in, choosing an account and zone, going from page to page by the part of the address behind #.

import * as api from "./api.js";
import { button, dialog, el, fail, failure, form, say, show } from "./dom.js";
import { denial, groupsOf, may, places } from "./rights.js";
import { show as audit } from "./pages/audit.js";
import { show as ca } from "./pages/ca.js";
import { show as certificates } from "./pages/certificates.js";
import { show as csrs } from "./pages/csrs.js";
import { show as overview } from "./pages/overview.js";
import { show as tokens } from "./pages/tokens.js";
import { show as welcome } from "./pages/welcome.js";

const PAGES = [
  { id: "overview", title: "Overview", show: overview },
  { id: "csrs", title: "CSRs", show: csrs, area: "ssl" },
  { id: "certificates", title: "Certificates", show: certificates, area: "ssl" },
  { id: "ca", title: "Private CA", show: ca, area: "ca" },
  { id: "audit", title: "Audit", show: audit, area: "settings" },
  { id: "tokens", title: "Tokens", show: tokens, area: "tokens" },
];
const at = (id) => document.getElementById(id);
const main = at("main");
// What is known of who signed in; null before that.
let session = null;
let leaving = new AbortController();

api.shown.busy = (calls) => {
  document.body.classList.toggle("busy", calls > 0);
  main.setAttribute("aria-busy", String(calls > 0));
};

api.shown.wait = (waiting) => {
  const bar = at("waiting");
  if (!waiting) {
    bar.hidden = true;
    show(bar);
    return;
  }
  if (bar.hidden) {
    // The count is not read out each second.
    const count = el("span", { class: "count", "aria-hidden": "true" });
    show(
      bar,
      el("span", {}, `${waiting.reason}; it goes on by itself.`),
      count,
      button("Cancel", () => waiting.cancel()),
    );
    bar.hidden = false;
  }
  bar.querySelector(".count").textContent = `${waiting.seconds} s`;
};

async function start(value, keep) {
  const resumed = value === undefined;
  if (!resumed) api.signIn(value, keep);
  try {
    const { result } = await api.call("GET", "/client/v4/user/tokens/verify");
    const found = await places();
    const account = found.accounts[0] ?? null;
    // Who sees zones and no account can do nothing in the account itself.
    const zone = found.ofZones ? found.zones[0] : null;
    session = { ...found, account, zone, groups: await groupsOf(result.id, account), denied: new Set() };
  } catch (error) {
    // A token that was kept is not forgotten because the server was away.
    if (!resumed || (error.status >= 400 && error.status < 500)) api.signOut();
    throw error;
  }
  frame();
}

function signOut() {
  api.signOut();
  session = null;
  if (location.hash === "") arrive();
  else location.hash = "";
  say("Signed out. The token is forgotten.");
}

function frame() {
  navigation();
  show(at("place"), session ? picker() : null);
  show(at("session"), session ? button("Sign out", signOut) : null);
}

function navigation() {
  const allowed = session ? PAGES.filter((page) => !page.area || may(session, page.area, "Read")) : [];
  const current = session ? pageOf() : null;
  const link = (page) =>
    el(
      "a",
      { href: `#${page.id}`, id: `to-${page.id}`, "aria-current": page === current ? "page" : "false" },
      page.title,
    );
  const before = focused();
  at("navigation").hidden = session === null;
  show(
    at("navigation"),
    el(
      "ul",
      {},
      allowed.map((page) => el("li", {}, link(page))),
    ),
  );
  at(before)?.focus();
}

// The id of what has the focus, as the frame is made anew, or the element itself where it has none.
const focused = () => document.activeElement?.id || document.activeElement;

function picker() {
  const { accounts, zones, account, zone, more } = session;
  const own = zones.filter((each) => each.account.id === account?.id);
  const other = el("option", { value: "-" }, "Another …");
  const accountOf = el(
    "select",
    { id: "account", change: (event) => choose(event.target.value, null) },
    accounts.map((each) => el("option", { value: each.id }, each.name)),
    other,
  );
  const whole = el("option", { value: "" }, "The account itself");
  const zoneOf = el(
    "select",
    { id: "zone", change: (event) => choose(account?.id, event.target.value) },
    whole,
    own.map((each) => el("option", { value: each.id }, each.name)),
    more ? el("option", { value: "-" }, "Another …") : null,
  );
  accountOf.value = account?.id ?? "-";
  zoneOf.value = zone?.id ?? "";
  if (!account) accountOf.prepend(el("option", { value: "", selected: true }, "None known"));
  return [el("label", { for: "account" }, "Account"), accountOf, el("label", { for: "zone" }, "Zone"), zoneOf];
}

function choose(accountId, zoneId) {
  if (accountId === "-" || zoneId === "-") {
    another();
    return;
  }
  session.account = session.accounts.find((each) => each.id === accountId) ?? null;
  session.zone = session.zones.find((each) => each.id === zoneId) ?? null;
  const before = focused();
  frame();
  at(before)?.focus();
  // Pages of a list, and what is open in it, are of the place before.
  history.replaceState(null, "", `#${pageOf().id}`);
  arrive(before);
}

// An account or zone that is in no list: a token may do something there without reading the place itself.
function another() {
  frame();
  dialog("Another account or zone", (close) =>
    form({
      fields: [
        {
          name: "account",
          label: "Id of the account",
          value: session.account?.id,
          required: true,
          hint: "32 hex characters, as CLOUDFLARE_ACCOUNT_ID in credentials.env",
        },
        { name: "zone", label: "Id or name of a zone" },
      ],
      verb: "Choose",
      extra: button("Cancel", close),
      submit: async ({ account, zone }) => {
        const accountId = account.trim().toLowerCase();
        const zoneId = zone.trim() ? await zoneCalled(zone.trim(), accountId) : null;
        if (!session.accounts.some((each) => each.id === accountId))
          session.accounts.push({ id: accountId, name: accountId });
        close();
        choose(accountId, zoneId);
      },
    }),
  );
}

async function zoneCalled(text, accountId) {
  const known = session.zones.find((each) => each.id === text || (each.name === text && each.account.id === accountId));
  if (known) return known.id;
  if (/^[0-9a-f]{32}$/.test(text)) {
    session.zones.push({ id: text, name: text, account: { id: accountId, name: accountId } });
    return text;
  }
  const { result } = await api.call("GET", "/client/v4/zones", { query: { name: text, "account.id": accountId } });
  if (result.length === 0)
    throw new api.ApiError(0, [{ code: "", message: "Your token sees no zone of this name.", pointer: "/zone" }]);
  session.zones.push(result[0]);
  return result[0].id;
}

function pageOf() {
  const id = location.hash.slice(1).split("?")[0];
  return PAGES.find((page) => page.id === id) ?? PAGES[0];
}

// What is refused once is not offered again until the next sign-in.
async function learning(method, path, work) {
  const { account, denied } = session;
  try {
    return await work();
  } catch (error) {
    denied.add(denial(error, method, path, account));
    throw error;
  }
}

// What a page gets beside the element that it fills.
function contextOf(signal) {
  const { account, zone, accounts, zones, groups } = session;
  return {
    account,
    zone,
    accounts,
    groups,
    zones: zones.filter((each) => each.account.id === account?.id),
    signal,
    // What stands behind ? in the address: filters and pages, never a secret.
    params: new URLSearchParams(location.hash.split("?")[1] ?? ""),
    call: (method, path, options = {}) => learning(method, path, () => api.call(method, path, { signal, ...options })),
    all: (path, options = {}) => learning("GET", path, () => api.all(path, { signal, ...options })),
    may: (area, access) => may(session, area, access),
    // To another page, or to this one with other parameters; what is empty is left out.
    go: (id, params = {}) => {
      const kept = new URLSearchParams(
        Object.entries(params).filter(([, value]) => value !== "" && value !== undefined && value !== null),
      );
      const hash = kept.size > 0 ? `${id}?${kept}` : id;
      if (location.hash.slice(1) === hash) arrive();
      else location.hash = hash;
    },
    reload: () => arrive(),
    heading: (text, ...beside) => el("div", { class: "heading" }, el("h1", { tabindex: "-1" }, text), beside),
  };
}

// Shows the page that the address names. Then what has the id `keep` gets the focus, else the heading, unless the person
// has moved on meanwhile.
async function arrive(keep) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const page = session ? pageOf() : null;
  document.title = page ? `${page.title} · Keystead` : "Keystead";
  navigation();
  // Each page fills an element of its own: what an earlier one still does is not seen.
  const place = el("div", { class: `page ${page?.id ?? "welcome"}` });
  show(main, place);
  const before = focused();
  try {
    if (page === null)
      await welcome(place, {
        start: async (value, keep) => {
          await start(value, keep);
          arrive();
        },
      });
    else await shown(page, place, signal);
  } catch (error) {
    if (signal.aborted) return;
    if (!place.querySelector("h1")) place.append(el("h1", { tabindex: "-1" }, page?.title ?? "Keystead"));
    const where = el("div");
    place.append(where);
    fail(where, error);
    place.append(button("Load again", () => arrive()));
  }
  if (signal.aborted) return;
  if (page) navigation();
  if ([before, document.body].includes(focused())) (at(keep) ?? place.querySelector("h1"))?.focus();
}

async function shown(page, place, signal) {
  const context = contextOf(signal);
  if (!context.account) {
    show(
      place,
      context.heading(page.title),
      el("p", {}, "Your token sees no account and no zone. Choose the account by its id, above: “Another …”."),
    );
    return;
  }
  const loading = el("p", { class: "loading" }, "Loading …");
  place.append(loading);
  try {
    await page.show(place, context);
  } finally {
    loading.remove();
  }
}

window.addEventListener("hashchange", () => arrive());
// A file that misses its place must not open in place of the page.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
document.querySelector(".skip").addEventListener("click", (event) => {
  // The part behind # is the page's name here.
  event.preventDefault();
  main.focus();
});

if (api.resume()) {
  try {
    await start();
  } catch (error) {
    show(at("status"), failure(error));
  }
}
frame();
arrive();
