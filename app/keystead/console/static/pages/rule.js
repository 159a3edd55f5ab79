// How a certificate is renewed by itself: what its rule says, setting one, and taking it away (docs/renewal.md).

import { button, chip, date, el, fail, form, say } from "../dom.js";
import { CAS, nameOf } from "./issued.js";

const STATES = { scheduled: "good", waiting: "warn", failing: "bad", stopped: "bad" };
const OUTSIDE = "outside";
const KEYS = [
  ["every", "With each certificate"],
  ["never", "Never"],
];

// Rows of the certificate's own table.
export function rowsOf({ keystead_renewal: rule }) {
  if (!rule) return [];
  const by = rule.renew_with === OUTSIDE ? "a CA outside" : el("a", { href: "#ca" }, "a private CA");
  const rows = [["Renewal", [chip(rule.state, STATES[rule.state]), " on ", date(rule.renews_on), " with ", by]]];
  if (rule.problem) rows.push(["Problem", rule.problem]);
  return rows;
}

// The section in which it is set, for the certificate `it`, which the API has at `path`.
export async function section(context, it, path) {
  const rule = it.keystead_renewal;
  const where = el("div");
  const stop = async () => {
    try {
      await context.call("DELETE", `${path}/keystead_renewal`);
      say("The certificate is renewed no more by itself.");
      context.reload();
    } catch (error) {
      fail(where, error);
    }
  };
  const words = "Before it ends, a private CA of the account makes the next one, or the CSR for a CA outside is made.";
  return el(
    "section",
    {},
    el("h2", {}, "Renewal by itself"),
    el("p", { class: "quiet" }, words),
    where,
    form({
      fields: fieldsOf(rule, it, await signers(context, rule)),
      verb: rule ? "Change the rule" : "Set the rule",
      extra: rule ? button("Take the rule away", stop) : null,
      submit: async ({ renew_with, days_before, new_key }) => {
        const days = days_before.trim();
        // Text that is no number is sent as it is: the API says what it takes.
        const when = days === "" ? {} : { days_before: /^\d{1,9}$/.test(days) ? Number(days) : days };
        const kept = days === "" && rule?.percent_before ? { percent_before: rule.percent_before } : {};
        const body = { renew_with, new_key, ...when, ...kept };
        await context.call("PUT", `${path}/keystead_renewal`, { body });
        say("The renewal rule is set.");
        context.reload();
      },
    }),
  );
}

// The CAs that may sign; where they may not be read, that of the rule and those outside.
async function signers(context, rule) {
  const known = [[OUTSIDE, "A CA outside: only make the CSR"]];
  if (context.may("ca", "Sign")) {
    try {
      const { result } = await context.call("GET", CAS, { query: { projectId: context.account.id } });
      known.unshift(...result.filter(({ status }) => status === "active").map((ca) => [ca.id, nameOf(ca)]));
    } catch (error) {
      if (error.status !== 403) throw error;
    }
  }
  if (rule && !known.some(([id]) => id === rule.renew_with)) known.unshift([rule.renew_with, "The CA of the rule"]);
  return known;
}

function fieldsOf(rule, it, cas) {
  const uploaded = it.custom_csr_id ? [] : KEYS.slice(1);
  return [
    { name: "renew_with", label: "Signed by", value: rule?.renew_with, options: cas },
    {
      name: "days_before",
      label: "Days before the end",
      value: rule?.days_before,
      inputmode: "numeric",
      hint: rule?.percent_before ? `${rule.percent_before} % of the lifetime if empty` : "30 if empty",
    },
    {
      name: "new_key",
      label: "New key",
      value: rule?.new_key,
      options: uploaded.length > 0 ? uploaded : KEYS,
      hint: uploaded.length > 0 ? "The key was uploaded, so it stays." : "",
    },
  ];
}
