// The form for a certificate: dropped, pasted or chosen; recognized before it is sent.

import { el, failure, form, moment, say, show as fill, until } from "../dom.js";
import { Unreadable, pemOf } from "../pem.js";
import { csrOf, read } from "../recognize.js";

const MOST_BYTES = 256 * 1024;
const METHODS = [
  ["ubiquitous", "Up to a root that is trusted"],
  ["force", "As I send it"],
];

// What the API said beside the last certificate that was sent, to be shown with it.
let last = null;

export function told(id) {
  const messages = last?.id === id ? last.messages : [];
  last = null;
  return messages;
}

// `send(values)` sends it, and answers {result, messages, said}.
export function upload(context, zone, { verb, extra, method, send }) {
  const about = el("div", { role: "status" });
  // What is typed later wins over what is still being looked up.
  let round = 0;
  let looking = Promise.resolve();
  const made = form({
    fields: [
      {
        name: "certificate",
        label: "Certificate, and those above it",
        required: true,
        rows: 8,
        wrap: "off",
        placeholder: "-----BEGIN CERTIFICATE-----",
        hint: "In PEM, in any order. You can drop a file here.",
      },
      { name: "custom_csr_id", label: "Id of the CSR", hint: "Found by the key of the certificate." },
      { name: "bundle_method", label: "Chain", value: method === "force" ? "force" : "ubiquitous", options: METHODS },
    ],
    verb,
    extra,
    submit: async ({ certificate, custom_csr_id: csr, bundle_method }) => {
      await looking;
      readable(certificate);
      const id = made.elements.namedItem("custom_csr_id").value.trim() || csr.trim();
      const { result, messages, said } = await send({
        certificate,
        bundle_method,
        ...(id ? { custom_csr_id: id } : {}),
      });
      say(said);
      last = { id: result.id, messages };
      context.go("certificates", { zone: zone.id, id: result.id });
    },
  });
  const text = made.elements.namedItem("certificate");
  const look = () => {
    const mine = ++round;
    looking = recognize(context, zone, text.value, about, made, () => mine === round);
  };
  text.addEventListener("input", look);
  const take = async (files) => {
    text.value = (await Promise.all([...files].slice(0, 20).map((file) => textOf(file, about)))).join("\n");
    look();
  };
  const id = `file-${verb}`;
  const chosen = el("input", {
    type: "file",
    id,
    multiple: true,
    accept: ".pem,.crt,.cer,.der,.txt",
    change: (event) => take(event.target.files),
  });
  return dropping(
    el(
      "div",
      { class: "drop" },
      el("p", { class: "field" }, el("label", { for: id }, "A file of the CA"), chosen),
      made,
      about,
    ),
    take,
  );
}

function dropping(area, take) {
  const over = (is) => (event) => {
    event.preventDefault();
    area.classList.toggle("over", is);
  };
  area.addEventListener("dragover", over(true));
  area.addEventListener("dragleave", over(false));
  area.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length > 0) take(event.dataTransfer.files);
  });
  return area;
}

// PEM as it is; what begins as DER does, as PEM.
async function textOf(file, about) {
  if (file.size > MOST_BYTES) {
    fill(about, refused("The file is too large for a certificate and its chain."));
    return "";
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  return bytes[0] === 0x30 ? pemOf("CERTIFICATE", bytes) : new TextDecoder().decode(bytes);
}

function readable(text) {
  try {
    read(text);
  } catch (error) {
    if (error instanceof Unreadable) error.errors[0].pointer = "/certificate";
    throw error;
  }
}

const refused = (message) => failure({ errors: [{ code: "", message }] });

async function recognize(context, zone, text, about, made, isLast) {
  const csrId = made.elements.namedItem("custom_csr_id");
  csrId.value = "";
  if (text.trim() === "") {
    fill(about);
    return;
  }
  try {
    const found = read(text);
    fill(about, summary(found), el("p", { class: "quiet" }, "Looking for its CSR …"));
    const match = await csrOf(context, zone, found.leaf);
    if (!isLast()) return;
    if (match) csrId.value = match.csr.id;
    fill(about, summary(found), match ? belongs(match) : unknown());
  } catch (error) {
    if (!isLast() || error.name === "AbortError") return;
    fill(about, failure(error));
  }
}

function belongs({ csr, of }) {
  const name = csr.name ? ` (${csr.name})` : "";
  return el(
    "p",
    { class: "note" },
    `It belongs to the CSR for ${csr.common_name}${name} of ${of}, made `,
    moment(csr.created_at),
    ".",
  );
}

function unknown() {
  return el(
    "p",
    { class: "failure" },
    "No CSR of this zone or its account was found with this key. If you know its id, give it above. A certificate for the key that is there already can renew it without.",
  );
}

function summary({ leaf, chain, missing, extra }) {
  const rows = [
    ["Hosts", leaf.hosts.join(", ") || "none"],
    ["Subject", leaf.subject.text],
    ["Issuer", leaf.issuer.text],
    ["Valid", [moment(leaf.notBefore), " to ", moment(leaf.notAfter), " ", until(leaf.notAfter)]],
    ["Serial number", el("code", {}, leaf.serial)],
    ["Chain", chainText(chain, missing, extra)],
  ];
  return [
    el("h3", {}, "What is in it"),
    el(
      "dl",
      {},
      rows.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    ),
  ];
}

function chainText(chain, missing, extra) {
  const count = chain.length === 1 ? "The certificate alone" : `${chain.length} certificates, one above the other`;
  const top =
    missing === null
      ? "up to a root"
      : `the one above is not in it: ${missing}. That does no harm if it is a root that the server trusts`;
  const others = extra > 0 ? ` ${extra} more in it belong to no step.` : "";
  return `${count}; ${top}.${others}`;
}
