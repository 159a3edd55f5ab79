"""Renewal rules over the API: what is refused, who may say so, and what is shown."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.authority import key_pem, pem, subject
from support.renewing import Site, new_site
from support.world import World, make_token

from keystead.renewal import rules

Json = dict[str, Any]
SSL_WRITE, CA_SIGN = "Account: SSL and Certificates Write", "Private CA Sign"


@pytest.fixture
async def site(world: World) -> Site:
    return await new_site(world)


def path(site: Site, certificate_id: UUID, tail: str = "/keystead_renewal") -> str:
    return f"/client/v4/zones/{site.scope.id.hex}/custom_certificates/{certificate_id}{tail}"


async def put(site: Site, certificate_id: UUID, body: Json, token: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token or site.world.a.token}"}
    return await site.world.http.put(path(site, certificate_id), json=body, headers=headers)


async def shown(site: Site, certificate_id: UUID) -> Json | None:
    answer = await site.world.http.get(path(site, certificate_id, ""), headers=site.world.a.bearer)
    rule: Json | None = answer.json()["result"].get("keystead_renewal")
    return rule


OUTSIDE = {"renew_with": "outside"}
BAD: tuple[tuple[Json, int, str], ...] = (
    ({}, 1453, "/renew_with"),
    ({"renew_with": ""}, 1453, "/renew_with"),
    ({"renew_with": 7}, 1453, "/renew_with"),
    ({"renew_with": "no-such-ca"}, 1434, "/renew_with"),
    ({"renew_with": "Outside"}, 1434, "/renew_with"),
    ({"renew_with": "\ud800"}, 1434, "/renew_with"),
    ({"renew_with": "x\u0000"}, 1434, "/renew_with"),
    ({**OUTSIDE, "days_before": 0}, 1453, "/days_before"),
    ({**OUTSIDE, "days_before": 3651}, 1453, "/days_before"),
    ({**OUTSIDE, "days_before": 1.5}, 1453, "/days_before"),
    ({**OUTSIDE, "days_before": "30"}, 1453, "/days_before"),
    ({**OUTSIDE, "percent_before": 51}, 1453, "/percent_before"),
    ({**OUTSIDE, "percent_before": 0}, 1453, "/percent_before"),
    ({**OUTSIDE, "days_before": 30, "percent_before": 30}, 1453, "/percent_before"),
    ({**OUTSIDE, "new_key": "sometimes"}, 1434, "/new_key"),
    ({**OUTSIDE, "new_key": True}, 1453, "/new_key"),
)


@pytest.mark.parametrize(("body", "code", "pointer"), BAD)
async def test_a_rule_that_makes_no_sense_is_refused(site: Site, body: Json, code: int, pointer: str) -> None:
    """The error names the member, and a rule that was there stays."""
    made = await site.certificate()
    await site.ruled(made, "outside", days_before=7)
    content = json.dumps(body).encode()
    answer = await site.world.http.put(path(site, made), content=content, headers=site.world.a.bearer)
    assert answer.status_code == 400, answer.text
    assert [(each["code"], each["source"]["pointer"]) for each in answer.json()["errors"]] == [(code, pointer)]
    rule = await shown(site, made)
    assert rule
    assert (rule["renew_with"], rule["days_before"]) == ("outside", 7)


async def test_a_certificate_with_an_uploaded_key_gets_no_new_one(site: Site) -> None:
    """There is no CSR to make the next one like; with the same key it is renewed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = subject("u.a.example.com")
    leaf = site.outside.sign(key.public_key(), name, hosts=["u.a.example.com", "v.a.example.com"], days=20, since=70)
    body = {"certificate": pem(leaf), "private_key": key_pem(key)}
    zone = path(site, uuid4(), "").rpartition("/")[0]
    uploaded = UUID((await site.world.http.post(zone, json=body, headers=site.world.a.bearer)).json()["result"]["id"])
    answer = await put(site, uploaded, {"renew_with": site.ca_id})
    assert [each["source"]["pointer"] for each in answer.json()["errors"]] == ["/new_key"]
    assert (await put(site, uploaded, {"renew_with": site.ca_id, "new_key": "never"})).status_code == 200
    before = await site.get(uploaded)
    await site.turn()
    after = await site.get(uploaded)
    assert (after.key_id, after.hosts, await site.signed()) == (before.key_id, before.hosts, 1)


async def test_whoever_has_it_renewed_by_a_ca_may_sign_with_it(site: Site) -> None:
    """To change the certificate is not enough for a CA of the account, and is for one outside; a refusal is audited."""
    made = await site.certificate()
    account = site.world.a.account
    ssl = await make_token(site.world.services, account, groups=(SSL_WRITE,))
    sign = await make_token(site.world.services, account, groups=(CA_SIGN,))
    both = await make_token(site.world.services, account, groups=(SSL_WRITE, CA_SIGN))
    body = {"renew_with": site.ca_id}
    unknown = {"renew_with": str(uuid4())}
    for token, wanted, status in (
        (ssl, body, 403),
        (ssl, unknown, 403),
        (sign, body, 403),
        (site.world.a.read_token, body, 403),
        (ssl, OUTSIDE, 200),
        (both, body, 200),
    ):
        answer = await put(site, made, wanted, token)
        assert answer.status_code == status, answer.text
    rows = await site.services.db.fetch("SELECT result FROM audit_log WHERE method = 'PUT' ORDER BY result")
    assert [row["result"] for row in rows] == ["failure"] * 4 + ["success"] * 2


async def test_a_rule_is_of_one_account_alone(site: Site) -> None:
    """Neither another's certificate nor another's CA can be named, and nobody sees another's rule."""
    made = await site.certificate()
    await site.ruled(made)
    b = site.world.b
    new = {"projectSlug": b.account.slug, "type": "root", "commonName": "Root of B", "keyAlgorithm": "EC_prime256v1"}
    theirs = (await site.world.http.post("/api/v1/pki/ca", json=new, headers=b.bearer)).json()["ca"]["id"]
    answer = await put(site, made, {"renew_with": theirs})
    assert [each["code"] for each in answer.json()["errors"]] == [1434]
    for method in ("PUT", "DELETE"):
        foreign = path(site, made).replace(site.scope.id.hex, b.zone.id.hex)
        answer = await site.world.http.request(method, foreign, json=OUTSIDE, headers=b.bearer)
        assert answer.status_code == 404
        answer = await site.world.http.request(method, path(site, made), json=OUTSIDE, headers=b.bearer)
        assert answer.status_code == 403
    rule = await shown(site, made)
    assert rule
    assert rule["renew_with"] == site.ca_id


async def test_a_ca_is_named_as_for_commands(site: Site) -> None:
    """By a common or friendly name that it alone has; its name, which is unique, goes before those of others."""
    made = await site.certificate()
    named = {"commonName": "Edge CA", "friendlyName": "edge"}, {"commonName": "Twin"}, {"commonName": "Twin"}
    body = {"projectSlug": site.world.a.account.slug, "type": "root", "keyAlgorithm": "EC_prime256v1"}
    post, headers = site.world.http.post, site.world.a.bearer
    edge, *_ = [
        (await post("/api/v1/pki/ca", json={**body, **new}, headers=headers)).json()["ca"]["id"] for new in named
    ]
    for word in ("Edge CA", "edge", edge):
        answer = await put(site, made, {"renew_with": word})
        assert answer.json()["result"]["keystead_renewal"]["renew_with"] == edge, word
    assert [each["code"] for each in (await put(site, made, {"renew_with": "Twin"})).json()["errors"]] == [1434]
    path_ = f"/api/v1/cert-manager/ca/internal/{site.ca_id}"
    assert (await site.world.http.patch(path_, json={"name": "edge"}, headers=headers)).status_code == 200
    answer = await put(site, made, {"renew_with": "edge"})
    assert answer.json()["result"]["keystead_renewal"]["renew_with"] == site.ca_id


async def test_a_rule_is_shown_with_its_certificate(site: Site) -> None:
    """In the certificate and in the list: with what, when next, and what it waits for; removed, it is shown no more."""
    made, other = await site.certificate(), await site.certificate()
    name = {"name": "web-ca"}
    changed = await site.world.http.patch(
        f"/api/v1/cert-manager/ca/internal/{site.ca_id}", json=name, headers=site.world.a.bearer
    )
    assert changed.status_code == 200, changed.text
    answer = await put(site, made, {"renew_with": "web-ca", "percent_before": 20, "new_key": "never"})
    told = answer.json()["result"]["keystead_renewal"]
    assert told == await shown(site, made)
    assert (told["renew_with"], told["new_key"], told["percent_before"]) == (site.ca_id, "never", 20)
    assert (told["state"], "days_before" in told) == ("scheduled", False)
    await put(site, other, OUTSIDE)
    await site.turn(timedelta(days=5))
    zone = path(site, made, "").rpartition("/")[0]
    listed = (await site.world.http.get(zone, headers=site.world.a.bearer)).json()["result"]
    by_id = {each["id"]: each["keystead_renewal"] for each in listed}
    waits = by_id[str(other)]
    assert (waits["state"], waits["renew_with"]) == ("waiting", "outside")
    assert waits["custom_csr_id"] in waits["problem"]
    assert by_id[str(made)]["renewed_on"]
    removed = await site.world.http.delete(path(site, made), headers=site.world.a.bearer)
    assert (removed.status_code, removed.json()["result"]["id"]) == (200, str(made))
    assert await shown(site, made) is None
    again = await site.world.http.delete(path(site, made), headers=site.world.a.bearer)
    assert again.status_code == 404
    assert [each.certificate_id for each in await rules.for_operator(site.services.db)] == [other]


async def test_a_rule_set_anew_is_looked_at_at_once(site: Site) -> None:
    """Another CA or time holds from now on, and what had failed is forgotten."""
    made = await site.certificate()
    rule = await site.ruled(made, percent_before=1)
    assert (await site.get(made)).not_after - rule.renews_at(await site.get(made)) <= timedelta(days=1)
    await site.turn(timedelta())
    assert await site.signed() == 0
    await site.ruled(made, days_before=60)
    await site.turn(timedelta())
    assert await site.signed() == 1
