"""The official Python SDK, unmodified, makes and manages accounts, zones and tokens, and reads the audit log."""

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar
from uuid import uuid4

import cloudflare
import pytest
from support.live import Live
from support.sdk_python import done, everything
from support.world import BODY

Json = dict[str, Any]
SINCE = "2026-01-01"
SETTINGS_READ = "c1fde68c7bcc44588cbb6ddbc16d6480"
Make = Callable[..., Any]
T = TypeVar("T")


@pytest.fixture
def as_user(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address and the older scheme of credentials.env: the user behind it may make accounts."""
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", live.env["CLOUDFLARE_BASE_URL"])
    for name, value in live.older.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(as_user: None) -> Iterator[cloudflare.Cloudflare]:
    with strict(cloudflare.Cloudflare) as made:
        yield made


@pytest.fixture(params=[cloudflare.Cloudflare, cloudflare.AsyncCloudflare], ids=["sync", "async"])
async def either(request: pytest.FixtureRequest, as_user: None) -> AsyncIterator[Any]:
    made = strict(request.param)
    yield made
    await done(made.close())


@pytest.fixture
def account_id(client: cloudflare.Cloudflare) -> str:
    """A new account, so that its lists hold what the test put into them."""
    made = client.accounts.create(name=unique())
    assert made is not None
    return made.id


@pytest.fixture
def tokens(as_user: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Clients that are configured by the value of a token alone."""
    made: list[cloudflare.Cloudflare] = []
    for name in ("EMAIL", "API_KEY"):
        monkeypatch.delenv(f"CLOUDFLARE_{name}")

    def make(value: str) -> cloudflare.Cloudflare:
        monkeypatch.setenv("CLOUDFLARE_API_TOKEN", value)
        made.append(strict(cloudflare.Cloudflare))
        return made[-1]

    yield make
    for each in made:
        each.close()


def strict(kind: Callable[..., T]) -> T:
    """A client that reads every answer by its types, and raises where one does not fit."""
    return kind(_strict_response_validation=True)


def unique() -> str:
    return uuid4().hex


def codes(raised: pytest.ExceptionInfo[cloudflare.APIStatusError]) -> list[int | None]:
    return [error.code for error in raised.value.errors]


def groups(client: Any, account_id: str, *names: str) -> list[Json]:
    """Permission groups by their names, found as the documentation says: in the list."""
    found = {group.name: group.id for group in client.accounts.tokens.permission_groups.list(account_id=account_id)}
    return [{"id": found[name]} for name in names]


def policy(client: Any, account_id: str, *names: str, **fields: Any) -> Any:
    resources = {f"com.cloudflare.api.account.{account_id}": "*"}
    return {
        "effect": "allow",
        "resources": resources,
        "permission_groups": groups(client, account_id, *(names or ("Account API Tokens Write",))),
        **fields,
    }


async def test_an_account_lives_and_dies(either: Any) -> None:
    """Created, got, renamed and deleted; the typed answers agree, and afterwards it is NotFoundError 7003."""
    name = f"{unique()} Tést & Co"
    made = await done(either.accounts.create(name=name, type="standard"))
    assert (made.name, made.type) == (name, "standard")
    assert abs((datetime.now(UTC) - made.created_on).total_seconds()) < 60
    assert (await done(either.accounts.get(account_id=made.id))).to_dict() == made.to_dict()
    renamed = await done(either.accounts.update(account_id=made.id, id=made.id, name="New", type="standard"))
    assert renamed.to_dict() == {**made.to_dict(), "name": "New"}
    assert (await done(either.accounts.delete(account_id=made.id))).id == made.id
    with pytest.raises(cloudflare.NotFoundError) as raised:
        await done(either.accounts.get(account_id=made.id))
    assert codes(raised) == [7003]


async def test_a_zone_lives_and_dies(either: Any) -> None:
    """Created, got, edited and deleted under strict types; afterwards it is NotFoundError 7003."""
    account = await done(either.accounts.create(name=unique()))
    name = f"{unique()}.example"
    made = await done(either.zones.create(account={"id": account.id}, name=name.upper(), type="partial"))
    assert (made.name, made.account.id, made.account.name) == (name, account.id, account.name)
    assert (made.status, made.type, made.paused, made.development_mode) == ("active", "partial", False, 0)
    assert made.name_servers == []
    for time in (made.created_on, made.modified_on):
        assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert (await done(either.zones.get(zone_id=made.id))).to_dict() == made.to_dict()
    paused = await done(either.zones.edit(zone_id=made.id, paused=True))
    assert paused.modified_on > made.modified_on
    assert paused.to_dict() == {**made.to_dict(), "paused": True, "modified_on": paused.to_dict()["modified_on"]}
    typed = await done(either.zones.edit(zone_id=made.id, type="secondary"))
    assert (typed.type, typed.paused) == ("secondary", True)
    assert (await done(either.zones.delete(zone_id=made.id))).id == made.id
    with pytest.raises(cloudflare.NotFoundError) as raised:
        await done(either.zones.get(zone_id=made.id))
    assert codes(raised) == [7003]


async def test_what_is_sent_comes_back(either: Any, live: Live) -> None:
    """Settings, name servers, a name in Unicode, a status and an offset, under strict types."""
    account = await done(either.accounts.create(name=unique()))
    settings = {"abuse_contact_email": "abuse@example.com", "enforce_twofactor": True}
    fields = {"account_id": account.id, "id": account.id, "name": "n", "type": "standard"}
    changed = await done(either.accounts.update(**fields, settings=settings))
    assert changed.settings.to_dict() == settings
    zone = await done(either.zones.create(account={"id": account.id}, name="münchen.example"))
    assert (zone.name, zone.owner.id, zone.owner.type) == ("münchen.example", account.id, "organization")
    assert zone.meta.phishing_detected is False
    edited = await done(either.zones.edit(zone_id=zone.id, vanity_name_servers=["ns1.example.com"]))
    assert edited.vanity_name_servers == ["ns1.example.com"]
    for text in ("xn--mnchen-3ya.example", "contains:nchen.ex"):
        found = await everything(either.zones.list(name=text, account={"id": account.id}))
        assert [each.id for each in found] == [zone.id]
    end = datetime.now(timezone(timedelta(hours=2))).replace(microsecond=0) + timedelta(days=1)
    resources = {f"com.cloudflare.api.account.{account.id}": "*"}
    rule = {"effect": "allow", "resources": resources, "permission_groups": [{"id": SETTINGS_READ}]}
    sent = {"account_id": account.id, "name": "n", "policies": [rule], "expires_on": end}
    token = await done(either.accounts.tokens.create(**sent, extra_body={"status": "disabled"}))
    assert (token.status, token.expires_on.utcoffset()) == ("disabled", timedelta(hours=2))
    assert (await done(either.user.get())).email == live.older["CLOUDFLARE_EMAIL"]


async def test_the_history_of_a_resource_is_read(either: Any) -> None:
    """An entry leads to all that happened to its zone, and a category of products to its entries."""
    account = await done(either.accounts.create(name=unique()))
    zone = await done(either.zones.create(account={"id": account.id}, name="a.example"))
    await done(either.zones.edit(zone_id=zone.id, paused=True))
    audit, period = either.accounts.logs.audit, {"account_id": account.id, "since": SINCE, "before": tomorrow()}
    newest, made, *_ = await everything(audit.list(**period))
    found = await done(audit.history(newest.id, **period, action_time=newest.action.time))
    assert [each.id for each in found] == [newest.id, made.id]
    categories = {each.value for each in await everything(audit.product_categories(account_id=account.id))}
    assert categories == {"accounts", "ssl_tls", "private_ca"}
    of_accounts = await everything(audit.list(**period, product_category=["accounts"]))
    assert len(of_accounts) == 3
    assert await everything(audit.list(**period, product_category=["ssl_tls"])) == []


async def test_pages_are_read_to_the_end(either: Any) -> None:
    """The iterations over accounts, zones and tokens pass three pages, have every item once and in order, and end."""
    accounts = [await done(either.accounts.create(name=unique())) for _ in range(11)]
    listed = await everything(either.accounts.list(per_page=5))
    ids = [each.id for each in accounts]
    assert [each.id for each in listed if each.id in set(ids)] == ids
    assert len({each.id for each in listed}) == len(listed)
    back = await everything(either.accounts.list(per_page=5, direction="desc"))
    assert [each.id for each in back] == [each.id for each in reversed(listed)]
    account_id = ids[0]
    zones = [
        await done(either.zones.create(account={"id": account_id}, name=f"z{i:02}.{account_id}.example"))
        for i in range(11)
    ]
    found = await everything(either.zones.list(account={"id": account_id}, per_page=5))
    assert [each.to_dict() for each in found] == [each.to_dict() for each in zones]
    rights = await everything(either.user.tokens.permission_groups.list())
    write = next(each.id for each in rights if each.name == "Account API Tokens Write")
    rule = {
        "effect": "allow",
        "resources": {f"com.cloudflare.api.account.{account_id}": "*"},
        "permission_groups": [{"id": write}],
    }
    made = [
        await done(either.accounts.tokens.create(account_id=account_id, name=f"t{i}", policies=[rule]))
        for i in range(11)
    ]
    of_account = await everything(either.accounts.tokens.list(account_id=account_id, per_page=5))
    assert [each.id for each in of_account] == [each.id for each in made]
    back = await everything(either.accounts.tokens.list(account_id=account_id, per_page=5, direction="desc"))
    assert [each.id for each in back] == [each.id for each in reversed(made)]
    # A user can be in 200 accounts, and other tests make some on this server too.
    for each in ids[1:]:
        await done(either.accounts.delete(account_id=each))


def test_accounts_are_found_by_name(client: cloudflare.Cloudflare) -> None:
    """The filter gives the one account of that name, and none for another."""
    made = client.accounts.create(name=unique())
    assert made is not None
    assert [each.id for each in client.accounts.list(name=made.name)] == [made.id]
    assert list(client.accounts.list(name=unique())) == []
    page = client.accounts.list(name=made.name, page=1, per_page=7)
    assert page.result_info is not None
    assert (page.result_info.page, page.result_info.per_page) == (1, 7)


def test_zones_are_found_by_name_and_account(client: cloudflare.Cloudflare, account_id: str) -> None:
    """The name in any case, the account's id and its name each find the zone, alone and combined."""
    name = f"{unique()}.example"
    zone = client.zones.create(account={"id": account_id}, name=name)
    account = client.accounts.get(account_id=account_id)
    assert zone is not None
    assert account is not None
    client.zones.create(account={"id": account_id}, name=f"other.{name}", type="partial")
    for filters in (
        {"name": name},
        {"name": name.upper()},
        {"name": f"equal:{name}"},
        {"name": name, "account": {"id": account_id}, "match": "all", "status": "active"},
        {"account": {"name": account.name}, "type": ["full"]},
        {"account": {"id": account_id}, "order": "name", "direction": "desc", "per_page": 5},
    ):
        assert zone.id in [each.id for each in client.zones.list(**filters)], filters
    for nothing in ({"name": unique()}, {"name": name, "account": {"id": unique()}}, {"name": name, "status": "moved"}):
        assert list(client.zones.list(**nothing)) == [], nothing


def test_zones_are_found_by_several_types(client: cloudflare.Cloudflare, account_id: str) -> None:
    """The SDK's list of types is one filter: whichever of them a zone is, it is found."""
    for kind in ("full", "partial", "secondary"):
        client.zones.create(account={"id": account_id}, name=f"{kind}.{account_id}.example", type=kind)
    found = client.zones.list(account={"id": account_id}, type=["full", "partial"])
    assert [each.type for each in found] == ["full", "partial"]


def test_the_token_of_the_file_does_what_it_may(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLOUDFLARE_API_TOKEN makes zones and tokens in its account and reads its log, and makes no account."""
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)
    account_id = live.env["CLOUDFLARE_ACCOUNT_ID"]
    with strict(cloudflare.Cloudflare) as client:
        assert [each.id for each in client.accounts.list()] == [account_id]
        zone = client.zones.create(account={"id": account_id}, name=f"{unique()}.example")
        assert zone is not None
        rules = [policy(client, account_id)]
        token = client.accounts.tokens.create(account_id=account_id, name=unique(), policies=rules)
        assert token is not None
        entries = client.accounts.logs.audit.list(account_id=account_id, since=SINCE, before=tomorrow(), limit=2)
        newest = {each.resource.id for each in entries.result if each.resource}
        assert newest == {zone.id, token.id}
        assert client.zones.delete(zone_id=zone.id) is not None
        assert token.id is not None
        assert client.accounts.tokens.delete(token.id, account_id=account_id) is not None
        with pytest.raises(cloudflare.PermissionDeniedError) as raised:
            client.accounts.create(name=unique())
        assert codes(raised) == [9109]
        with pytest.raises(cloudflare.PermissionDeniedError) as raised:
            client.user.tokens.list()
        assert codes(raised) == [9109]


def test_a_token_comes_back_as_it_was_sent(client: cloudflare.Cloudflare, account_id: str) -> None:
    """Policies, their resources, the condition and both times are those of the call, to the microsecond."""
    zone_rights = groups(client, account_id, "Zone Read", "SSL and Certificates Write")
    sent: list[Any] = [
        policy(client, account_id, "Account Settings Read", "Account API Tokens Read"),
        {
            "effect": "deny",
            # Neither sorted nor in the form that we would choose.
            "resources": {f"com.cloudflare.api.account.{account_id}": {"com.cloudflare.api.account.zone.*": "*"}},
            "permission_groups": zone_rights,
        },
        {
            "effect": "allow",
            "resources": {"com.cloudflare.api.account.zone.*": "*", "com.cloudflare.api.account.*": "*"},
            "permission_groups": zone_rights,
        },
    ]
    begin = datetime.now(UTC).replace(microsecond=123456)
    ends = [
        (begin + timedelta(days=2)).astimezone(timezone(timedelta(hours=5, minutes=30))),
        (begin + timedelta(days=2)).replace(microsecond=0),
    ]
    for end in ends:
        made = client.accounts.tokens.create(
            account_id=account_id,
            name="ci",
            policies=sent,
            condition={"request_ip": {"in": ["127.0.0.0/8", "2001:db8::/32"], "not_in": ["127.0.0.9"]}},
            expires_on=end,
            not_before=begin,
        )
        assert made is not None
        assert (made.expires_on, made.not_before) == (end, begin)
        assert made.status == "active"
        assert made.issued_on is not None
        assert made.issued_on.tzinfo is not None
        found = client.accounts.tokens.get(str(made.id), account_id=account_id)
        assert found is not None
        assert found.to_dict() == {key: value for key, value in made.to_dict().items() if key != "value"}
        assert found.condition is not None
        assert found.condition.request_ip is not None
        assert found.condition.request_ip.in_ == ["127.0.0.0/8", "2001:db8::/32"]
        assert found.condition.request_ip.not_in == ["127.0.0.9"]
        assert found.policies is not None
        assert [(each.effect, each.resources) for each in found.policies] == [
            (each["effect"], each["resources"]) for each in sent
        ]
        assert [list(each.resources) for each in found.policies] == [list(each["resources"]) for each in sent]
        assert [[{"id": group.id} for group in each.permission_groups] for each in found.policies] == [
            each["permission_groups"] for each in sent
        ]
        assert len({each.id for each in found.policies}) == 3


def test_what_a_token_does_not_have_reads_as_none(client: cloudflare.Cloudflare, account_id: str) -> None:
    """Unset condition and times are None, and absent from the answer, so that nothing drifts."""
    made = client.accounts.tokens.create(account_id=account_id, name="ci", policies=[policy(client, account_id)])
    assert made is not None
    assert (made.condition, made.expires_on, made.not_before) == (None, None, None)
    assert not {"condition", "expires_on", "not_before"} & made.to_dict().keys()


def test_the_value_is_shown_once(client: cloudflare.Cloudflare, account_id: str) -> None:
    """`value` is in the answer to the creation, and in none of get, list and update."""
    rules: Any = [policy(client, account_id)]
    made = client.accounts.tokens.create(account_id=account_id, name="ci", policies=rules)
    assert made is not None
    assert made.value is not None
    assert 40 <= len(made.value) <= 80
    others = [
        client.accounts.tokens.get(str(made.id), account_id=account_id),
        client.accounts.tokens.update(str(made.id), account_id=account_id, name="ci", policies=rules),
        *client.accounts.tokens.list(account_id=account_id),
        *client.accounts.tokens.list(account_id=account_id, include_expired=True),
    ]
    for each in others:
        assert each is not None
        assert each.id == made.id
        assert "value" not in each.to_dict()
        assert made.value not in each.to_json()


def test_an_account_token_lives_and_dies(client: cloudflare.Cloudflare, account_id: str, tokens: Make) -> None:
    """Made, used, verified, switched off and on, rolled and deleted; each old value is no token any more."""
    rules: Any = [policy(client, account_id)]
    manage = client.accounts.tokens
    made = manage.create(account_id=account_id, name="ci", policies=rules)
    assert made is not None
    token_id = str(made.id)
    # Another one, since the last administrator of an account cannot be switched off.
    manage.create(account_id=account_id, name="other", policies=rules)
    holder = tokens(str(made.value))
    assert [each.name for each in holder.accounts.tokens.list(account_id=account_id)] == ["ci", "other"]
    verified = holder.accounts.tokens.verify(account_id=account_id)
    assert verified is not None
    assert (verified.id, verified.status) == (token_id, "active")
    off = manage.update(token_id, account_id=account_id, name="off", policies=rules, status="disabled")
    assert off is not None
    assert (off.name, off.status) == ("off", "disabled")
    verified = holder.accounts.tokens.verify(account_id=account_id)
    assert verified is not None
    assert verified.status == "disabled"
    on = manage.update(token_id, account_id=account_id, name="on", policies=rules, status="active")
    assert on is not None
    # Without a status it keeps its own.
    kept = manage.update(token_id, account_id=account_id, name="kept", policies=rules)
    assert kept is not None
    assert (kept.name, kept.status) == ("kept", "active")
    value = manage.value.update(token_id, account_id=account_id)
    assert isinstance(value, str)
    assert value != made.value
    with pytest.raises(cloudflare.AuthenticationError) as raised:
        holder.accounts.tokens.verify(account_id=account_id)
    assert codes(raised) == [1000]
    renewed = tokens(value)
    verified = renewed.accounts.tokens.verify(account_id=account_id)
    assert verified is not None
    assert verified.id == token_id
    gone = manage.delete(token_id, account_id=account_id)
    assert gone is not None
    assert gone.id == token_id
    with pytest.raises(cloudflare.NotFoundError) as missing:
        manage.get(token_id, account_id=account_id)
    assert codes(missing) == [1468]
    with pytest.raises(cloudflare.AuthenticationError):
        renewed.accounts.tokens.verify(account_id=account_id)


def test_a_user_token_lives_and_dies(client: cloudflare.Cloudflare, account_id: str, tokens: Make) -> None:
    """Made with the global key, used, verified, updated, rolled and deleted; get and list agree."""
    rights = groups(client, account_id, "API Tokens Write", "Account Settings Write")
    rules: Any = [{"effect": "allow", "resources": {"com.cloudflare.api.account.*": "*"}, "permission_groups": rights}]
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    manage = client.user.tokens
    made = manage.create(name=unique(), policies=rules, expires_on=end)
    assert made is not None
    token_id = str(made.id)
    assert made.expires_on == end
    found = manage.get(token_id)
    assert found is not None
    assert found.to_dict() == {key: value for key, value in made.to_dict().items() if key != "value"}
    assert token_id in [each.id for each in manage.list(per_page=5)]
    holder = tokens(str(made.value))
    verified = holder.user.tokens.verify()
    assert verified is not None
    assert (verified.id, verified.status, verified.expires_on) == (token_id, "active", end)
    account = holder.accounts.create(name=unique())
    assert account is not None
    assert account.id in [each.id for each in holder.accounts.list(direction="desc", per_page=5)]
    assert token_id in [each.id for each in holder.user.tokens.list(per_page=5)]
    name = unique()
    changed = manage.update(token_id, name=name, policies=rules, expires_on=end)
    assert changed is not None
    assert (changed.name, changed.expires_on, changed.issued_on) == (name, end, made.issued_on)
    value = manage.value.update(token_id)
    with pytest.raises(cloudflare.AuthenticationError):
        holder.user.tokens.verify()
    verified = tokens(value).user.tokens.verify()
    assert verified is not None
    assert verified.id == token_id
    gone = manage.delete(token_id)
    assert gone is not None
    assert gone.id == token_id
    with pytest.raises(cloudflare.NotFoundError) as raised:
        manage.get(token_id)
    assert codes(raised) == [1468]


def test_user_tokens_are_read_to_the_end(client: cloudflare.Cloudflare, account_id: str) -> None:
    """The iteration passes three pages, has each token once in the order of creation, and ends."""
    rules: Any = [policy(client, account_id, "API Tokens Read")]
    made = [client.user.tokens.create(name=unique(), policies=rules) for _ in range(11)]
    ids = [each.id for each in made if each]
    listed = [each.id for each in client.user.tokens.list(per_page=5)]
    assert [each for each in listed if each in set(ids)] == ids
    assert len(set(listed)) == len(listed)
    assert [each.id for each in client.user.tokens.list(per_page=5, direction="desc")] == listed[::-1]
    for token_id in ids:
        client.user.tokens.delete(str(token_id))


def test_permission_groups_are_the_same_everywhere(client: cloudflare.Cloudflare, account_id: str) -> None:
    """The account's list and get and the user's list agree, and are filtered by name and scope."""
    listed = list(client.accounts.tokens.permission_groups.list(account_id=account_id))
    got = client.accounts.tokens.permission_groups.get(account_id=account_id)
    of_user = list(client.user.tokens.permission_groups.list())
    assert got is not None
    assert [each.to_dict() for each in listed] == [each.to_dict() for each in got]
    assert [each.to_dict() for each in listed] == [each.to_dict() for each in of_user]
    # Cloudflare's own id of the group.
    zone_write = {"id": "e6d2666161e84845a636613608cee8d5", "name": "Zone Write"}
    scope = "com.cloudflare.api.account.zone"
    named = client.accounts.tokens.permission_groups.list(account_id=account_id, name="Zone Write")
    assert [each.to_dict() for each in named] == [{**zone_write, "scopes": [scope]}]
    by_scope = client.accounts.tokens.permission_groups.list(account_id=account_id, scope=scope)
    assert [each.id for each in by_scope] == [each.id for each in listed if each.scopes == [scope]]
    got = client.accounts.tokens.permission_groups.get(account_id=account_id, name="Zone Write", scope="x")
    assert got == []


def test_no_token_is_wider_than_its_maker(client: cloudflare.Cloudflare, account_id: str, tokens: Make) -> None:
    """PermissionDeniedError 1465 has the place: policies, condition, expires_on; what is no wider is made."""
    rules: Any = [policy(client, account_id)]
    end = datetime.now(UTC) + timedelta(days=1)
    bounds: Json = {"condition": {"request_ip": {"in": ["127.0.0.0/8"]}}, "expires_on": end}
    made = client.accounts.tokens.create(account_id=account_id, name="maker", policies=rules, **bounds)
    assert made is not None
    wide: Any = [*rules, policy(client, account_id, "Account Settings Write")]
    maker = tokens(str(made.value)).accounts.tokens
    for place, fields in {
        "/policies": {"policies": wide, **bounds},
        "/condition": {"policies": rules, "expires_on": end},
        "/expires_on": {"policies": rules, **bounds, "expires_on": end + timedelta(seconds=1)},
    }.items():
        with pytest.raises(cloudflare.PermissionDeniedError) as raised:
            maker.create(account_id=account_id, name="child", **fields)
        found = [(error.code, error.source and error.source.pointer) for error in raised.value.errors]
        assert found == [(1465, place)]
    child = maker.create(account_id=account_id, name="child", policies=rules, **bounds)
    assert child.expires_on == end


def test_the_log_is_read_to_the_end(client: cloudflare.Cloudflare, account_id: str) -> None:
    """The cursor passes many pages, has each entry once, the newest first or last, and ends; types are strict."""
    zones = [client.zones.create(account={"id": account_id}, name=f"z{i}.{account_id}.example") for i in range(5)]
    ids = [zone.id for zone in zones if zone]
    for zone_id in ids:
        client.zones.edit(zone_id=zone_id, paused=True)
    period: Json = {"account_id": account_id, "since": SINCE, "before": tomorrow()}
    audit = client.accounts.logs.audit
    whole = list(audit.list(**period))
    assert [each.resource.id for each in whole if each.resource] == [*ids[::-1], *ids[::-1], account_id]
    for limit in (1, 3, 11):
        assert [each.id for each in audit.list(**period, limit=limit)] == [each.id for each in whole]
        back = [each.id for each in audit.list(**period, limit=limit, direction="asc")]
        assert back == [each.id for each in reversed(whole)]
    pages = [len(page.result) for page in audit.list(**period, limit=4).iter_pages()]
    assert pages == [4, 4, 3]
    last = list(audit.list(**period, limit=11).iter_pages())
    assert len(last) == 1


async def test_the_log_pages_asynchronously(either: Any) -> None:
    """The asynchronous iteration over the cursor ends as the other one does, with each entry once."""
    account = await done(either.accounts.create(name=unique()))
    for number in range(6):
        await done(either.accounts.update(account_id=account.id, id=account.id, name=f"n{number}", type="standard"))
    period: Json = {"account_id": account.id, "since": SINCE, "before": tomorrow()}
    found = await everything(either.accounts.logs.audit.list(**period, limit=2))
    assert [each.action.type for each in found] == [*6 * ["update"], "create"]
    assert len({each.id for each in found}) == 7


def test_an_entry_says_who_did_what(live: Live, client: cloudflare.Cloudflare, account_id: str, tokens: Make) -> None:
    """Actor, action, request and resource of what a user, and then an account's token, has done."""
    zone = client.zones.create(account={"id": account_id}, name=f"{unique()}.example")
    assert zone is not None
    rules: Any = [
        policy(
            client,
            account_id,
            "Zone Write",
            resources={f"com.cloudflare.api.account.{account_id}": {"com.cloudflare.api.account.zone.*": "*"}},
        )
    ]
    token = client.accounts.tokens.create(account_id=account_id, name="ci", policies=rules)
    assert token is not None
    # What the zone is called afterwards is still told.
    assert tokens(str(token.value)).zones.edit(zone_id=zone.id, paused=True) is not None
    period: Json = {"account_id": account_id, "since": SINCE, "before": tomorrow()}
    edited, made = list(client.accounts.logs.audit.list(**period, extra_query={"resource_id": zone.id}))
    email = live.older["CLOUDFLARE_EMAIL"]
    assert made.actor is not None
    assert (made.actor.type, made.actor.context, made.actor.email) == ("user", "api_key", email)
    assert made.actor.ip_address == "127.0.0.1"
    assert made.actor.token_id is None
    assert edited.actor is not None
    assert (edited.actor.type, edited.actor.context) == ("account", "api_token")
    assert (edited.actor.token_id, edited.actor.token_name, edited.actor.email) == (token.id, "ci", None)
    for entry, kind, method, path in (
        (made, "create", "POST", "/zones"),
        (edited, "update", "PATCH", f"/zones/{zone.id}"),
    ):
        assert entry.action is not None
        assert (entry.action.type, entry.action.result) == (kind, "success")
        assert entry.action.time is not None
        assert abs((datetime.now(UTC) - entry.action.time).total_seconds()) < 60
        assert entry.raw is not None
        assert (entry.raw.method, entry.raw.uri, entry.raw.status_code) == (method, f"/client/v4{path}", 200)
        assert entry.raw.user_agent is not None
        assert "Cloudflare/Python" in entry.raw.user_agent
        assert entry.resource is not None
        assert (entry.resource.type, entry.resource.id) == ("zone", zone.id)
        assert (entry.zone and entry.zone.id, entry.zone and entry.zone.name) == (zone.id, zone.name)
        assert (entry.account and entry.account.id) == account_id


def test_the_log_is_filtered(live: Live, client: cloudflare.Cloudflare, account_id: str) -> None:
    """By the SDK's own `not` filters, by the plain ones as extra query, several at once, and by time."""
    zone = client.zones.create(account={"id": account_id}, name=f"{unique()}.example")
    assert zone is not None
    client.zones.edit(zone_id=zone.id, paused=True)
    client.accounts.update(account_id=account_id, id=account_id, name="New", type="standard")
    client.zones.delete(zone_id=zone.id)
    period: Json = {"account_id": account_id, "since": SINCE, "before": tomorrow()}
    audit = client.accounts.logs.audit
    create_account, create_zone, pause, rename, delete = (
        "create account",
        "create zone",
        "update zone",
        "update account",
        "delete zone",
    )
    table: list[tuple[Json, list[str]]] = [
        ({}, [delete, rename, pause, create_zone, create_account]),
        ({"action_type": {"not": ["create"]}}, [delete, rename, pause]),
        ({"action_type": {"not": ["create", "delete"]}}, [rename, pause]),
        ({"resource_type": {"not": ["zone"]}}, [rename, create_account]),
        ({"resource_id": {"not": [zone.id]}}, [rename, create_account]),
        ({"actor_email": {"not": [live.older["CLOUDFLARE_EMAIL"]]}}, []),
        (
            {"actor_email": {"not": ["nobody@example.com"]}, "action_type": {"not": ["update"]}},
            [delete, create_zone, create_account],
        ),
        ({"raw_status_code": {"not": [200]}}, []),
        ({"raw_method": {"not": ["PATCH", "PUT"]}}, [delete, create_zone, create_account]),
        (
            {"action_result": {"not": ["failure"]}, "zone_id": {"not": [unique()]}, "direction": "asc", "limit": 2},
            [create_account, create_zone, pause, rename, delete],
        ),
        ({"extra_query": {"resource_id": zone.id}}, [delete, pause, create_zone]),
        (
            {"extra_query": {"resource_id": [zone.id, account_id], "action_type": "create"}},
            [create_zone, create_account],
        ),
        ({"extra_query": {"zone_id": zone.id}, "action_type": {"not": ["delete"]}}, [pause, create_zone]),
        (
            {"extra_query": {"actor_email": live.older["CLOUDFLARE_EMAIL"], "resource_product": "accounts"}},
            [rename, create_account],
        ),
        ({"extra_query": {"resource_id": unique()}}, []),
    ]
    for filters, expected in table:
        entries = audit.list(**{"limit": 2, **period, **filters})
        assert [each.action and each.action.description for each in entries] == expected, filters
    whole = list(audit.list(**period))
    moments = [each.action.time for each in whole if each.action and each.action.time]
    # `since` is included, `before` is not.
    exact = {"since": moments[3].isoformat(), "before": moments[1].isoformat()}
    assert [each.id for each in audit.list(**{**period, **exact})] == [each.id for each in whole[2:4]]
    assert list(audit.list(**{**period, "since": tomorrow(), "before": "2100-01-01"})) == []
    with pytest.raises(cloudflare.BadRequestError) as raised:
        audit.list(**period, limit=1001)
    assert codes(raised) == [1455]


def tomorrow() -> str:
    return (datetime.now(UTC) + timedelta(days=1)).date().isoformat()


def test_a_denied_attempt_is_in_the_log(client: cloudflare.Cloudflare, account_id: str, tokens: Make) -> None:
    """What a token tried and may not is a failure with its status, under the account that it reaches."""
    rules: Any = [policy(client, account_id, "Account Settings Read")]
    token = client.accounts.tokens.create(account_id=account_id, name="reader", policies=rules)
    assert token is not None
    reader = tokens(str(token.value))
    with pytest.raises(cloudflare.PermissionDeniedError):
        reader.accounts.delete(account_id=account_id)
    period: Json = {"account_id": account_id, "since": SINCE, "before": tomorrow()}
    (entry,) = reader.accounts.logs.audit.list(**period, action_result={"not": ["success"]})
    assert (entry.action and entry.action.result, entry.raw and entry.raw.status_code) == ("failure", 403)
    assert entry.actor is not None
    assert (entry.actor.token_id, entry.actor.token_name) == (token.id, "reader")


def test_errors_have_their_classes_and_codes(client: cloudflare.Cloudflare, account_id: str) -> None:
    """BadRequestError, PermissionDeniedError and NotFoundError, each with the codes of the contract."""
    name = f"{unique()}.example"
    client.zones.create(account={"id": account_id}, name=name)
    rules: Any = [policy(client, account_id)]
    accounts, zones, tokens = client.accounts, client.zones, client.accounts.tokens
    bad: list[tuple[Callable[[], object], list[int]]] = [
        (lambda: zones.create(account={"id": account_id}, name=name), [1061]),
        (lambda: zones.create(account={"id": account_id}, name="a b"), [1453]),
        (lambda: zones.create(account={}, name="n.example"), [1453]),
        (lambda: zones.list(name=f"not_equal:{name}"), [1455]),
        (lambda: accounts.create(name=""), [1453]),
        (lambda: accounts.create(name="n", type="enterprise"), [1434]),
        (lambda: accounts.list(per_page=51), [1455]),
        (lambda: tokens.create(account_id=account_id, name="", policies=[]), [1453, 1463]),
        (
            lambda: tokens.create(
                account_id=account_id, name="n", policies=rules, condition={"request_ip": {"in": ["10.0.0.1/8"]}}
            ),
            [1464],
        ),
        (
            lambda: tokens.create(
                account_id=account_id, name="n", policies=rules, expires_on=datetime(2020, 1, 1, tzinfo=UTC)
            ),
            [1467],
        ),
    ]
    for call, expected in bad:
        with pytest.raises(cloudflare.BadRequestError) as raised:
            call()
        assert codes(raised) == expected
    denied: list[Callable[[], object]] = [
        lambda: accounts.get(account_id=unique()),
        lambda: zones.get(zone_id=unique()),
        lambda: zones.create(account={"id": unique()}, name=name),
        lambda: tokens.list(account_id=unique()),
        lambda: accounts.logs.audit.list(account_id=unique(), since=SINCE, before=tomorrow()),
    ]
    for call in denied:
        with pytest.raises(cloudflare.PermissionDeniedError) as refused:
            call()
        assert codes(refused) == [9109]
    missing: list[tuple[Callable[[], object], int]] = [
        (lambda: zones.get(zone_id="x"), 7003),
        (lambda: accounts.get(account_id="x"), 7003),
        (lambda: tokens.get(unique(), account_id=account_id), 1468),
        (lambda: tokens.value.update(unique(), account_id=account_id), 1468),
        (lambda: client.user.tokens.get(unique()), 1468),
    ]
    for call, code in missing:
        with pytest.raises(cloudflare.NotFoundError) as absent:
            call()
        assert codes(absent) == [code]


async def test_a_conflict_costs_one_request(live: Live, either: Any) -> None:
    """409s say X-Should-Retry: false, so the SDK, which has two retries to spend, spends none."""
    account = await done(either.accounts.create(name=unique()))
    zone = await done(either.zones.create(account={"id": account.id}, name=f"{unique()}.example"))
    await done(either.custom_csrs.create(zone_id=zone.id, **BODY))
    listed = await everything(either.user.tokens.permission_groups.list(name="Account API Tokens Write"))
    rule = {
        "effect": "allow",
        "resources": {f"com.cloudflare.api.account.{account.id}": "*"},
        "permission_groups": [{"id": listed[0].id}],
    }
    token = await done(either.accounts.tokens.create(account_id=account.id, name="last", policies=[rule]))
    calls: list[tuple[Callable[[], Any], str, int]] = [
        (lambda: either.zones.delete(zone_id=zone.id), f"/zones/{zone.id}", 1461),
        (lambda: either.accounts.delete(account_id=account.id), f"/accounts/{account.id}", 1461),
        (lambda: either.accounts.tokens.delete(token.id, account_id=account.id), f"/tokens/{token.id}", 1466),
    ]
    assert either.max_retries == 2
    for call, path, code in calls:
        with pytest.raises(cloudflare.ConflictError) as raised:
            await done(call())
        assert codes(raised) == [code]
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert raised.value.request.headers["x-stainless-retry-count"] == "0"
        assert [(line["method"], line["status"]) for line in live.requests(path)] == [("DELETE", 409)]


async def test_an_idempotency_key_makes_one(either: Any) -> None:
    """The same call with the same key gives the same object again; another one is ConflictError 1456, asked once."""
    account = await done(either.accounts.create(name=unique()))
    named, other = [{"account": {"id": account.id}, "name": f"{unique()}.example"} for _ in range(2)]
    key = unique()
    calls: list[tuple[Callable[..., Any], Json, Json, Json]] = [
        # For accounts the SDK has an argument of its own.
        (either.accounts.create, {"name": unique()}, {"name": unique()}, {"idempotency_key": key}),
        (either.zones.create, named, other, {"extra_headers": {"Idempotency-Key": key}}),
    ]
    for call, fields, others, once in calls:
        first, again = [await done(call(**fields, **once)) for _ in range(2)]
        assert first.to_dict() == again.to_dict()
        with pytest.raises(cloudflare.ConflictError) as raised:
            await done(call(**others, **once))
        assert codes(raised) == [1456]
        assert raised.value.response.headers["x-should-retry"] == "false"
        assert raised.value.request.headers["x-stainless-retry-count"] == "0"


async def test_a_token_is_not_made_twice_by_one_key(either: Any) -> None:
    """The value was shown once: the repeat is ConflictError 1456, and there is one token."""
    account = await done(either.accounts.create(name=unique()))
    listed = await everything(either.accounts.tokens.permission_groups.list(account_id=account.id, name="Zone Read"))
    rule = {
        "effect": "allow",
        "resources": {"com.cloudflare.api.account.zone.*": "*"},
        "permission_groups": [{"id": listed[0].id}],
    }
    call: Json = {"account_id": account.id, "name": "ci", "policies": [rule]}
    headers = {"Idempotency-Key": unique()}
    made = await done(either.accounts.tokens.create(**call, extra_headers=headers))
    with pytest.raises(cloudflare.ConflictError) as raised:
        await done(either.accounts.tokens.create(**call, extra_headers=headers))
    assert codes(raised) == [1456]
    assert [each.id for each in await everything(either.accounts.tokens.list(account_id=account.id))] == [made.id]
