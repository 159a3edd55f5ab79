// All that ends within twelve months, as a picture and a table; CSRs that wait, and keys that are too old.

import { chip, date, el, failure, show as fill, table, until } from "../dom.js";
import { collect } from "../expiring.js";
import { timeline } from "../timeline.js";
import { MOST_DAYS, few, keyName } from "./csrs.js";

const MOST_ROWS = 100;

export async function show(main, context) {
  const of = context.zone ? context.zone.name : context.account.name;
  const loading = el("p", { class: "loading" }, "Reading certificates, CAs and keys …");
  fill(main, context.heading(`Overview of ${of}`), loading);
  const found = await collect(context);
  loading.remove();
  main.append(
    ...notes(found),
    ending(main, found, context.may("ssl", "Write")),
    waiting(found),
    old(found),
    scope(context, found),
  );
}

function notes({ refused, failed }) {
  const denied =
    refused.length > 0
      ? el("p", { class: "quiet" }, `Left out, since your token may not read it: ${refused.join(", ")}.`)
      : null;
  return [denied, ...failed.map((error) => failure(error))].filter(Boolean);
}

const title = (text, count) => el("h2", {}, text, count === undefined ? null : [" ", chip(String(count))]);

function ending(main, { ends }, write) {
  if (ends.length === 0) {
    return el(
      "section",
      {},
      title("What ends within 12 months", 0),
      el("p", { class: "none" }, "Nothing. A new certificate is shown here with its end."),
      write ? el("p", {}, begin()) : null,
    );
  }
  const rows = ends.slice(0, MOST_ROWS);
  const more =
    ends.length > rows.length ? el("p", { class: "quiet" }, `The first ${rows.length} of ${ends.length}.`) : null;
  return el(
    "section",
    {},
    title("What ends within 12 months", ends.length),
    timeline(ends, main.clientWidth - 40),
    table("What ends, the soonest first", COLUMNS, rows),
    more,
  );
}

const begin = () => [
  el("a", { href: "#csrs?new=1" }, "Make a CSR"),
  " or ",
  el("a", { href: "#certificates" }, "upload a certificate"),
  ".",
];

const COLUMNS = [
  { name: "Ends", cell: (each) => [date(each.at), " ", until(each.at, each.kind.soon, each.kind.near)] },
  { name: "What", cell: (each) => each.kind.name },
  { name: "Of", cell: (each) => (each.href ? el("a", { href: each.href }, each.text) : each.text) },
  { name: "Where", cell: (each) => each.where },
];

function waiting({ waiting: csrs, partial }) {
  const rows = csrs.slice(0, MOST_ROWS);
  const columns = [
    { name: "CSR", cell: (csr) => el("a", { href: csr.href }, csr.common_name) },
    { name: "SANs", cell: (csr) => few(csr.sans) },
    { name: "Key", cell: (csr) => keyName(csr.key_type) },
    { name: "Made", cell: (csr) => date(csr.created_at) },
    { name: "Where", cell: (csr) => csr.where },
  ];
  return el(
    "section",
    {},
    title("CSRs that wait for a certificate", csrs.length),
    partial
      ? el("p", { class: "quiet" }, "Not all certificates were read, so some of these may have one already.")
      : null,
    table("CSRs whose key no certificate uses, the last first", columns, rows, "None waits."),
  );
}

function old({ old: certificates }) {
  const columns = [
    { name: "Certificate", cell: (each) => el("a", { href: each.href }, each.text) },
    { name: "Key made", cell: (each) => [date(each.made), " ", chip(`${each.days} days old`, "warn")] },
    { name: "Where", cell: (each) => each.where },
  ];
  const limit = `Keys of CSRs that are older than ${MOST_DAYS} days, which is an account's limit unless its operator has set another. Make a new CSR for these names, and renew the certificate with it.`;
  return el(
    "section",
    {},
    title("Certificates with an old key", certificates.length),
    el("p", { class: "quiet" }, limit),
    table("Certificates whose key is older than the limit", columns, certificates.slice(0, MOST_ROWS), "None is."),
  );
}

function scope({ zone, zones }, { places, cut }) {
  const which = zone
    ? "this zone, and the private CAs of its account"
    : `the account and ${places < zones.length ? `the first ${places} of ` : ""}its ${zones.length} ${zones.length === 1 ? "zone" : "zones"}`;
  const most = cut.length > 0 ? ` Of long lists the first ones are read: ${cut.join("; ")}.` : "";
  return el("p", { class: "quiet" }, `Read from ${which}.${most}`);
}
