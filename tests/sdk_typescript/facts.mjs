// Uses the official SDK, configured by the variables of credentials.env alone, and prints what it gave as JSON.
// tests/test_sdk_typescript.py says what that must be.

import { randomBytes, randomUUID } from "node:crypto";
import Cloudflare from "cloudflare";

const BODY = {
  common_name: "example.com",
  country: "US",
  state: "California",
  locality: "San Francisco",
  organization: "Cloudflare, Inc.",
  sans: ["example.com", "www.example.com"],
  key_type: "p256v1",
};
const FULL = {
  ...BODY,
  name: "My Custom CSR",
  description: "CSR for example.com wildcard",
  organizational_unit: "Engineering",
};
const { CLOUDFLARE_ACCOUNT_ID: account_id, CLOUDFLARE_ZONE_ID: zone_id, OLDER_EMAIL, OLDER_KEY } = process.env;

let requests = 0;
const { fetch } = globalThis;
globalThis.fetch = (...args) => {
  requests += 1;
  return fetch(...args);
};

const client = new Cloudflare();

// What a call that must fail was refused with, in the SDK's own terms, and how many requests that took.
async function refusal(call) {
  const before = requests;
  try {
    return { result: await call() };
  } catch (error) {
    if (!(error instanceof Cloudflare.APIError)) throw error;
    return { kind: error.constructor.name, errors: error.errors, requests: requests - before };
  }
}

const FACTS = {
  async create_p256v1(where) {
    return { sent: FULL, made: await client.customCsrs.create({ ...where, ...FULL }) };
  },

  async create_rsa2048(where) {
    const sent = { ...FULL, key_type: "rsa2048" };
    return { sent, made: await client.customCsrs.create({ ...where, ...sent }) };
  },

  async create_without_options(where) {
    return await client.customCsrs.create({ ...where, ...BODY });
  },

  async get(where) {
    const made = await client.customCsrs.create({ ...where, ...FULL });
    return { made, found: await client.customCsrs.get(made.id, where) };
  },

  async pages(where) {
    const name = randomUUID();
    const made = [];
    for (let i = 0; i < 12; i++) made.push(await client.customCsrs.create({ ...where, ...BODY, name }));
    const listed = [];
    for await (const csr of client.customCsrs.list({ ...where, per_page: 5 })) listed.push(csr);
    return { made, listed: listed.filter((csr) => csr.name === name), ids: listed.map((csr) => csr.id) };
  },

  async turned_around(where) {
    const first = await client.customCsrs.create({ ...where, ...BODY });
    const last = await client.customCsrs.create({ ...where, ...BODY });
    const page = await client.customCsrs.list({ ...where, order: "created_at", direction: "desc", per_page: 5 });
    return { wanted: [last.id, first.id], listed: page.result.slice(0, 2).map((csr) => csr.id) };
  },

  async delete(where) {
    const { id } = await client.customCsrs.create({ ...where, ...BODY });
    const deleted = await client.customCsrs.delete(id, where);
    return { id, deleted, after: await refusal(() => client.customCsrs.get(id, where)) };
  },

  async delete_missing(where) {
    return await refusal(() => client.customCsrs.delete(randomUUID(), where));
  },

  async bad_request(where) {
    const wrong = { country: "", sans: ["a.example", "-b.example"] };
    return await refusal(() => client.customCsrs.create({ ...where, ...BODY, ...wrong }));
  },

  async not_mine(where) {
    const [scope] = Object.keys(where);
    const other = { [scope]: randomBytes(16).toString("hex") };
    return await refusal(() => client.customCsrs.create({ ...other, ...BODY }));
  },

  async idempotent(where) {
    const options = { headers: { "Idempotency-Key": randomUUID() } };
    const first = await client.customCsrs.create({ ...where, ...BODY }, options);
    return { first, again: await client.customCsrs.create({ ...where, ...BODY }, options) };
  },

  async conflict(where) {
    const options = { headers: { "Idempotency-Key": randomUUID() } };
    await client.customCsrs.create({ ...where, ...BODY }, options);
    return await refusal(() => client.customCsrs.create({ ...where, ...BODY, name: "another" }, options));
  },

  async retries() {
    return client.maxRetries;
  },

  async verify() {
    return [await client.user.tokens.verify(), await client.accounts.tokens.verify({ account_id })];
  },

  async unknown_token() {
    process.env.CLOUDFLARE_API_TOKEN = `kst_${"x".repeat(46)}`;
    return await refusal(() => new Cloudflare().user.tokens.verify());
  },

  async older_scheme(where) {
    delete process.env.CLOUDFLARE_API_TOKEN;
    process.env.CLOUDFLARE_EMAIL = OLDER_EMAIL;
    process.env.CLOUDFLARE_API_KEY = OLDER_KEY;
    const older = new Cloudflare();
    const { id } = await older.customCsrs.create({ ...where, ...BODY });
    return { id, deleted: await older.customCsrs.delete(id, where) };
  },

  async tenant() {
    delete process.env.CLOUDFLARE_API_TOKEN;
    process.env.CLOUDFLARE_EMAIL = OLDER_EMAIL;
    process.env.CLOUDFLARE_API_KEY = OLDER_KEY;
    const user = new Cloudflare();
    const { id } = await user.accounts.create({ name: randomUUID() });
    const account = { account_id: id };
    const settings = { abuse_contact_email: "abuse@example.com", enforce_twofactor: true };
    const changed = await user.accounts.update({ ...account, id, name: "n", type: "standard", settings });
    const zone = await user.zones.create({ account: { id }, name: "münchen.example" });
    const edited = await user.zones.edit({ zone_id: zone.id, vanity_name_servers: ["ns1.example.com"] });
    const listed = [];
    for await (const each of user.zones.list({ name: "contains:nchen", account: { id } })) listed.push(each.id);
    const permission_groups = [{ id: "c1fde68c7bcc44588cbb6ddbc16d6480" }];
    const policies = [{ effect: "allow", permission_groups, resources: { [`com.cloudflare.api.account.${id}`]: "*" } }];
    const expires_on = "2090-01-02T03:04:05+02:00";
    const token = await user.accounts.tokens.create({ ...account, name: "n", status: "disabled", policies, expires_on });
    const period = { ...account, since: "2026-01-01", before: "2126-01-01" };
    const log = [];
    for await (const each of user.accounts.logs.audit.list(period)) log.push(each);
    const source = { ...period, action_time: log[0].action.time };
    const history = await user.accounts.logs.audit.history(log[0].id, source);
    const categories = [];
    for await (const each of user.accounts.logs.audit.productCategories(account)) categories.push(each.value);
    await user.accounts.tokens.delete(token.id, account);
    await user.zones.delete({ zone_id: zone.id });
    await user.accounts.delete(account);
    const account_gone = await refusal(() => user.accounts.get(account));
    const zone_gone = await refusal(() => user.zones.get({ zone_id: zone.id }));
    const { email } = await user.user.get();
    return { id, changed, zone, edited, listed, token, history, log, categories, account_gone, zone_gone, email };
  },

  async both_schemes(where) {
    process.env.CLOUDFLARE_EMAIL = OLDER_EMAIL;
    process.env.CLOUDFLARE_API_KEY = OLDER_KEY;
    return await new Cloudflare().customCsrs.create({ ...where, ...BODY });
  },
};

const told = {};
const environment = { ...process.env };
for (const where of [{ account_id }, { zone_id }]) {
  const [scope] = Object.keys(where);
  told[scope] = {};
  for (const [name, fact] of Object.entries(FACTS)) {
    process.env = { ...environment };
    told[scope][name] = await fact(where).catch((error) => ({ thrown: String(error.stack) }));
  }
}
console.log(JSON.stringify(told));
