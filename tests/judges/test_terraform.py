"""What Terraform's provider (5.22) sends for each resource, to the letter, comes back, so that a second plan is empty.

The bodies are those that the provider's requests had for configurations with all that can be set, and with the least.
"""

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
from support.authority import Authority, pem, root
from support.databases import new_database
from support.world import World, new_world

from keystead.server import postgres
from keystead.x509 import chains

Json = dict[str, Any]
V4 = "/client/v4"
SSL_READ, SETTINGS_READ = "7b7216b327b04b8fbc8f524e1f9b7531", "c1fde68c7bcc44588cbb6ddbc16d6480"
ZONE_READ, OFFSET = "c8fed203ed3043cba015a93ad1616f1f", "2090-01-02T03:04:05+02:00"
NOT_THERE = {"/accounts": 7003, "/zones": 7003, "/tokens": 1468, "/custom_csrs": 1419, "/custom_certificates": 1002}
SUBJECT: Json = {
    "common_name": "www.plain.example",
    "country": "US",
    "key_type": "p256v1",
    "locality": "San Francisco",
    "organization": "Example, Inc.",
    "sans": ["www.plain.example", "plain.example"],
    "state": "California",
}


def token(resources: Json, *groups: str, **fields: Any) -> Json:
    named = [{"id": group} for group in groups]
    policy = {"effect": "allow", "permission_groups": named, "resources": resources}
    return {"name": "tf token", "policies": [policy], **fields}


class Resource(NamedTuple):
    """A path with the new body, and what an update sends, if there is any; `{a}` and `{z}` are the account and zone."""

    path: str
    created: Json
    method: str = ""
    changed: Mapping[str, Any] = MappingProxyType({})


_ACCOUNT, _ALL_ZONES = {"com.cloudflare.api.account.{a}": "*"}, {"com.cloudflare.api.account.zone.*": "*"}
_ADDRESSES = {"request_ip": {"in": ["127.0.0.0/8"], "not_in": ["10.0.0.0/8"]}}
_BOUNDS = {"condition": _ADDRESSES, "not_before": "2020-01-01T00:00:00-05:00"}
RESOURCES = {
    "cloudflare_account": Resource(
        *(
            "/accounts",
            {"name": "tf account", "settings": {"abuse_contact_email": "a@b.example", "enforce_twofactor": True}},
        ),
        *(
            "PUT",
            {"name": "renamed", "settings": {"abuse_contact_email": None, "enforce_twofactor": False}, "type": None},
        ),
    ),
    "cloudflare_account, the least": Resource("/accounts", {"name": "tf account"}),
    "cloudflare_zone": Resource(
        "/zones",
        {
            "account": {"id": "{a}"},
            "name": "münchen.example",
            "paused": False,
            "type": "partial",
            "vanity_name_servers": ["ns1.example.com", "ns2.example.com"],
        },
        *("PATCH", {"paused": True, "vanity_name_servers": ["ns3.example.com"]}),
    ),
    "cloudflare_zone, the least": Resource(
        *("/zones", {"account": {"id": "{a}"}, "name": "least.example", "paused": False, "type": "full"}),
        *("PATCH", {"type": "secondary"}),
    ),
    "cloudflare_account_token": Resource(
        "/accounts/{a}/tokens",
        token(_ACCOUNT, SSL_READ, SETTINGS_READ, expires_on=OFFSET, status="disabled", **_BOUNDS),
        *(
            "PUT",
            token(_ACCOUNT, SSL_READ, SETTINGS_READ, expires_on="2091-01-01T00:00:00Z", status="active", **_BOUNDS),
        ),
    ),
    "cloudflare_account_token, the least": Resource("/accounts/{a}/tokens", token(_ACCOUNT, SETTINGS_READ)),
    "cloudflare_api_token": Resource(
        *("/user/tokens", token(_ALL_ZONES, ZONE_READ, expires_on=OFFSET, status="active")),
        *("PUT", token(_ALL_ZONES, ZONE_READ, expires_on="2091-01-01T00:00:00Z", status="disabled")),
    ),
    "cloudflare_custom_csr of a zone": Resource("/zones/{z}/custom_csrs", {**SUBJECT, "name": "tf csr"}),
    "cloudflare_custom_csr of an account": Resource(
        "/accounts/{a}/custom_csrs", {**SUBJECT, "description": "d", "organizational_unit": "u"}
    ),
}


class Site(NamedTuple):
    world: World
    ca: Authority
    places: dict[str, str]

    async def ask(self, method: str, path: str, body: Json | None = None) -> httpx.Response:
        key = {"X-Auth-Email": self.world.a.email, "X-Auth-Key": self.world.a.key}
        return await self.world.http.request(method, V4 + path, json=body, headers=key)

    async def good(self, method: str, path: str, body: Json | None = None) -> Any:
        answer = await self.ask(method, path, body)
        assert answer.status_code in {200, 201}, answer.text
        return answer.json()["result"]

    def placed(self, value: Any) -> Any:
        """A path or body with the ids in it."""
        if isinstance(value, dict):
            return {self.placed(name): self.placed(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.placed(each) for each in value]
        for name, place in self.places.items():
            value = value.replace(f"{{{name}}}", place) if isinstance(value, str) else value
        return value


@pytest.fixture(scope="module")
async def site(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with new_database(cluster) as url, new_world(url, tmp_path_factory.mktemp("world")) as world:
        ca = root()
        world.trust(chains.anchors([pem(ca.certificate).encode()]))
        yield Site(world, ca, {"a": world.a.account.id.hex, "z": world.a.zone.id.hex})


def came_back(sent: Any, told: Any) -> bool:
    """Whether all that was sent is in the answer as it was sent; null is the same as nothing at all."""
    if isinstance(sent, dict):
        return all(came_back(each, told.get(name)) for name, each in sent.items())
    if isinstance(sent, list):
        return len(sent) == len(told) and all(map(came_back, sent, told))
    return bool(sent == told)


async def gone(site: Site, one: str) -> None:
    """What Terraform reads of a resource that is deleted must be 404 with the code of a thing that is not there."""
    answer = await site.ask("GET", one)
    kind = next(kind for kind in reversed(NOT_THERE) if kind in one)
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, NOT_THERE[kind])


@pytest.mark.parametrize("name", RESOURCES)
async def test_what_terraform_sends_comes_back(site: Site, name: str) -> None:
    """Create, read, update, import and delete: each answer has what was sent, each read is the answer before it."""
    resource = RESOURCES[name]
    path, sent = site.placed(resource.path), site.placed(resource.created)
    made = await site.good("POST", path, sent)
    assert came_back(sent, made), made
    made.pop("value", None)
    one = f"{path}/{made['id']}"
    assert await site.good("GET", one) == made
    if resource.method:
        change = site.placed(dict(resource.changed))
        changed = await site.good(resource.method, one, change)
        # The provider sends no type that could be changed.
        assert came_back({field: each for field, each in change.items() if field != "type" or each}, changed), changed
        # The second apply of the same configuration is none, and so is an import of it.
        assert await site.good("GET", one) == changed
    assert await site.good("DELETE", one) == {"id": made["id"]}
    await gone(site, one)


async def test_a_certificate_is_replaced_by_one_that_is_there_before_it(site: Site) -> None:
    """With another type, and after an import, which knows no settings: the new one first, then the old one goes."""
    zone = f"/zones/{site.places['z']}"
    csr = await site.good("POST", f"{zone}/custom_csrs", SUBJECT)
    body: Json = {
        "bundle_method": "force",
        "certificate": pem(site.ca.of_csr(csr["csr"])),
        "custom_csr_id": csr["id"],
        "geo_restrictions": {"label": "eu"},
        "private_key": "unused",
        "type": "legacy_custom",
    }
    before = await site.good("POST", f"{zone}/custom_certificates", body)
    for replacement in ({**body, "type": "sni_custom"}, {**body, "type": "sni_custom"}):
        answer = await site.ask("POST", f"{zone}/custom_certificates", replacement)
        after, told = answer.json()["result"], [each["message"] for each in answer.json()["messages"]]
        hidden = {"certificate", "private_key"}
        assert came_back({name: each for name, each in replacement.items() if name not in hidden}, after)
        assert any(before["id"] in text for text in told)
        assert await site.good("DELETE", f"{zone}/custom_certificates/{before['id']}") == {"id": before["id"]}
        await gone(site, f"{zone}/custom_certificates/{before['id']}")
        assert await site.good("GET", f"{zone}/custom_certificates/{after['id']}") == after
        before = after
    one, change = f"{zone}/custom_certificates/{before['id']}", {"geo_restrictions": {"label": "us"}}
    changed = await site.good("PATCH", one, change)
    assert changed == {**before, **change, "modified_on": changed["modified_on"]}
    assert (await site.ask("DELETE", f"{zone}/custom_csrs/{csr['id']}")).status_code == 409
    assert await site.good("DELETE", one)
    assert await site.good("DELETE", f"{zone}/custom_csrs/{csr['id']}")


async def test_all_that_was_deleted_behind_its_back_is_404(site: Site) -> None:
    """An account with all that was in it: what Terraform still knows of each is not there, and nothing is forbidden."""
    account = await site.good("POST", "/accounts", {"name": "short"})
    inside = Site(site.world, site.ca, {"a": account["id"]})
    zone = await site.good("POST", "/zones", {"account": {"id": account["id"]}, "name": "short.example"})
    things = [
        f"/zones/{zone['id']}/custom_csrs",
        f"/accounts/{account['id']}/custom_csrs",
        f"/accounts/{account['id']}/tokens",
    ]
    known = []
    for path, body in zip(things, (SUBJECT, SUBJECT, inside.placed(token(_ACCOUNT, SETTINGS_READ))), strict=True):
        known.append(f"{path}/{(await site.good('POST', path, body))['id']}")
    known += [f"/zones/{zone['id']}", f"/accounts/{account['id']}"]
    for one in known:
        await site.good("DELETE", one)
    for one in known:
        answer = await site.ask("GET", one)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 7003), one


async def test_permission_groups_are_found_by_the_name_that_terraform_sends(site: Site) -> None:
    """Its users encode the name as its documentation says, and the client encodes it once more."""
    groups = f"/accounts/{site.places['a']}/tokens/permission_groups"
    [found] = await site.good("GET", f"{groups}?name=SSL%2520and%2520Certificates%2520Read")
    assert found["id"] == SSL_READ
