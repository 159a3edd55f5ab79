// What a private CA has issued: it signs and issues, shows and revokes.

import {
  acting,
  block,
  button,
  chip,
  copyButton,
  dialog,
  download,
  el,
  fail,
  form,
  moment,
  pager,
  say,
  table,
  until,
  show as fill,
} from "../dom.js";

export const CAS = "/api/v1/cert-manager/ca/internal";
export const STATUS = {
  active: "good",
  disabled: "warn",
  "pending-certificate": "warn",
  expired: "bad",
  revoked: "bad",
  pending: "warn",
};
export const nameOf = ({ configuration, name }) => configuration.commonName || configuration.dn || name;

const CERTIFICATES = "/api/v1/cert-manager/certificates";
const PER_PAGE = 20;
const REASONS = [
  ["UNSPECIFIED", "No reason"],
  ["KEY_COMPROMISE", "Its key was stolen"],
  ["SUPERSEDED", "Another one takes its place"],
  ["CESSATION_OF_OPERATION", "It is no longer used"],
  ["AFFILIATION_CHANGED", "Its subject belongs elsewhere now"],
  ["PRIVILEGE_WITHDRAWN", "Its subject may no longer have it"],
  ["CA_COMPROMISE", "It is of a CA whose key was stolen"],
];
const STATES = [
  ["", "Any"],
  ["active", "Active"],
  ["expired", "Expired"],
  ["revoked", "Revoked"],
];
// Of RFC 5280, section 5.3.1.
const WHY = [
  "",
  "key compromise",
  "CA compromise",
  "affiliation changed",
  "superseded",
  "cessation of operation",
  "certificate hold",
  "",
  "",
  "privilege withdrawn",
  "AA compromise",
];

const TTL = { name: "ttl", label: "Lasts", required: true, value: "90d", hint: "A number and s, m, h, d, w or y" };
const NAMES = { name: "altNames", label: "Names", rows: 2 };

export function signing(context, ca) {
  dialog(`Sign a CSR with ${nameOf(ca)}`, (close) =>
    form({
      fields: [
        { name: "csr", label: "CSR", rows: 6, required: true, hint: "In PEM, as the server or client has made it" },
        { ...NAMES, hint: "Hosts, addresses, emails or URIs, one a line; else those of the CSR" },
        TTL,
      ],
      verb: "Sign",
      extra: button("Cancel", close),
      submit: async (values) => {
        const { result } = await context.call("POST", `/api/v1/pki/ca/${ca.id}/sign-certificate`, {
          body: bodyOf(values),
        });
        close();
        signed(context, result);
      },
    }),
  );
}

export function issuing(context, ca) {
  dialog(`Issue with ${nameOf(ca)}`, (close) => [
    el(
      "p",
      {},
      "For a client that cannot make a key itself. The key is made on the server, shown once, and kept nowhere.",
    ),
    form({
      fields: [
        { name: "commonName", label: "Common name", required: true, maxlength: 64 },
        { ...NAMES, hint: "Hosts, addresses, emails or URIs, one a line; else the common name" },
        TTL,
      ],
      verb: "Issue",
      extra: button("Cancel", close),
      submit: async (values) => {
        const { result } = await context.call("POST", `/api/v1/pki/ca/${ca.id}/issue-certificate`, {
          body: bodyOf(values),
        });
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
    key
      ? [
          block(key, "The private key in PEM"),
          el(
            "p",
            { class: "actions" },
            copyButton(key, "Copy the key"),
            button("Download the key", () => download(`${result.serialNumber}.key`, key)),
          ),
        ]
      : null,
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
    el(
      "p",
      { class: "actions" },
      copyButton(certificate, "Copy the certificate"),
      copyButton(all, "Copy it with its chain"),
      button("Download it with its chain", () => download(`${file}.pem`, all, "application/x-pem-file")),
    ),
  ];
}

export async function certificateOf(context, path, title, file) {
  const { result } = await context.call("GET", path);
  dialog(title, (close) => [pems(result, file), el("p", { class: "actions" }, button("Close", close))]);
}

export async function certificates(section, context, ca) {
  const { params } = context;
  const filters = { commonName: params.get("commonName") ?? "", status: params.get("status") ?? "" };
  const page = Math.max(1, Number.parseInt(params.get("page") ?? "1", 10) || 1);
  const list = el("div");
  fill(section, el("h2", {}, "What it has issued"), choices(context, ca, filters), list);
  try {
    const query = {
      ...filters,
      projectId: context.account.id,
      caId: ca.id,
      limit: PER_PAGE,
      offset: (page - 1) * PER_PAGE,
    };
    const { result } = await context.call("GET", CERTIFICATES, { query });
    const info = { page, total_pages: Math.ceil(result.totalCount / PER_PAGE), total_count: result.totalCount };
    const none =
      filters.commonName || filters.status ? "No certificate is like that." : "It has issued no certificate yet.";
    fill(
      list,
      table("Certificates, the newest first", columnsOf(context, ca), result.certificates, none),
      pager(info, (next) => context.go("ca", { id: ca.id, ...filters, page: next })),
    );
  } catch (error) {
    fail(list, error);
  }
}

function choices(context, ca, filters) {
  return form({
    compact: true,
    fields: [
      { name: "commonName", label: "Whole common name", value: filters.commonName },
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
    {
      name: "Status",
      cell: (each) => [chip(each.status, STATUS[each.status]), " ", WHY[each.revocationReason ?? 0] ?? ""],
    },
    {
      name: "Ends",
      cell: ({ notAfter, status }) => [moment(notAfter), " ", status === "active" ? until(notAfter) : null],
    },
    {
      name: "Serial number",
      cell: ({ serialNumber }) => el("code", { title: serialNumber }, `${serialNumber.slice(0, 12)}…`),
    },
    { name: "Actions", cell: (each) => rowActions(context, ca, each) },
  ];
}

function rowActions(context, ca, each) {
  const where = el("div");
  // A root's own cannot be revoked.
  const revocable =
    each.status === "active" &&
    !(ca.configuration.type === "root" && each.serialNumber === ca.configuration.serialNumber);
  const name = each.commonName || each.friendlyName;
  const path = `/api/v1/pki/certificates/${encodeURIComponent(each.serialNumber)}`;
  const made = [
    each.status === "pending"
      ? null
      : [acting("Show", () => certificateOf(context, `${path}/certificate`, name, each.serialNumber), where), "Show"],
    revocable && context.may("ca", "Write")
      ? [button("Revoke", () => revoking(context, each, name, path), "danger"), "Revoke"]
      : null,
  ].filter(Boolean);
  for (const [element, verb] of made) element.setAttribute("aria-label", `${verb} ${name}`);
  return [
    el(
      "div",
      { class: "actions" },
      made.map(([element]) => element),
    ),
    where,
  ];
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
