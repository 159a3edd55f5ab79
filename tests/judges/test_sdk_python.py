"""The official Python SDK, unmodified, configured by nothing but the variables of credentials.env."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import cloudflare
import pytest
from support.live import Live
from support.sdk_python import done, everything
from support.world import BODY

BASICS = {**BODY, "name": "My Custom CSR", "description": "CSR for example.com wildcard"}


@pytest.fixture(autouse=True)
def _sourced(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=[cloudflare.Cloudflare, cloudflare.AsyncCloudflare], ids=["sync", "async"])
async def client(request: pytest.FixtureRequest, _sourced: None) -> AsyncIterator[Any]:
    made = request.param()
    yield made
    await done(made.close())


@pytest.fixture(params=["account_id", "zone_id"])
def where(request: pytest.FixtureRequest, live: Live) -> dict[str, Any]:
    """Which of the SDK's two scopes a call is to use."""
    return {request.param: live.env[f"CLOUDFLARE_{request.param.upper()}"]}


@pytest.mark.parametrize("key_type", ["p256v1", "rsa2048"])
async def test_create_gives_back_what_was_sent(client: Any, where: dict[str, Any], key_type: str) -> None:
    """Every field of the typed answer to a create equals what the call had, in both scopes and for both key types."""
    sent = {**BASICS, "organizational_unit": "Engineering", "key_type": key_type}
    made = await done(client.custom_csrs.create(**where, **sent))
    assert {field: getattr(made, field) for field in sent} == sent
    assert UUID(made.id).version == 4
    assert made.csr.startswith("-----BEGIN CERTIFICATE REQUEST-----\n")


async def test_created_at_is_a_time_with_its_zone(client: Any, where: dict[str, Any]) -> None:
    """The SDK reads created_at as an aware time, and it is now."""
    made = await done(client.custom_csrs.create(**where, **BODY))
    assert abs((datetime.now(UTC) - made.created_at).total_seconds()) < 60


async def test_account_tag_is_the_account(client: Any, where: dict[str, Any], live: Live) -> None:
    """A CSR names its account, a zone's CSR too."""
    made = await done(client.custom_csrs.create(**where, **BODY))
    assert made.account_tag == live.env["CLOUDFLARE_ACCOUNT_ID"]


async def test_fields_that_were_not_set_read_as_none(client: Any, where: dict[str, Any]) -> None:
    """Optional fields that the call left out are None, so that nothing drifts."""
    made = await done(client.custom_csrs.create(**where, **BODY))
    assert (made.name, made.description, made.organizational_unit) == (None, None, None)


async def test_get_gives_what_create_gave(client: Any, where: dict[str, Any]) -> None:
    """A CSR that is read has the same fields as when it was made."""
    made = await done(client.custom_csrs.create(**where, **BASICS))
    found = await done(client.custom_csrs.get(made.id, **where))
    assert found.to_dict() == made.to_dict()


async def test_pages_are_read_to_the_end(client: Any, where: dict[str, Any]) -> None:
    """The SDK's iteration passes three pages, has every CSR once in the order of creation, and ends."""
    mark = uuid4().hex
    made = [await done(client.custom_csrs.create(**where, **BODY, name=mark)) for _ in range(12)]
    listed = await everything(client.custom_csrs.list(**where, per_page=5))
    assert [each.to_dict() for each in listed if each.name == mark] == [each.to_dict() for each in made]
    assert len({each.id for each in listed}) == len(listed)


async def test_lists_can_be_turned_around(client: Any, where: dict[str, Any]) -> None:
    """`order` and `direction` do what the SDK's types say."""
    first, last = [await done(client.custom_csrs.create(**where, **BODY, name=uuid4().hex)) for _ in range(2)]
    page = await done(client.custom_csrs.list(**where, order="created_at", direction="desc", page=1, per_page=5))
    assert [each.id for each in page.result[:2]] == [last.id, first.id]


async def test_result_info_is_read(client: Any, where: dict[str, Any]) -> None:
    """The page says which one it is and how many it may hold."""
    page = await done(client.custom_csrs.list(**where, page=2, per_page=7))
    assert (page.result_info.page, page.result_info.per_page) == (2, 7)


async def test_delete_names_the_deleted_and_it_is_gone(client: Any, where: dict[str, Any]) -> None:
    """Delete answers with the id, and a get of it afterwards is NotFoundError 1419."""
    made = await done(client.custom_csrs.create(**where, **BODY))
    assert (await done(client.custom_csrs.delete(made.id, **where))).id == made.id
    with pytest.raises(cloudflare.NotFoundError) as raised:
        await done(client.custom_csrs.get(made.id, **where))
    assert [error.code for error in raised.value.errors] == [1419]


async def test_a_bad_request_carries_every_problem_with_its_place(client: Any, where: dict[str, Any]) -> None:
    """BadRequestError has one typed error for each problem, with a pointer into the body."""
    with pytest.raises(cloudflare.BadRequestError) as raised:
        await done(client.custom_csrs.create(**where, **{**BODY, "country": "", "sans": ["a.example", "-b.example"]}))
    found = [(error.code, error.source and error.source.pointer) for error in raised.value.errors]
    assert found == [(1405, "/country"), (1412, "/sans/1")]


async def test_what_is_not_yours_is_permission_denied(client: Any) -> None:
    """An account that the token does not reach is PermissionDeniedError 9109, whether it exists or not."""
    with pytest.raises(cloudflare.PermissionDeniedError) as raised:
        await done(client.custom_csrs.create(account_id=uuid4().hex, **BODY))
    assert [error.code for error in raised.value.errors] == [9109]


async def test_an_id_that_is_no_uuid_is_a_bad_request(client: Any, where: dict[str, Any]) -> None:
    """An id of the wrong form is BadRequestError 1418."""
    with pytest.raises(cloudflare.BadRequestError) as raised:
        await done(client.custom_csrs.get("x", **where))
    assert [error.code for error in raised.value.errors] == [1418]


async def test_delete_of_a_missing_csr_costs_one_request(client: Any, where: dict[str, Any], live: Live) -> None:
    """NotFoundError comes after the first request: the SDK, which has two retries to spend, spends none."""
    missing = str(uuid4())
    with pytest.raises(cloudflare.NotFoundError):
        await done(client.custom_csrs.delete(missing, **where))
    assert client.max_retries == 2
    assert [line["status"] for line in live.requests(missing)] == [404]


async def test_an_idempotency_key_makes_one_csr(client: Any, where: dict[str, Any]) -> None:
    """The same call with the same Idempotency-Key gives the same CSR again."""
    headers = {"Idempotency-Key": uuid4().hex}
    first = await done(client.custom_csrs.create(**where, **BODY, extra_headers=headers))
    again = await done(client.custom_csrs.create(**where, **BODY, extra_headers=headers))
    assert again.to_dict() == first.to_dict()


async def test_a_conflict_costs_one_request(client: Any, where: dict[str, Any]) -> None:
    """An Idempotency-Key with another body is ConflictError 1456, which the SDK does not repeat as other 409s."""
    headers = {"Idempotency-Key": uuid4().hex}
    await done(client.custom_csrs.create(**where, **BODY, extra_headers=headers))
    with pytest.raises(cloudflare.ConflictError) as raised:
        await done(client.custom_csrs.create(**where, **BODY, name="another", extra_headers=headers))
    assert [error.code for error in raised.value.errors] == [1456]
    assert raised.value.response.headers["x-should-retry"] == "false"
    # The SDK counts its own repeats in this header.
    assert (client.max_retries, raised.value.request.headers["x-stainless-retry-count"]) == (2, "0")


async def test_the_token_verifies_itself(client: Any, live: Live) -> None:
    """Both verify calls say that the token of credentials.env is active, and name the same token."""
    by_user = await done(client.user.tokens.verify())
    by_account = await done(client.accounts.tokens.verify(account_id=live.env["CLOUDFLARE_ACCOUNT_ID"]))
    assert by_user.status == by_account.status == "active"
    assert by_user.id == by_account.id


def test_an_unknown_token_is_an_authentication_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verify call with a token that nobody made is AuthenticationError 1000."""
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "kst_" + 46 * "x")
    with cloudflare.Cloudflare() as client, pytest.raises(cloudflare.AuthenticationError) as raised:
        client.user.tokens.verify()
    assert [error.code for error in raised.value.errors] == [1000]


def test_the_older_scheme_works_alone(live: Live, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOUDFLARE_EMAIL and CLOUDFLARE_API_KEY, the two lines that are commented out, do for all calls."""
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    for name, value in live.older.items():
        monkeypatch.setenv(name, value)
    with cloudflare.Cloudflare() as client:
        made = client.custom_csrs.create(**where, **BODY)
        assert made is not None
        assert client.custom_csrs.get(made.id, **where) is not None
        assert made.id in [each.id for each in client.custom_csrs.list(**where)]
        client.custom_csrs.delete(made.id, **where)


def test_both_schemes_at_once_work(live: Live, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who uncomments the two lines and keeps the token is served all the same."""
    for name, value in live.older.items():
        monkeypatch.setenv(name, value)
    with cloudflare.Cloudflare() as client:
        assert client.custom_csrs.create(**where, **BODY) is not None
