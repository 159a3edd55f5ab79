"""Infisical's Terraform provider, its CA resources: the calls of terraform-provider-infisical 0.19.24, in its order.

`internal_ca` sends no project: its token has one. What is sent must come back, so that a second plan is empty.
"""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from support.pki import by_openssl, now, signed
from support.world import World, make_token

from keystead.caller import GROUPS, Area

CAS = "/api/v1/cert-manager/ca/internal"
Json = dict[str, Any]


@pytest.fixture(scope="module")
async def world(shared_world: World) -> World:
    """With a token that may have keys made, which none has by default."""
    groups = tuple(group.name for group in GROUPS if group.area is Area.PRIVATE_CA)
    shared_world.a.token = await make_token(shared_world.services, shared_world.a.account, groups=groups)
    return shared_world


async def ask(world: World, method: str, path: str, body: Json | None = None) -> httpx.Response:
    answer = await world.http.request(method, path, json=body, headers=world.a.bearer)
    # The answer whose work it is to hand out a key; in all others the world looks for one.
    if path.endswith("/issue-certificate"):
        world.seen.pop()
    return answer


async def told(world: World, method: str, path: str, body: Json | None = None) -> Any:
    answer = await ask(world, method, path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def planned(kind: str, **fields: Any) -> Json:
    """What `resource "infisical_cert_manager_internal_ca"` sends; it leaves out what is empty."""
    configuration = {
        "type": kind,
        "commonName": f"A {kind}",
        "organization": "Example",
        "keyAlgorithm": "EC_prime256v1",
    }
    return {"name": f"{kind}-{uuid4().hex[:8]}", "status": "active", "configuration": configuration, **fields}


async def made(world: World, kind: str) -> str:
    found: str = (await told(world, "POST", CAS, planned(kind)))["id"]
    return found


def year(number: int) -> str:
    return f"{now().year + number}-01-01T00:00:00Z"


async def test_names_that_are_taken_or_none_and_unknown_states_are_refused(world: World) -> None:
    """A name twice is 400, one that is no name 422, and neither leaves a CA behind."""
    plan = planned("root")
    await told(world, "POST", CAS, plan)
    count = "SELECT count(*) AS n FROM certificate_authorities"
    before = await world.database.fetchrow(count)
    for body, status in (
        (plan, 400),
        ({**plan, "name": "A b"}, 422),
        ({**plan, "name": "-a"}, 422),
        ({**plan, "name": "x" * 65}, 422),
        ({**plan, "name": ""}, 422),
        ({**plan, "name": "n", "status": "paused"}, 422),
        ({**plan, "name": "n", "configuration": {"type": "root"}}, 422),
        ({**plan, "name": "n", "configuration": {**plan["configuration"], "notBefore": "2001"}}, 400),
        ({"name": "n", "status": "active"}, 422),
    ):
        answer = await ask(world, "POST", CAS, body)
        assert answer.status_code == status, (body, answer.text)
    assert await world.database.fetchrow(count) == before


async def test_a_ca_is_created_read_changed_imported_and_deleted(world: World) -> None:
    """What was sent comes back from each call, and the CA that is deleted out of band is 404."""
    plan = planned("root")
    created = await told(world, "POST", CAS, plan)
    assert (created["name"], created["status"], created["type"]) == (plan["name"], "active", "internal")
    one = f"{CAS}/{created['id']}"
    read = await told(world, "GET", one)
    assert read == created
    assert plan["configuration"].items() <= read["configuration"].items()
    changed = {**plan, "name": f"{plan['name']}-b", "status": "disabled"}
    await told(world, "PATCH", one, changed)
    read = await told(world, "GET", one)
    assert (read["name"], read["status"]) == (changed["name"], "disabled")
    await told(world, "PATCH", one, {**changed, "status": "active"})
    listed = (await told(world, "GET", "/api/v1/cert-manager/ca"))["certificateAuthorities"]
    assert changed["name"] in [each["name"] for each in listed]
    assert listed == await told(world, "GET", CAS)
    assert (await told(world, "DELETE", one))["id"] == created["id"]
    assert (await ask(world, "GET", one)).status_code == 404


async def test_an_intermediate_is_active_as_it_was_asked_for_and_pending_until_it_has_a_certificate(
    world: World,
) -> None:
    """The provider reads pending as active; renaming one that waits changes nothing else."""
    plan = planned("intermediate")
    created = await told(world, "POST", CAS, plan)
    assert created["status"] == "active"
    one = f"{CAS}/{created['id']}"
    assert (await told(world, "GET", one))["status"] == "pending-certificate"
    renamed = await told(world, "PATCH", one, {**plan, "name": f"{plan['name']}-b"})
    assert (renamed["name"], renamed["status"]) == (f"{plan['name']}-b", "pending-certificate")


async def test_certificates_of_cas_begin_with_the_year_and_chain(world: World) -> None:
    """`ca_certificate`: a root signs itself, an intermediate is signed by its parent; read answers no dates."""
    root, below = await made(world, "root"), await made(world, "intermediate")
    dates = {"notBefore": year(0), "notAfter": year(9), "maxPathLength": -1}
    of_root = await told(world, "POST", f"{CAS}/{root}/certificate", dates)
    body = {"notBefore": year(0), "notAfter": year(5), "maxPathLength": 0, "parentCaId": root}
    of_below = await told(world, "POST", f"{CAS}/{below}/certificate", body)
    for ca_id, sent, answer, parent in ((root, dates, of_root, None), (below, body, of_below, root)):
        read = await told(world, "GET", f"{CAS}/{ca_id}/certificate/{answer['certId']}")
        assert read == {**answer, "parentCaId": parent, "maxPathLength": sent["maxPathLength"]}
        certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
        assert f"{certificate.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ}" == sent["notBefore"]
        assert f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}" == sent["notAfter"]
        latest = await told(world, "GET", f"{CAS}/{ca_id}/certificate")
        assert latest == answer
        assert (await told(world, "GET", f"{CAS}/{ca_id}"))["status"] == "active"
        assert (await ask(world, "GET", f"{CAS}/{ca_id}/certificate/{uuid4()}")).status_code == 404
    leaf = {"caId": below, "commonName": "www.example.com", "ttl": "1d"}
    issued = await told(world, "POST", "/api/v1/pki/certificates/issue-certificate", leaf)
    assert "PRIVATE KEY" in issued["privateKey"]
    verdict, text = by_openssl(signed(issued))
    assert verdict, text
    bundle = await told(world, "GET", f"/api/v1/pki/certificates/{issued['serialNumber']}/bundle")
    assert bundle == {
        **{name: issued[name] for name in ("certificate", "certificateChain", "serialNumber")},
        "privateKey": None,
    }
    answer = await world.http.get(f"/api/v1/cert-manager/crl/{below}/der")
    assert x509.load_der_x509_crl(answer.content).issuer == certificate.subject


async def test_a_certificate_of_a_ca_is_refused_where_it_could_not_be_believed(world: World) -> None:
    """Too old, after its parent, below itself, below nothing, or below a CA that is not there: nothing is signed."""
    root, below = await made(world, "root"), await made(world, "intermediate")
    count = "SELECT count(*) AS n FROM issued_certificates"
    before = await world.database.fetchrow(count)
    good = {"notAfter": year(3), "parentCaId": root}
    cases: list[tuple[str, Json, int]] = [
        (root, {"notBefore": "2001", "notAfter": year(3)}, 400),
        (root, {"notBefore": year(3), "notAfter": year(2)}, 400),
        (root, {}, 422),
        (below, {"notAfter": year(3)}, 400),
        (below, {**good, "parentCaId": below}, 400),
        (below, {**good, "parentCaId": str(uuid4())}, 404),
        (below, {**good, "parentCaId": "x"}, 404),
        (below, {**good, "notAfter": year(90)}, 400),
        (below, {**good, "notBefore": year(-2)}, 400),
        (below, {**good, "maxPathLength": 1000}, 422),
    ]
    for ca_id, body, status in cases:
        answer = await ask(world, "POST", f"{CAS}/{ca_id}/certificate", body)
        assert answer.status_code == status, (body, answer.text)
    assert await world.database.fetchrow(count) == before


async def test_a_leaf_that_would_outlive_its_ca_is_refused_or_ends_with_it(world: World) -> None:
    """`notAfterPolicy` decides: refuse unless truncate was asked for."""
    root = await made(world, "root")
    await told(world, "POST", f"{CAS}/{root}/certificate", {"notAfter": year(2)})
    leaf = {"caId": root, "commonName": "www.example.com", "ttl": "10y"}
    assert (await told(world, "GET", f"{CAS}/{root}"))["notAfterPolicy"] == "refuse"
    path = "/api/v1/pki/certificates/issue-certificate"
    answer = await ask(world, "POST", path, leaf)
    assert (answer.status_code, "notAfter date is after CA" in answer.json()["message"]) == (400, True)
    assert (await ask(world, "PATCH", f"{CAS}/{root}", {"notAfterPolicy": "stretch"})).status_code == 422
    changed = await told(world, "PATCH", f"{CAS}/{root}", {"notAfterPolicy": "truncate"})
    assert changed["notAfterPolicy"] == "truncate"
    issued = x509.load_pem_x509_certificate((await told(world, "POST", path, leaf))["certificate"].encode())
    assert f"{issued.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}" == year(2)
