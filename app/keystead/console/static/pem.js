// Reads what the console shows of certificates, CSRs and CRLs: a small reader of DER, which judges nothing.

const MOST = 512 * 1024;
const NAMES = {
  "2.5.4.3": "CN",
  "2.5.4.6": "C",
  "2.5.4.7": "L",
  "2.5.4.8": "ST",
  "2.5.4.10": "O",
  "2.5.4.11": "OU",
  "2.5.4.5": "serialNumber",
  "1.2.840.113549.1.9.1": "emailAddress",
  "0.9.2342.19200300.100.1.25": "DC",
};
const SAN = "2.5.29.17";
const BASIC_CONSTRAINTS = "2.5.29.19";
const CRL_NUMBER = "2.5.29.20";

export class Unreadable extends Error {
  constructor(message) {
    super(message);
    // As those of the API.
    this.errors = [{ code: "", message }];
  }
}

// The blocks of a PEM text: [{label, der}]. Throws Unreadable for a block that is cut off or no base64.
export function blocks(text) {
  if (text.length > MOST) throw new Unreadable("This is too long for a certificate and its chain.");
  const found = [];
  for (const [, label, body, end] of text.matchAll(/-----BEGIN ([A-Z0-9 ]{1,40})-----([^-]*)(-----END \1-----)?/g)) {
    if (!end) throw new Unreadable(`A block (${label}) has no end.`);
    found.push({ label, der: bytesOf(body) });
  }
  return found;
}

function bytesOf(base64) {
  try {
    return Uint8Array.from(atob(base64.replace(/\s+/g, "")), (each) => each.charCodeAt(0));
  } catch {
    throw new Unreadable("A block is no base64.");
  }
}

export function pemOf(label, der) {
  const text = btoa(String.fromCharCode(...der)).replace(/.{1,64}/g, "$&\n");
  return `-----BEGIN ${label}-----\n${text}-----END ${label}-----\n`;
}

// One value: its tag, its content, all of it, and where the next one begins.
function value(der, at = 0) {
  const tag = der[at];
  let length = der[at + 1];
  let begin = at + 2;
  if (tag === undefined || length === undefined || (tag & 31) === 31) throw new Unreadable("It is cut off.");
  if (length > 127) {
    const bytes = length & 127;
    if (bytes === 0 || bytes > 4) throw new Unreadable("It is not DER.");
    length = der.subarray(begin, begin + bytes).reduce((sum, byte) => sum * 256 + byte, 0);
    begin += bytes;
  }
  const end = begin + length;
  if (end > der.length) throw new Unreadable("It is cut off.");
  return { tag, content: der.subarray(begin, end), whole: der.subarray(at, end), end };
}

function members(content) {
  const all = [];
  for (let at = 0; at < content.length;) {
    const next = value(content, at);
    all.push(next);
    at = next.end;
  }
  return all;
}

const children = (one) => members(one.content);

function expect(one, tag, what) {
  if (one?.tag !== tag) throw new Unreadable(`It is no ${what}.`);
  return one;
}

function hex(bytes) {
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function oid(bytes) {
  const numbers = [];
  let number = 0;
  for (const byte of bytes) {
    number = number * 128 + (byte & 127);
    if (byte < 128) {
      numbers.push(number);
      number = 0;
    }
  }
  const first = Math.min(2, Math.floor(numbers[0] / 40));
  return [first, numbers[0] - first * 40, ...numbers.slice(1)].join(".");
}

function string({ tag, content }) {
  if (tag === 0x1e) return new TextDecoder("utf-16be").decode(content);
  return new TextDecoder(tag === 0x14 ? "latin1" : "utf-8").decode(content);
}

// {text, key}: for people, and what two names that are the same have in common.
function nameOf(one) {
  const parts = children(one)
    .flatMap(children)
    .map((each) => {
      const [type, text] = children(each);
      const id = oid(type.content);
      return `${NAMES[id] ?? id}=${string(text)}`;
    });
  return { text: parts.join(", ") || "(no name)", key: hex(one.whole) };
}

function time({ tag, content }) {
  const text = new TextDecoder().decode(content);
  const [, year, month, day, hour, minute, second] = /^(\d{2}|\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(text) ?? [];
  if (year === undefined) throw new Unreadable("A time in it cannot be read.");
  const century = tag === 0x18 ? "" : Number(year) < 50 ? "20" : "19";
  return new Date(`${century}${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
}

function address(bytes) {
  if (bytes.length === 4) return bytes.join(".");
  return hex(bytes).replace(/.{4}(?!$)/g, "$&:");
}

function hosts(extension) {
  return members(value(extension).content).flatMap(({ tag, content }) => {
    if (tag === 0x82) return [new TextDecoder().decode(content)];
    return tag === 0x87 ? [address(content)] : [];
  });
}

// The extensions by OID: the bytes within.
function extensions(one) {
  const found = new Map();
  for (const each of children(value(one.content))) {
    const parts = children(each);
    found.set(oid(parts[0].content), parts.at(-1).content);
  }
  return found;
}

// {serial, subject, issuer, notBefore, notAfter, hosts, isCa, spki, der}: names as {text, key}, `spki` in hex.
export function certificate(der) {
  const [tbs] = children(expect(value(der), 0x30, "certificate"));
  const parts = children(expect(tbs, 0x30, "certificate"));
  const first = parts[0]?.tag === 0xa0 ? 1 : 0;
  const [serial, , issuer, validity, subject, spki] = parts.slice(first);
  expect(serial, 0x02, "certificate");
  expect(spki, 0x30, "certificate");
  const [notBefore, notAfter] = children(expect(validity, 0x30, "certificate")).map(time);
  const last = parts.at(-1);
  const more = last.tag === 0xa3 ? extensions(last) : new Map();
  const constraints = more.get(BASIC_CONSTRAINTS);
  return {
    serial: hex(serial.content).replace(/^00(?=.)/, ""),
    subject: nameOf(subject),
    issuer: nameOf(issuer),
    notBefore,
    notAfter,
    hosts: more.has(SAN) ? hosts(more.get(SAN)) : [],
    isCa: constraints !== undefined && children(value(constraints))[0]?.tag === 0x01,
    spki: hex(spki.whole),
    der,
  };
}

// {subject, spki} of a CSR.
export function request(der) {
  const [info] = children(expect(value(der), 0x30, "CSR"));
  const [version, subject, spki] = children(expect(info, 0x30, "CSR"));
  expect(version, 0x02, "CSR");
  return { subject: nameOf(subject), spki: hex(expect(spki, 0x30, "CSR").whole) };
}

// {issuer, thisUpdate, nextUpdate, number, entries: [{serial, revokedAt}]} of a CRL.
export function crl(der) {
  const [tbs] = children(expect(value(der), 0x30, "CRL"));
  const parts = children(expect(tbs, 0x30, "CRL"));
  const at = parts[0]?.tag === 0x02 ? 1 : 0;
  const issuer = nameOf(parts[at + 1]);
  const times = parts
    .slice(at + 2)
    .filter(({ tag }) => tag === 0x17 || tag === 0x18)
    .map(time);
  const revoked = parts.slice(at + 2).find(({ tag }) => tag === 0x30);
  const last = parts.at(-1);
  const number = last.tag === 0xa0 ? extensions(last).get(CRL_NUMBER) : undefined;
  const entries = revoked
    ? children(revoked).map((each) => {
        const [serial, when] = children(each);
        return { serial: hex(serial.content).replace(/^00(?=.)/, ""), revokedAt: time(when) };
      })
    : [];
  return {
    issuer,
    thisUpdate: times[0],
    nextUpdate: times[1],
    number: number ? hex(value(number).content) : null,
    entries,
  };
}

export function first(text, label) {
  const found = blocks(text).find((each) => each.label === label);
  if (!found) throw new Unreadable(`There is no ${label} in it.`);
  return found.der;
}
