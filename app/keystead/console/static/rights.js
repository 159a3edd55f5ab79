// What the person may do, as far as their token can be read: what it certainly may not do is not offered.

import { all, call } from "./api.js";

const AREAS = {
  ssl: ["SSL and Certificates", "Account: SSL and Certificates"],
  ca: ["Private CA"],
  settings: ["Account Settings"],
  tokens: ["Account API Tokens"],
};
const MOST_PLACES = 500;

// The accounts and zones of the token: {accounts: [{id, name}], zones: [{id, name, account: {id, name}}], more,
// ofZones}.
export async function places() {
  const [accounts, zones] = await Promise.all([listed("/client/v4/accounts"), listed("/client/v4/zones")]);
  const known = new Map(accounts.items.map(({ id, name }) => [id, { id, name }]));
  // A token for zones alone does not see their account in the list of accounts.
  for (const { account } of zones.items)
    if (!known.has(account.id)) known.set(account.id, { id: account.id, name: account.name });
  const more = accounts.total > accounts.items.length || zones.total > zones.items.length;
  return {
    accounts: [...known.values()],
    zones: zones.items,
    more,
    ofZones: accounts.items.length === 0 && zones.items.length > 0,
  };
}

function listed(path) {
  return all(path, { most: MOST_PLACES });
}

// The names of the groups that the token has, or null where it cannot be read.
export async function groupsOf(tokenId, account) {
  for (const owner of [account ? `/client/v4/accounts/${account.id}/tokens` : null, "/client/v4/user/tokens"]) {
    if (!owner) continue;
    try {
      const { result } = await call("GET", `${owner}/${tokenId}`);
      const allowed = result.policies.filter((policy) => policy.effect === "allow");
      return new Set(allowed.flatMap((policy) => policy.permission_groups.map((group) => group.name)));
    } catch (error) {
      // 404: it is of the other owner. Anything else says that this token does not read itself.
      if (error.status !== 404) return null;
    }
  }
  return null;
}

// Whether to offer what needs this access ("Read", "Write", "Sign", "Issue Key") in an area; all of them include Read.
// Where the policies of the token are narrower than its groups, the API refuses, and says so; `denied` has what it refused.
export function may({ groups, denied, account, zone }, area, access) {
  const place = area === "ssl" ? (zone ?? account) : account;
  if (["Read", access].some((each) => denied.has(`${place?.id} ${area} ${each}`))) return false;
  if (groups === null) return true;
  const names = AREAS[area];
  if (access === "Read") return [...groups].some((group) => names.some((name) => group.startsWith(`${name} `)));
  return names.some((name) => groups.has(`${name} ${access}`));
}

// What the API has refused here is not offered again, as far as the path tells what it was: "<id of the place> <area>
// <access>", or null. CSRs that cannot be read in one place may be read in another.
export function denial(error, method, path, account) {
  if (error.status !== 403 || (error.code !== 9109 && error.code !== 403)) return null;
  const access = method === "GET" ? "Read" : "Write";
  const [, place, what] = /^\/client\/v4\/(?:accounts|zones)\/([^/]+)\/(custom_|tokens|logs)/.exec(path) ?? [];
  if (path.startsWith("/api/")) return access === "Read" ? `${account.id} ca Read` : null;
  if (what === "custom_") return access === "Write" ? `${place} ssl Write` : null;
  return what ? `${place} ${what === "logs" ? "settings" : "tokens"} ${access}` : null;
}
