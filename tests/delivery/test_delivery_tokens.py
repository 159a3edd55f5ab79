"""Delivery tokens: how they are made and revoked, and that they open nothing of the API."""

import json
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any
from uuid import UUID, uuid4

import pytest
from support.authority import pem, root
from support.command import Ended, run_command
from support.world import World

from keystead.custody.peppers import add_pepper
from keystead.errors import Conflict
from keystead.identity import delivery_tokens, tokens
from keystead.identity.delivery_tokens import NewToken, Reach
from keystead.server import first_start
from keystead.x509 import chains

Run = Callable[..., Ended]
TOKEN = ("delivery", "token")


@pytest.fixture
def run(world: World) -> Run:
    environ = {
        "KEYSTEAD_DATABASE_URL": world.settings.database_url or "",
        "KEYSTEAD_DATA_DIR": str(world.settings.data_dir),
    }
    return lambda *words: run_command(environ, *words)


def row(ended: Ended) -> dict[str, Any]:
    assert ended.status == 0, ended
    (found,) = json.loads(ended.out)
    return dict(found)


def made(run: Run, world: World, *words: str) -> dict[str, Any]:
    zone = str(world.a.zone.id)
    return row(run(*TOKEN, "create", "--zone", zone, "--from", "10.0.0.0/8", "--json", *words))


async def uploaded(world: World) -> str:
    ca = root()
    world.trust(chains.anchors([pem(ca.certificate).encode()]))
    csr = await world.create(path=world.a.zone_path)
    body = {"custom_csr_id": csr["id"], "certificate": pem(ca.of_csr(csr["csr"]))}
    path = world.a.zone_path.replace("custom_csrs", "custom_certificates")
    answer = await world.http.post(path, json=body, headers=world.a.bearer)
    return str(answer.json()["result"]["id"])


BAD = (
    (("--zone", "ZONE"), "Missing option '--from'"),
    (("--from", "10.0.0.0/8"), "--zone or --certificate"),
    (("--zone", "ZONE", "--from", "10.0.0.1/8"), "has host bits set"),
    (("--zone", "ZONE", "--from", "anywhere"), "takes a network"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--host-pattern", "*"), "takes a host name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--host-pattern", "a.*.example.com"), "takes a host name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--host-pattern", "bücher.example"), "takes a host name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--host-pattern", "a.example."), "takes a host name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--name", " "), "name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--name", "x" * 121), "name"),
    (("--zone", "ZONE", "--from", "10.0.0.0/8", "--expires", "2001-01-01"), "in the past"),
    (("--zone", "no-such.example", "--from", "10.0.0.0/8"), "there is no zone"),
    (("--certificate", "0" * 32, "--from", "10.0.0.0/8"), "there is no certificate"),
    (("--certificate", "x", "--host-pattern", "a.example", "--from", "10.0.0.0/8"), "cannot be combined"),
)


async def test_what_makes_no_token_is_told_and_stores_none(run: Run, world: World) -> None:
    """Each wrong option is refused with its reason, and nothing is stored."""
    zone = str(world.a.zone.id)
    for words, said in BAD:
        ended = run(*TOKEN, "create", *(zone if word == "ZONE" else word for word in words))
        assert ended.status in {1, 2}, words
        assert (said in ended.err, ended.out) == (True, ""), ended
    assert await delivery_tokens.list_(world.database) == ()


async def test_a_certificate_of_another_zone_or_with_a_pattern_is_refused(run: Run, world: World) -> None:
    """--certificate stands with its own zone or none, and with no pattern."""
    id_ = await uploaded(world)
    base = (*TOKEN, "create", "--from", "10.0.0.0/8", "--certificate", id_)
    assert "not in the zone" in run(*base, "--zone", str(world.b.zone.id)).err
    assert "cannot be combined" in run(*base, "--zone", str(world.a.zone.id), "--host-pattern", "a.example").err
    assert await delivery_tokens.list_(world.database) == ()
    assert row(run(*base, "--zone", str(world.a.zone.id), "--json"))["certificate"] == id_


async def test_the_value_is_shown_once_and_not_stored(run: Run, world: World) -> None:
    """The list has no value, and the row a digest under a pepper that is not the value's plain one."""
    new = made(run, world, "--host-pattern", "*.Example.com", "--from", "fd00::/8", "--name", "edge")
    value = new.pop("token")
    assert tokens.is_well_formed(value)
    assert (new["host_pattern"], new["from"], new["state"]) == ("*.example.com", ["10.0.0.0/8", "fd00::/8"], "active")
    assert [row(run(*TOKEN, "list", "--json"))] == [new]
    (stored,) = await world.database.fetch("SELECT t::text AS row, digest FROM delivery_tokens t")
    assert value[4:44] not in stored["row"]
    assert stored["digest"] in world.services.peppers.digests(value)


async def test_making_and_revoking_are_audited(run: Run, world: World) -> None:
    """Each is one row with the token's id; the value stands in none."""
    new = made(run, world)
    revoked = run(*TOKEN, "revoke", new["id"])
    assert (revoked.status, f"revoked the delivery token {new['id']}:" in revoked.out) == (0, True)
    again = run(*TOKEN, "revoke", new["id"])
    assert (again.status, f"the delivery token {new['id']} was revoked before" in again.err) == (1, True)
    rows = await world.database.fetch(
        "SELECT action, l::text AS row FROM audit_log l WHERE resource_id = $1", UUID(new["id"])
    )
    assert {each["action"] for each in rows} == {"create", "revoke"}
    assert len(rows) == 2
    assert not any(new["token"] in each["row"] for each in rows)
    assert row(run(*TOKEN, "list", "--json"))["state"] == "revoked"


async def test_a_revoked_token_leaves_no_digest(run: Run, world: World) -> None:
    """With its digest goes what would recognise it, and what keeps its pepper."""
    new = made(run, world)
    run(*TOKEN, "revoke", new["id"])
    (stored,) = await world.database.fetch("SELECT digest, pepper_id FROM delivery_tokens")
    assert (stored["digest"], stored["pepper_id"]) == (None, None)
    assert (await delivery_tokens.known(world.database)).by_digest == {}


async def test_the_api_takes_no_delivery_token(run: Run, world: World) -> None:
    """In both dialects, and at the login, it is an unknown one."""
    value = made(run, world)["token"]
    headers = {"Authorization": f"Bearer {value}"}
    statuses = [
        (await world.http.get(path, headers=headers)).status_code
        for path in (world.a.zone_path, "/client/v4/user/tokens/verify", "/api/v1/pki/ca/x")
    ]
    login = {"clientId": str(world.a.account.id), "clientSecret": value}
    answer = await world.http.post("/api/v1/auth/universal-auth/login", json=login)
    assert [*statuses, answer.status_code] == [403, 401, 401, 401]


async def test_more_than_the_bound_are_refused(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked ones do not count."""
    monkeypatch.setattr(delivery_tokens, "MOST", 1)
    first = made(run, world)
    refused = run(*TOKEN, "create", "--zone", str(world.a.zone.id), "--from", "10.0.0.0/8")
    assert "there are 1 delivery tokens" in refused.err
    run(*TOKEN, "revoke", first["id"])
    made(run, world)


async def test_a_pepper_stays_while_a_delivery_token_needs_it(run: Run, world: World) -> None:
    """Its retirement is refused, and with `revoke` ends the token, audited."""
    new = made(run, world)
    (pepper,) = world.services.peppers.by_id
    operator = first_start.operator()
    await add_pepper(world.database, world.ring, operator)
    with pytest.raises(Conflict, match="need this pepper"):
        await tokens.retire_pepper(world.database, operator, pepper, revoke=False)
    await tokens.retire_pepper(world.database, operator, pepper, revoke=True)
    found = await delivery_tokens.find(world.database, new["id"])
    assert found.revoked_at is not None
    rows = await world.database.fetch("SELECT action FROM audit_log WHERE resource_id = $1", found.id)
    assert {each["action"] for each in rows} == {"create", "revoke"}


async def test_a_zone_that_is_gone_gets_no_token(world: World) -> None:
    """It was deleted while the command ran: one sentence, and nothing is there."""
    new = NewToken(Reach(world.a.account.id, uuid4()), "edge", (ip_network("10.0.0.0/8"),))
    with pytest.raises(Conflict, match="the zone does not exist any more"):
        await delivery_tokens.create(world.services, first_start.operator(), new)
    assert await delivery_tokens.list_(world.database) == ()
