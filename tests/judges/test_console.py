"""The console in a real Chromium, on a real server: what a person does there, sees there, and cannot be made to do."""

import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import msgspec
import pytest
from playwright.async_api import Browser, Locator, Page, Request, expect
from support.authority import pem
from support.browser import Tenant, choose_zone, chromium, new_tenant, sign_in, visit, watched
from support.databases import new_database
from support.live import Live, serving
from support.trouble import Proxy, proxy
from support.waiting import comes_about

from keystead.server import postgres

pytestmark = pytest.mark.browser

DROP = """(area, text) => {
  const data = new DataTransfer();
  data.items.add(new File([text], "www.pem"));
  area.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture
async def page(browser: Browser, live: Live) -> AsyncIterator[Page]:
    async with watched(browser, live.url) as made:
        yield made


@pytest.fixture
def tenant(live: Live) -> Tenant:
    return new_tenant(live)


def certificate_of(live: Live, csr: str, days: int = 90) -> str:
    """What OpenSSL makes of a CSR with the root that the server trusts."""
    return live.ca.by_openssl(csr, "-days", str(days))


def row(page: Page, text: str) -> Locator:
    return page.get_by_role("row").filter(has_text=text)


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


async def go(page: Page, title: str) -> None:
    await page.get_by_role("navigation", name="Pages", exact=True).get_by_role("link", name=title).click()
    await expect(page.get_by_role("heading", level=1).filter(has_text=title)).to_be_visible()


# Signing in


async def test_the_first_picture_says_where_the_token_is(page: Page) -> None:
    """Whoever opens the address reads which line prints the token, and what comes after it."""
    await page.goto("/")
    await expect(page.get_by_text("CLOUDFLARE_API_TOKEN", exact=False)).to_be_visible()
    await expect(page.get_by_role("main")).to_contain_text(".data/credentials.env")
    await expect(page.get_by_role("listitem").filter(has_text="Under CSRs, make one")).to_be_visible()


async def test_a_wrong_token_says_so(page: Page) -> None:
    """The sentence and its code stand at the field, and nothing else is shown."""
    await page.goto("/")
    field = page.get_by_label("API token")
    await field.fill("kst_nobody_has_made_this_one")
    await page.get_by_role("button", name="Sign in").click()
    await expect(field).to_have_accessible_description(re.compile(r"Invalid API Token\. \(1000\)"))
    await expect(field).to_have_attribute("aria-invalid", "true")
    await expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_hidden()


@pytest.mark.parametrize("keep", [False, True])
async def test_a_token_stays_in_its_tab(page: Page, tenant: Tenant, keep: bool) -> None:
    """It is in no cookie, address or lasting storage; in the tab's own, until signing out, where that was ticked."""
    requests: list[Request] = []
    page.on("request", lambda request: requests.append(request))  # noqa: PLW0108 -- Playwright marks what it is given
    await sign_in(page, tenant.token, keep=keep)
    await go(page, "Tokens")
    kept = (
        "() => [JSON.stringify({...sessionStorage}), JSON.stringify({...localStorage}), document.cookie, location.href]"
    )
    session, *others = await page.evaluate(kept)
    assert (tenant.token in session) == keep
    assert not any(tenant.token in each for each in others)
    assert await page.context.cookies() == []
    assert requests
    assert not any(tenant.token in each.url for each in requests)
    assert all(each.url.startswith(tenant.url) for each in requests)
    await page.reload()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Tokens" if keep else "Keystead")
    if keep:
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("API token")).to_be_visible()
        assert tenant.token not in (await page.evaluate(kept))[0]


async def test_a_narrow_token_is_offered_what_it_may(page: Page, tenant: Tenant) -> None:
    """Pages and buttons that would be refused are not there, and the rest works."""
    ca = tenant.ca("Acme Root")
    await sign_in(page, tenant.token_with("Account Settings Read", "Account API Tokens Read", "Private CA Read"))
    shown = page.get_by_role("navigation", name="Pages", exact=True)
    await expect(shown.get_by_role("link")).to_have_text(["Overview", "Private CA", "Audit", "Tokens"])
    await visit(page, f"ca?id={ca['id']}")
    await expect(page.get_by_role("button", name="Download the CRL")).to_be_visible()
    for name in ("Sign a CSR", "Issue with a key", "Switch off", "Renew", "Revoke"):
        await expect(page.get_by_role("button", name=name)).to_have_count(0)
    await go(page, "Tokens")
    await expect(row(page, "first token")).to_be_visible()
    for name in ("Make a token", "Roll", "Revoke"):
        await expect(page.get_by_role("button", name=name)).to_have_count(0)


async def test_what_is_refused_is_a_sentence(page: Page, tenant: Tenant) -> None:
    """A token that cannot read its own rights is told, by each page that it may not see, that it may not."""
    await sign_in(page, tenant.token_with("Private CA Read"))
    await choose_account(page, tenant)
    for view in ("tokens", "audit", "csrs"):
        await visit(page, view)
        await expect(page.get_by_role("alert")).to_contain_text("Your token may not do this")
        await expect(page.get_by_role("alert").get_by_role("link", name="9109")).to_be_visible()


async def choose_account(page: Page, tenant: Tenant) -> None:
    """By its id, as it is in no list that this token may read."""
    await page.get_by_label("Account", exact=True).select_option("Another …")
    await dialog(page).get_by_label("Id of the account").fill(tenant.account)
    await dialog(page).get_by_role("button", name="Choose").click()


# CSRs and certificates


async def test_a_csr_is_made(page: Page, tenant: Tenant) -> None:
    """The form makes what the API then has, and shows its PEM."""
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, "csrs?new=1")
    fields = {"Common name": "www.shop.example", "SANs": "www.shop.example\nshop.example", "Country": "GB"}
    fields |= {
        "Organization": "Example Ltd",
        "State or province": "England",
        "City or locality": "London",
        "Name optional": "web",
    }
    for label, value in fields.items():
        await page.get_by_label(label, exact=True).fill(value)
    await page.get_by_role("button", name="Make the CSR").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("www.shop.example")
    [made] = tenant.call("GET", f"/client/v4/zones/{tenant.zone}/custom_csrs")
    assert (made["sans"], made["name"], made["country"]) == (["www.shop.example", "shop.example"], "web", "GB")
    text = await page.get_by_role("region", name="The CSR in PEM").inner_text()
    assert text.split() == made["csr"].split()


async def test_what_is_wrong_stands_at_its_field(page: Page, tenant: Tenant) -> None:
    """Each problem of the body is at the field that it is of, with its code, and the first of them has the focus."""
    await sign_in(page, tenant.token)
    await visit(page, "csrs?new=1")
    fields = {"Common name": "www.shop.example", "SANs": "www.shop.example -b.example", "Country": "ZZ"}
    fields |= {"Organization": "Example Ltd", "State or province": "England"}
    for label, value in fields.items():
        await page.get_by_label(label, exact=True).fill(value)
    send = page.get_by_role("button", name="Make the CSR")
    await send.click()
    locality = page.get_by_label("City or locality", exact=True)
    await expect(locality).to_be_focused()
    await expect(locality).to_have_accessible_description(re.compile("This is needed"))
    await locality.fill("London")
    await send.click()
    country = page.get_by_label("Country", exact=True)
    await expect(country).to_have_accessible_description(re.compile(r"\(1450\)"))
    await expect(page.get_by_label("SANs", exact=True)).to_have_accessible_description(re.compile(r"\(1412\)"))
    await expect(locality).not_to_have_attribute("aria-invalid", "true")
    await expect(page.locator("[aria-invalid]").first).to_be_focused()


async def test_a_dropped_certificate_finds_its_csr_before_it_is_sent(page: Page, tenant: Tenant, live: Live) -> None:
    """The console names the CSR by its key while nothing is sent, then uploads; the chain's end is named too."""
    tenant.csr(name="another")
    csr = tenant.csr(name="the one", sans=["www.shop.example", "api.shop.example"])
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, "certificates?new=1")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.method))
    await page.locator(".drop").evaluate(DROP, certificate_of(live, csr["csr"]))
    await expect(page.get_by_text("It belongs to the CSR for www.shop.example (the one)")).to_be_visible()
    await expect(page.get_by_text("the one above is not in it: O=Test Trust, CN=Live Root")).to_be_visible()
    assert set(sent) == {"GET"}
    await page.get_by_role("button", name="Upload").click()
    await expect(page.get_by_role("heading", name="Renew in place")).to_be_visible()
    [uploaded] = tenant.call("GET", f"/client/v4/zones/{tenant.zone}/custom_certificates")
    assert uploaded["custom_csr_id"] == csr["id"]


async def test_a_private_key_is_not_sent(page: Page, tenant: Tenant, live: Live) -> None:
    """A text with a private key in it is refused in the browser."""
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, "certificates?new=1")
    sent: list[str] = []
    # The page may still be reading what it shows.
    page.on("request", lambda request: sent.append(request.method) if request.method != "GET" else None)
    key = "-----BEGIN PRIVATE " + "KEY-----\nAAAA\n-----END PRIVATE " + "KEY-----\n"
    await page.locator(".drop").evaluate(DROP, pem(live.ca.certificate) + key)
    await expect(page.get_by_role("alert")).to_contain_text("There is a private key in it")
    await page.get_by_role("button", name="Upload").click()
    await expect(page.locator("[aria-invalid]")).to_be_focused()
    assert sent == []


def uploaded(tenant: Tenant, live: Live, days: int = 90, **fields: Any) -> Any:
    csr = tenant.csr(**fields)
    body = {"certificate": certificate_of(live, csr["csr"], days), "custom_csr_id": csr["id"]}
    return tenant.call("POST", f"/client/v4/zones/{tenant.zone}/custom_certificates", body)


async def test_what_ends_is_in_the_picture_and_the_table(page: Page, tenant: Tenant, live: Live) -> None:
    """A dot for each thing, whose words say what it is, and a row for each."""
    uploaded(tenant, live, 40)
    tenant.ca("Acme Root", notAfter=f"{datetime.now(UTC) + timedelta(days=200):%Y-%m-%d}")
    await sign_in(page, tenant.token)
    picture = page.get_by_role("img", name=re.compile("What ends within 12 months"))
    await expect(picture.locator(".dot")).to_have_count(3)
    for text in ("www.shop.example", "Acme Root"):
        await expect(row(page, text).first).to_be_visible()
        await expect(picture.locator("title").filter(has_text=text).first).to_be_attached()
    await expect(row(page, "www.shop.example").first).to_contain_text("39 days left")


async def test_a_certificate_is_renewed_in_place(page: Page, tenant: Tenant, live: Live) -> None:
    """A later one for the same key takes its place: the id stays, the end is the new one's, the history has both."""
    before = uploaded(tenant, live, 20)
    csr = tenant.call("GET", f"/client/v4/zones/{tenant.zone}/custom_csrs/{before['custom_csr_id']}")["csr"]
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, f"certificates?id={before['id']}")
    await page.locator(".drop").evaluate(DROP, certificate_of(live, csr, 80))
    await expect(page.get_by_text("It belongs to the CSR")).to_be_visible()
    await page.get_by_role("button", name="Renew").click()
    await expect(page.get_by_text("79 days left").first).to_be_visible()
    await expect(row(page, "update custom certificate")).to_be_visible()
    [after] = tenant.call("GET", f"/client/v4/zones/{tenant.zone}/custom_certificates")
    assert after["id"] == before["id"]
    assert after["expires_on"] > before["expires_on"]


async def test_a_rule_is_set_shown_and_taken_away(page: Page, tenant: Tenant, live: Live) -> None:
    """By a private CA, then by one outside; a wrong number stands at its field; the timeline has the next renewal."""
    made = uploaded(tenant, live, 80)
    ca = tenant.ca("Acme Root")
    path = f"/client/v4/zones/{tenant.zone}/custom_certificates/{made['id']}"
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, f"certificates?id={made['id']}")
    days = page.get_by_label("Days before the end")
    await days.fill("soon")
    await page.get_by_role("button", name="Set the rule").click()
    await expect(days).to_have_attribute("aria-invalid", "true")
    await days.fill("20")
    await page.get_by_role("button", name="Set the rule").click()
    renewal = page.locator("dt").filter(has_text=re.compile("^Renewal$")).locator("+ dd")
    await expect(renewal).to_contain_text("scheduled on")
    rule = tenant.call("GET", path)["keystead_renewal"]
    assert (rule["renew_with"], rule["days_before"], rule["new_key"]) == (ca["id"], 20, "every")
    await expect(days).to_have_value("20")
    await page.get_by_label("Signed by").select_option("outside")
    await page.get_by_label("New key").select_option("never")
    await page.get_by_role("button", name="Change the rule").click()
    await expect(renewal).to_contain_text("with a CA outside")
    await visit(page, "overview")
    picture = page.get_by_role("img", name=re.compile("What ends within 12 months"))
    renews = f"www.shop.example: {rule['renews_on'][:7]}"
    await expect(picture.get_by_text("Renewal by itself")).to_be_visible()
    await expect(picture.locator("title").filter(has_text=renews)).to_be_attached()
    await visit(page, f"certificates?id={made['id']}")
    await page.get_by_role("button", name="Take the rule away").click()
    await expect(renewal).to_have_count(0)
    assert "keystead_renewal" not in tenant.call("GET", path)


async def test_a_rule_that_fails_says_why(page: Page, tenant: Tenant, live: Live) -> None:
    """The certificate's page has the state and the problem, and the overview names the state."""
    csr = tenant.csr()
    # It is due at once, and its CA ends before it does.
    body = {"certificate": pem(live.ca.of_csr(csr["csr"], days=20, since=70)), "custom_csr_id": csr["id"]}
    made = tenant.call("POST", f"/client/v4/zones/{tenant.zone}/custom_certificates", body)
    ca = tenant.ca("Acme Root", notAfter=f"{datetime.now(UTC) + timedelta(days=10):%Y-%m-%d}")
    path = f"/client/v4/zones/{tenant.zone}/custom_certificates/{made['id']}"
    tenant.call("PUT", f"{path}/keystead_renewal", {"renew_with": ca["id"]})
    await comes_about(lambda: tenant.call("GET", path)["keystead_renewal"]["state"] == "failing")
    await sign_in(page, tenant.token)
    await expect(row(page, "www.shop.example (failing)")).to_be_visible()
    await choose_zone(page)
    await visit(page, f"certificates?id={made['id']}")
    await expect(page.locator("dt", has_text="Problem").locator("+ dd")).to_contain_text("CA ends on")


async def test_a_csr_that_is_used_stays_and_one_that_is_not_goes(page: Page, tenant: Tenant, live: Live) -> None:
    """1420 is explained in the dialog that asks; without the certificate the CSR is deleted."""
    certificate = uploaded(tenant, live)
    await sign_in(page, tenant.token)
    await choose_zone(page)
    await visit(page, f"csrs?id={certificate['custom_csr_id']}")
    await page.get_by_role("button", name="Delete …").click()
    confirm = dialog(page).get_by_role("button", name="Delete the CSR and its key")
    await confirm.click()
    await expect(dialog(page).get_by_role("alert")).to_contain_text("Delete that certificate first")
    await expect(dialog(page).get_by_role("link", name="1420")).to_have_attribute("href", "docs/errors#1420")
    tenant.call("DELETE", f"/client/v4/zones/{tenant.zone}/custom_certificates/{certificate['id']}")
    await confirm.click()
    await expect(page.get_by_text("There is no CSR here yet.")).to_be_visible()


# Tokens, private CAs, audit


async def make_token(page: Page, name: str, *groups: str) -> str:
    await page.get_by_role("button", name="Make a token").click()
    await dialog(page).get_by_label("Name", exact=True).fill(name)
    for group in groups:
        await dialog(page).get_by_label(group, exact=True).check()
    await dialog(page).get_by_role("button", name="Make the token").click()
    value = await dialog(page).get_by_role("region", name="The value of the token").inner_text()
    await dialog(page).get_by_role("button", name="Done").click()
    return value


def status_of(live: Live, token: str) -> int:
    path = f"{live.url}/client/v4/user/tokens/verify"
    return httpx.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


async def test_a_token_is_made_and_revoked(page: Page, tenant: Tenant, live: Live) -> None:
    """Its value, which opens the API, is shown once; revoked it is gone from the list, and opens nothing."""
    await sign_in(page, tenant.token)
    await go(page, "Tokens")
    value = await make_token(page, "CI of the shop", "SSL and Certificates Write")
    await expect(row(page, "CI of the shop")).to_contain_text("SSL and Certificates Write (all zones)")
    assert status_of(live, value) == 200
    assert value not in await page.content()
    await page.get_by_role("button", name="Revoke CI of the shop").click()
    await dialog(page).get_by_role("button", name="Revoke it").click()
    await expect(row(page, "CI of the shop")).to_have_count(0)
    assert status_of(live, value) == 401


async def test_a_token_is_not_made_wider_than_its_maker(page: Page, tenant: Tenant) -> None:
    """What the maker may not do is not offered, and a bad network is refused with its code."""
    groups = ("Account API Tokens Write", "Private CA Read", "Account Settings Read")
    await sign_in(page, tenant.token_with(*groups))
    await go(page, "Tokens")
    await page.get_by_role("button", name="Make a token").click()
    offered = ["Account Settings Read", "Account API Tokens Read", "Account API Tokens Write", "Private CA Read"]
    await expect(dialog(page).get_by_role("checkbox")).to_have_count(len(offered))
    for name in offered:
        await expect(dialog(page).get_by_label(name, exact=True)).to_be_visible()
    await dialog(page).get_by_label("Name", exact=True).fill("reader")
    await dialog(page).get_by_label("Private CA Read").check()
    network = dialog(page).get_by_label("Only from these networks")
    await network.fill("10.0.0.1/8")
    await dialog(page).get_by_role("button", name="Make the token").click()
    await expect(network).to_have_accessible_description(re.compile(r"\(1464\)"))


async def test_a_token_can_roll_itself(page: Page, tenant: Tenant, live: Live) -> None:
    """The tab goes on with the new value; the old one opens nothing."""
    await sign_in(page, tenant.token)
    await go(page, "Tokens")
    await page.get_by_role("button", name="Roll first token").click()
    await dialog(page).get_by_role("button", name="Roll it").click()
    value = await page.get_by_role("region", name="The value of the token").inner_text()
    assert (status_of(live, tenant.token), status_of(live, value)) == (401, 200)
    await page.get_by_role("button", name="Done").click()
    await expect(row(page, "first token")).to_contain_text("signed in with it")


async def test_cas_stand_below_each_other(page: Page, tenant: Tenant) -> None:
    """A root and a CA below it are made in two forms, and the tree has them so; what is wrong stands at its field."""
    await sign_in(page, tenant.token)
    await go(page, "Private CA")
    await page.get_by_role("link", name="New CA").click()
    await page.get_by_label("Common name").fill("Acme Root")
    await page.get_by_label("Country optional").fill("xx")
    await page.get_by_role("button", name="Make the CA").click()
    await expect(page.get_by_label("Country optional")).to_have_attribute("aria-invalid", "true")
    await page.get_by_label("Country optional").fill("GB")
    await page.get_by_role("button", name="Make the CA").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Acme Root")
    await visit(page, "ca?new=1")
    await page.get_by_label("Common name").fill("Acme Issuing CA")
    await page.get_by_label("Kind").select_option("intermediate")
    await page.get_by_role("button", name="Make the CA").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Acme Issuing CA")
    await go(page, "Private CA")
    root = page.locator(".tree > li").filter(has_text="Acme Root")
    await expect(root.locator("li").get_by_role("link")).to_have_text("Acme Issuing CA")


async def test_a_ca_signs_and_revokes(page: Page, tenant: Tenant) -> None:
    """A CSR is signed and a key issued, once shown; a revoked certificate says so, and the CRL counts it."""
    ca = tenant.ca("Acme Root")
    csr = tenant.csr()["csr"]
    await sign_in(page, tenant.token)
    await visit(page, f"ca?id={ca['id']}")
    await page.get_by_role("button", name="Sign a CSR").click()
    await dialog(page).get_by_label("CSR", exact=True).fill(csr)
    await dialog(page).get_by_role("button", name="Sign", exact=True).click()
    await expect(dialog(page).get_by_role("region", name="The certificate in PEM")).to_contain_text("BEGIN CERTIFICATE")
    await dialog(page).get_by_role("button", name="Done").click()
    await page.get_by_role("button", name="Issue with a key").click()
    await dialog(page).get_by_label("Common name").fill("db.acme.internal")
    await dialog(page).get_by_role("button", name="Issue", exact=True).click()
    await expect(dialog(page).get_by_role("region", name="The private key in PEM")).to_be_visible()
    await dialog(page).get_by_role("button", name="Done").click()
    await expect(row(page, "www.shop.example")).to_contain_text("active")
    revoked = page.locator("dt", has_text="Revoked").locator("+ dd")
    await expect(revoked).to_have_text("0")
    await page.get_by_role("button", name="Revoke db.acme.internal").click()
    await dialog(page).get_by_label("Why").select_option("KEY_COMPROMISE")
    await dialog(page).get_by_role("button", name="Revoke it").click()
    await expect(row(page, "db.acme.internal")).to_contain_text("revoked key compromise")
    await expect(revoked).to_have_text("1")
    await expect(page.get_by_role("button", name="Revoke Acme Root")).to_have_count(0)


def be_denied(tenant: Tenant, token: str, times: int) -> None:
    with httpx.Client(headers={"Authorization": f"Bearer {token}"}) as client:
        path = f"{tenant.url}/client/v4/accounts/{tenant.account}/tokens"
        assert {client.get(path).status_code for _ in range(times)} == {403}


async def test_the_log_is_filtered_and_read_by_pages(page: Page, tenant: Tenant) -> None:
    """Filters are the API's, what was denied says so, and older entries come by the cursor."""
    for name, times in (("nosy", 1), ("nosier", 50)):
        be_denied(tenant, tenant.token_with("Private CA Read", name=name), times)
    await sign_in(page, tenant.token)
    await go(page, "Audit")
    await expect(page.locator("tbody tr")).to_have_count(50)
    await page.get_by_role("button", name="Older").click()
    await expect(row(page, "create account")).to_be_visible()
    await page.get_by_label("Outcome").select_option("Denied")
    await page.get_by_label("Name of the token").fill("nosy")
    await page.get_by_role("button", name="Show", exact=True).click()
    await expect(page.locator("tbody tr")).to_have_count(1)
    await expect(row(page, "nosy")).to_contain_text("denied")


# Trouble


class Strained(msgspec.Struct):
    """A server that allows a token a burst of 30 requests and then two a second, and the way to its database."""

    live: Live
    way: Proxy

    @property
    def token(self) -> str:
        return self.live.env["CLOUDFLARE_API_TOKEN"]


@pytest.fixture(scope="module")
async def strained(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Strained]:
    async with new_database(cluster, "template0") as url:
        parts = urlsplit(url)
        asked = parse_qs(parts.query)
        with proxy(Path(asked["host"][0]) / f".s.PGSQL.{asked['port'][0]}") as way:
            through = f"postgresql://{asked['user'][0]}@127.0.0.1:{way.port}{parts.path}?sslmode=disable"
            with serving(through, tmp_path_factory.mktemp("strained") / "data", rate_limit="30/15s") as live:
                yield Strained(live, way)


async def test_a_used_up_rate_limit_is_waited_for(browser: Browser, strained: Strained) -> None:
    """429: the console says why it waits and for how long, and goes on by itself."""
    async with watched(browser, strained.live.url) as page:
        await sign_in(page, strained.token)
        waiting = page.get_by_text("The rate limit of this token is used up; it goes on by itself.")
        for _ in range(30):
            await page.get_by_role("link", name="Audit").click()
            await page.get_by_role("link", name="CSRs").click()
            if await waiting.is_visible():
                break
        await expect(waiting).to_be_visible()
        await expect(page.locator("#waiting .count")).to_have_text(re.compile(r"\d+ s"))
        await expect(page.get_by_text("There is no CSR here yet.")).to_be_visible()
        await expect(waiting).to_be_hidden()


async def test_a_server_without_its_database_is_waited_for(browser: Browser, strained: Strained) -> None:
    """503: the same, and the page is there as soon as the database is."""
    async with watched(browser, strained.live.url) as page:
        await sign_in(page, strained.token)
        await expect(page.get_by_role("heading", name="CSRs that wait")).to_be_visible()
        waiting = page.get_by_text("The server is not available now; it goes on by itself.")
        strained.way.refuse()
        try:
            await page.get_by_role("link", name="CSRs").click()
            await expect(waiting).to_be_visible()
        finally:
            strained.way.accept()
        await expect(page.get_by_text("There is no CSR here yet.")).to_be_visible()
        await expect(waiting).to_be_hidden()
