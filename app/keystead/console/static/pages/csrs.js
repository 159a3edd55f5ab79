// The CSRs of an account or a zone: filters and pages of the API, a new one, one alone, PEM and DER, deletion.

import {
  acting,
  advice,
  ask,
  block,
  button,
  chip,
  copyButton,
  daysUntil,
  date,
  download,
  el,
  fail,
  form,
  moment,
  pager,
  say,
  show as fill,
  table,
} from "../dom.js";

const PER_PAGE = 20;
const ORDERS = [
  ["created_at", "Date"],
  ["name", "Name"],
];
const KEYS = [
  ["p256v1", "EC P-256"],
  ["rsa2048", "RSA 2048"],
];
const FILTERS = ["common_name", "san", "name", "key_type", "order", "direction"];

export const base = ({ account, zone }) => (zone ? `/client/v4/zones/${zone.id}` : `/client/v4/accounts/${account.id}`);
export const keyName = (type) => KEYS.find(([value]) => value === type)?.[1] ?? type;

export async function show(main, context) {
  const { params } = context;
  const id = params.get("id");
  if (params.has("new")) return fresh(main, context);
  return id ? one(main, context, id) : list(main, context);
}

async function list(main, context) {
  const { params, zone } = context;
  const filters = Object.fromEntries(FILTERS.map((name) => [name, params.get(name) ?? ""]));
  const page = Number.parseInt(params.get("page") ?? "1", 10) || 1;
  filters.direction ||= "desc";
  const where = el("div");
  const make = context.may("ssl", "Write") ? el("a", { class: "button first", href: "#csrs?new=1" }, "New CSR") : null;
  fill(main, context.heading("CSRs", make), el("section", {}, choices(context, filters), where));
  try {
    const { result, info } = await context.call("GET", `${base(context)}/custom_csrs`, {
      query: { ...filters, page, per_page: PER_PAGE },
    });
    const of = zone ? `the zone ${zone.name}` : `the account ${context.account.name}, those of its zones left out`;
    const found = table(
      `CSRs of ${of}`,
      COLUMNS,
      result,
      isFiltered(filters) ? "No CSR is like that." : "There is no CSR here yet.",
    );
    fill(
      where,
      found,
      pager(info, (next) => context.go("csrs", { ...kept(filters), page: next })),
    );
  } catch (error) {
    fail(where, error);
  }
}

const isFiltered = ({ order, direction, ...filters }) => Object.values(filters).some((value) => value !== "");
const kept = ({ direction, ...filters }) => ({ ...filters, direction: direction === "desc" ? "" : direction });

function choices(context, filters) {
  return form({
    compact: true,
    fields: [
      { name: "common_name", label: "Common name", value: filters.common_name },
      { name: "san", label: "SAN", value: filters.san },
      { name: "name", label: "Name", value: filters.name },
      { name: "key_type", label: "Key", value: filters.key_type, options: [["", "Any"], ...KEYS] },
      { name: "order", label: "Order", value: filters.order || "created_at", options: ORDERS },
      {
        name: "direction",
        label: "Direction",
        value: filters.direction,
        options: [
          ["desc", "Last first"],
          ["asc", "First first"],
        ],
      },
    ],
    verb: "Filter",
    extra: isFiltered(filters) ? button("All", () => context.go("csrs")) : null,
    submit: async (values) =>
      context.go("csrs", kept({ ...values, order: values.order === "created_at" ? "" : values.order })),
  });
}

const COLUMNS = [
  { name: "Common name", cell: (csr) => el("a", { href: `#csrs?id=${encodeURIComponent(csr.id)}` }, csr.common_name) },
  { name: "SANs", cell: (csr) => few(csr.sans) },
  { name: "Name", cell: (csr) => csr.name ?? "" },
  { name: "Key", cell: (csr) => keyName(csr.key_type) },
  { name: "Made", cell: (csr) => [date(csr.created_at), " ", age(csr.created_at)] },
];

export function few(names, most = 3) {
  const more = names.length - most;
  return names.slice(0, most).join(", ") + (more > 0 ? ` and ${more} more` : "");
}

// Private keys older than this are to be replaced; the default of an account's limit, which the API tells of each CSR.
export const MOST_DAYS = 398;

export function age(createdAt) {
  const days = -daysUntil(createdAt) - 1;
  return days > MOST_DAYS ? chip(`key ${days} days old`, "warn") : null;
}

async function fresh(main, context) {
  const { zone, account } = context;
  const section = el("section");
  fill(main, context.heading("New CSR"), section);
  if (!context.may("ssl", "Write")) {
    fill(section, el("p", {}, "Your token may not make CSRs."));
    return;
  }
  fill(
    section,
    el(
      "p",
      { class: "quiet" },
      `For ${zone ? `the zone ${zone.name}` : `the account ${account.name}`}. The private key is made on the server, and stays there.`,
    ),
    form({
      fields: fieldsOf(zone),
      verb: "Make the CSR",
      extra: el("a", { class: "button", href: "#csrs" }, "Cancel"),
      submit: async (values) => {
        const { result, messages } = await context.call("POST", `${base(context)}/custom_csrs`, {
          body: bodyOf(values),
        });
        say("The CSR is made.");
        told = { id: result.id, messages };
        context.go("csrs", { id: result.id });
      },
    }),
  );
}

// What the API said beside the last CSR that was made, to be shown with it.
let told = null;

function fieldsOf(zone) {
  return [
    {
      name: "common_name",
      label: "Common name",
      required: true,
      value: zone?.name,
      hint: "For people; clients look at the SANs.",
    },
    {
      name: "sans",
      label: "SANs",
      required: true,
      rows: 3,
      value: zone?.name,
      hint: "Hostnames, one a line; *. at the left is a wildcard.",
    },
    { name: "organization", label: "Organization", required: true },
    { name: "country", label: "Country", required: true, hint: "Two capital letters, such as DE" },
    { name: "state", label: "State or province", required: true },
    { name: "locality", label: "City or locality", required: true },
    { name: "organizational_unit", label: "Organizational unit", hint: "Public CAs no longer certify it." },
    { name: "key_type", label: "Key", value: "p256v1", options: KEYS },
    { name: "name", label: "Name", hint: "For people; not in the CSR." },
    { name: "description", label: "Description", rows: 2, hint: "For people; not in the CSR." },
  ];
}

function bodyOf({ sans, ...values }) {
  const given = Object.entries(values)
    .map(([name, value]) => [name, value.trim()])
    .filter(([, value]) => value !== "");
  return { ...Object.fromEntries(given), sans: sans.split(/[\s,]+/).filter(Boolean) };
}

async function one(main, context, id) {
  const { path, csr, messages } = await found(context, id);
  const said = [...(told?.id === csr.id ? told.messages : []), ...messages];
  told = null;
  const where = el("div");
  const rows = [
    ["Names", csr.sans.join(", ")],
    ["Subject", subjectOf(csr)],
    ["Key", keyName(csr.key_type)],
    ["Made", moment(csr.created_at)],
    ["Name", csr.name],
    ["Description", csr.description],
    ["Id", el("code", {}, csr.id)],
  ];
  fill(
    main,
    context.heading(csr.common_name, el("a", { class: "button", href: "#csrs" }, "All CSRs")),
    el(
      "section",
      {},
      advice(said),
      el(
        "dl",
        {},
        rows.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
      block(csr.csr, "The CSR in PEM"),
      el("p", { class: "actions" }, actions(context, csr, path, where)),
      where,
    ),
    el(
      "section",
      {},
      el("h2", {}, "What is next"),
      el(
        "p",
        {},
        "Give the PEM to your CA. When its certificate comes, drop it under ",
        el("a", { href: "#certificates" }, "Certificates"),
        ": it is recognized by its key.",
      ),
    ),
  );
}

// A certificate of a zone may be of a CSR of the zone or of its account.
async function found(context, id) {
  const account = `/client/v4/accounts/${context.account.id}`;
  const zone = context.params.get("zone");
  const bases = new Set([zone ? `/client/v4/zones/${encodeURIComponent(zone)}` : base(context), account]);
  let missing = null;
  for (const each of bases) {
    try {
      const path = `${each}/custom_csrs/${encodeURIComponent(id)}`;
      const { result, messages } = await context.call("GET", path);
      return { path, csr: result, messages };
    } catch (error) {
      if (error.status !== 404) throw error;
      missing ??= error;
    }
  }
  throw missing;
}

function actions(context, csr, path, where) {
  const der = async () => {
    const { result } = await context.call("GET", path, { accept: "application/pkcs10" });
    download(`${csr.id}.csr.der`, result);
  };
  const remove = () =>
    ask(
      "Delete this CSR?",
      `${csr.common_name}: its private key is destroyed. A certificate that is still to come for it could never be used.`,
      "Delete the CSR and its key",
      async () => {
        try {
          await context.call("DELETE", path);
        } catch (error) {
          throw inUse(error);
        }
        say("The CSR is deleted, and its key destroyed.");
        context.go("csrs");
      },
    );
  return [
    copyButton(csr.csr, "Copy PEM"),
    button("Download PEM", () => download(`${csr.id}.csr`, csr.csr, "application/x-pem-file")),
    acting("Download DER", der, where),
    context.may("ssl", "Write") ? button("Delete …", remove, "danger") : null,
  ];
}

function inUse(error) {
  const used = error.errors?.find(({ code }) => code === 1420);
  if (used)
    used.message +=
      " A certificate needs the key of this CSR. Delete that certificate first, or renew it with another CSR; then this one can go.";
  return error;
}

function subjectOf(csr) {
  const parts = {
    CN: csr.common_name,
    O: csr.organization,
    OU: csr.organizational_unit,
    L: csr.locality,
    ST: csr.state,
    C: csr.country,
  };
  return Object.entries(parts)
    .filter(([, value]) => value)
    .map(([name, value]) => `${name}=${value}`)
    .join(", ");
}
