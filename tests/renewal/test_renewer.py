"""Certificates that are renewed by themselves: once, alike, and told when that cannot be."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from cryptography import x509
from support.authority import openssl, pem
from support.renewing import LATER, Site, new_site
from support.world import World

from keystead.ca import authorities
from keystead.caller import Scope
from keystead.certificates import store as certificates
from keystead.errors import Unavailable
from keystead.renewal import renewer, rules
from keystead.renewal.model import NewKey, State
from keystead.server import first_start

Json = dict[str, Any]


@pytest.fixture
async def site(world: World) -> Site:
    return await new_site(world)


async def test_a_certificate_that_falls_due_is_renewed_under_its_id(site: Site) -> None:
    """The id stays, the CA of the rule has signed it for a new key, and it ends later; then nothing more is done."""
    made = await site.certificate()
    before = await site.get(made)
    await site.ruled(made)
    await site.turn()
    after = await site.get(made)
    assert after.key_id != before.key_id
    assert after.not_after > before.not_after + timedelta(days=60)
    rule = await site.rule(made)
    assert (rule.state, rule.problem, rule.csr_id) == (State.SCHEDULED, None, after.custom_csr_id)
    assert rule.due_at == rule.renews_at(after)
    await site.turn(turns=3)
    assert (await site.signed(), await site.versions(made)) == (1, 1)


async def test_what_is_not_due_is_left_alone(site: Site) -> None:
    """Nothing is made or signed before its time."""
    made = await site.certificate(days=60, since=30)
    await site.ruled(made)
    await site.turn(timedelta())
    assert (await site.signed(), await site.keys(), await site.versions(made)) == (0, 1, 0)
    rule = await site.rule(made)
    assert rule.state is State.SCHEDULED
    assert timedelta(days=29) <= (await site.get(made)).not_after - rule.due_at <= timedelta(days=30)


@pytest.mark.parametrize("new_key", NewKey)
@pytest.mark.parametrize("key_type", ["p256v1", "rsa2048"])
async def test_names_usages_and_lifetime_stay_by_openssl(site: Site, key_type: str, new_key: NewKey) -> None:
    """OpenSSL reads the same names, usages, subject and kind of key; the key itself stays only where it should."""
    made = await site.certificate(key_type=key_type, sans=["www.a.example.com", "*.b.example.com"])
    before = await site.get(made)
    await site.ruled(made, new_key=new_key)
    await site.turn()
    after = await site.get(made)
    words = ("-noout", "-subject", "-ext", "subjectAltName,extendedKeyUsage")
    old, new = (openssl("x509", *words, text=each.chain) for each in (before, after))
    assert old == new
    kinds = [openssl("x509", "-noout", "-text", text=each.chain).count("rsaEncryption") for each in (before, after)]
    assert kinds == [int(key_type == "rsa2048")] * 2
    spki = [openssl("x509", "-noout", "-pubkey", text=each.chain) for each in (before, after)]
    assert (spki[0] == spki[1]) is (new_key is NewKey.NEVER)
    leaf, then = (x509.load_pem_x509_certificates(each.chain.encode())[0] for each in (after, before))
    spans = [each.not_valid_after_utc - each.not_valid_before_utc for each in (leaf, then)]
    assert spans[0] == spans[1]


async def test_two_servers_renew_it_once(site: Site) -> None:
    """Renewers that work at the same moment make one CSR and one certificate of each."""
    made = [await site.certificate() for _ in range(5)]
    for each in made:
        await site.ruled(each)
    await asyncio.gather(*(site.turn() for _ in range(4)))
    await site.turn()
    assert (await site.signed(), await site.keys()) == (5, 10)
    assert [await site.versions(each) for each in made] == [1] * 5


class _KilledError(BaseException):
    """Ends a turn where it is, as a kill does."""


@pytest.mark.parametrize("step", ["keystead.renewal.renewer._begun", "keystead.ca.following.sign", "after signing"])
async def test_a_crash_between_steps_is_gone_on_from(site: Site, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whoever has the rule after the crash makes neither a second key nor, once it is signed, a second certificate."""
    made = await site.certificate()
    await site.ruled(made)

    async def killed(*_: object) -> None:
        raise _KilledError

    target = "keystead.certificates.store.update" if step == "after signing" else step
    with monkeypatch.context() as patch:
        patch.setattr(target, killed)
        with pytest.raises(_KilledError):
            await site.turn(turns=1)
    assert await site.versions(made) == 0
    await site.turn(turns=1)
    assert await site.versions(made) == 0, "another server has waited for the end of the claim"
    await site.turn(LATER + 2 * renewer.LEASE)
    assert (await site.signed(), await site.keys(), await site.versions(made)) == (1, 2, 1)


async def test_a_lost_database_is_no_failure_of_a_rule(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn ends, and when the claim is over another one goes on."""
    made = await site.certificate()
    await site.ruled(made)

    async def away(*_: object) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr("keystead.certificates.store.update", away)
        with pytest.raises(Unavailable):
            await site.turn(turns=1)
    assert (await site.rule(made)).failures == 0
    await site.turn(LATER + 2 * renewer.LEASE)
    assert (await site.signed(), await site.versions(made)) == (1, 1)


async def test_what_is_revoked_is_not_renewed_until_it_is_another(site: Site) -> None:
    """A revoked certificate stays as it is, and its rule says why; one that is put in its place is renewed again."""
    made = await site.certificate()
    await site.ruled(made)
    await site.turn()
    await site.change("UPDATE issued_certificates SET revoked_at = now(), revocation_reason = 1 WHERE profile = 'leaf'")
    await site.turn(timedelta(days=80))
    rule = await site.rule(made)
    assert (rule.state, rule.problem) == (State.STOPPED, "the certificate is revoked: what is revoked is not renewed")
    assert (await site.signed(), await site.keys()) == (1, 2)


async def test_what_is_deleted_is_not_renewed(site: Site) -> None:
    """The rule goes with the certificate, also at the moment of the renewal."""
    made = await site.certificate()
    await site.ruled(made)
    await certificates.delete(site.services.db, first_start.operator(), site.scope, made)
    await site.turn()
    assert (await site.signed(), await site.keys()) == (0, 1)
    assert await rules.for_operator(site.services.db) == ()


Break = Callable[[Site], Any]


async def _disable(site: Site) -> None:
    changes = authorities.Changes(disabled=True)
    account = Scope(site.scope.account_id)
    await authorities.change(site.services.db, first_start.operator(), account, UUID(site.ca_id), changes)


async def _expire(site: Site) -> None:
    sql = "UPDATE ca_certificates SET not_after = now() - interval '1 hour' WHERE ca_id = $1"
    await site.change(sql, UUID(site.ca_id))


async def _fill(site: Site) -> None:
    await site.change("UPDATE zones SET csr_quota = 0")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [(_disable, "CA is not active"), (_expire, "CA ends on"), (_fill, "The quota of 0 custom CSRs")],
)
async def test_a_failure_is_told_and_tried_again_later(
    site: Site, broken: Break, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate and its key stay; rule, audit log and log tell it; the next try is further away each time."""
    told: list[Json] = []
    monkeypatch.setattr(renewer._log, "warning", lambda event, **fields: told.append({"event": event, **fields}))
    made = await site.certificate()
    before = await site.get(made)
    await site.ruled(made)
    await broken(site)
    waits = []
    later = LATER
    for failures in (1, 2, 3):
        at = datetime.now(UTC) + later
        await renewer.turn(site.services, lambda at=at: at)  # type: ignore[misc]
        rule = await site.rule(made)
        assert (rule.state, rule.failures) == (State.FAILING, failures)
        assert reason in (rule.problem or "")
        waits.append(rule.due_at - at)
        later += waits[-1] + timedelta(seconds=1)
    assert waits == [renewer.FIRST_RETRY * 2**each for each in range(3)]
    assert await site.get(made) == before
    assert await site.keys() <= 2
    assert {(each["event"], each["certificate"]) for each in told} == {("certificate expiring", str(made))}
    rows = await site.services.db.fetch("SELECT actor, result FROM audit_log WHERE action = 'renew'")
    assert [(row["actor"], row["result"]) for row in rows] == [("system", "failure")] * 3


async def test_a_ca_that_can_sign_again_ends_the_failures(site: Site) -> None:
    """The CSR that was made before is used, and nothing is said of what failed."""
    made = await site.certificate()
    await site.ruled(made)
    await _disable(site)
    await site.turn(turns=1)
    changes, account = authorities.Changes(disabled=False), Scope(site.scope.account_id)
    await authorities.change(site.services.db, first_start.operator(), account, UUID(site.ca_id), changes)
    await site.turn(LATER + timedelta(hours=1))
    rule = await site.rule(made)
    assert (rule.state, rule.failures, rule.problem) == (State.SCHEDULED, 0, None)
    assert (await site.signed(), await site.keys(), await site.versions(made)) == (1, 2, 1)


async def test_a_ca_outside_is_waited_for(site: Site) -> None:
    """The CSR is made once and ahead of time; its certificate, put in place by somebody, ends the waiting."""
    made = await site.certificate()
    await site.ruled(made, "outside")
    await site.turn()
    await site.turn(LATER + timedelta(days=3))
    rule = await site.rule(made)
    assert (rule.state, await site.keys(), await site.signed()) == (State.WAITING, 2, 0)
    assert str(rule.csr_id) in (rule.problem or "")
    path = f"{site.world.a.zone_path}/{rule.csr_id}"
    csr = (await site.world.http.get(path, headers=site.world.a.bearer)).json()["result"]["csr"]
    body = {"certificate": pem(site.outside.of_csr(csr)), "custom_csr_id": str(rule.csr_id)}
    one = f"/client/v4/zones/{site.scope.id.hex}/custom_certificates/{made}"
    assert (await site.world.http.patch(one, json=body, headers=site.world.a.bearer)).status_code == 200
    await site.turn()
    rule = await site.rule(made)
    assert (rule.state, rule.problem, await site.keys()) == (State.SCHEDULED, None, 2)


async def test_a_shorter_certificate_put_in_by_hand_is_renewed_in_its_time(site: Site) -> None:
    """Whoever replaces the certificate moves the time of its renewal with it."""
    made = await site.certificate(days=80, since=10)
    await site.ruled(made)
    await site.turn(timedelta())
    late = (await site.rule(made)).due_at
    csr_id = (await site.get(made)).custom_csr_id
    csr = (await site.world.http.get(f"{site.world.a.zone_path}/{csr_id}", headers=site.world.a.bearer)).json()[
        "result"
    ]
    one = f"/client/v4/zones/{site.scope.id.hex}/custom_certificates/{made}"
    body = {"certificate": pem(site.outside.of_csr(csr["csr"], days=3))}
    assert (await site.world.http.patch(one, json=body, headers=site.world.a.bearer)).status_code == 200
    await site.turn(timedelta())
    assert (await site.rule(made)).due_at < late - timedelta(days=40)


async def test_the_key_before_is_kept_until_its_certificate_has_ended(site: Site) -> None:
    """What a person made stays; what a renewal made is deleted with its key when its certificate has ended."""
    made = await site.certificate(days=20, since=70)
    await site.ruled(made)
    await site.turn()
    first = await site.get(made)
    aged = "UPDATE custom_certificates SET not_before = $2, not_after = $3 WHERE id = $1"
    await site.change(aged, made, datetime.now(UTC) - timedelta(days=70), datetime.now(UTC) + timedelta(days=20))
    await site.change("UPDATE renewal_rules SET due_at = to_timestamp(0)")
    await site.turn()
    second = await site.get(made)
    assert second.key_id != first.key_id
    rule = await site.rule(made)
    assert (rule.previous_csr_id, await site.keys()) == (first.custom_csr_id, 3)
    await site.turn(timedelta(days=19))
    assert await site.keys() == 3
    await site.turn(timedelta(days=21))
    assert (await site.rule(made)).previous_csr_id is None
    assert await site.keys() == 2
    found = await site.services.db.fetchrow("SELECT id FROM private_keys WHERE id = $1", first.key_id)
    assert found is None
    assert (await site.get(made)).key_id == second.key_id


async def test_those_that_end_together_fall_due_apart(site: Site) -> None:
    """The time of each depends on its id alone, and a thousand of one moment are spread over a day."""
    certificate = await site.get(await site.certificate(days=60))
    rule = await site.ruled(certificate.id)
    due = []
    for number in range(1000):
        each = msgspec.structs.replace(certificate, id=UUID(int=number * (2**128 // 1000)))
        assert rule.renews_at(each) == rule.renews_at(each)
        due.append(rule.renews_at(each))
    hours = [int((each - certificate.not_after + timedelta(days=30)) / timedelta(hours=1)) for each in due]
    assert set(hours) == set(range(24))
    assert max(hours.count(hour) for hour in set(hours)) < 60
