// Calls of the public API, in both dialects, with the token that the person pasted.
//
// The token is in this variable alone, and in sessionStorage where the person asked for it: never in a URL or a cookie.

const KEPT = "keystead-token";
const MOST_TRIES = 10;
const PER_PAGE = 50;
let token = null;
let pending = 0;

// What main.js shows: `busy(calls)` while calls run, `wait({seconds, reason, cancel})` while one waits, and then wait(null).
export const shown = { busy: () => {}, wait: () => {} };

export class ApiError extends Error {
  // `errors` has all that was wrong: {code, message, pointer, link}; the first one is the error's own.
  constructor(status, errors) {
    super(errors[0].message);
    Object.assign(this, { status, errors, code: errors[0].code, pointer: errors[0].pointer, link: errors[0].link });
  }
}

export function signIn(value, keep) {
  token = value.replace(/\s+/g, "");
  if (!/^[\x21-\x7e]{1,4096}$/.test(token)) {
    token = null;
    throw new ApiError(0, [{ code: "", message: "This is no token: it has characters that no token has." }]);
  }
  sessionStorage.removeItem(KEPT);
  if (keep) sessionStorage.setItem(KEPT, token);
}

export function signOut() {
  token = null;
  sessionStorage.removeItem(KEPT);
}

export function resume() {
  token = sessionStorage.getItem(KEPT);
  return token !== null;
}

// Below the folder that this page is in, so that a proxy may serve all of it under a prefix.
function address(path, query) {
  // An id that comes from the address of the page must not lead to another resource.
  if (/(^|\/)(\.|%2e){1,2}(\/|$)/i.test(path))
    throw new ApiError(0, [{ code: "", message: "There is no such thing." }]);
  const url = new URL(path.replace(/^\//, ""), new URL(".", document.baseURI));
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.append(name, String(value));
  }
  return url;
}

// One call. Answers {result, messages, info, total}: `result` is the envelope's, or the whole body in Infisical's
// dialect. With `accept` the result is the Blob. Throws ApiError, or AbortError when `signal` says so.
//
// A change that is on its way is not broken off when its page is left, for nobody would know what came of it.
export async function call(method, path, { query, body, accept, signal } = {}) {
  signal?.throwIfAborted();
  const init = {
    method,
    headers: { Authorization: `Bearer ${token}`, Accept: accept ?? "application/json" },
    credentials: "omit",
    cache: "no-store",
    redirect: "error",
    referrerPolicy: "no-referrer",
    signal: method === "GET" ? signal : undefined,
  };
  if (body !== undefined) {
    init.body = JSON.stringify(body);
    init.headers["Content-Type"] = "application/json";
  }
  if (method === "POST") init.headers["Idempotency-Key"] = randomKey();
  shown.busy(++pending);
  try {
    const response = await sent(address(path, query), init, path, signal);
    return accept && response.ok ? { result: await response.blob(), messages: [] } : await read(response);
  } finally {
    shown.busy(--pending);
  }
}

async function sent(url, init, path, signal) {
  for (let tries = 1; ; tries++) {
    let response;
    try {
      response = await fetch(url, init);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const unknown =
        init.method === "GET" ? "" : " It is not known whether the change was made: look before you repeat it.";
      throw new ApiError(0, [{ code: "", message: `The server cannot be reached.${unknown}` }]);
    }
    const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
    if (!mayRepeat(response.status, init.method, path) || !(seconds >= 0) || tries === MOST_TRIES) return response;
    await pause(Math.max(1, seconds), response.status, signal);
  }
}

// 429 is said before anything is done. After 503 only what can be repeated is: a POST of the v4 API by its
// Idempotency-Key, but for tokens, whose value is shown once.
function mayRepeat(status, method, path) {
  if (status === 429) return true;
  return status === 503 && (method === "GET" || (method === "POST" && /^\/client\/v4\/(?!.*\/tokens)/.test(path)));
}

// Calls that wait now: what is shown is the longest of their waits, and to cancel it cancels all.
const waits = new Set();

function tell() {
  const last = [...waits].sort((one, two) => two.end - one.end)[0];
  shown.wait(
    last
      ? {
          seconds: Math.ceil((last.end - Date.now()) / 1000),
          reason: last.reason,
          cancel: () => [...waits].forEach((each) => each.cancel()),
        }
      : null,
  );
}

function pause(seconds, status, signal) {
  const reason = status === 429 ? "The rate limit of this token is used up" : "The server is not available now";
  return new Promise((resolve, reject) => {
    const stop = (done) => {
      clearInterval(timer);
      signal?.removeEventListener("abort", wait.cancel);
      waits.delete(wait);
      tell();
      done();
    };
    const wait = {
      reason,
      end: Date.now() + seconds * 1000,
      cancel: () => stop(() => reject(new DOMException("cancelled", "AbortError"))),
    };
    const timer = setInterval(() => (Date.now() < wait.end ? tell() : stop(resolve)), 500);
    waits.add(wait);
    signal?.addEventListener("abort", wait.cancel);
    if (signal?.aborted) wait.cancel();
    else tell();
  });
}

async function read(response) {
  let body = null;
  try {
    body = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
  }
  if (response.ok && body !== null) {
    const envelope = typeof body === "object" && "success" in body && "errors" in body;
    if (!envelope) return { result: body, messages: [], info: null, total: body.totalCount };
    return {
      result: body.result,
      messages: body.messages,
      info: body.result_info,
      total: body.result_info?.total_count,
    };
  }
  throw new ApiError(response.status, problems(response.status, body));
}

function problems(status, body) {
  if (Array.isArray(body?.errors) && body.errors.length > 0) return body.errors.map(ofEnvelope);
  if (Array.isArray(body?.message) && body.message.length > 0) {
    return body.message.map(({ path, message }) => {
      const pointer = `/${(path ?? []).join("/")}`;
      return { code: status, message: sentence(message), pointer };
    });
  }
  if (typeof body?.message === "string") return [{ code: status, message: sentence(body.message) }];
  return [{ code: status, message: `The server answered ${status}, without a reason.` }];
}

function ofEnvelope({ code, message, source, error_chain: chain }) {
  const reasons = (chain ?? []).map((each) => ` ${each.message} (${each.code}).`).join("");
  return { code, message: sentence(message) + reasons, pointer: source?.pointer, link: `docs/errors#${Number(code)}` };
}

function sentence(text) {
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// All of a list by its pages, until `most` of it are there: {items, total}.
export async function all(path, { query, most = 500, signal } = {}) {
  const items = [];
  let total = 0;
  for (let page = 1; items.length < most; page++) {
    const found = await call("GET", path, { query: { ...query, page, per_page: PER_PAGE }, signal });
    items.push(...found.result);
    total = found.total ?? items.length;
    if (found.result.length < PER_PAGE) break;
  }
  return { items: items.slice(0, most), total };
}
