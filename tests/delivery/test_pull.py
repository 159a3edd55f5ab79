"""What the delivery listener answers: the hostile first, then who gets which key, and what is noted of it."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import httpx
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from support.authority import pem, root
from support.databases import connected
from support.pulling import ADDRESS, Made, Pulling
from support.waiting import at_locks, comes_about
from support.world import World

from keystead.certificates import following
from keystead.custody import keyring
from keystead.custody.peppers import add_pepper
from keystead.custody.ring import Ring
from keystead.delivery import choosing, pulled
from keystead.errors import Unavailable
from keystead.identity import delivery_tokens, tokens
from keystead.identity.delivery_tokens import Reach
from keystead.identity.zones import Zone
from keystead.pull import listener
from keystead.server import first_start
from keystead.store.database import Database
from keystead.x509 import chains, keys

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
async def pulling(shared_world: World) -> Pulling:
    ca = root()
    shared_world.trust(chains.anchors([pem(ca.certificate).encode()]))
    return Pulling(shared_world, ca)


@pytest.fixture
async def zone(pulling: Pulling) -> Zone:
    """A zone of this test's own."""
    return await pulling.zone()


def host(*labels: str) -> str:
    return ".".join((*labels, f"h{uuid4().hex[:10]}", "example.com"))


def is_pair(answer: httpx.Response, made: Made) -> bool:
    """Whether it is the chain, and the key of its leaf."""
    assert answer.status_code == 200, answer.text
    return answer.text.startswith(made.text) and is_key(answer.text[len(made.text) :], made)


def is_key(text: str, made: Made) -> bool:
    key = load_pem_private_key(text.encode(), None)
    return key.public_key() == x509.load_pem_x509_certificates(made.text.encode())[0].public_key()


# The hostile.


async def test_only_a_delivery_token_opens_it(pulling: Pulling, zone: Zone) -> None:
    """No credential, one of another kind, one that is made up, one in the wrong place: 401, and nothing of a key."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    a = pulling.world.a
    path = f"/caddy?server_name={name}"
    basic = base64.b64encode(f"{value}:x".encode()).decode()
    wrong = [
        {},
        {"Authorization": f"Bearer {a.token}"},
        {"Authorization": f"Bearer {tokens.new_token(tokens.DELIVERY_TOKEN)}"},
        {"Authorization": f"Bearer {value[:-1]}"},
        {"Authorization": f"Bearer {value.upper()}"},
        {"Authorization": f"Token {value}"},
        {"Authorization": value},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": f"Basic {value}"},
        {"Authorization": "Basic ===="},
        {"X-Auth-Key": a.key, "X-Auth-Email": a.email},
        {"X-Api-Key": value},
        {"Cookie": f"token={value}"},
    ]
    for headers in wrong:
        for where in (path, "/traefik", f"/certificates/{made.id}.pem"):
            answer = await pulling.ask(where, headers=headers)
            assert (answer.status_code, "PRIVATE" in answer.text) == (401, False), headers
    for where in (f"{path}&token={value}", f"/caddy/{value}?server_name={name}", f"/{value}/caddy?server_name={name}"):
        assert (await pulling.ask(where)).status_code in {401, 404}
    twice = [("Authorization", f"Bearer {value}"), ("Authorization", f"Bearer {value}")]
    assert (await pulling.ask(path, headers=twice)).status_code == 401
    assert is_pair(await pulling.ask(path, headers={"Authorization": f"bearer {value}"}), made)


async def test_a_token_is_taken_from_its_networks_alone(pulling: Pulling, zone: Zone) -> None:
    """From another address it is refused like an unknown one, whatever a header says of the address."""
    await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    _, of_one = await pulling.token(zone, network="2001:db8::1/128")
    await pulling.follow()
    path = f"/caddy?server_name={name}"
    forged = {"X-Forwarded-For": ADDRESS, "Forwarded": f"for={ADDRESS}", "X-Real-IP": ADDRESS}
    for address in ("192.0.3.7", "127.0.0.1", "2001:db8::1", "::ffff:192.0.3.7", "unix"):
        answer = await pulling.ask(path, value, address=address, headers=forged)
        assert (answer.status_code, answer.headers["www-authenticate"][:5]) == (401, "Basic")
    assert (await pulling.ask(path, value, address="::ffff:192.0.2.9")).status_code == 200
    assert (await pulling.ask(path, of_one, address="2001:db8::1")).status_code == 200
    assert (await pulling.ask(path, of_one, address="2001:db8::2")).status_code == 401


async def test_an_expired_and_a_revoked_token_open_nothing(pulling: Pulling, zone: Zone) -> None:
    """An expired one at once, though it was read before; a revoked one as soon as the tokens are read again."""
    await pulling.upload(zone, name := host())
    _, expired = await pulling.token(zone, expires_at=datetime.now(UTC) - HOUR)
    _, lasting = await pulling.token(zone, expires_at=datetime.now(UTC) + HOUR)
    revoked_id, revoked = await pulling.token(zone)
    await pulling.follow()
    statuses = [(await pulling.for_host(name, each)).status_code for each in (expired, lasting, revoked)]
    assert statuses == [401, 200, 200]
    await pulling.revoke(revoked_id)
    await pulling.pulled.follow_tokens(pulling.services)
    assert (await pulling.for_host(name, revoked)).status_code == 401
    assert (await pulling.for_host(name, lasting)).status_code == 200


async def test_refusals_are_counted_and_missing_credentials_are_not(pulling: Pulling, zone: Zone) -> None:
    """As failed authentications of their address."""
    await pulling.follow()
    address = "198.51.100.77"
    for value in (None, "x", tokens.new_token(tokens.DELIVERY_TOKEN)):
        await pulling.ask("/traefik", value, address=address)
    counts = pulling.failures._counts.items()
    assert sum(number for (network, _), number in counts if str(network) == f"{address}/32") == 2


async def test_another_zone_is_as_if_it_were_not_there(pulling: Pulling, zone: Zone) -> None:
    """Its host is declined, its certificate is not found, and its keys are in no document."""
    other = await pulling.zone()
    foreign = await pulling.upload(other, name := host())
    _, value = await pulling.token(zone)
    await pulling.token(other)
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 204
    assert (await pulling.ask(f"/certificates/{foreign.id}.pem", value)).status_code == 404
    assert (await pulling.ask("/traefik", value)).json() == {"tls": {"certificates": []}}


async def test_a_pattern_bounds_hosts_and_certificates(pulling: Pulling, zone: Zone) -> None:
    """What is outside of the pattern is declined, on each of the paths; so is all but the one certificate."""
    base = host()
    www, deep, out = f"www.{base}", f"a.b.{base}", f"{base.partition('.')[0]}x.example.com"
    inside = await pulling.upload(zone, www)
    below = await pulling.upload(zone, deep)
    outside = await pulling.upload(zone, out)
    _, of_host = await pulling.token(zone, host=www)
    _, of_wildcard = await pulling.token(zone, host=f"*.{base}")
    _, of_one = await pulling.token(zone, certificate=below.id)
    await pulling.follow()

    async def opened(value: str) -> list[bool]:
        found = []
        document = (await pulling.ask("/traefik", value)).json()["tls"]["certificates"]
        for name, made in ((www, inside), (deep, below), (out, outside)):
            by_host, by_id = (
                await pulling.for_host(name, value),
                await pulling.ask(f"/certificates/{made.id}.pem", value),
            )
            assert (by_host.status_code, by_id.status_code) in {(200, 200), (204, 404)}
            found.append(by_host.status_code == 200)
            assert (made.text in {each["certFile"] for each in document}) == found[-1]
        return found

    assert await opened(of_host) == [True, False, False]
    assert await opened(of_wildcard) == [True, True, False]
    assert await opened(of_one) == [False, True, False]


@pytest.mark.parametrize("sent", ["", ".", "*", "a b", "a\x00b", "ü.example.com", "x" * 300, "a..b", "%", "[::1]"])
async def test_a_name_that_no_certificate_has_is_declined(pulling: Pulling, zone: Zone, sent: str) -> None:
    """A TLS client may send any bytes as its SNI: the handshake is left to others."""
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert (await pulling.for_host(sent, value)).status_code == 204


async def test_case_and_a_dot_at_the_end_make_no_difference(pulling: Pulling, zone: Zone) -> None:
    """They name the same host; U-labels, two dots and bytes that are no UTF-8 do not."""
    name = f"xn--bcher-kva.{host()}"
    made = await pulling.upload(zone, name)
    _, value = await pulling.token(zone)
    await pulling.follow()
    for same in (name.upper(), f"{name}.", name.title()):
        assert is_pair(await pulling.for_host(same, value), made)
    for other in (name.replace("xn--bcher-kva", "bücher"), f"{name}..", f".{name}", f"{name}\n"):
        assert (await pulling.for_host(other, value)).status_code == 204
    assert (await pulling.ask(f"/caddy?server_name=%ff{name}", value)).status_code == 204


async def test_a_query_that_caddy_does_not_send_is_refused(pulling: Pulling, zone: Zone) -> None:
    """Without a name, with two, with too many parameters, or too long: 400 with the reason."""
    await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    more = "&".join(f"p{number}=1" for number in range(16))
    for query in ("", "name=x", f"server_name={name}&server_name={name}", f"server_name={name}&{more}"):
        answer = await pulling.ask(f"/caddy?{query}", value)
        assert (answer.status_code, "query" in answer.text) == (400, True), query
    assert (await pulling.ask(f"/caddy?server_name={name}&x={'y' * 5000}", value)).status_code == 400
    usual = "signature_schemes=403,804&cipher_suites=1301,1302&local_ip=10.0.0.1"
    assert (await pulling.ask(f"/caddy?{usual}&server_name={name}", value)).status_code == 200


async def test_it_takes_get_at_three_paths(pulling: Pulling, zone: Zone) -> None:
    """Other methods get 405, HEAD no body, and all other paths 404, those of the API too."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"):
        answer = await pulling.ask("/traefik", value, method)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    head = await pulling.ask(f"/caddy?server_name={name}", value, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    paths = [
        *(
            "/",
            "/metrics",
            "/healthz",
            "/caddy/x",
            "//caddy",
            "/%2fcaddy",
            "/CADDY",
            "/certificates",
            "/client/v4/zones",
        ),
        *(f"/certificates/{made.id}", f"/certificates/{made.id}/.pem", "/certificates/.pem", "/certificates/a/b.pem"),
    ]
    assert {(await pulling.ask(path, value)).status_code for path in paths} == {404}
    for word in ("x", "0" * 32, f"{made.id}%00", "..%2f..", made.id.upper() + "x"):
        assert (await pulling.ask(f"/certificates/{word}.pem", value)).status_code == 404


async def test_what_may_not_be_delivered_is_not(pulling: Pulling, zone: Zone) -> None:
    """A certificate that is not valid yet is withheld on each path; one that has expired is not even read."""
    early = await pulling.upload(zone, name := host(), since=-2, days=20)
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 204
    assert (await pulling.ask(f"/certificates/{early.id}.pem", value)).status_code == 404
    assert (await pulling.ask("/traefik", value)).json()["tls"]["certificates"] == []
    sql = "UPDATE custom_certificates SET not_before = now() - interval '2 days', not_after = {}, modified_at = now() "
    change = sql + "WHERE id = $1"
    await pulling.world.database.execute(change.format("now() + interval '1 day'"), UUID(early.id))
    await pulling.follow()
    assert is_pair(await pulling.for_host(name, value), early)
    await pulling.world.database.execute(change.format("now() - interval '1 day'"), UUID(early.id))
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 204
    assert UUID(early.id) not in pulling.pulled._entries


async def test_a_certificate_that_ends_meanwhile_is_declined_before_it_is_read_again(
    pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times are looked at for each answer."""
    lasts = choosing.lasts
    await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()

    monkeypatch.setattr(choosing, "lasts", lambda each, now: lasts(each, now + timedelta(days=4000)))
    assert (await pulling.for_host(name, value)).status_code == 204


async def test_a_deleted_certificate_is_not_delivered_although_it_is_in_memory(pulling: Pulling, zone: Zone) -> None:
    """To a token that never had its key it is not, even before the listener has heard of it; then to none."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    await pulling.delete(zone, made)
    answer = await pulling.for_host(name, value)
    assert (answer.status_code, "PRIVATE" in answer.text) == (503, False)
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 204
    assert await pulling.world.database.fetch(_EXPORTS, UUID(made.id)) == []


_ENDS = (
    "DELETE FROM custom_certificates WHERE account_id = $1 AND id = $2",
    "DELETE FROM custom_csrs WHERE account_id = $1 AND key_id = $2",
    "DELETE FROM private_keys WHERE account_id = $1 AND id = $2",
)


async def test_a_key_that_is_deleted_while_it_is_delivered_does_not_leave(pulling: Pulling, zone: Zone) -> None:
    """Its first delivery waits for the deletion, and is neither noted nor an unforeseen error."""
    made = await pulling.upload(zone, name := host())
    token_id, value = await pulling.token(zone)
    await pulling.follow()
    entry = pulling.pulled.for_host(Reach(zone.account_id, zone.id), name)
    assert entry
    key_id = entry.certificate.key_id
    # The listener's only connection waits.
    watching = Database(pulling.world.settings.database_url or "", 1)
    async with connected(pulling.world.settings.database_url) as other:
        async with other.transaction():
            for sql, id_ in zip(_ENDS, (UUID(made.id), key_id, key_id), strict=True):
                assert await other.execute(sql, zone.account_id, id_) == "DELETE 1"
            asked = asyncio.create_task(pulling.for_host(name, value))
            await at_locks(watching, 1)
        await watching.close()
        answer = await asked
        assert (answer.status_code, "PRIVATE" in answer.text) == (503, False)
        assert await other.fetch("SELECT FROM key_deliveries WHERE token_id = $1", token_id) == []
    assert await pulling.world.database.fetch(_EXPORTS, UUID(made.id)) == []


async def test_a_revoked_certificate_is_withheld(pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the revocations of the account's CAs, for each certificate that is read, and again and again."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 200

    async def all_of_them(_: Database, __: UUID, serials_of: dict[UUID, frozenset[int]]) -> set[UUID]:
        return {id_ for id_, serials in serials_of.items() if serials & mine}

    mine = {x509.load_pem_x509_certificate(made.text.encode()).serial_number}
    monkeypatch.setattr(choosing, "revoked_of", all_of_them)
    monkeypatch.setattr(pulling.pulled, "_revoked_at", float("-inf"))
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 204


# Who gets which.


async def test_the_host_itself_goes_before_a_wildcard_and_the_latest_before_others(
    pulling: Pulling, zone: Zone
) -> None:
    """As `keystead deliver` chooses."""
    base = host()
    wildcard = await pulling.upload(zone, f"*.{base}")
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert is_pair(await pulling.for_host(f"www.{base}", value), wildcard)
    assert (await pulling.for_host(base, value)).status_code == 204
    assert (await pulling.for_host(f"a.www.{base}", value)).status_code == 204
    first = await pulling.upload(zone, f"www.{base}")
    await pulling.follow()
    assert is_pair(await pulling.for_host(f"www.{base}", value), first)
    second = await pulling.upload(zone, f"www.{base}", f"other.{base}")
    await pulling.follow()
    assert is_pair(await pulling.for_host(f"www.{base}", value), second)
    assert is_pair(await pulling.for_host(f"shop.{base}", value), wildcard)


async def test_a_renewal_replaces_chain_and_key_together(pulling: Pulling, zone: Zone) -> None:
    """Also where it has other hosts: those of before are declined."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    same_key = await pulling.renew(zone, made)
    await pulling.follow()
    assert is_pair(await pulling.for_host(name, value), same_key)
    other = host()
    new_key = await pulling.renew(zone, made, other)
    await pulling.follow()
    assert is_pair(await pulling.for_host(other, value), new_key)
    assert (await pulling.for_host(name, value)).status_code == 204


async def test_traefik_gets_all_that_the_token_opens(pulling: Pulling, zone: Zone) -> None:
    """Pairs as text, the latest first, in a document with nothing else; 304 until one of them changes."""
    made = [await pulling.upload(zone, host()) for _ in range(3)]
    _, value = await pulling.token(zone)
    await pulling.follow()
    answer = await pulling.ask("/traefik", value)
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert answer.json().keys() == {"tls"}
    pairs = answer.json()["tls"]["certificates"]
    assert [set(pair) for pair in pairs] == [{"certFile", "keyFile"}] * 3
    for pair, each in zip(pairs, reversed(made), strict=True):
        assert (pair["certFile"], is_key(pair["keyFile"], each)) == (each.text, True)
    tag = {"If-None-Match": f'"x", W/{answer.headers["etag"]}'}
    again = await pulling.ask("/traefik", value, headers=tag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    await pulling.renew(zone, made[0])
    await pulling.follow()
    assert (await pulling.ask("/traefik", value, headers=tag)).status_code == 200


async def test_a_bundle_has_an_entity_tag(pulling: Pulling, zone: Zone) -> None:
    """304 while the certificate is the same, and nothing is counted for it."""
    made = await pulling.upload(zone, host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    answer = await pulling.ask(f"/certificates/{made.id}.pem", value)
    assert is_pair(answer, made)
    counted = dict(pulling.hands._counts)
    tag = {"If-None-Match": answer.headers["etag"]}
    assert (await pulling.ask(f"/certificates/{made.id}.pem", value, headers=tag)).status_code == 304
    assert pulling.hands._counts == counted
    await pulling.renew(zone, made)
    await pulling.follow()
    assert (await pulling.ask(f"/certificates/{made.id}.pem", value, headers=tag)).status_code == 200


# What is noted.


_EXPORTS = """
SELECT actor, actor_id, actor_name, path, host(address) AS address FROM audit_log
WHERE action = 'export' AND resource_id = $1
"""


async def test_the_first_delivery_of_each_key_to_each_token_is_audited(pulling: Pulling, zone: Zone) -> None:
    """Once, with the token and the address; later ones are counted, also those of a renewal with the same key."""
    made = await pulling.upload(zone, name := host())
    (first_id, first), (second_id, second) = await pulling.token(zone), await pulling.token(zone)
    await pulling.follow()
    for value in (first, first, second):
        assert (await pulling.for_host(name, value)).status_code == 200
    await pulling.ask(f"/certificates/{made.id}.pem", first)
    await pulling.renew(zone, made)
    await pulling.follow()
    assert (await pulling.for_host(name, first)).status_code == 200
    rows = await pulling.world.database.fetch(_EXPORTS, UUID(made.id))
    assert {row["actor_id"] for row in rows} == {first_id, second_id}
    assert [tuple(row)[2:] for row in rows] == [("edge", "/caddy", ADDRESS)] * 2
    assert {row["actor"] for row in rows} == {"token"}
    await pulling.hands.count()
    counts = await pulling.world.database.fetch(
        "SELECT token_id, count FROM key_deliveries WHERE token_id = ANY($1)", [first_id, second_id]
    )
    assert {row["token_id"]: row["count"] for row in counts} == {first_id: 4, second_id: 1}
    await pulling.renew(zone, made, name)
    await pulling.follow()
    assert (await pulling.for_host(name, first)).status_code == 200
    assert len(await pulling.world.database.fetch(_EXPORTS, UUID(made.id))) == 3


async def test_what_was_noted_is_known_after_a_restart(pulling: Pulling, zone: Zone) -> None:
    """Another listener does not note it again, and asks the database for nothing."""
    await pulling.upload(zone, name := host())
    token_id, value = await pulling.token(zone)
    await pulling.follow()
    await pulling.for_host(name, value)
    after = Pulling(pulling.world, pulling.ca)
    await after.follow()
    await after.hands.recall([token_id])
    assert len(after.hands._noted) == 1
    assert (await after.for_host(name, value)).status_code == 200


async def test_no_key_leaves_that_cannot_be_noted(
    pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the database a first delivery is refused; later ones go on for a while, and then none is."""
    await pulling.upload(zone, known := host())
    await pulling.upload(zone, new := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert (await pulling.for_host(known, value)).status_code == 200

    async def away(*_: object) -> None:
        raise Unavailable("the database is not available")

    monkeypatch.setattr(Database, "transaction", away)
    refused = await pulling.for_host(new, value)
    assert (refused.status_code, refused.headers["retry-after"], "PRIVATE" in refused.text) == (503, "1", False)
    assert (await pulling.for_host(known, value)).status_code == 200
    monkeypatch.setattr(pulled, "BELIEVED_SECONDS", -1.0)
    assert (await pulling.for_host(known, value)).status_code == 503


async def test_a_zone_that_was_not_read_yet_is_not_declined(pulling: Pulling) -> None:
    """Caddy would go on to others: 503 until it is known what there is."""
    late = await pulling.zone()
    await pulling.upload(late, name := host())
    _, value = await pulling.token(late)
    await pulling.pulled.follow_tokens(pulling.services)
    assert (await pulling.for_host(name, value)).status_code == 503
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 200


_KEY_OF = """
SELECT p.id, p.wrapped_key, p.ciphertext FROM private_keys p JOIN custom_certificates c ON c.key_id = p.id
WHERE c.id = $1
"""
_EXCHANGED = """
UPDATE private_keys p SET ciphertext = q.ciphertext, wrapped_key = q.wrapped_key
FROM private_keys q, custom_certificates c, custom_certificates d
WHERE p.id = c.key_id AND q.id = d.key_id AND c.id = $1 AND d.id = $2
"""
_PUT_BACK = "UPDATE private_keys SET wrapped_key = $2, ciphertext = $3 WHERE id = $1"


async def test_a_key_in_anothers_place_does_not_leave(pulling: Pulling, zone: Zone) -> None:
    """An exchanged row stops the delivery, of this certificate alone, and is audited."""
    made, good = await pulling.upload(zone, name := host()), await pulling.upload(zone, other := host())
    ids = (UUID(made.id), UUID(good.id))
    before = await pulling.world.database.fetchrow(_KEY_OF, ids[0])
    assert before
    await pulling.world.database.execute(_EXCHANGED, *ids)
    _, value = await pulling.token(zone)
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 503
    assert (await pulling.for_host(other, value)).status_code == 200
    document = (await pulling.ask("/traefik", value)).json()["tls"]["certificates"]
    assert [each["certFile"] for each in document] == [good.text]
    damage = "SELECT FROM audit_log WHERE action = 'key-damaged' AND resource_id = $1"
    assert await pulling.world.database.fetch(damage, before["id"])
    await pulling.world.database.execute(_PUT_BACK, *before)


async def test_a_key_that_was_wrapped_anew_still_opens(pulling: Pulling, zone: Zone) -> None:
    """What is in memory may need a KEK that the ring has lost: then the row is read again."""
    made = await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    entry = pulling.pulled._entries[UUID(made.id)]
    old = {**dict(entry.held.row), "kek_id": "0" * 16}
    pulling.pulled._by_host[zone.id, name] = (
        msgspec.structs.replace(entry, held=msgspec.structs.replace(entry.held, row=old)),
    )
    assert is_pair(await pulling.for_host(name, value), made)


async def test_a_key_is_opened_for_each_answer(pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not kept between them: in memory it is sealed."""
    await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    opened = []

    def noted(ring: Ring, held: keyring.Held, spki_sha256: bytes) -> keys.PrivateKey:
        opened.append(spki_sha256)
        return open_held(ring, held, spki_sha256)

    open_held = keyring.open_held
    monkeypatch.setattr(keyring, "open_held", noted)
    for number in (1, 2, 3):
        assert (await pulling.for_host(name, value)).status_code == 200
        assert len(opened) == number


async def test_a_token_moves_to_a_new_pepper_when_it_is_used(pulling: Pulling, zone: Zone) -> None:
    """So that the earlier pepper can be retired; the token goes on working meanwhile."""
    await pulling.upload(zone, name := host())
    token_id, value = await pulling.token(zone)
    await pulling.follow()
    database, services = pulling.world.database, pulling.services
    newest = await add_pepper(database, services.ring, first_start.operator())
    await database.execute("UPDATE peppers SET created_at = created_at - interval '1 hour'")
    await database.execute("UPDATE peppers SET created_at = created_at + interval '10 minutes' WHERE id = $1", newest)
    await services.peppers.refresh(database, services.ring)
    assert (await pulling.for_host(name, value)).status_code == 200
    moving = pulling.listener._renewing[token_id]
    sql = "SELECT pepper_id FROM delivery_tokens WHERE id = $1"

    async def moved() -> bool:
        row = await database.fetchrow(sql, token_id)
        return row is not None and row["pepper_id"] == newest

    await comes_about(moved)
    moving.cancel()
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 200
    assert (await delivery_tokens.known(database)).of_peppers[token_id] == newest


async def test_what_is_unforeseen_is_told_without_its_text(
    pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500, and the next request is answered as usual."""
    await pulling.upload(zone, name := host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    with monkeypatch.context() as patch:

        async def broken(*_: object) -> None:
            raise ArithmeticError("what nobody should be told")

        patch.setattr(pulling.hands, "hand", broken)
        answer = await pulling.for_host(name, value)
    assert (answer.status_code, "nobody" in answer.text) == (500, False)
    assert (await pulling.for_host(name, value)).status_code == 200


# Bounds.


async def test_bounds_are_told(pulling: Pulling, zone: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many certificates for a document, for the memory, and too much that is being read: each says so."""
    await pulling.upload(zone, name := host())
    await pulling.upload(zone, host())
    _, value = await pulling.token(zone)
    await pulling.follow()
    with monkeypatch.context() as patch:
        patch.setattr(listener, "MAX_DOCUMENT", 1)
        answer = await pulling.ask("/traefik", value)
        assert (answer.status_code, "opens 2 certificates" in answer.text) == (409, True)
    with monkeypatch.context() as patch:
        patch.setattr(listener, "MAX_OUTGOING", 1)
        assert (await pulling.ask("/traefik", value)).status_code == 503
    with monkeypatch.context() as patch:
        patch.setattr(following, "MOST_FOLLOWED", 1)
        patch.setattr(pulling.pulled, "_looked_at", float("-inf"))
        await pulling.follow()
        assert (await pulling.for_host(name, value)).status_code == 503
    monkeypatch.setattr(pulling.pulled, "_looked_at", float("-inf"))
    await pulling.follow()
    assert (await pulling.for_host(name, value)).status_code == 200


async def test_the_log_has_the_token_and_no_secret(pulling: Pulling, zone: Zone) -> None:
    """Each request is a line with the token's id, without query, credential and key."""
    await pulling.upload(zone, name := host())
    token_id, value = await pulling.token(zone)
    await pulling.follow()
    await pulling.for_host(name, value)
    pulling.app._log.flush()
    text = pulling.log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert (lines[-1]["caller"], lines[-1]["path"], lines[-1]["route"]) == (str(token_id), "/caddy", "/caddy")
    assert not any(secret in text for secret in (value, name, "PRIVATE"))
