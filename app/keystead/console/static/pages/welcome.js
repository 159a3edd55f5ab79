// The first picture: where the token is, and what to do first.

import { block, copyButton, el, form, show as fill } from "../dom.js";

const PRINT = "sed -n 's/^CLOUDFLARE_API_TOKEN=//p' .data/credentials.env";

export async function show(main, { start }) {
  fill(
    main,
    el("h1", { tabindex: "-1" }, "Keystead"),
    el(
      "p",
      { class: "lead" },
      "Key pairs and CSRs whose private keys stay on this server, and the certificates that come back to them.",
    ),
    el("div", { class: "columns" }, signIn(start), first()),
  );
}

function signIn(start) {
  return el(
    "section",
    { "aria-labelledby": "sign-in" },
    el("h2", { id: "sign-in" }, "Sign in"),
    form({
      fields: [
        {
          name: "token",
          label: "API token",
          type: "password",
          required: true,
          hint: "It stays in this tab, and is sent to this server alone.",
        },
        {
          name: "keep",
          label: "Keep in this tab",
          type: "checkbox",
          hint: "Until the tab is closed, so that it survives a reload.",
        },
      ],
      narrow: true,
      verb: "Sign in",
      submit: async ({ token, keep }) => {
        try {
          await start(token, keep);
        } catch (error) {
          // All that can be wrong here is the token's.
          if (error.status > 0 && error.status < 500) error.errors[0].pointer = "/token";
          throw error;
        }
      },
    }),
  );
}

function first() {
  return el(
    "section",
    { "aria-labelledby": "first" },
    el("h2", { id: "first" }, "The first time"),
    el(
      "ol",
      {},
      el(
        "li",
        {},
        "The first start has written a token into ",
        el("code", {}, ".data/credentials.env"),
        ", in the folder in which ",
        el("code", {}, "make run"),
        " was started. This prints it:",
        block(PRINT, "The line that prints the token"),
        copyButton(PRINT, "Copy the line"),
      ),
      el("li", {}, "Paste the token here, and sign in."),
      el("li", {}, "Under CSRs, make one: Keystead makes the key and keeps it. Copy the PEM to your CA."),
      el("li", {}, "Under Certificates, drop what the CA sends back. Overview shows when it ends."),
    ),
    el(
      "p",
      {},
      "No such file, or not on that machine? Its operator makes a token: ",
      el("code", {}, "keystead token create"),
      ".",
    ),
  );
}
