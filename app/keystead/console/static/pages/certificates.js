// The certificates of a zone: the list, one alone with its history, deletion; upload.js has uploads, rule.js the rule.

import {
  advice,
  ask,
  button,
  chip,
  date,
  el,
  fail,
  form,
  moment,
  pager,
  say,
  show as fill,
  table,
  until,
} from "../dom.js";
import { few } from "./csrs.js";
import * as rule from "./rule.js";
import { told, upload } from "./upload.js";

const PER_PAGE = 20;
const STATUSES = [
  ["", "Any"],
  ["active", "Active"],
  ["pending", "Pending"],
  ["expired", "Expired"],
];
const KINDS = { active: "good", pending: "warn", expired: "bad" };
const YEAR = 366 * 86400000;

export async function show(main, context) {
  const { params } = context;
  const zone = zoneOf(context);
  if (!zone) return chooseZone(main, context);
  const id = params.get("id");
  if (id) return one(main, context, zone, id);
  if (params.has("new")) return fresh(main, context, zone);
  return list(main, context, zone);
}

function zoneOf({ zone, zones, params }) {
  return zone ?? zones.find((each) => each.id === params.get("zone")) ?? (zones.length === 1 ? zones[0] : null);
}

function chooseZone(main, context) {
  const { zones } = context;
  const links = zones.map((zone) => el("li", {}, el("a", { href: `#certificates?zone=${zone.id}` }, zone.name)));
  const none = el("p", {}, "Your token sees no zone of this account. Choose it by its id, above: “Another …”.");
  const some = [el("p", {}, "Certificates belong to zones. Of which one?"), el("ul", {}, links)];
  fill(main, context.heading("Certificates"), el("section", {}, zones.length > 0 ? some : none));
}

const linkTo = (zone, more = "") => `#certificates?zone=${zone.id}${more}`;

async function list(main, context, zone) {
  const status = context.params.get("status") ?? "";
  const page = Number.parseInt(context.params.get("page") ?? "1", 10) || 1;
  const where = el("div");
  const add = context.may("ssl", "Write")
    ? el("a", { class: "button first", href: linkTo(zone, "&new=1") }, "Upload")
    : null;
  const filter = form({
    compact: true,
    fields: [{ name: "status", label: "Status", value: status, options: STATUSES }],
    verb: "Filter",
    submit: async (values) => context.go("certificates", { zone: zone.id, ...values }),
  });
  fill(main, context.heading(`Certificates of ${zone.name}`, add), el("section", {}, filter, where));
  try {
    const { result, info } = await context.call("GET", `/client/v4/zones/${zone.id}/custom_certificates`, {
      query: { status, page, per_page: PER_PAGE },
    });
    const none = status ? "None has this status." : "There is no certificate here yet.";
    fill(
      where,
      table("Certificates", columns(zone), result, none),
      pager(info, (next) => context.go("certificates", { zone: zone.id, status, page: next })),
    );
  } catch (error) {
    fail(where, error);
  }
}

function columns(zone) {
  return [
    {
      name: "Hosts",
      cell: (each) =>
        el("a", { href: linkTo(zone, `&id=${encodeURIComponent(each.id)}`) }, few(each.hosts) || "(none)"),
    },
    { name: "Issuer", cell: (each) => each.issuer },
    { name: "Status", cell: (each) => chip(each.status, KINDS[each.status]) },
    { name: "Ends", cell: (each) => [date(each.expires_on), " ", until(each.expires_on)] },
    { name: "Key", cell: (each) => keyOf(zone, each) },
  ];
}

function keyOf(zone, { custom_csr_id: csr }) {
  return csr ? el("a", { href: `#csrs?id=${encodeURIComponent(csr)}&zone=${zone.id}` }, "of a CSR") : "uploaded";
}

function fresh(main, context, zone) {
  const body = upload(context, zone, {
    verb: "Upload",
    extra: el("a", { class: "button", href: linkTo(zone) }, "Cancel"),
    send: async (values) => {
      const { result, messages } = await context.call("POST", `/client/v4/zones/${zone.id}/custom_certificates`, {
        body: values,
      });
      return { result, messages, said: "The certificate is uploaded." };
    },
  });
  fill(main, context.heading(`Upload to ${zone.name}`), el("section", {}, body));
}

async function one(main, context, zone, id) {
  const path = `/client/v4/zones/${zone.id}/custom_certificates/${encodeURIComponent(id)}`;
  const { result: it } = await context.call("GET", path);
  const write = context.may("ssl", "Write");
  const rows = [
    ["Hosts", it.hosts.join(", ")],
    ["Issuer", it.issuer],
    ["Status", chip(it.status, KINDS[it.status])],
    ["Ends", [moment(it.expires_on), " ", until(it.expires_on)]],
    ...rule.rowsOf(it),
    ["Signature", it.signature],
    ["Key", keyOf(zone, it)],
    ["Chain", it.bundle_method],
    ["Uploaded", moment(it.uploaded_on)],
    ["Changed", moment(it.modified_on)],
    ["Id", el("code", {}, it.id)],
  ];
  const history = el("div");
  fill(
    main,
    context.heading(
      few(it.hosts, 1) || "Certificate",
      el("a", { class: "button", href: linkTo(zone) }, "All certificates"),
    ),
    el(
      "section",
      {},
      advice(told(it.id)),
      el(
        "dl",
        {},
        rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
      write
        ? el(
            "p",
            { class: "actions" },
            button("Delete …", () => remove(context, zone, it, path), "danger"),
          )
        : null,
    ),
    write ? renewal(context, zone, it, path) : null,
    write ? await rule.section(context, it, path) : null,
    context.may("settings", "Read") ? el("section", {}, el("h2", {}, "History"), history) : null,
  );
  await past(context, it, history);
}

function renewal(context, zone, it, path) {
  const send = async ({ custom_csr_id: csr, ...values }) => {
    // The key that is there needs no CSR to be named.
    const body = csr && csr !== it.custom_csr_id ? { ...values, custom_csr_id: csr } : values;
    const { result, messages } = await context.call("PATCH", path, { body });
    return { result, messages, said: "The certificate is renewed; its id is the same." };
  };
  const words =
    "The new certificate takes the place of this one: the id stays. It may be for the same key, or for that of another CSR.";
  return el(
    "section",
    {},
    el("h2", {}, "Renew in place"),
    el("p", { class: "quiet" }, words),
    upload(context, zone, { verb: "Renew", send, method: it.bundle_method }),
  );
}

function remove(context, zone, it, path) {
  const key = it.custom_csr_id
    ? "Its CSR stays, with the private key."
    : "Its private key was uploaded with it, and is destroyed.";
  ask(
    "Delete this certificate?",
    [`${few(it.hosts)}. ${key}`, "Its history goes with it."],
    "Delete the certificate",
    async () => {
      await context.call("DELETE", path);
      say("The certificate is deleted.");
      context.go("certificates", { zone: zone.id });
    },
  );
}

// What the audit log has of it: who uploaded and renewed it, and when.
async function past(context, it, where) {
  const since = new Date(Math.max(Date.parse(it.uploaded_on) - 60000, Date.now() - 5 * YEAR)).toISOString();
  const before = new Date(Date.now() + 60000).toISOString();
  try {
    const path = `/client/v4/accounts/${context.account.id}/logs/audit`;
    const { result } = await context.call("GET", path, { query: { resource_id: it.id, since, before, limit: 50 } });
    const rows = result.filter((entry) => entry.action.type !== "view");
    fill(
      where,
      table("What was done with it, the last first", PAST, rows, "The audit log has nothing of it any more."),
    );
  } catch (error) {
    fail(where, error);
  }
}

const PAST = [
  { name: "When (UTC)", cell: (entry) => moment(entry.action.time) },
  { name: "What", cell: (entry) => entry.action.description },
  { name: "Result", cell: (entry) => entry.action.result },
  { name: "Who", cell: (entry) => entry.actor.token_name ?? entry.actor.email ?? entry.actor.type },
];
