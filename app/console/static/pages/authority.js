// One private CA: what it is, its certificate and CRL, what it has issued; it signs, issues and revokes.

import { crl as readCrl, first, Unreadable } from "../pem.js";
import { acting, ask, block, button, chip, copyButton, daysUntil, dialog, download, el, fail, form, moment, pager, say, show as fill, table, until } from "../dom.js";

export const CAS = "/api/v1/cert-manager/ca/internal";
export const STATUS = { active: "good", disabled: "warn", "pending-certificate": "warn", expired: "bad", revoked: "bad", pending: "warn" };
const CERTIFICATES = "/api/v1/cert-manager/certificates";
const PER_PAGE = 20;
const REASONS = [
  ["UNSPECIFIED", "No reason"], ["KEY_COMPROMISE", "Its key was stolen"], ["SUPERSEDED", "Another one takes its place"],
  ["CESSATION_OF_OPERATION", "It is no longer used"], ["AFFILIATION_CHANGED", "Its subject belongs elsewhere now"],
  ["PRIVILEGE_WITHDRAWN", "Its subject may no longer have it"], ["CA_COMPROMISE", "It is of a CA whose key was stolen"],
];
const STATES = [["", "Any"], ["active", "Active"], ["expired", "Expired"], ["revoked", "Revoked"]];
// Of RFC 5280, section 5.3.1.
const WHY = ["", "key compromise", "CA compromise", "affiliation changed", "superseded", "cessation of operation", "certificate hold", "", "", "privilege withdrawn", "AA compromise"];

export const nameOf = ({ configuration, name }) => configuration.commonName || configuration.dn || name;

export async function one(main, context, id, cas) {
  const path = `${CAS}/${encodeURIComponent(id)}`;
  const { result: ca } = await context.call("GET", path);
  const has = Boolean(ca.configuration.activeCaCertId);
  const crl = el("section");
  const issued = el("section");
  fill(
    main,
    context.heading(nameOf(ca), el("a", { class: "button", href: "#ca" }, "All CAs")),
    el("div", { class: "columns" }, facts(context, ca, path, cas), has ? crl : wanting(context, ca, path, cas)),
    has || ca.configuration.type === "root" ? issued : null,
  );
  if (has) await Promise.all([revocations(crl, context, path, ca), certificates(issued, context, ca)]);
}

function facts(context, ca, path, cas) {
  const { configuration, status } = ca;
  const parent = cas.find(({ id }) => id === configuration.parentCaId);
  const bound = configuration.maxPathLength === -1 ? "no bound" : String(configuration.maxPathLength);
  const rows = [
    ["Subject", configuration.dn], ["Kind", configuration.type], ["Status", chip(status, STATUS[status])],
    ["Signed by", parent ? el("a", { href: `#ca?id=${encodeURIComponent(parent.id)}` }, nameOf(parent)) : null],
    ["Key", configuration.keyAlgorithm], ["CAs below it", bound],
    ["Ends", configuration.notAfter ? [moment(configuration.notAfter), " ", until(configuration.notAfter)] : "no certificate yet"],
    ["Serial number", configuration.serialNumber ? el("code", {}, configuration.serialNumber) : null],
  ];
  const where = el("div");
  const list = el("dl", {}, rows.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  return el("section", {}, el("h2", {}, "The CA"), list, el("p", { class: "actions" }, actions(context, ca, path, where)), where);
}

function actions(context, ca, path, where) {
  const { configuration, id, status } = ca;
  const signs = status === "active" && configuration.activeCaCertId;
  const turn = async (next) => {
    await context.call("PATCH", path, { body: { status: next } });
    say(next === "active" ? "The CA signs again." : "The CA signs nothing more.");
    context.reload();
  };
  const off = () => ask(`Switch off ${nameOf(ca)}`, "It signs nothing until it is switched on again. It still publishes its CRL, and revokes.", "Switch it off", () => turn("disabled"));
  return [
    signs && context.may("ca", "Sign") ? button("Sign a CSR", () => signing(context, ca), "first") : null,
    signs && context.may("ca", "Issue Key") ? button("Issue with a key", () => issuing(context, ca)) : null,
    configuration.activeCaCertId ? acting("Its certificate", () => certificateOf(context, `${path}/certificate`, nameOf(ca), id), where) : null,
    signs && context.may("ca", "Write") && context.may("ca", "Sign") ? button("Renew", () => renewal(context, ca, path)) : null,
    status === "active" && context.may("ca", "Write") ? button("Switch off", off, "danger") : null,
    status === "disabled" && context.may("ca", "Write") ? acting("Switch on", () => turn("active"), where) : null,
  ];
}

// A CA without a certificate: its CSR goes to another CA, of this account or elsewhere.
function wanting(context, ca, path, cas) {
  const section = el("section", {}, el("h2", {}, "It waits for its certificate"));
  if (ca.configuration.type === "root" || !context.may("ca", "Write")) return section;
  const where = el("div");
  const csr = async () => {
    const { result } = await context.call("GET", `${path}/csr`);
    fill(where, block(result.csr, "The CSR in PEM"), el("p", { class: "actions" }, copyButton(result.csr, "Copy the CSR"), button("Download the CSR", () => download(`${ca.name}.csr`, result.csr))));
  };
  const parents = cas.filter((each) => each.status === "active" && each.configuration.activeCaCertId);
  section.append(el("h3", {}, "Signed elsewhere"), el("p", { class: "actions" }, acting("Show the CSR", csr, where)), where, importing(context, path));
  if (parents.length > 0 && context.may("ca", "Sign")) section.append(el("h3", {}, "Signed by a CA of this account"), signedHere(context, path, parents));
  return section;
}

function importing(context, path) {
  return form({
    fields: [
      { name: "certificate", label: "Its certificate", rows: 4, required: true, hint: "In PEM" },
      { name: "certificateChain", label: "The chain above it", rows: 4, required: true, hint: "In PEM, up to the root" },
    ],
    verb: "Import",
    submit: async (values) => {
      await context.call("POST", `${path}/import-certificate`, { body: values });
      say("The CA has its certificate.");
      context.reload();
    },
  });
}

function signedHere(context, path, parents) {
  return form({
    fields: [
      { name: "parentCaId", label: "Signed by", required: true, options: parents.map((ca) => [ca.id, nameOf(ca)]) },
      { name: "notAfter", label: "Ends on", type: "date", required: true },
    ],
    verb: "Have it signed",
    submit: async (values) => {
      await context.call("POST", `${path}/certificate`, { body: values });
      say("The CA has its certificate.");
      context.reload();
    },
  });
}

function renewal(context, ca, path) {
  dialog(`Renew ${nameOf(ca)}`, (close) => [
    el("p", {}, "Another certificate for the same key and name, so what it has signed stays valid. It must end later than the one it has."),
    form({
      fields: [{ name: "notAfter", label: "Ends on", type: "date", required: true }],
      verb: "Renew it",
      extra: button("Cancel", close),
      submit: async ({ notAfter }) => {
        await context.call("POST", `/api/v1/pki/ca/${ca.id}/renew`, { body: { type: "existing", notAfter } });
        say("The CA is renewed.");
        context.reload();
      },
    }),
  ]);
}

const TTL = { name: "ttl", label: "Lasts", required: true, value: "90d", hint: "A number and s, m, h, d, w or y" };
const NAMES = { name: "altNames", label: "Names", rows: 2 };

function signing(context, ca) {
  dialog(`Sign a CSR with ${nameOf(ca)}`, (close) => form({
    fields: [
      { name: "csr", label: "CSR", rows: 6, required: true, hint: "In PEM, as the server or client has made it" },
      { ...NAMES, hint: "Hosts, addresses, emails or URIs, one a line; else those of the CSR" },
      TTL,
    ],
    verb: "Sign",
    extra: button("Cancel", close),
    submit: async (values) => {
      const { result } = await context.call("POST", `/api/v1/pki/ca/${ca.id}/sign-certificate`, { body: bodyOf(values) });
      close();
      signed(context, result);
    },
  }));
}

function issuing(context, ca) {
  dialog(`Issue with ${nameOf(ca)}`, (close) => [
    el("p", {}, "For a client that cannot make a key itself. The key is made on the server, shown once, and kept nowhere."),
    form({
      fields: [
        { name: "commonName", label: "Common name", required: true, maxlength: 64 },
        { ...NAMES, hint: "Hosts, addresses, emails or URIs, one a line; else the common name" },
        TTL,
      ],
      verb: "Issue",
      extra: button("Cancel", close),
      submit: async (values) => {
        const { result } = await context.call("POST", `/api/v1/pki/ca/${ca.id}/issue-certificate`, { body: bodyOf(values) });
        close();
        signed(context, result);
      },
    }),
  ]);
}

function bodyOf({ altNames, ...values }) {
  const names = altNames.split(/[\s,]+/).filter(Boolean);
  return { ...values, altNames: names.length > 0 ? names.join(",") : undefined };
}

function signed(context, result) {
  const { privateKey: key } = result;
  const made = dialog(key ? "The certificate and its key" : "The certificate", (close) => [
    el("p", {}, "Serial number ", el("code", {}, result.serialNumber)),
    key ? el("p", {}, "The private key is shown here once, and kept nowhere. Take it before you close this.") : null,
    key ? [block(key, "The private key in PEM"), el("p", { class: "actions" }, copyButton(key, "Copy the key"), button("Download the key", () => download(`${result.serialNumber}.key`, key)))] : null,
    pems(result, result.serialNumber),
    el("p", { class: "actions" }, button("Done", close)),
  ]);
  made.addEventListener("close", () => context.reload());
}

// A certificate in PEM, and its chain, from which the root's own is not left out.
function pems({ certificate, certificateChain: chain }, file) {
  const all = [certificate, chain].filter(Boolean).join("\n");
  return [
    block(certificate, "The certificate in PEM"),
    el("p", { class: "actions" }, copyButton(certificate, "Copy the certificate"), copyButton(all, "Copy it with its chain"), button("Download it with its chain", () => download(`${file}.pem`, all, "application/x-pem-file"))),
  ];
}

async function certificateOf(context, path, title, file) {
  const { result } = await context.call("GET", path);
  dialog(title, (close) => [pems(result, file), el("p", { class: "actions" }, button("Close", close))]);
}

async function revocations(section, context, path, ca) {
  const title = el("h2", {}, "Its CRL");
  fill(section, title);
  try {
    const { result } = await context.call("GET", `${path}/crl`);
    const crl = readCrl(first(result.crl, "X509 CRL"));
    const days = -daysUntil(crl.thisUpdate) - 1;
    const rows = [
      ["Number", crl.number ?? ""], ["Signed", [moment(crl.thisUpdate), " ", chip(days <= 0 ? "today" : days === 1 ? "1 day old" : `${days} days old`)]],
      ["Valid until", [moment(crl.nextUpdate), daysUntil(crl.nextUpdate) < 0 ? [" ", until(crl.nextUpdate)] : null]], ["Revoked", String(crl.entries.length)],
    ];
    fill(
      section,
      title,
      el("dl", {}, rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
      el("p", { class: "hint" }, "It is signed anew with each revocation, and when somebody fetches it in its second half."),
      el("p", { class: "actions" }, button("Download the CRL", () => download(`${ca.name}.crl`, result.crl, "application/x-pem-file"))),
    );
  } catch (error) {
    fail(section, error instanceof Unreadable ? Object.assign(error, { errors: [{ code: "", message: error.message }] }) : error);
    section.prepend(title);
  }
}

async function certificates(section, context, ca) {
  const { params } = context;
  const filters = { commonName: params.get("commonName") ?? "", status: params.get("status") ?? "" };
  const page = Math.max(1, Number.parseInt(params.get("page") ?? "1", 10) || 1);
  const list = el("div");
  fill(section, el("h2", {}, "What it has issued"), choices(context, ca, filters), list);
  try {
    const query = { ...filters, projectId: context.account.id, caId: ca.id, limit: PER_PAGE, offset: (page - 1) * PER_PAGE };
    const { result } = await context.call("GET", CERTIFICATES, { query });
    const info = { page, total_pages: Math.ceil(result.totalCount / PER_PAGE), total_count: result.totalCount };
    const none = filters.commonName || filters.status ? "No certificate is like that." : "It has issued no certificate yet.";
    fill(list, table("Certificates, the newest first", columnsOf(context, ca), result.certificates, none), pager(info, (next) => context.go("ca", { id: ca.id, ...filters, page: next })));
  } catch (error) {
    fail(list, error);
  }
}

function choices(context, ca, filters) {
  return form({
    compact: true,
    fields: [
      { name: "commonName", label: "Common name", value: filters.commonName, hint: "The whole of it" },
      { name: "status", label: "Status", options: STATES, value: filters.status },
    ],
    verb: "Show",
    submit: (values) => context.go("ca", { id: ca.id, ...values }),
  });
}

function columnsOf(context, ca) {
  return [
    { name: "Common name", cell: ({ commonName, friendlyName }) => commonName || friendlyName },
    { name: "Names", cell: ({ altNames }) => altNames.split(",").join(", ") },
    { name: "Status", cell: (each) => [chip(each.status, STATUS[each.status]), WHY[each.revocationReason ?? 0] ?? ""] },
    { name: "Ends", cell: ({ notAfter, status }) => [moment(notAfter), " ", status === "active" ? until(notAfter) : null] },
    { name: "Serial number", cell: ({ serialNumber }) => el("code", { title: serialNumber }, `${serialNumber.slice(0, 16)}…`) },
    { name: "Actions", cell: (each) => rowActions(context, ca, each) },
  ];
}

function rowActions(context, ca, each) {
  const where = el("div");
  // A root's own cannot be revoked.
  const revocable = each.status === "active" && !(ca.configuration.type === "root" && each.serialNumber === ca.configuration.serialNumber);
  const name = each.commonName || each.friendlyName;
  const path = `/api/v1/pki/certificates/${encodeURIComponent(each.serialNumber)}`;
  const made = [
    each.status === "pending" ? null : [acting("Show", () => certificateOf(context, `${path}/certificate`, name, each.serialNumber), where), "Show"],
    revocable && context.may("ca", "Write") ? [button("Revoke", () => revoking(context, each, name, path), "danger"), "Revoke"] : null,
  ].filter(Boolean);
  for (const [element, verb] of made) element.setAttribute("aria-label", `${verb} ${name}`);
  return [el("div", { class: "actions" }, made.map(([element]) => element)), where];
}

function revoking(context, each, name, path) {
  dialog(`Revoke the certificate of ${name}`, (close) => [
    el("p", {}, "Clients that look at the CRL refuse it from then on. It cannot be taken back."),
    form({
      fields: [{ name: "revocationReason", label: "Why", required: true, options: REASONS }],
      verb: "Revoke it",
      extra: button("Cancel", close),
      submit: async (values) => {
        await context.call("POST", `${path}/revoke`, { body: values });
        say("It is revoked, and in the CRL.");
        context.reload();
      },
    }),
  ]);
}
