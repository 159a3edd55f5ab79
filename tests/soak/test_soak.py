"""What `make soak` does five hundred times, a few times (tests/soak); and that each of its checks can fail."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import msgspec
import pytest

from keystead.store import database as db
from soak import checks
from soak.clients import Answer
from soak.run import KILLS, STOP, Soak, judged, of_the_database, plan, report, soaked

pytestmark = pytest.mark.serve

# With this one a worker has to start while PostgreSQL is away, and no kill meets a server that is just starting.
SEED = 17
# What every client asks for, however short the soak is.
ALWAYS = {*checks.ENDS} - {"delete in use", "repeat of a deleted one"}


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    """A server after one kill of each kind and one regular stop."""
    with soaked(tmp_path_factory.mktemp("soak"), len(KILLS), SEED) as done:
        yield done


def test_nothing_that_was_acknowledged_is_lost_or_done_twice(soak: Soak) -> None:
    """Whatever is killed, clients, database, keys, audit log and API agree on what was made, changed and deleted."""
    faults = judged(soak)
    told = "\n".join(report(soak, faults))
    assert {rule: found for rule, found in faults.items() if found} == {}, told
    assert sorted(kill.kind for kill in soak.kills) == sorted([*KILLS, STOP])
    assert {answer.what for answer in soak.log.read()} >= ALWAYS, told


def test_a_plan_has_every_kind_and_regular_stops() -> None:
    """Of 500 kills the same seed makes the same plan, with each kind in it and a stop for each twenty."""
    assert plan(500, seed=1) == plan(500, seed=1)
    kinds = [step.kind for step in plan(500, seed=1)]
    assert len(kinds) - kinds.count(STOP) == 500
    assert kinds.count(STOP) == 26
    assert {*kinds} == {*KILLS, STOP}


Edit = Callable[[list[Answer]], list[Answer]]
NOBODYS, NO_DIGEST = str(UUID(int=0)), "00" * 32
A_CSR = "(SELECT id FROM custom_csrs ORDER BY id LIMIT 1)"
A_CERTIFICATE = "(SELECT id FROM custom_certificates ORDER BY id LIMIT 1)"
COPY = """
INSERT INTO custom_csrs (account_id, id, zone_id, key_id, key_type, name, country, state, locality, organization,
    common_name, sans, csr)
SELECT account_id, gen_random_uuid(), zone_id, gen_random_uuid(), key_type, name, country, state, locality,
    organization, common_name, sans, csr FROM custom_csrs LIMIT 1
"""
AUDIT_COPY = """
INSERT INTO audit_log (account_id, id, action, resource_type, resource_id, actor, request_id, method, path)
SELECT account_id, gen_random_uuid(), action, resource_type, resource_id, actor, request_id, method, path
FROM audit_log WHERE resource_type = 'custom_certificate' AND action = 'update' LIMIT 1
"""
# Each is carried out, reported, and taken back.
STATEMENTS = {
    checks.LOST: f"DELETE FROM custom_csrs WHERE id = {A_CSR}",
    checks.UNASKED: COPY,
    checks.TWO_CSRS: COPY,
    checks.UNAUDITED: f"DELETE FROM audit_log WHERE resource_id = {A_CERTIFICATE}",
    checks.OVERAUDITED: AUDIT_COPY,
    checks.CLAIMS: f"DELETE FROM idempotency_keys WHERE resource_id = {A_CSR}",
    checks.NOT_RENEWED: f"UPDATE custom_certificates SET sha256 = sha256('other') WHERE id = {A_CERTIFICATE}",
    "private keys that nothing uses": f"DELETE FROM custom_csrs WHERE id = {A_CSR}",
    "kept counts that are not those of the rows": "UPDATE csr_counts SET count = count + 1",
    "rows that contradict the audit log": f"DELETE FROM audit_log WHERE resource_id = {A_CSR}",
}


def test_damage_in_the_database_is_reported(soak: Soak) -> None:
    """A row that is lost, doubled or changed behind the server's back is found by the rule that is against it."""
    silent = [rule for rule, sql in STATEMENTS.items() if not asyncio.run(_after(soak, sql))[rule]]
    assert silent == []


async def _after(soak: Soak, sql: str) -> checks.Faults:
    connection: db.Connection = await asyncpg.connect(soak.server.cluster.dsn)
    try:
        transaction = connection.transaction()
        await transaction.start()
        # Foreign keys would forbid most of it.
        await connection.execute("SET LOCAL session_replication_role = replica")
        assert not (await connection.execute(sql)).endswith(" 0"), "there was nothing to damage"
        told = checks.story(soak.log.read())
        return {**await checks.of_the_database(told, connection), **await checks.standing(connection)}
    finally:
        await connection.close()


def added(of: Answer, **changes: Any) -> Edit:
    """Another request's line, which differs from this one in the changes."""
    return lambda answers: [*answers, msgspec.structs.replace(of, request="made up", **changes)]


def changed(of: Answer, **changes: Any) -> Edit:
    return lambda answers: [msgspec.structs.replace(each, **changes) if each == of else each for each in answers]


def a_creation(soak: Soak) -> Answer:
    """The line of a CSR that is still there."""
    told = checks.story(soak.log.read())
    return next(iter(told.alive(told.csrs).values()))


def test_answers_that_contradict_each_other_are_reported(soak: Soak) -> None:
    """An answer that may not be, one that never came, a second CSR for a key and a second use of a key are found."""
    of = a_creation(soak)
    edits = {
        checks.STRANGE: added(of, what="renew", status=404, code=1002),
        checks.UNRESOLVED: added(of, status=503, code=1501),
        checks.TWO_CSRS: added(of, id=NOBODYS, digest=NO_DIGEST),
        checks.TWICE: added(of, id=NOBODYS, key="another"),
    }
    assert [rule for rule, edit in edits.items() if not checks.of_the_log(_told(soak, edit))[rule]] == []
    for bad in ({"status": 500, "code": 1500}, {"status": 503, "code": 1501}, {"status": 503, "retry_after": "1"}):
        tries = added(of, **bad)(added(of, status=0)([]))
        assert checks.of_the_log(checks.story([*tries, *added(of)([])]))[checks.STRANGE] != []


def test_answers_that_the_database_contradicts_are_reported(soak: Soak) -> None:
    """What was acknowledged and is not there, is there and was deleted, or has another key, is found."""
    of = a_creation(soak)
    edits = {
        checks.LOST: added(of, id=NOBODYS),
        checks.UNASKED: changed(of, what="delete in use"),
        checks.BACK: added(of, what="delete CSR", status=200),
        checks.UNDEAD: added(of, what="delete CSR", status=200),
        checks.OTHER_KEY: changed(of, digest=NO_DIGEST),
    }
    found = {rule: asyncio.run(of_the_database(soak.server, _told(soak, edit))) for rule, edit in edits.items()}
    assert [rule for rule in edits if not found[rule][rule]] == []


def test_answers_that_the_api_contradicts_are_reported(soak: Soak) -> None:
    """A CSR that the API does not know, and a list that lacks it, are found; so is a deleted one that it shows."""
    of, place = a_creation(soak), soak.server.place
    with httpx.Client(base_url=place.url, headers=place.bearer) as http:
        for edit in (added(of, id=NOBODYS), added(of, what="delete CSR", status=200)):
            faults = checks.of_the_api(_told(soak, edit), http)
            assert [len(faults[rule]) for rule in (checks.API, checks.LISTS)] == [1, 1]


def _told(soak: Soak, edit: Edit) -> checks.Story:
    return checks.story(edit(soak.log.read()))
