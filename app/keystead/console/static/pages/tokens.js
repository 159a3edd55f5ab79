// The tokens of the account: a list, making one (its value is shown once), rolling and revoking.

import { resume, signIn } from "../api.js";
import {
  ask,
  block,
  button,
  chip,
  copyButton,
  date,
  dialog,
  el,
  fail,
  form,
  pager,
  say,
  show as fill,
  table,
} from "../dom.js";

const PER_PAGE = 25;
const STATUS = { active: "good", disabled: "warn", expired: "bad" };
const ZONES = "com.cloudflare.api.account.zone.";
const ACCOUNT = "com.cloudflare.api.account.";

export async function show(main, context) {
  const path = `/client/v4/accounts/${context.account.id}/tokens`;
  const writes = context.may("tokens", "Write");
  const list = el("div");
  const make = writes ? button("Make a token", () => creation(context, path), "first") : null;
  const about = `Those of the account ${context.account.name}. A token of a user is managed by that user alone.`;
  fill(
    main,
    context.heading("Tokens", make),
    el("section", {}, el("p", { class: "quiet" }, about), filters(context), list),
  );
  try {
    const query = {
      page: context.params.get("page") ?? 1,
      per_page: PER_PAGE,
      include_expired: context.params.get("expired"),
    };
    const [own, found] = await Promise.all([
      context.call("GET", "/client/v4/user/tokens/verify"),
      context.call("GET", path, { query }),
    ]);
    const columns = columnsOf(context, path, own.result.id, writes);
    const go = (page) => context.go("tokens", { page, expired: context.params.get("expired") });
    fill(
      list,
      table("Tokens of the account, in the order in which they were made", columns, found.result),
      pager(found.info, go),
    );
  } catch (error) {
    fail(list, error);
  }
}

function filters(context) {
  return form({
    compact: true,
    fields: [
      {
        name: "expired",
        label: "Show expired ones too",
        type: "checkbox",
        value: context.params.get("expired") === "true",
      },
    ],
    verb: "Show",
    submit: ({ expired }) => context.go("tokens", { expired: expired ? "true" : "" }),
  });
}

function columnsOf(context, path, own, writes) {
  const columns = [
    { name: "Name", cell: ({ id, name }) => [name, id === own ? [" ", chip("signed in with it")] : null] },
    { name: "Status", cell: ({ status }) => chip(status, STATUS[status]) },
    {
      name: "May",
      cell: ({ policies }) =>
        el(
          "ul",
          { class: "bare" },
          policies.map((policy) => el("li", {}, wordsOf(policy, context))),
        ),
    },
    { name: "From", cell: ({ condition }) => addresses(condition) },
    { name: "Made", cell: ({ issued_on: made }) => date(made) },
    { name: "Ends", cell: ({ expires_on: end }) => (end ? date(end) : el("span", { class: "quiet" }, "never")) },
  ];
  if (writes) columns.push({ name: "Actions", cell: (token) => actions(context, path, token, own) });
  return columns;
}

function wordsOf({ effect, permission_groups: groups, resources }, context) {
  const places = Object.entries(resources).flatMap(([name, within]) => placesOf(name, within, context));
  const names = groups.map((group) => group.name);
  // To write includes to read.
  const said = names.filter((name) => !(name.endsWith(" Read") && names.includes(name.replace(/Read$/, "Write"))));
  return `${effect === "deny" ? "Not: " : ""}${said.join(", ")} (${places.join(", ")})`;
}

function placesOf(name, within, context) {
  if (within !== "*") return Object.keys(within).flatMap((zone) => placesOf(zone, "*", context));
  if (name === `${ZONES}*`) return ["all zones"];
  if (name === `${ACCOUNT}*`) return ["all accounts"];
  const [known, id] = name.startsWith(ZONES)
    ? [context.zones, name.slice(ZONES.length)]
    : [context.accounts, name.slice(ACCOUNT.length)];
  return [known.find((each) => each.id === id)?.name ?? id];
}

function addresses(condition) {
  const { in: allowed = [], not_in: denied = [] } = condition?.request_ip ?? {};
  const words = [...allowed, ...denied.map((each) => `not ${each}`)];
  return words.length > 0 ? words.join(", ") : el("span", { class: "quiet unbroken" }, "anywhere");
}

function actions(context, path, token, own) {
  const mine = token.id === own;
  const roll = button("Roll", () =>
    ask(
      `Roll ${token.name}`,
      [
        "It gets a new value, and the old one is dead within a second. Whatever uses it must get the new one.",
        mine ? "You are signed in with this token; this tab goes on with the new value." : null,
      ].filter(Boolean),
      "Roll it",
      async () => {
        const { result } = await context.call("PUT", `${path}/${token.id}/value`);
        // This tab would be signed out; what is kept for it stays kept.
        if (mine) signIn(result, resume());
        shown(context, token, result);
      },
    ),
  );
  const revoke = button("Revoke", () =>
    ask(
      `Revoke ${token.name}`,
      "It is dead within a second, for everybody who uses it, and cannot be brought back.",
      "Revoke it",
      async () => {
        await context.call("DELETE", `${path}/${token.id}`);
        say("The token is revoked.");
        context.reload();
      },
    ),
  );
  for (const [each, verb] of [
    [roll, "Roll"],
    [revoke, "Revoke"],
  ])
    each.setAttribute("aria-label", `${verb} ${token.name}`);
  // Who revoked their own would be signed out by it.
  return el("span", { class: "actions" }, roll, mine ? null : revoke);
}

// The value of a token, which no other answer has.
function shown(context, token, value) {
  const made = dialog(`The value of ${token.name}`, (close) => [
    el("p", {}, "It is shown here once, and kept nowhere. Put it where your secrets are, then close this."),
    block(value, "The value of the token"),
    el(
      "p",
      { class: "quiet" },
      "Clients of Infisical log in with the value and the token's id: ",
      el("code", {}, token.id),
    ),
    el("p", { class: "actions" }, copyButton(value, "Copy the value"), button("Done", close)),
  ]);
  made.addEventListener("close", () => context.reload());
}

async function creation(context, path) {
  const where = el("div");
  const made = dialog("Make a token", () => [where]);
  try {
    const { result } = await context.call("GET", `${path}/permission_groups`);
    // Those of a user's tokens mean nothing in one of an account; what you may not do, you cannot give.
    const groups = result.filter(({ name }) => !name.startsWith("API Tokens") && has(context.groups, name));
    fill(
      where,
      fieldsOf(context, path, groups, () => made.close()),
    );
  } catch (error) {
    fail(where, error);
    where.append(button("Close", () => made.close()));
  }
}

function has(groups, name) {
  return groups === null || groups.has(name) || groups.has(name.replace(/Read$/, "Write"));
}

function fieldsOf(context, path, groups, close) {
  const places = [
    ["account", "The account and all its zones"],
    ...context.zones.map(({ id, name }) => [id, `The zone ${name} alone`]),
  ];
  const made = form({
    fields: [
      { name: "name", label: "Name", required: true, hint: "What uses it, such as: CI of the shop" },
      { name: "zone", label: "Where", options: places, required: true },
      ...groups.map(({ id, name }) => ({ name: id, label: name, type: "checkbox" })),
      {
        name: "condition",
        label: "Only from these networks",
        hint: "Such as 10.0.0.0/8, 192.0.2.7/32; else from anywhere",
      },
      { name: "expires_on", label: "Ends on", type: "date" },
    ],
    verb: "Make the token",
    extra: button("Cancel", close),
    submit: async (values) => {
      const { result } = await context.call("POST", path, { body: bodyOf(context, groups, values) });
      close();
      shown(context, result, result.value);
    },
  });
  choices(made, groups);
  return made;
}

// The groups stand together; of one zone only those that zones have are offered.
function choices(made, groups) {
  const inputs = groups.map(({ id }) => made.elements.namedItem(id));
  const set = el("fieldset", { class: "field whole" }, el("legend", {}, "What it may do"));
  inputs[0]?.closest(".field").before(set);
  set.append(...inputs.map((input) => input.closest(".field")));
  const where = made.elements.namedItem("zone");
  where.addEventListener("change", () => {
    groups.forEach((group, index) => {
      const hidden = where.value !== "account" && !ofZones(group);
      inputs[index].closest(".field").hidden = hidden;
      if (hidden) inputs[index].checked = false;
    });
  });
}

function ofZones({ scopes }) {
  return scopes.includes("com.cloudflare.api.account.zone");
}

function bodyOf({ account, zones }, groups, values) {
  const policy = (resources, wanted) => ({
    effect: "allow",
    resources,
    permission_groups: wanted.map(({ id }) => ({ id })),
  });
  const ticked = groups.filter(({ id }) => values[id]);
  const whole = { [ACCOUNT + account.id]: { [`${ZONES}*`]: "*" } };
  const place = zones.some(({ id }) => id === values.zone) ? { [ZONES + values.zone]: "*" } : whole;
  const parts = [
    [{ [ACCOUNT + account.id]: "*" }, ticked.filter((group) => !ofZones(group))],
    [place, ticked.filter(ofZones)],
  ];
  const networks = values.condition.split(/[\s,]+/).filter(Boolean);
  return {
    name: values.name,
    policies: parts.filter(([, wanted]) => wanted.length > 0).map(([resources, wanted]) => policy(resources, wanted)),
    condition: networks.length > 0 ? { request_ip: { in: networks } } : undefined,
    expires_on: values.expires_on || undefined,
  };
}
