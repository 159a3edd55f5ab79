// One private CA: what it is, its certificate, its CRL; issued.js has what it has issued, and issues.

import {
  acting,
  ask,
  block,
  button,
  chip,
  copyButton,
  daysUntil,
  dialog,
  download,
  el,
  fail,
  form,
  moment,
  say,
  until,
  show as fill,
} from "../dom.js";
import { Unreadable, first, crl as readCrl } from "../pem.js";
import { CAS, STATUS, nameOf, certificateOf, certificates, issuing, signing } from "./issued.js";

export async function one(main, context, ca, cas) {
  const path = `${CAS}/${ca.id}`;
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
    ["Subject", configuration.dn],
    ["Kind", configuration.type],
    ["Status", chip(status, STATUS[status])],
    ["Signed by", parent ? el("a", { href: `#ca?id=${encodeURIComponent(parent.id)}` }, nameOf(parent)) : null],
    ["Key", configuration.keyAlgorithm],
    ["CAs below it", bound],
    [
      "Ends",
      configuration.notAfter
        ? [moment(configuration.notAfter), " ", until(configuration.notAfter)]
        : "no certificate yet",
    ],
    ["Serial number", configuration.serialNumber ? el("code", {}, configuration.serialNumber) : null],
  ];
  const where = el("div");
  const list = el(
    "dl",
    {},
    rows.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
  );
  return el(
    "section",
    {},
    el("h2", {}, "The CA"),
    list,
    el("p", { class: "actions" }, actions(context, ca, path, where)),
    where,
  );
}

function actions(context, ca, path, where) {
  const { configuration, id, status } = ca;
  const signs = status === "active" && configuration.activeCaCertId;
  const turn = async (next) => {
    await context.call("PATCH", path, { body: { status: next } });
    say(next === "active" ? "The CA signs again." : "The CA signs nothing more.");
    context.reload();
  };
  const off = () =>
    ask(
      `Switch off ${nameOf(ca)}`,
      "It signs nothing until it is switched on again. It still publishes its CRL, and revokes.",
      "Switch it off",
      () => turn("disabled"),
    );
  return [
    signs && context.may("ca", "Sign") ? button("Sign a CSR", () => signing(context, ca), "first") : null,
    signs && context.may("ca", "Issue Key") ? button("Issue with a key", () => issuing(context, ca)) : null,
    configuration.activeCaCertId
      ? acting("Its certificate", () => certificateOf(context, `${path}/certificate`, nameOf(ca), id), where)
      : null,
    signs && context.may("ca", "Write") && context.may("ca", "Sign")
      ? button("Renew", () => renewal(context, ca, path))
      : null,
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
    fill(
      where,
      block(result.csr, "The CSR in PEM"),
      el(
        "p",
        { class: "actions" },
        copyButton(result.csr, "Copy the CSR"),
        button("Download the CSR", () => download(`${ca.name}.csr`, result.csr)),
      ),
    );
  };
  const parents = cas.filter((each) => each.status === "active" && each.configuration.activeCaCertId);
  section.append(
    el("h3", {}, "Signed elsewhere"),
    el("p", { class: "actions" }, acting("Show the CSR", csr, where)),
    where,
    importing(context, path),
  );
  if (parents.length > 0 && context.may("ca", "Sign"))
    section.append(el("h3", {}, "Signed by a CA of this account"), signedHere(context, path, parents));
  return section;
}

function importing(context, path) {
  return form({
    fields: [
      { name: "certificate", label: "Its certificate", rows: 4, required: true, hint: "In PEM" },
      {
        name: "certificateChain",
        label: "The chain above it",
        rows: 4,
        required: true,
        hint: "In PEM, up to the root",
      },
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
    el(
      "p",
      {},
      "Another certificate for the same key and name, so what it has signed stays valid. It must end later than the one it has.",
    ),
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

async function revocations(section, context, path, ca) {
  const title = el("h2", {}, "Its CRL");
  fill(section, title);
  try {
    const { result } = await context.call("GET", `${path}/crl`);
    const crl = readCrl(first(result.crl, "X509 CRL"));
    const days = -daysUntil(crl.thisUpdate) - 1;
    const rows = [
      ["Number", crl.number ?? ""],
      [
        "Signed",
        [moment(crl.thisUpdate), " ", chip(days <= 0 ? "today" : days === 1 ? "1 day old" : `${days} days old`)],
      ],
      ["Valid until", [moment(crl.nextUpdate), daysUntil(crl.nextUpdate) < 0 ? [" ", until(crl.nextUpdate)] : null]],
      ["Revoked", String(crl.entries.length)],
    ];
    fill(
      section,
      title,
      el(
        "dl",
        {},
        rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
      ),
      el(
        "p",
        { class: "hint" },
        "It is signed anew with each revocation, and when somebody fetches it in its second half.",
      ),
      el(
        "p",
        { class: "actions" },
        button("Download the CRL", () => download(`${ca.name}.crl`, result.crl, "application/x-pem-file")),
      ),
    );
  } catch (error) {
    fail(
      section,
      error instanceof Unreadable ? Object.assign(error, { errors: [{ code: "", message: error.message }] }) : error,
    );
    section.prepend(title);
  }
}
