// Collects what the overview shows, from both dialects; what the token may not read is left out, and said.

import { daysUntil } from "./dom.js";
import { crl, first } from "./pem.js";
import { MOST_DAYS, base, few } from "./pages/csrs.js";

const DAY = 86400000;
const AHEAD_DAYS = 366;
const MOST_ZONES = 20;
const MOST_ITEMS = 500;
const MOST_CAS = 30;

// From `near` days on it is time to do something, and from `soon` days on high time. A CRL is valid for a week, and whoever
// fetches it in its second half has it signed anew.
export const KINDS = {
  certificate: { name: "Certificate", soon: 14, near: 30 },
  renewal: { name: "Renewal by itself", soon: 0, near: 0 },
  issued: { name: "Certificate of a private CA", soon: 14, near: 30 },
  ca: { name: "Private CA", soon: 30, near: 90 },
  crl: { name: "CRL", soon: 1, near: 3 },
  key: { name: "Key reaches its age", soon: 14, near: 30 },
};

// {ends: [{at, kind, text, where, href}], waiting, old, refused, failed, cut, partial, places}: `ends` is in the order of
// time.
export async function collect(context) {
  const zones = context.zone ? [context.zone] : context.zones.slice(0, MOST_ZONES);
  const found = {
    ends: [],
    waiting: [],
    old: [],
    refused: [],
    failed: [],
    cut: [],
    places: zones.length,
    partial: false,
  };
  const attempt = (what, work) => tried(found, what, work);
  const [certificates, csrs] = await Promise.all([
    Promise.all(
      zones.map((zone) => attempt(`certificates of ${zone.name}`, () => certificatesOf(context, zone, found))),
    ),
    Promise.all(
      places(context, zones).map((place) => attempt(`CSRs of ${place.name}`, () => csrsOf(context, place, found))),
    ),
    context.may("ca", "Read") ? attempt("private CAs", () => cas(context, found, attempt)) : null,
  ]);
  // Then a CSR that seems to wait may have a certificate.
  found.partial ||= certificates.includes(null) || (!context.zone && zones.length < context.zones.length);
  joined(
    found,
    certificates.flatMap((list) => list ?? []),
    csrs.flatMap((list) => list ?? []),
    context,
  );
  found.ends = found.ends
    .filter(({ at }) => daysUntil(at) <= AHEAD_DAYS)
    .sort((one, two) => new Date(one.at) - new Date(two.at));
  found.refused.sort();
  return found;
}

async function tried(found, what, work) {
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.status === 403) found.refused.push(what);
    else found.failed.push(error);
    return null;
  }
}

function places({ account }, zones) {
  const own = { path: base({ account, zone: null }), name: account.name, where: "Account", query: "" };
  return [
    own,
    ...zones.map((zone) => ({
      path: base({ account, zone }),
      name: zone.name,
      where: zone.name,
      query: `&zone=${zone.id}`,
      zone,
    })),
  ];
}

async function certificatesOf(context, zone, found) {
  const { items, total } = await context.all(`/client/v4/zones/${zone.id}/custom_certificates`, { most: MOST_ITEMS });
  if (total > items.length) {
    found.cut.push(`${items.length} of ${total} certificates of ${zone.name}`);
    found.partial = true;
  }
  return items.map((each) => {
    const shown = {
      text: few(each.hosts, 2) || each.id,
      where: zone.name,
      href: `#certificates?zone=${zone.id}&id=${encodeURIComponent(each.id)}`,
    };
    found.ends.push({ ...shown, at: each.expires_on, kind: KINDS.certificate });
    const rule = each.keystead_renewal;
    if (rule) {
      const text = rule.state === "scheduled" ? shown.text : `${shown.text} (${rule.state})`;
      found.ends.push({ ...shown, text, at: rule.renews_on, kind: KINDS.renewal });
    }
    return { ...each, ...shown };
  });
}

async function csrsOf(context, place, found) {
  const { items, total } = await context.all(`${place.path}/custom_csrs`, {
    query: { direction: "desc" },
    most: MOST_ITEMS,
  });
  if (total > items.length) found.cut.push(`${items.length} of ${total} CSRs of ${place.name}`);
  return items.map((csr) => ({
    ...csr,
    place,
    where: place.where,
    href: `#csrs?id=${encodeURIComponent(csr.id)}${place.query}`,
  }));
}

// What only certificates and CSRs together tell: which CSRs wait, and how old the keys of certificates are.
function joined(found, certificates, csrs, { zone }) {
  const used = new Set(certificates.map((each) => each.custom_csr_id));
  // The account's CSRs may be used in zones that were not read.
  found.waiting = csrs
    .filter((csr) => !used.has(csr.id) && (!zone || csr.place.zone))
    .sort((one, two) => new Date(two.created_at) - new Date(one.created_at));
  const made = new Map(csrs.map((csr) => [csr.id, csr.created_at]));
  for (const each of certificates) {
    const at = made.get(each.custom_csr_id);
    if (at === undefined) continue;
    const limit = new Date(new Date(at).getTime() + (MOST_DAYS + 1) * DAY);
    const { text, where, href } = each;
    if (limit <= Date.now()) found.old.push({ text, where, href, made: at, days: -daysUntil(at) - 1 });
    else found.ends.push({ at: limit.toISOString(), kind: KINDS.key, text, where, href });
  }
}

async function cas(context, found, attempt) {
  const { result } = await context.call("GET", "/api/v1/cert-manager/ca/internal", {
    query: { projectId: context.account.id },
  });
  const living = result.filter((ca) => ca.configuration.notAfter);
  if (living.length > MOST_CAS) found.cut.push(`CRLs of ${MOST_CAS} of ${living.length} CAs`);
  for (const ca of living) {
    found.ends.push({
      at: ca.configuration.notAfter,
      kind: KINDS.ca,
      text: nameOf(ca),
      where: "Private CA",
      href: "#ca",
    });
  }
  const own = new Set(living.map((ca) => ca.configuration.serialNumber));
  const crls = living
    .slice(0, MOST_CAS)
    .map((ca) => attempt(`the CRL of ${nameOf(ca)}`, () => crlOf(context, found, ca)));
  await Promise.all([...crls, issued(context, found, own)]);
}

const nameOf = ({ name, configuration: { commonName, friendlyName } }) => commonName || friendlyName || name;

async function crlOf(context, found, ca) {
  const { result } = await context.call("GET", `/api/v1/pki/ca/${encodeURIComponent(ca.id)}/crl`);
  const { nextUpdate } = crl(first(result.crl, "X509 CRL"));
  if (nextUpdate)
    found.ends.push({
      at: nextUpdate.toISOString(),
      kind: KINDS.crl,
      text: nameOf(ca),
      where: "Private CA",
      href: "#ca",
    });
}

// Those of servers and clients: a CA's own are there already.
async function issued(context, found, own) {
  const expiresBefore = new Date(Date.now() + AHEAD_DAYS * DAY).toISOString();
  const query = { projectId: context.account.id, status: "active", expiresBefore, limit: MOST_ITEMS };
  const { result, total } = await context.call("GET", "/api/v1/cert-manager/certificates", { query });
  if (total > result.certificates.length)
    found.cut.push(`${result.certificates.length} of ${total} certificates of private CAs`);
  for (const each of result.certificates.filter(({ serialNumber }) => !own.has(serialNumber))) {
    found.ends.push({
      at: each.notAfter,
      kind: KINDS.issued,
      text: each.commonName || each.altNames || each.serialNumber,
      where: "Private CA",
      href: "#ca",
    });
  }
}
