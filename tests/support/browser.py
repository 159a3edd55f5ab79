"""A real browser for the console: Chromium, driven by Playwright. What goes wrong in a page fails its test.

A missing browser is said, and with CI=true it is a failure.
"""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
import msgspec
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect
from support.live import Live
from support.tools import tool

# Generous to a machine that does much else.
SECONDS = 60.0
# Chromium says on its own console which requests were refused; the page has to say that itself.
_REFUSED = "Failed to load resource: the server responded with a status of"
_API = ("/client/v4/", "/api/v1/")
_TELL_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`violates the policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
});
"""


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The system's Chromium; nothing is downloaded."""
    program = tool("chromium")
    expect.set_options(timeout=SECONDS * 1000)
    # Root has no sandbox, and small containers have no large /dev/shm.
    words = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=words)
        yield browser
        await browser.close()


@contextlib.asynccontextmanager
async def watched(
    browser: Browser, url: str, scheme: Literal["light", "dark"] = "light", width: int = 1280, scale: float = 1
) -> AsyncIterator[Page]:
    """A page of its own, like a new profile's; errors and violations of the policy fail the test at the end."""
    troubles: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        expected = message.text.startswith(_REFUSED) and urlsplit(message.location["url"]).path.startswith(_API)
        if message.type in {"error", "warning"} and not expected:
            troubles.append(f"{message.type}: {message.text}")

    context = await browser.new_context(
        base_url=url,
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        device_scale_factor=scale,
        reduced_motion="reduce",
    )
    try:
        context.set_default_timeout(SECONDS * 1000)
        await context.add_init_script(_TELL_VIOLATIONS)
        page = await context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: troubles.append(f"thrown: {error.message}"))
        yield page
        assert not troubles, troubles
    finally:
        await context.close()


async def sign_in(page: Page, token: str, *, keep: bool = False) -> None:
    await page.goto("/")
    await page.get_by_label("API token").fill(token)
    await page.get_by_label("Keep in this tab").set_checked(keep)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()


async def visit(page: Page, view: str) -> None:
    """Go where this part behind # leads, which is somewhere else, and wait until all of it is there."""
    await page.locator("#main > .page").evaluate("(old) => { old.dataset.old = '1'; }")
    await page.goto(f"/#{view}")
    arrived = '#main[aria-busy="false"] > .page:not([data-old]):has(h1):not(:has(.loading))'
    await expect(page.locator(arrived)).to_have_count(1)


async def choose_zone(page: Page, name: str = "shop.example") -> None:
    await page.get_by_label("Zone", exact=True).select_option(name)


class Tenant(msgspec.Struct):
    """An account of one test's own, with a zone and a token that may do everything in it."""

    url: str
    account: str
    zone: str
    token: str

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """What the API answers, without its envelope; a failure fails the test."""
        answer = httpx.request(
            method, self.url + path, json=body, headers={"Authorization": f"Bearer {self.token}"}, timeout=SECONDS
        )
        assert answer.is_success, answer.text
        found = answer.json()
        return found["result"] if path.startswith("/client/") else found

    def token_with(self, *groups: str, name: str = "narrow") -> str:
        """Another token, with these groups of the account."""
        return str(self.call("POST", f"/client/v4/accounts/{self.account}/tokens", self.draft(name, groups))["value"])

    def draft(self, name: str, groups: tuple[str, ...]) -> dict[str, Any]:
        known = self.call("GET", f"/client/v4/accounts/{self.account}/tokens/permission_groups")
        return {"name": name, "policies": _policies(self.account, [each for each in known if each["name"] in groups])}

    def csr(self, **fields: Any) -> Any:
        """A CSR of the zone."""
        body = {
            "common_name": "www.shop.example",
            "sans": ["www.shop.example"],
            "key_type": "p256v1",
            "country": "GB",
            "state": "England",
            "locality": "London",
            "organization": "Example Ltd",
        }
        return self.call("POST", f"/client/v4/zones/{self.zone}/custom_csrs", {**body, **fields})

    def ca(self, common_name: str, **fields: Any) -> Any:
        """A root."""
        slug = self.call("GET", f"/client/v4/accounts/{self.account}")["slug"]
        body = {"projectSlug": slug, "type": "root", "keyAlgorithm": "EC_prime256v1", "commonName": common_name}
        return self.call("POST", "/api/v1/pki/ca", {**body, **fields})["ca"]


def new_tenant(live: Live, name: str = "Example Ltd", zone: str = "shop.example") -> Tenant:
    """Made by the first user, who administers it."""
    older = {"X-Auth-Email": live.older["CLOUDFLARE_EMAIL"], "X-Auth-Key": live.older["CLOUDFLARE_API_KEY"]}
    with httpx.Client(base_url=f"{live.url}/client/v4", headers=older, timeout=SECONDS) as client:

        def made(path: str, body: Any) -> Any:
            answer = client.post(path, json=body)
            assert answer.is_success, answer.text
            return answer.json()["result"]

        account = made("/accounts", {"name": name})["id"]
        zone_id = made("/zones", {"account": {"id": account}, "name": zone})["id"]
        groups = client.get(f"/accounts/{account}/tokens/permission_groups").json()["result"]
        body = {"name": "first token", "policies": _policies(account, groups)}
        return Tenant(live.url, account, zone_id, made(f"/accounts/{account}/tokens", body)["value"])


def _policies(account: str, groups: list[Any]) -> list[Any]:
    place = f"com.cloudflare.api.account.{account}"
    of_zones = [each for each in groups if "com.cloudflare.api.account.zone" in each["scopes"]]
    of_account = [each for each in groups if each not in of_zones]
    pairs = ((of_account, "*"), (of_zones, {"com.cloudflare.api.account.zone.*": "*"}))
    return [
        {"effect": "allow", "resources": {place: within}, "permission_groups": [{"id": each["id"]} for each in some]}
        for some, within in pairs
        if some
    ]
