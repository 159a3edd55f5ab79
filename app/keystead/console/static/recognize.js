// Says of a PEM text, before it is sent, what it is, which CSR it belongs to, and what is missing above it.

import { Unreadable, blocks, certificate, first, request } from "./pem.js";

const CERTIFICATES = new Set(["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"]);
// So many of the newest CSRs of a list are compared where no name leads to one.
const MOST_CSRS = 200;

// {leaf, chain, missing, extra}: `missing` is the issuer's name that no certificate in the text has, or null where the
// chain ends with a root. Throws Unreadable.
export function read(text) {
  if (/-----BEGIN [A-Z0-9 ]*PRIVATE\sKEY-----/.test(text)) {
    throw new Unreadable(
      "There is a private key in it. It is not sent anywhere: take it out, and paste the certificates alone.",
    );
  }
  const all = blocks(text)
    .filter(({ label }) => CERTIFICATES.has(label))
    .map(({ der }) => certificate(der));
  if (all.length === 0) throw new Unreadable("There is no certificate in it, in PEM.");
  const leaf = all.find((each) => !each.isCa) ?? all[0];
  const chain = [leaf];
  for (;;) {
    const last = chain.at(-1);
    if (last.issuer.key === last.subject.key) return { leaf, chain, missing: null, extra: all.length - chain.length };
    const next = all.find((each) => each.subject.key === last.issuer.key && !chain.includes(each));
    if (!next) return { leaf, chain, missing: last.issuer.text, extra: all.length - chain.length };
    chain.push(next);
  }
}

// The CSR with the key of this certificate, in the zone or its account: {csr, of}, or null.
export async function csrOf(context, zone, leaf) {
  const places = [
    [`/client/v4/zones/${zone.id}`, `the zone ${zone.name}`],
    [`/client/v4/accounts/${context.account.id}`, "the account"],
  ];
  // A name leads there at once; the newest are looked at where the CA has changed all names.
  const names = [...leaf.hosts.slice(0, 2).map((san) => ({ san })), null];
  for (const query of names) {
    for (const [path, of] of places) {
      const csr = await match(context, `${path}/custom_csrs`, query, leaf.spki);
      if (csr) return { csr, of };
    }
  }
  return null;
}

async function match(context, path, query, spki) {
  try {
    const { items } = await context.all(path, { query: { ...query, direction: "desc" }, most: MOST_CSRS });
    return items.find((each) => keyOf(each) === spki) ?? null;
  } catch (error) {
    // A list that the token may not read has no answer for it.
    if (error.status === 403) return null;
    throw error;
  }
}

function keyOf(csr) {
  try {
    return request(first(csr.csr, "CERTIFICATE REQUEST")).spki;
  } catch (error) {
    if (error instanceof Unreadable) return null;
    throw error;
  }
}
