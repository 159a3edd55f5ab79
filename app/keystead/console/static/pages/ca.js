// The private CAs of the account as a tree, and making one; pages/authority.js shows one alone.

import { chip, el, form, say, show as fill, until } from "../dom.js";
import { one } from "./authority.js";
import { CAS, STATUS, nameOf } from "./issued.js";

const KEYS = [
  ["EC_prime256v1", "EC P-256"],
  ["EC_secp384r1", "EC P-384"],
  ["EC_secp521r1", "EC P-521"],
  ["RSA_2048", "RSA 2048"],
  ["RSA_3072", "RSA 3072"],
  ["RSA_4096", "RSA 4096"],
];

export async function show(main, context) {
  const { result: cas } = await context.call("GET", CAS, { query: { projectId: context.account.id } });
  const id = context.params.get("id");
  if (context.params.has("new")) creation(main, context, cas);
  else if (id)
    await one(
      main,
      context,
      cas.find((ca) => ca.id === id) ?? (await context.call("GET", `${CAS}/${encodeURIComponent(id)}`)).result,
      cas,
    );
  else overview(main, context, cas);
}

function overview(main, context, cas) {
  const make = context.may("ca", "Write") ? el("a", { class: "button first", href: "#ca?new=1" }, "New CA") : null;
  const known = new Set(cas.map(({ id }) => id));
  const tops = cas.filter(({ configuration }) => !known.has(configuration.parentCaId));
  const found = tops.length > 0 ? branch(cas, tops, new Set()) : el("p", { class: "none" }, "There is no CA here yet.");
  fill(
    main,
    context.heading("Private CA", make),
    el(
      "section",
      {},
      el("p", { class: "quiet" }, `The CAs of the account ${context.account.name}, each below the one that signed it.`),
      found,
    ),
  );
}

// `above` are those on the way down, so that no loop in the data becomes one here.
function branch(cas, level, above) {
  return el(
    "ul",
    { class: "tree" },
    level.map((ca) => {
      const below = cas.filter(
        (each) => each.configuration.parentCaId === ca.id && each.id !== ca.id && !above.has(each.id),
      );
      return el("li", {}, entry(ca), below.length > 0 ? branch(cas, below, new Set([...above, ca.id])) : null);
    }),
  );
}

function entry(ca) {
  const { configuration, id, status } = ca;
  return el(
    "div",
    { class: "entry" },
    el("a", { href: `#ca?id=${encodeURIComponent(id)}` }, nameOf(ca)),
    chip(configuration.type),
    status === "active" ? null : chip(status, STATUS[status]),
    configuration.notAfter ? until(configuration.notAfter) : null,
  );
}

function creation(main, context, cas) {
  const section = el("section");
  fill(main, context.heading("New CA"), section);
  if (!context.may("ca", "Write")) {
    fill(section, el("p", {}, "Your token may not make CAs."));
    return;
  }
  const parents = context.may("ca", "Sign") ? cas.filter(({ status }) => status === "active") : [];
  const outside = ["", "A CA elsewhere: it gets the CSR"];
  fill(
    section,
    el("p", { class: "quiet" }, "Its private key is made on the server, and stays there."),
    form({
      fields: [
        { name: "commonName", label: "Common name", required: true, maxlength: 64 },
        { name: "organization", label: "Organization" },
        { name: "country", label: "Country", maxlength: 2, hint: "Two capital letters, such as DE" },
        {
          name: "type",
          label: "Kind",
          required: true,
          options: [
            ["root", "Root: signs itself"],
            ["intermediate", "Intermediate: below another CA"],
          ],
        },
        {
          name: "parent",
          label: "An intermediate is signed by",
          options: [...parents.map((ca) => [ca.id, nameOf(ca)]), outside],
        },
        { name: "keyAlgorithm", label: "Key", required: true, options: KEYS },
        {
          name: "maxPathLength",
          label: "CAs below it",
          inputmode: "numeric",
          hint: "How many, one under the other; 0 for none. Empty: no bound",
        },
        { name: "notAfter", label: "Ends on", type: "date", hint: "Else after ten years, or with the CA above it" },
      ],
      verb: "Make the CA",
      extra: el("a", { class: "button", href: "#ca" }, "Cancel"),
      submit: (values) => made(context, cas, values),
    }),
  );
}

async function made(context, cas, { parent, ...values }) {
  const given = Object.fromEntries(
    Object.entries(values)
      .map(([name, value]) => [name, value.trim()])
      .filter(([, value]) => value !== ""),
  );
  // What is no number the API refuses at its field.
  if (/^-?\d{1,3}$/.test(given.maxPathLength ?? "")) given.maxPathLength = Number(given.maxPathLength);
  const body = { projectId: context.account.id, name: short(given.commonName), status: "active", configuration: given };
  const { id } = (await atTheirFields(() => context.call("POST", CAS, { body }))).result;
  const above = given.type === "intermediate" ? cas.find((ca) => ca.id === parent) : null;
  say("The CA is made.");
  if (above) {
    try {
      await context.call("POST", `${CAS}/${id}/certificate`, {
        body: { parentCaId: parent, notAfter: given.notAfter ?? above.configuration.notAfter },
      });
    } catch (error) {
      // The CA is there, without a certificate: its own page says what can be done.
      say(`The CA is made, but not signed: ${error.message}`);
    }
  }
  context.go("ca", { id });
}

// The name that the API wants beside the common name: once in the account, of a-z, 0-9 and hyphens.
function short(commonName) {
  const words = commonName
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, "-")
    .slice(0, 50);
  return `${words}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(16)}`.replace(/^-+/, "");
}

async function atTheirFields(action) {
  try {
    return await action();
  } catch (error) {
    for (const each of error.errors ?? []) each.pointer = each.pointer?.replace("/configuration", "");
    throw error;
  }
}
