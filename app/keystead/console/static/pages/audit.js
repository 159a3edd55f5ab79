// The audit log of the account: who did what, and what was denied, with filters; pages by the API's cursor.

import { button, chip, el, fail, form, moment, show as fill, table } from "../dom.js";

const LIMIT = 50;
const DAY = 86400000;
const DAYS = 30;
const THINGS = {
  custom_csr: "CSR",
  custom_certificate: "certificate",
  certificate_authority: "CA",
  issued_certificate: "certificate of a CA",
  token: "token",
  zone: "zone",
  account: "account",
  user: "user",
  certificate_profile: "profile",
  certificate_policy: "policy",
  application: "application",
  private_key: "private key",
};
const ACTIONS = [
  "create",
  "update",
  "delete",
  "view",
  "roll",
  "login",
  "renew",
  "export",
  "import",
  "sign",
  "sign-intermediate",
  "issue-key",
  "revoke",
  "get-certificate-authority-csr",
  "key-damaged",
];
const RESULTS = [
  ["", "Any"],
  ["success", "Done"],
  ["failure", "Denied"],
];
const FILTERS = [
  "since",
  "before",
  "resource_type",
  "action_type",
  "action_result",
  "actor_token_name",
  "actor_email",
  "actor_ip_address",
  "zone_name",
  "resource_id",
];

export async function show(main, context) {
  const wanted = wantedOf(context.params);
  const list = el("div");
  fill(main, context.heading("Audit"), el("section", {}, filters(context, wanted), list));
  try {
    const path = `/client/v4/accounts/${context.account.id}/logs/audit`;
    const query = { ...wanted, cursor: context.params.get("cursor"), limit: LIMIT };
    const { result, info } = await context.call("GET", path, { query });
    fill(
      list,
      table(
        "Entries, the newest first; times are in UTC",
        columnsOf(context, wanted),
        result,
        "No entry is like this.",
      ),
      pages(context, wanted, info),
    );
  } catch (error) {
    fail(list, error);
  }
}

function wantedOf(params) {
  const day = (offset) => new Date(Date.now() + offset * DAY).toISOString().slice(0, 10);
  const values = Object.fromEntries(FILTERS.map((name) => [name, params.get(name) ?? ""]));
  return { ...values, since: values.since || day(-DAYS), before: values.before || day(1) };
}

function filters(context, wanted) {
  const things = [["", "Anything"], ...Object.entries(THINGS)];
  const actions = [["", "Anything"], ...ACTIONS.map((each) => [each, each])];
  return form({
    compact: true,
    fields: [
      { name: "since", label: "From", type: "date", value: wanted.since },
      { name: "before", label: "Until, not included", type: "date", value: wanted.before },
      { name: "resource_type", label: "What", options: things, value: wanted.resource_type },
      { name: "action_type", label: "What was done", options: actions, value: wanted.action_type },
      { name: "action_result", label: "Outcome", options: RESULTS, value: wanted.action_result },
      { name: "actor_token_name", label: "Name of the token", value: wanted.actor_token_name },
      { name: "actor_email", label: "Email of the user", value: wanted.actor_email },
      { name: "actor_ip_address", label: "Address", value: wanted.actor_ip_address },
      { name: "zone_name", label: "Zone", value: wanted.zone_name },
      { name: "resource_id", label: "Id of the thing", value: wanted.resource_id },
    ],
    verb: "Show",
    extra: button("Show all", () => context.go("audit")),
    submit: (values) =>
      context.go("audit", Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value.trim()]))),
  });
}

function columnsOf(context, wanted) {
  return [
    { name: "Time", cell: ({ action }) => moment(action.time) },
    { name: "What was done", cell: done },
    { name: "To", cell: (entry) => thing(context, wanted, entry) },
    { name: "By", cell: ({ actor }) => actor.token_name ?? actor.email ?? actor.type },
    { name: "From", cell: ({ actor }) => el("span", { class: "unbroken" }, actor.ip_address ?? "") },
  ];
}

function done({ action, raw }) {
  const request = [raw?.method, raw?.uri, raw?.status_code].filter(Boolean).join(" ");
  return [
    action.description,
    " ",
    action.result === "failure" ? chip("denied", "bad") : null,
    el("div", { class: "hint" }, el("code", {}, request)),
  ];
}

function thing(context, wanted, { resource, zone }) {
  const words = `${THINGS[resource.type] ?? resource.type}${zone?.name ? ` in ${zone.name}` : ""}`;
  if (!resource.id || wanted.resource_id === resource.id) return words;
  const all = button(
    words,
    () => context.go("audit", { since: wanted.since, before: wanted.before, resource_id: resource.id }),
    "plain",
  );
  all.setAttribute("title", "All entries about it");
  return all;
}

function pages(context, wanted, info) {
  const started = context.params.has("cursor");
  if (!info?.cursor && !started) return null;
  const step = (text, cursor) => button(text, () => context.go("audit", { ...wanted, cursor }));
  return el(
    "nav",
    { class: "pager", "aria-label": "Pages of the list" },
    started ? step("Newest", "") : null,
    info?.cursor ? step("Older", info.cursor) : null,
  );
}
