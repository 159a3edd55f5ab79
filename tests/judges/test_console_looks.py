"""How the console looks to everybody: hostile names are text, axe finds nothing, the keyboard and 400 pixels suffice.

With PICTURES set, the pictures of the documentation are made anew.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from playwright.async_api import Browser, FloatRect, Page, Route, expect
from support.browser import Tenant, choose_zone, chromium, new_tenant, sign_in, visit, watched
from support.live import Live

pytestmark = pytest.mark.browser

AXE = resources.files("axe_playwright_python") / "axe.min.js"
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
HOSTILE = '<img src=x onerror="document.title=`hacked`">'
FOCUSED = "() => document.activeElement.labels?.[0]?.innerText ?? document.activeElement.innerText ?? ''"
WIDTH = 960
UPPER_PART: FloatRect = {"x": 0, "y": 0, "width": WIDTH, "height": 660}
Scheme = Literal["light", "dark"]


class Furnished(msgspec.Struct):
    """An account with one of everything, and where each of it is shown."""

    tenant: Tenant
    views: dict[str, str]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture(scope="module")
def hostile(live: Live) -> Furnished:
    """Whatever may be named has markup for a name."""
    first = new_tenant(live, HOSTILE)
    everything = [each["name"] for each in first.call("GET", f"{_account(first)}/tokens/permission_groups")]
    tenant = msgspec.structs.replace(first, token=first.token_with(*everything, name=HOSTILE))
    csr = tenant.csr(name=HOSTILE, description=HOSTILE, organization=HOSTILE)
    root = tenant.ca(HOSTILE, friendlyName=HOSTILE, organization=HOSTILE)
    pending = tenant.ca(HOSTILE[:-1], type="intermediate")
    leaf = {"csr": csr["csr"], "ttl": "90d", "friendlyName": HOSTILE, "commonName": HOSTILE}
    tenant.call("POST", f"/api/v1/pki/ca/{root['id']}/sign-certificate", leaf)
    return furnished(tenant, live, csr, root, pending)


def _account(tenant: Tenant) -> str:
    return f"/client/v4/accounts/{tenant.account}"


def furnished(tenant: Tenant, live: Live, csr: Any, root: Any, pending: Any) -> Furnished:
    signed = live.ca.by_openssl(csr["csr"], "-days", "20")
    body = {"certificate": signed, "custom_csr_id": csr["id"]}
    certificate = tenant.call("POST", f"/client/v4/zones/{tenant.zone}/custom_certificates", body)
    views = {
        "csrs": "csrs",
        "overview": "overview",
        "a new csr": "csrs?new=1",
        "a csr": f"csrs?id={csr['id']}",
        "certificates": "certificates",
        "a new certificate": "certificates?new=1",
        "a certificate": f"certificates?id={certificate['id']}",
        "cas": "ca",
        "a new ca": "ca?new=1",
        "a ca": f"ca?id={root['id']}",
        "a ca without a certificate": f"ca?id={pending['id']}",
        "audit": "audit",
        "tokens": "tokens",
    }
    return Furnished(tenant, views)


async def test_hostile_names_are_text(browser: Browser, live: Live, hostile: Furnished) -> None:
    """Names with markup are seen as they were written, on every page, and make no element and run nothing."""
    named = {"overview", "csrs", "a csr", "a new csr", "cas", "a ca", "a ca without a certificate", "audit", "tokens"}
    async with watched(browser, live.url) as page:
        await sign_in(page, hostile.tenant.token)
        await expect(page.get_by_label("Account", exact=True)).to_contain_text(HOSTILE)
        await choose_zone(page)
        for name, view in hostile.views.items():
            await visit(page, view)
            if name in named:
                text = (
                    HOSTILE[:-1]
                    if name == "a ca without a certificate"
                    else "shop.example"
                    if "new" in name
                    else HOSTILE
                )
                await expect(page.locator("#main")).to_contain_text(text)
            await expect(page.locator("#main img, #main [onerror]")).to_have_count(0)
        await page.get_by_role("button", name=f"Roll {HOSTILE}").click()
        await expect(page.get_by_role("dialog")).to_contain_text(HOSTILE)
        await expect(page.locator("#main img, #main [onerror]")).to_have_count(0)
        await expect(page).to_have_title("Tokens · Keystead")


async def test_what_the_api_says_is_text(browser: Browser, live: Live, hostile: Furnished) -> None:
    """A refusal that quotes what was sent is a sentence, and so is what a dropped certificate says of itself."""
    async with watched(browser, live.url) as page:
        await sign_in(page, hostile.tenant.token)
        await choose_zone(page)
        await visit(page, "csrs?order=%3Cimg%20src%3Dx%3E")
        await expect(page.get_by_role("alert")).to_be_visible()
        await visit(page, "certificates?new=1")
        ca = hostile.tenant.call("GET", f"/api/v1/pki/ca/{hostile.views['a ca'].partition('=')[2]}/certificate")
        await page.get_by_label("Certificate, and those above it").fill(ca["certificate"])
        await expect(page.locator("#main")).to_contain_text(f"CN={HOSTILE}")
        await expect(page.locator("#main img, #main [onerror]")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(browser: Browser, live: Live, hostile: Furnished, scheme: Scheme) -> None:
    """No rule of axe-core is violated on any page or in the dialog for a token; in the dark, no rule of colours."""
    rules = "{}" if scheme == "light" else "{ runOnly: ['color-contrast'] }"
    found: list[tuple[str, str, list[str]]] = []

    async def look(page: Page, name: str) -> None:
        result = await page.evaluate(f"() => axe.run(document, {rules})")
        assert result["passes"], name
        found.extend(
            (name, each["id"], [node["html"][:200] for node in each["nodes"]]) for each in result["violations"]
        )

    async with watched(browser, live.url, scheme) as page:
        await page.add_init_script(AXE.read_text())
        await page.goto("/")
        await look(page, "signing in")
        await sign_in(page, hostile.tenant.token)
        await choose_zone(page)
        for name, view in hostile.views.items():
            await visit(page, view)
            await look(page, name)
        await page.get_by_role("button", name="Make a token").click()
        await expect(page.get_by_role("dialog").get_by_label("Name", exact=True)).to_be_visible()
        await look(page, "making a token")
    assert found == []


async def test_400_pixels_suffice(browser: Browser, live: Live, hostile: Furnished) -> None:
    """No page has to be scrolled sideways, whatever is in it."""
    async with watched(browser, live.url, width=400) as page:
        await page.goto("/")
        wide = {"signing in": await page.evaluate("() => document.documentElement.scrollWidth")}
        await sign_in(page, hostile.tenant.token)
        await choose_zone(page)
        for name, view in hostile.views.items():
            await visit(page, view)
            wide[name] = await page.evaluate("() => document.documentElement.scrollWidth")
    assert {name: width for name, width in wide.items() if width > 400} == {}


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this label or text has the focus."""
    for _ in range(80):
        await page.keyboard.press("Tab")
        if (await page.evaluate(FOCUSED)).strip() == name:
            return
    pytest.fail(f"Tab never comes to {name}")


async def enter(page: Page, name: str, heading: str) -> None:
    await tab_to(page, name)
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading").filter(has_text=heading).first).to_be_visible()


async def type_into(page: Page, fields: dict[str, str]) -> None:
    for name, value in fields.items():
        await tab_to(page, name)
        await page.keyboard.insert_text(value)


async def test_the_keyboard_alone_suffices(browser: Browser, live: Live) -> None:
    """From the token to a CSR, its certificate, and a token that is made and revoked: Tab, Enter, Space and text."""
    tenant = new_tenant(live)
    async with watched(browser, live.url) as page:
        await page.goto("/")
        await expect(page.get_by_label("API token")).to_be_visible()
        await type_into(page, {"API token": tenant.token})
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("Overview")
        # The account's list comes first, and Down chooses the zone, once it is there.
        await expect(page.get_by_label("Zone", exact=True)).to_contain_text("shop.example")
        await page.get_by_label("Zone", exact=True).focus()
        await page.keyboard.press("ArrowDown")
        await expect(page.get_by_role("heading", level=1)).to_contain_text("shop.example")
        await enter(page, "CSRs", "CSRs")
        await enter(page, "New CSR", "New CSR")
        fields = {"Organization": "Example Ltd", "Country": "GB", "State or province": "England"}
        await type_into(page, {**fields, "City or locality": "London"})
        await enter(page, "Make the CSR", "What is next")
        [csr] = tenant.call("GET", f"/client/v4/zones/{tenant.zone}/custom_csrs")
        await page.keyboard.press("Control+Home")
        await enter(page, "Certificates", "Certificates of shop.example")
        await enter(page, "Upload", "Upload to shop.example")
        signed = live.ca.by_openssl(csr["csr"], "-days", "90")
        await type_into(page, {"Certificate, and those above it": signed})
        await expect(page.get_by_text("It belongs to the CSR for shop.example")).to_be_visible()
        await enter(page, "Upload", "Renew in place")
        await enter(page, "Tokens", "Tokens")
        await enter(page, "Make a token", "Make a token")
        await type_into(page, {"Name": "robot"})
        await tab_to(page, "Private CA Read")
        await page.keyboard.press("Space")
        await enter(page, "Make the token", "The value of robot")
        await tab_to(page, "Done")
        await page.keyboard.press("Enter")
        revoke = page.get_by_role("button", name="Revoke robot")
        await expect(revoke).to_be_visible()
        await tab_to(page, "Revoke")
        await expect(revoke).to_be_focused()
        await page.keyboard.press("Enter")
        await tab_to(page, "Revoke it")
        await page.keyboard.press("Enter")
        await expect(revoke).to_have_count(0)


async def test_what_comes_late_leaves_the_focus_where_the_person_put_it(browser: Browser, live: Live) -> None:
    """The list of certificates is still on its way while somebody tabs to Upload; Enter then opens that page."""
    tenant = new_tenant(live)
    come = asyncio.Event()

    async def late(route: Route) -> None:
        await come.wait()
        await route.continue_()

    async with watched(browser, live.url) as page:
        await sign_in(page, tenant.token)
        await choose_zone(page)
        await page.route("**/custom_certificates?*", late)
        await enter(page, "Certificates", "Certificates of shop.example")
        await tab_to(page, "Upload")
        come.set()
        await expect(page.get_by_text("There is no certificate here yet.")).to_be_visible()
        await expect(page.get_by_role("link", name="Upload")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Upload to shop.example")
        await expect(page.get_by_role("heading", level=1)).to_be_focused()


@pytest.fixture
def usual(live: Live) -> Tenant:
    """What the pictures of the documentation show."""
    tenant = new_tenant(live)
    zone = f"/client/v4/zones/{tenant.zone}/custom_certificates"
    for host, days in (("www", 12), ("api", 34), ("shop", 75), ("static", 160), ("mail", 290)):
        name = f"{host}.shop.example"
        csr = tenant.csr(common_name=name, sans=[name])
        signed = live.ca.by_openssl(csr["csr"], "-days", str(days))
        tenant.call("POST", zone, {"certificate": signed, "custom_csr_id": csr["id"]})
    tenant.csr(common_name="pay.shop.example", sans=["pay.shop.example"])
    root = tenant.ca("Example Root", organization="Example Ltd", maxPathLength=1)
    ends = f"{datetime.now(UTC) + timedelta(days=250):%Y-%m-%d}"
    issuing = tenant.ca("Example Issuing CA", type="intermediate", organization="Example Ltd")
    path = f"/api/v1/cert-manager/ca/internal/{issuing['id']}/certificate"
    tenant.call("POST", path, {"parentCaId": root["id"], "notAfter": ends})
    for host, ttl in (("db", "90d"), ("queue", "30d"), ("cache", "200d")):
        body = {"commonName": f"{host}.example.internal", "ttl": ttl}
        tenant.call("POST", f"/api/v1/pki/ca/{issuing['id']}/issue-certificate", body)
    return tenant


async def test_the_pictures_of_the_documentation_are_small(
    browser: Browser, live: Live, usual: Tenant, tmp_path: Path
) -> None:
    """Each has less than 120 kB; they go into `docs/pictures` where PICTURES is set."""
    folder = PICTURES if "PICTURES" in os.environ else tmp_path
    async with watched(browser, live.url, "light", width=WIDTH) as page:
        await sign_in(page, usual.token)
        await expect(page.get_by_role("heading", name=re.compile("CSRs that wait"))).to_be_visible()
        await page.screenshot(path=folder / "overview.png", clip=UPPER_PART)
    async with watched(browser, live.url, "dark", width=WIDTH) as page:
        await sign_in(page, usual.token)
        await visit(page, "ca")
        await page.get_by_role("link", name="Example Issuing CA").click()
        await expect(page.get_by_role("row").filter(has_text="cache")).to_be_visible()
        await page.screenshot(path=folder / "ca.png", clip=UPPER_PART)
    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
    assert sizes.keys() == {"overview.png", "ca.png"}
    assert max(sizes.values()) < 120_000, sizes
