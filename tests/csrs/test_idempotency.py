"""Idempotency-Key (contract-cloudflare section 2): requests with one key are one request, for 24 hours."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from support.live import Live
from support.world import BODY, World

from keystead.store.database import Database

KEYS, AT_ONCE = 100, 20


async def post(world: World, key: str, path: str | None = None, **fields: Any) -> httpx.Response:
    headers = {**world.a.bearer, "Idempotency-Key": key}
    return await world.http.post(path or world.a.account_path, json={**BODY, **fields}, headers=headers)


def code(answer: httpx.Response) -> tuple[int, int]:
    [error] = answer.json()["errors"]
    return answer.status_code, error["code"]


def made(answer: httpx.Response) -> str:
    assert answer.status_code == 201, answer.text
    csr_id: str = answer.json()["result"]["id"]
    return csr_id


async def age(world: World, time: str) -> None:
    await world.database.execute(f"UPDATE idempotency_keys SET created_at = created_at - interval '{time}'")


@pytest.mark.load
async def test_a_hundred_keys_twenty_at_once_make_a_hundred_csrs(live: Live) -> None:
    """Twenty requests at once for each of a hundred keys, on two workers, make one CSR, key and audit row a key."""
    name, database = uuid4().hex, Database(live.database_url, 1)
    # Tests before this one have left keys of CAs and certificates, and CSRs.
    before = {row["id"] for row in await database.fetch(_ORPHANS)}
    # Requests that wait inside httpx cost it much time each, so they wait here.
    two_keys = asyncio.Semaphore(2)
    async with httpx.AsyncClient(base_url=live.url, headers=live.bearer) as http:

        async def twenty(key: str) -> list[httpx.Response]:
            body, headers = {**BODY, "name": name}, {"Idempotency-Key": key}
            async with two_keys:
                posts = (http.post(live.account_path, json=body, headers=headers) for _ in range(AT_ONCE))
                return await asyncio.gather(*posts)

        answers = await asyncio.gather(*(twenty(f"key {i} of {name}") for i in range(KEYS)))
    results = [{str(answer.json()["result"]) for answer in of_one_key} for of_one_key in answers]
    assert {answer.status_code for of_one_key in answers for answer in of_one_key} == {201}
    assert [len(alike) for alike in results] == KEYS * [1]
    assert len(set.union(*results)) == KEYS
    ids = [UUID(of_one_key[0].json()["result"]["id"]) for of_one_key in answers]
    try:
        csrs = await database.fetch("SELECT id FROM custom_csrs WHERE name = $1", name)
        orphans = await database.fetch(_ORPHANS)
        audited = await database.fetch(
            "SELECT resource_id FROM audit_log WHERE action = 'create' AND resource_id = ANY($1)", ids
        )
    finally:
        await database.close()
    assert sorted(row["id"] for row in csrs) == sorted(ids)
    assert {row["id"] for row in orphans} == before
    assert sorted(row["resource_id"] for row in audited) == sorted(ids)


_ORPHANS = """
SELECT id FROM private_keys k
WHERE NOT EXISTS (SELECT FROM custom_csrs c WHERE c.account_id = k.account_id AND c.key_id = k.id)
"""


async def test_two_bodies_at_once_make_one_csr(world: World) -> None:
    """When requests with one key but different bodies race, one body wins, and the others are told 409/1456."""
    answers = await asyncio.gather(*(post(world, "key", name=f"name {i % 2}") for i in range(AT_ONCE)))
    winners = [answer for answer in answers if answer.status_code == 201]
    assert len({made(answer) for answer in winners}) == 1
    assert len(winners) == AT_ONCE / 2
    assert {code(answer) for answer in answers if answer not in winners} == {(409, 1456)}
    assert len(await world.database.fetch("SELECT FROM private_keys")) == 1


async def test_a_repeat_is_answered_like_the_first(world: World) -> None:
    """A repeat has the status, the object and the advice of the first answer."""
    first, again = [await post(world, "key", colour="red", sans=["a.example"]) for _ in range(2)]
    assert (first.status_code, first.json()) == (again.status_code, again.json())
    assert [message["code"] for message in again.json()["messages"]] == [1480, 1481, 1484]


async def test_a_repeat_is_not_audited_again(world: World) -> None:
    """A repeat makes nothing, so the audit log has one row."""
    csr_ids = {made(await post(world, "key")) for _ in range(3)}
    rows = await world.database.fetch("SELECT resource_id FROM audit_log WHERE resource_type = 'custom_csr'")
    assert [str(row["resource_id"]) for row in rows] == list(csr_ids)


async def test_a_repeat_is_rendered_as_it_asks(world: World) -> None:
    """Only the id is remembered: a repeat that accepts PEM gets the PEM of the CSR that a JSON request made."""
    first = await post(world, "key")
    headers = {**world.a.bearer, "Idempotency-Key": "key", "Accept": "application/x-pem-file"}
    again = await world.http.post(world.a.account_path, content=first.request.content, headers=headers)
    assert (again.status_code, again.text) == (201, first.json()["result"]["csr"])
    assert again.headers["location"] == f"{world.a.account_path}/{made(first)}"


async def test_a_repeat_is_authorized_anew(world: World) -> None:
    """A caller whose token was disabled meanwhile is refused the repeat."""
    await post(world, "key")
    await world.database.execute("UPDATE tokens SET status = 'disabled'")
    assert code(await post(world, "key")) == (403, 9109)


async def test_a_repeat_after_the_delete_is_not_found(world: World) -> None:
    """What a key made does not come back after its deletion, and no second one is made: 404/1419."""
    csr_id = made(await post(world, "key"))
    await world.http.delete(f"{world.a.account_path}/{csr_id}", headers=world.a.bearer)
    assert code(await post(world, "key")) == (404, 1419)
    assert await world.database.fetch("SELECT FROM private_keys") == []


@pytest.mark.parametrize(
    "other",
    [b'{"common_name": ', b"[]", b"", b'{"key_type": "x"}', b" " * 64],
    ids=["broken", "list", "empty", "invalid", "space"],
)
async def test_the_same_key_with_another_body_is_a_conflict(world: World, other: bytes) -> None:
    """Whatever the other body is, also one that nobody can read: 409/1456, and clients are told not to repeat it."""
    await post(world, "key")
    headers = {**world.a.bearer, "Idempotency-Key": "key"}
    answer = await world.http.post(world.a.account_path, content=other, headers=headers)
    assert code(answer) == (409, 1456)
    assert answer.headers["x-should-retry"] == "false"


async def test_a_body_of_the_same_meaning_is_another_body(world: World) -> None:
    """The raw bytes count, not what they mean."""
    first = await post(world, "key")
    headers = {**world.a.bearer, "Idempotency-Key": "key"}
    answer = await world.http.post(world.a.account_path, content=first.request.content + b"\n", headers=headers)
    assert code(answer) == (409, 1456)


async def test_a_conflict_changes_nothing(world: World) -> None:
    """After a conflict the first body still gets the first CSR."""
    csr_id = made(await post(world, "key"))
    await post(world, "key", name="another")
    assert made(await post(world, "key")) == csr_id


async def test_keys_are_the_callers_own(world: World) -> None:
    """Another token, a global key and another account's token may use the same key for CSRs of their own."""
    headers = {"Idempotency-Key": "key"}
    older = {"X-Auth-Email": world.a.email, "X-Auth-Key": world.a.key}
    first = await post(world, "key")
    by_user = await world.http.post(world.a.account_path, json=BODY, headers={**older, **headers})
    of_b = await world.http.post(world.b.account_path, json=BODY, headers={**world.b.bearer, **headers})
    assert len({made(answer) for answer in (first, by_user, of_b)}) == 3


async def test_keys_are_the_paths_own(world: World) -> None:
    """The same key on the account's and on the zone's list makes a CSR in each, from any two bodies."""
    of_account = await post(world, "key")
    of_zone = await post(world, "key", path=world.a.zone_path, name="another")
    assert made(of_account) != made(of_zone)


async def test_a_delete_ignores_the_key(world: World) -> None:
    """A DELETE with the key of a POST deletes, and one with a key that no POST could have is none the worse."""
    csr_id = made(await post(world, "key"))
    headers = {**world.a.bearer, "Idempotency-Key": "key"}
    answer = await world.http.delete(f"{world.a.account_path}/{csr_id}", headers=headers)
    assert answer.status_code == 200


async def test_a_trailing_slash_is_the_same_path(world: World) -> None:
    """Trailing slashes are tolerated, so a repeat with one is a repeat."""
    first = await post(world, "key")
    assert made(await post(world, "key", path=world.a.account_path + "/")) == made(first)


async def test_keys_differ_by_case_and_space(world: World) -> None:
    """A key is compared byte for byte."""
    ids = {made(await post(world, key)) for key in ("key 1", "KEY 1", "key  1", "key 1!")}
    assert len(ids) == 4


async def test_a_key_is_kept_for_24_hours(world: World) -> None:
    """A minute before its day is over a key still stands for its CSR."""
    csr_id = made(await post(world, "key"))
    await age(world, "23 hours 59 minutes")
    assert made(await post(world, "key")) == csr_id


async def test_a_key_is_free_after_24_hours(world: World) -> None:
    """A day later the key makes a new CSR, from another body too, and then stands for that one."""
    old = made(await post(world, "key"))
    await age(world, "24 hours")
    new = made(await post(world, "key", name="another"))
    assert new != old
    assert made(await post(world, "key", name="another")) == new
    assert (await world.http.get(f"{world.a.account_path}/{old}", headers=world.a.bearer)).status_code == 200


async def test_old_keys_used_at_once_make_one_csr(world: World) -> None:
    """Requests that find an old key at the same time agree on one new CSR."""
    old = made(await post(world, "key"))
    await age(world, "25 hours")
    new = {made(answer) for answer in await asyncio.gather(*(post(world, "key") for _ in range(AT_ONCE)))}
    assert len(new - {old}) == 1
    assert len(await world.database.fetch("SELECT FROM private_keys")) == 2


@pytest.mark.parametrize(
    "values",
    [
        [b""],
        [b" "],
        [b"x" * 256],
        ["schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel".encode()],
        [b"schl\xfcssel"],
        [b"a\tb"],
        [b"a\x00b"],
        [b"a\x7f"],
        [b"a\nb"],
        [b"a", b"b"],
        [b"a", b"a"],
    ],
    ids=["empty", "space", "256", "utf8", "latin1", "tab", "nul", "del", "newline", "two", "twice"],
)
async def test_a_key_that_is_none_is_refused(world: World, values: list[bytes]) -> None:
    """Not one to 255 printable ASCII characters, or given twice: 400/1456, and nothing is made."""
    headers = [(b"authorization", world.a.bearer["Authorization"].encode())]
    headers += [(b"idempotency-key", value) for value in values]
    answer = await world.http.post(world.a.account_path, json=BODY, headers=headers)
    assert code(answer) == (400, 1456)
    assert await world.database.fetch("SELECT FROM custom_csrs") == []


@pytest.mark.parametrize("key", ["k", "~", "x" * 255, "two words", '"quoted"', "7b163417-1d2b-4c84-a38a-2fb7a0cd7752"])
async def test_a_key_of_printable_ascii_is_taken(world: World, key: str) -> None:
    """Up to 255 printable ASCII characters, spaces inside them too, are a key."""
    assert made(await post(world, key)) == made(await post(world, key))


async def test_errors_are_not_remembered(world: World) -> None:
    """A request that was refused leaves its key free for the corrected body."""
    assert code(await post(world, "key", country="")) == (400, 1405)
    assert made(await post(world, "key"))


async def test_a_refusal_by_the_quota_is_not_remembered(world: World) -> None:
    """A request over the quota leaves nothing behind, so its repeat succeeds when there is room."""
    await world.database.execute("UPDATE accounts SET csr_quota = 0")
    assert code(await post(world, "key")) == (403, 1403)
    assert await world.database.fetch("SELECT FROM idempotency_keys UNION ALL SELECT FROM private_keys") == []
    await world.database.execute("UPDATE accounts SET csr_quota = 1")
    assert made(await post(world, "key")) == made(await post(world, "key"))


async def test_a_repeat_needs_no_quota(world: World) -> None:
    """The repeat of what used up the quota is not refused for it, also when all come at once."""
    await world.database.execute("UPDATE accounts SET csr_quota = 1")
    answers = await asyncio.gather(*(post(world, "key") for _ in range(AT_ONCE)))
    assert len({made(answer) for answer in answers}) == 1


async def test_a_repeat_is_answered_though_the_names_are_refused_by_now(world: World) -> None:
    """What was made stays made when the operator tightens the name policy."""
    csr_id = made(await post(world, "key"))
    await world.database.execute("UPDATE accounts SET name_policy = 'public'")
    assert made(await post(world, "key")) == csr_id


async def test_without_a_key_a_repeat_makes_a_second_csr(world: World) -> None:
    """Two calls never share a CSR unless they say so."""
    first, second = [await world.create() for _ in range(2)]
    assert first["id"] != second["id"]
    assert first["csr"] != second["csr"]


async def test_no_answer_is_stored(world: World) -> None:
    """The table of keys holds digests and an id: no body, no answer and not the key itself."""
    await post(world, "a-key-of-the-client")
    stored = str([dict(row) for row in await world.database.fetch("SELECT * FROM idempotency_keys")])
    assert "a-key-of-the-client" not in stored
    assert "example.com" not in stored
