"""Many requests at once, on certificates and CSRs: no certificate without a key, and no key without an owner."""

import asyncio
import itertools
import time
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from support.authority import key_pem, pem, root, subject
from support.databases import new_database
from support.pki import all_of
from support.waiting import SECONDS, at_locks
from support.walks import WorldWalk
from support.world import World

from keystead.custody import keyring
from keystead.server import postgres
from keystead.store import database as db
from keystead.x509 import chains

Json = dict[str, Any]
HOST = "www.example.com"
OK = (200, 0)
IN_USE, NO_CSR, NO_CERTIFICATE, GONE = (409, 1420), (404, 1431), (404, 1002), (404, 1419)


def outcome(answer: httpx.Response) -> tuple[int, int]:
    errors = answer.json()["errors"]
    return answer.status_code, errors[0]["code"] if errors else 0


class Site:
    """The calls on the certificates of a zone, and a CA that the server trusts."""

    def __init__(self, world: World) -> None:
        self.world, self.ca = world, root()
        self.path = f"/client/v4/zones/{world.a.zone.id.hex}/custom_certificates"
        world.trust(chains.anchors([pem(self.ca.certificate).encode()]))

    async def ask(self, method: str, tail: str = "", body: Any = None) -> httpx.Response:
        """The answer; while the queue for keys is full, which a slow machine's is, again, as clients do."""
        deadline = time.monotonic() + SECONDS
        while True:
            answer = await self.world.http.request(method, self.path + tail, json=body, headers=self.world.a.bearer)
            if answer.status_code != 503 or time.monotonic() > deadline:
                return answer
            await asyncio.sleep(float(answer.headers["Retry-After"]))

    def delete_csr(self, path: str, csr_id: str) -> Coroutine[Any, Any, httpx.Response]:
        return self.world.http.delete(f"{path}/{csr_id}", headers=self.world.a.bearer)

    def of_csr(self, csr: Json) -> Json:
        return {"certificate": pem(self.ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}

    def with_key(self) -> Json:
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.ca.sign(key.public_key(), subject(HOST), hosts=[HOST])
        return {"certificate": pem(leaf), "private_key": key_pem(key)}

    async def audit_rows(self) -> int:
        row = await self.world.database.fetchrow("SELECT count(*) AS n FROM audit_log")
        return row["n"] if row else 0

    async def hold_the_rules(self) -> None:
        """Every certificate has the key of its leaf, every key opens and has one owner."""
        database = self.world.database
        rows = await database.fetch(
            "SELECT t.account_id, t.key_id, t.chain, t.sha256, t.custom_csr_id, c.key_id AS csr_key "
            "FROM custom_certificates t "
            "LEFT JOIN custom_csrs c ON c.account_id = t.account_id AND c.id = t.custom_csr_id"
        )
        for row in rows:
            (leaf, *_) = x509.load_pem_x509_certificates(row["chain"].encode())
            digest = chains.spki_digest(leaf)
            await keyring.open_key(
                database, self.world.ring, keyring.SYSTEM, (row["account_id"], row["key_id"], digest)
            )
            assert row["sha256"] == chains.facts(leaf).sha256
            assert row["csr_key"] == (row["key_id"] if row["custom_csr_id"] else None)
        owners = await database.fetch(
            "SELECT k.id, (SELECT count(*) FROM custom_csrs c WHERE (c.account_id, c.key_id) = (k.account_id, k.id)) "
            "+ (SELECT count(*) FROM custom_certificates t WHERE (t.account_id, t.key_id) = (k.account_id, k.id) "
            "AND t.custom_csr_id IS NULL) AS n FROM private_keys k"
        )
        assert {row["n"] for row in owners} <= {1}


async def test_a_quota_holds_under_twenty_uploads_at_once(world: World) -> None:
    """Three of twenty concurrent uploads are stored, and the others are 1212 and leave no key behind."""
    site = Site(world)
    await world.database.execute("UPDATE zones SET certificate_quota = 3 WHERE id = $1", world.a.zone.id)
    bodies = [site.with_key() for _ in range(20)]
    found = [outcome(answer) for answer in await all_of(*(site.ask("POST", body=body) for body in bodies))]
    assert sorted(found) == [OK] * 3 + [(400, 1212)] * 17
    keys = await world.database.fetch("SELECT id FROM private_keys")
    assert len(keys) == 3
    await site.hold_the_rules()


async def test_many_equal_uploads_are_as_many_certificates(world: World) -> None:
    """The same certificate ten times at once is stored ten times; each uploaded key is of one certificate."""
    site = Site(world)
    for body, keys in ((site.of_csr(await world.create()), 1), (site.with_key(), 11)):
        found = [outcome(answer) for answer in await all_of(*(site.ask("POST", body=body) for _ in range(10)))]
        assert found == [OK] * 10
        assert len(await world.database.fetch("SELECT id FROM private_keys")) == keys
    await site.hold_the_rules()


async def test_every_delete_of_a_csr_and_every_use_of_it_exclude_each_other(world: World) -> None:
    """Forty times at once: delete the CSR, upload for it, renew to it. Either it is gone or it is in use."""
    site = Site(world)
    held = (await site.ask("POST", body=site.with_key())).json()["result"]["id"]
    seen = set()
    for turn in range(40):
        csr = await world.create()
        work = [
            site.delete_csr(world.a.account_path, csr["id"]),
            site.ask("POST", body=site.of_csr(csr)),
            site.ask("PATCH", f"/{held}", site.of_csr(csr)),
        ]
        work = work[turn % 3 :] + work[: turn % 3]
        found = [outcome(answer) for answer in await all_of(*work)]
        deleted, uploaded, renewed = found[-(turn % 3) :] + found[: -(turn % 3)] if turn % 3 else found
        seen.add((deleted, uploaded, renewed))
        if deleted == OK:
            assert {uploaded, renewed} == {NO_CSR}
        else:
            assert deleted == IN_USE
            assert OK in {uploaded, renewed}
        await site.hold_the_rules()
        for certificate in (await site.ask("GET", "?per_page=50")).json()["result"]:
            if certificate["id"] != held:
                await site.ask("DELETE", f"/{certificate['id']}")
    # The machine decides which of the two orders come, and at least one of them does.
    assert {deleted for deleted, _, _ in seen} <= {OK, IN_USE}


async def test_renewals_at_once_end_in_one_of_them(world: World) -> None:
    """Eight PATCHes at once are each done or asked to come again; the last one stands, and each leaves its history."""
    site = Site(world)
    csr = await world.create()
    made = (await site.ask("POST", body=site.of_csr(csr))).json()["result"]
    one = f"/{made['id']}"
    bodies = [site.of_csr(csr) if turn % 2 else site.with_key() for turn in range(8)]
    before = await site.audit_rows()
    found = [outcome(answer) for answer in await all_of(*(site.ask("PATCH", one, body) for body in bodies))]
    assert set(found) <= {OK, (503, 1501)}
    done = found.count(OK)
    assert done >= 1
    assert await site.audit_rows() == before + done
    assert len(await world.database.fetch("SELECT id FROM certificate_history")) == done
    await site.hold_the_rules()


@pytest.mark.parametrize("first", ["PATCH", "DELETE"])
async def test_a_delete_takes_the_key_that_a_renewal_at_the_same_time_brought(world: World, first: str) -> None:
    """A renewal to another key and a delete queue up for the same certificate: in either order no key is left."""
    site = Site(world)
    made = (await site.ask("POST", body=site.with_key())).json()["result"]
    one = f"/{made['id']}"
    work = [site.ask("PATCH", one, site.with_key()), site.ask("DELETE", one)]
    if first == "DELETE":
        work.reverse()
    holder: db.Connection = await asyncpg.connect(world.settings.database_url)
    held = holder.transaction()
    await held.start()
    try:
        await holder.execute("SELECT FROM custom_certificates FOR UPDATE")
        tasks = []
        async with asyncio.TaskGroup() as group:
            for number, each in enumerate(work, 1):
                tasks.append(group.create_task(each))
                await at_locks(world.database, number)
            await held.rollback()
    finally:
        await holder.close()
    found = [outcome(task.result()) for task in tasks]
    assert found == ([OK, OK] if first == "PATCH" else [OK, NO_CERTIFICATE])
    assert not await world.database.fetch("SELECT id FROM private_keys")


async def test_patches_of_different_fields_at_once_do_not_undo_each_other(world: World) -> None:
    """What two requests set in two fields is there afterwards, whichever came first."""
    site = Site(world)
    made = (await site.ask("POST", body=site.with_key())).json()["result"]
    one = f"/{made['id']}"
    for turn in range(10):
        fields: list[Json] = [{"policy": f"p{turn}"}, {"geo_restrictions": {"label": ("us", "eu")[turn % 2]}}]
        found = [outcome(answer) for answer in await all_of(*(site.ask("PATCH", one, body) for body in fields))]
        assert found == [OK, OK]
        after = (await site.ask("GET", one)).json()["result"]
        assert after["policy_restrictions"] == f"p{turn}"
        assert after["geo_restrictions"] == fields[1]["geo_restrictions"]


async def test_priorities_at_once_do_not_lock_each_other_out(world: World) -> None:
    """Requests that name the same certificates in opposite orders all pass, and the result is one of theirs."""
    site = Site(world)
    ids = [(await site.ask("POST", body=site.with_key())).json()["result"]["id"] for _ in range(4)]
    bodies = []
    for turn in range(8):
        entries = [{"id": each, "priority": turn * 10 + place} for place, each in enumerate(ids)]
        bodies.append({"certificates": entries[::-1] if turn % 2 else entries})
    answers = await all_of(*(site.ask("PUT", "/prioritize", body) for body in bodies))
    assert {outcome(answer) for answer in answers} == {OK}
    result = (await site.ask("GET")).json()["result"]
    assert [each["id"] for each in result] == ids[::-1]
    assert len({each["priority"] // 10 for each in result}) == 1


picks = st.integers(0, 20)
changes = st.sampled_from(["renew", "another CSR", "an uploaded key", "nothing", "a policy"])


class Walk(WorldWalk):
    """`csrs` and `certificates` are the model: a CSR with its path, a certificate with the id of its CSR or None.

    Rules have no preconditions, because how a race ends is not Hypothesis's choice: what is missing is made.
    """

    numbers: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.csrs: dict[str, tuple[str, Json]] = {}
        self.certificates: dict[str, str | None] = {}
        self.changed = 0
        self.site = Site(self.world)
        self.audited = self.wait(self.site.audit_rows())

    def teardown(self) -> None:
        self.empty("custom_certificates", "custom_csrs", "private_keys")

    def csr(self, pick: int) -> tuple[str, str, Json]:
        if not self.csrs:
            self.make_csr(zone=False)
        csr_id = list(self.csrs)[pick % len(self.csrs)]
        return csr_id, *self.csrs[csr_id]

    def certificate(self, pick: int) -> str:
        if not self.certificates:
            self.upload_with_a_key()
        return list(self.certificates)[pick % len(self.certificates)]

    def users(self, csr_id: str) -> bool:
        return csr_id in self.certificates.values()

    def body(self, change: str, certificate: str, pick: int) -> tuple[Json, str | None]:
        """A PATCH, and the CSR that the certificate has after it."""
        current = self.certificates[certificate]
        if change == "renew" and current is not None:
            return {"certificate": self.site.of_csr(self.csrs[current][1])["certificate"]}, current
        if change == "another CSR":
            csr_id, _, csr = self.csr(pick)
            return self.site.of_csr(csr), csr_id
        if change == "an uploaded key":
            return self.site.with_key(), None
        if change == "a policy":
            return {"policy": f"p{next(self.numbers)}"}, current
        return {}, current

    @rule(zone=st.booleans())
    def make_csr(self, zone: bool) -> None:
        path = self.world.a.paths[zone]
        csr = self.wait(self.world.create(path=path, sans=[HOST]))
        self.csrs[csr["id"]] = (path, csr)
        self.changed += 1

    @rule(pick=picks)
    def upload(self, pick: int) -> None:
        csr_id, _, csr = self.csr(pick)
        self.uploaded(self.wait(self.site.ask("POST", body=self.site.of_csr(csr))), csr_id)

    @rule()
    def upload_with_a_key(self) -> None:
        self.uploaded(self.wait(self.site.ask("POST", body=self.site.with_key())), None)

    def uploaded(self, answer: httpx.Response, csr_id: str | None) -> None:
        assert outcome(answer) == OK
        self.certificates[answer.json()["result"]["id"]] = csr_id
        self.changed += 1

    @rule(pick=picks, change=changes, other=picks)
    def patch(self, pick: int, change: str, other: int) -> None:
        certificate = self.certificate(pick)
        body, csr_id = self.body(change, certificate, other)
        answer = self.wait(self.site.ask("PATCH", f"/{certificate}", body))
        assert outcome(answer) == OK
        self.certificates[certificate] = csr_id
        self.changed += bool(body)

    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        certificate = self.certificate(pick)
        assert outcome(self.wait(self.site.ask("DELETE", f"/{certificate}"))) == OK
        del self.certificates[certificate]
        self.changed += 1

    @rule(pick=picks)
    def delete_csr(self, pick: int) -> None:
        csr_id, path, _ = self.csr(pick)
        found = outcome(self.wait(self.site.delete_csr(path, csr_id)))
        assert found == (IN_USE if self.users(csr_id) else OK)
        self.csr_deleted(csr_id, found)

    def csr_deleted(self, csr_id: str, found: tuple[int, int]) -> None:
        if found == OK:
            del self.csrs[csr_id]
            self.changed += 1

    @rule(pick=picks, uploads=st.integers(1, 2), deletes=st.integers(1, 2))
    def delete_a_csr_and_upload_for_it_at_once(self, pick: int, uploads: int, deletes: int) -> None:
        csr_id, path, csr = self.csr(pick)
        posts = [self.site.ask("POST", body=self.site.of_csr(csr)) for _ in range(uploads)]
        answers = self.wait(all_of(*posts, *(self.site.delete_csr(path, csr_id) for _ in range(deletes))))
        made, removed = answers[:uploads], [outcome(answer) for answer in answers[uploads:]]
        if OK in removed:
            assert not self.users(csr_id)
            assert sorted(removed) == sorted([OK] + [GONE] * (deletes - 1))
            assert {outcome(answer) for answer in made} == {NO_CSR}
            self.csr_deleted(csr_id, OK)
        else:
            assert set(removed) == {IN_USE}
            for answer in made:
                self.uploaded(answer, csr_id)

    @rule(pick=picks, other=picks)
    def delete_a_csr_and_renew_to_it_at_once(self, pick: int, other: int) -> None:
        csr_id, path, csr = self.csr(pick)
        certificate = self.certificate(other)
        used_by_another = csr_id in [v for k, v in self.certificates.items() if k != certificate]
        used = self.users(csr_id)
        patch = self.site.ask("PATCH", f"/{certificate}", self.site.of_csr(csr))
        patched, removed = map(outcome, self.wait(all_of(patch, self.site.delete_csr(path, csr_id))))
        if removed == OK:
            assert not used
            assert patched == NO_CSR
            self.csr_deleted(csr_id, OK)
        else:
            assert (patched, removed) == (OK, IN_USE)
            self.certificates[certificate] = csr_id
            self.changed += 1
        assert not (used_by_another and removed == OK)

    @rule(pick=picks, change=changes, other=picks)
    def delete_and_patch_at_once(self, pick: int, change: str, other: int) -> None:
        certificate = self.certificate(pick)
        body, _ = self.body(change, certificate, other)
        patch = self.site.ask("PATCH", f"/{certificate}", body)
        patched, removed = map(outcome, self.wait(all_of(patch, self.site.ask("DELETE", f"/{certificate}"))))
        assert removed == OK
        assert patched in (OK, NO_CERTIFICATE)
        del self.certificates[certificate]
        self.changed += 1 + (bool(body) and patched == OK)

    @rule(pick=picks, pair=st.tuples(changes, changes), other=picks)
    def patch_twice_at_once(self, pick: int, pair: tuple[str, str], other: int) -> None:
        certificate = self.certificate(pick)
        bodies = [self.body(change, certificate, other) for change in pair]
        answers = self.wait(all_of(*(self.site.ask("PATCH", f"/{certificate}", body) for body, _ in bodies)))
        for (body, _), answer in zip(bodies, answers, strict=True):
            # A renewal for the CSR that the other request has just left does not match any more.
            assert outcome(answer) == OK or (outcome(answer) == (400, 2200) and "custom_csr_id" not in body)
            self.changed += bool(body) and answer.status_code == 200
        now = self.wait(self.site.ask("GET", f"/{certificate}")).json()["result"].get("custom_csr_id")
        assert now in [self.certificates[certificate], *(csr_id for _, csr_id in bodies)]
        self.certificates[certificate] = now

    @invariant()
    def the_rules_hold(self) -> None:
        self.wait(self.site.hold_the_rules())

    @invariant()
    def what_is_there_is_what_the_model_has(self) -> None:
        rows = self.wait(self.world.database.fetch("SELECT id, custom_csr_id FROM custom_certificates"))
        assert {str(row["id"]): row["custom_csr_id"] and str(row["custom_csr_id"]) for row in rows} == self.certificates
        csrs = self.wait(self.world.database.fetch("SELECT id FROM custom_csrs"))
        assert {str(row["id"]) for row in csrs} == self.csrs.keys()

    @invariant()
    def the_audit_has_a_row_for_each_change(self) -> None:
        assert self.wait(self.site.audit_rows()) == self.audited + self.changed


@pytest.mark.walks
def test_no_certificate_is_without_its_key_and_no_key_without_an_owner(
    cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """120 walks over CSRs and certificates, alone and at once, leave keys, owners and audit as they should be."""
    Walk.run(partial(new_database, cluster, "blank"), tmp_path, examples=50, steps=12)
