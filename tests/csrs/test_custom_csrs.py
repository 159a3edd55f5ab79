"""The four calls on both scopes, against the contract's sections 1 and 2."""

import re
from datetime import datetime
from typing import Any

import httpx
import pytest
from cryptography import x509
from support.world import BODY, World

from keystead import bounds
from keystead.caller import Scope
from keystead.csrs import store as csrs
from keystead.csrs.model import CsrRequest
from keystead.custody import keyring
from keystead.errors import Unavailable
from keystead.x509.keys import KeyType
from keystead.x509.subjects import Subject

PEM = {"Accept": "application/x-pem-file"}
DER = {"Accept": "application/pkcs10"}


async def test_the_documented_example_comes_back_in_the_documented_shape(world: World) -> None:
    """The account-level CSR of the public API page is answered with its fields, byte for byte."""
    body = {
        **BODY,
        "key_type": "rsa2048",
        "organizational_unit": "Engineering",
        "name": "My Custom CSR",
        "description": "CSR for example.com wildcard",
    }
    answer = await world.http.post(world.a.account_path, json=body, headers=world.a.bearer)
    assert answer.status_code == 201
    result = answer.json()["result"]
    assert body.items() <= result.items()
    assert result["account_tag"] == world.a.account.id.hex
    assert result.keys() == {*body, "id", "created_at", "account_tag", "csr"}


async def test_what_was_created_is_what_get_and_list_show(world: World) -> None:
    """POST, GET and the list answer one and the same object, on both scopes."""
    for path in world.a.paths:
        made = await world.create(path=path)
        got = await world.http.get(f"{path}/{made['id']}", headers=world.a.bearer)
        listed = await world.http.get(path, headers=world.a.bearer)
        assert got.json()["result"] == made
        assert listed.json()["result"] == [made]


async def test_inputs_come_back_byte_for_byte(world: World) -> None:
    """Order, case and duplicates of SANs, inner white space and any script are kept as they were sent."""
    fields: dict[str, Any] = {
        "sans": ["B.example.com", "a.example.com", "b.EXAMPLE.com", "b.EXAMPLE.com"],
        "organization": "Ünïcode  & Söhne 株式会社 🔑",
        "locality": "  Île-de-France ",
        "description": "two\nlines\tand a tab",
        "common_name": "e\u0301 is not é",
    }
    made = await world.create(**fields)
    assert fields.items() <= made.items()


async def test_an_unset_optional_is_absent_and_empty_means_unset(world: World) -> None:
    """An optional field that is absent, null or empty comes back absent."""
    for unset in ({}, dict.fromkeys(("organizational_unit", "name", "description"))):
        made = await world.create(**unset)
        assert not {"organizational_unit", "name", "description"} & made.keys()
    made = await world.create(organizational_unit="", name="", description="", key_type="")
    assert not {"organizational_unit", "name", "description"} & made.keys()
    assert made["key_type"] == "rsa2048"


async def test_a_body_is_json_whatever_its_type_says(world: World) -> None:
    """The form type that curl sends, no type and a wrong one are read as JSON."""
    import json

    for content_type in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
        headers = {**world.a.bearer, "Content-Type": content_type}
        answer = await world.http.post(world.a.account_path, content=json.dumps(BODY).encode(), headers=headers)
        assert answer.status_code == 201


async def test_delete_answers_the_id_and_destroys_the_key(world: World) -> None:
    """DELETE is 200 with the id; the CSR and its private key are gone, and a second one is 404."""
    for path in world.a.paths:
        made = await world.create(path=path)
        url = f"{path}/{made['id']}/"
        headers = {**world.a.bearer, "Content-Type": "application/json"}
        answer = await world.http.delete(url, headers=headers)
        assert (answer.status_code, answer.json()["result"]) == (200, {"id": made["id"]})
        assert (await world.http.get(url, headers=headers)).status_code == 404
        assert (await world.http.delete(url, headers=headers)).status_code == 404
    row = await world.database.fetchrow("SELECT count(*) AS n FROM private_keys")
    assert row
    assert row["n"] == 0


async def test_no_key_is_made_while_too_many_wait_for_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is let in just before that is told to come back, before the dear work."""
    monkeypatch.setattr(bounds, "FEW_WAITING", -1)
    monkeypatch.setattr(bounds, "WAITING", 0)
    request = CsrRequest(Subject("US", "s", "l", "o", "www.example.com"), ("www.example.com",), KeyType.P256V1)
    with pytest.raises(Unavailable, match="too many requests"):
        await csrs.create(world.services, keyring.SYSTEM, Scope(world.a.account.id), request)
    assert not await world.database.fetch("SELECT FROM private_keys")


async def test_every_change_has_its_audit_row(world: World) -> None:
    """A create and a delete leave one row each, with who, from where, under which request id."""
    answer = await world.http.post(
        world.a.zone_path, json=BODY, headers={**world.a.bearer, "User-Agent": "test/1 \x07"}
    )
    csr_id = answer.json()["result"]["id"]
    await world.http.delete(f"{world.a.zone_path}/{csr_id}", headers=world.a.bearer)
    rows = await world.database.fetch("SELECT * FROM audit_log WHERE resource_type = 'custom_csr' ORDER BY at")
    assert [(str(row["resource_id"]), row["action"], row["actor"]) for row in rows] == [
        (csr_id, "create", "token"),
        (csr_id, "delete", "token"),
    ]
    first = rows[0]
    assert first["request_id"] == answer.headers["x-request-id"]
    assert first["account_id"] == world.a.account.id
    assert first["zone_id"] == world.a.zone.id
    assert (first["method"], first["path"]) == ("POST", world.a.zone_path)
    assert str(first["address"]) == "127.0.0.1"
    assert first["user_agent"] == "test/1 ?"


async def test_a_caller_who_may_only_read_changes_nothing(world: World) -> None:
    """A token with the read groups reads both lists, and its POST and DELETE are 403/9109."""
    made = await world.create()
    reader = {"Authorization": f"Bearer {world.a.read_token}"}
    for path in world.a.paths:
        assert (await world.http.get(path, headers=reader)).status_code == 200
        assert (await world.http.post(path, json=BODY, headers=reader)).status_code == 403
    refused = await world.http.delete(f"{world.a.account_path}/{made['id']}", headers=reader)
    assert refused.json()["errors"][0]["code"] == 9109


async def listed(world: World, path: str, **query: object) -> tuple[list[str], dict[str, int]]:
    answer = await world.http.get(
        path, params=httpx.QueryParams(**{k: str(v) for k, v in query.items()}), headers=world.a.bearer
    )
    assert answer.status_code == 200, answer.text
    return [csr.get("name", "-") for csr in answer.json()["result"]], answer.json()["result_info"]


async def test_a_list_has_pages_that_do_not_overlap(world: World) -> None:
    """Pages follow each other without gap or overlap, and past the end is an empty page with the totals."""
    names = [f"n{i:02}" for i in range(12)]
    for name in names:
        await world.create(path=world.a.zone_path, name=name)
    found = [name for page in (1, 2, 3) for name in (await listed(world, world.a.zone_path, page=page, per_page=5))[0]]
    assert found == names
    empty, info = await listed(world, world.a.zone_path, page=9, per_page=5)
    assert empty == []
    assert info == {"count": 0, "page": 9, "per_page": 5, "total_count": 12, "total_pages": 3}
    assert (await listed(world, world.a.zone_path, page=2**53 - 1, per_page=50))[0] == []
    assert (await listed(world, world.a.zone_path))[1]["per_page"] == 20
    assert (await listed(world, world.a.account_path))[1] == {
        "count": 0,
        "page": 1,
        "per_page": 50,
        "total_count": 0,
        "total_pages": 0,
    }


async def test_names_sort_by_code_point_with_unset_ones_last(world: World) -> None:
    """order=name compares code points, whatever alphabet the database has; unset names come last in both directions."""
    await world.database.execute('ALTER TABLE custom_csrs ALTER name TYPE text COLLATE "unicode"')
    for name in ("b", "B", "a", "é", "Z", "10", "9", "", "𝄞", "\uffee"):
        await world.create(path=world.a.zone_path, name=name)
    ascending, _ = await listed(world, world.a.zone_path, order="name")
    assert ascending == ["10", "9", "B", "Z", "a", "b", "é", "\uffee", "𝄞", "-"]
    descending, _ = await listed(world, world.a.zone_path, order="name", direction="desc")
    assert descending == [*reversed(ascending[:-1]), "-"]
    created, _ = await listed(world, world.a.zone_path, direction="desc")
    assert created == ["\uffee", "𝄞", "-", "9", "10", "Z", "é", "a", "B", "b"]
    await listed(world, world.a.zone_path, order="account_tag")


async def test_filters_are_exact_and_combine_with_and(world: World) -> None:
    """Each filter matches whole values of this scope only, several of them all at once, and totals follow."""
    await world.create(name="one", common_name="one.dev", sans=["a.dev", "b.dev"])
    await world.create(name="two", common_name="one.dev", sans=["b.dev"])
    await world.create(path=world.a.zone_path, name="one", common_name="one.dev", sans=["a.dev"])
    cases = {
        ("one", "two"): {"common_name": "one.dev"},
        ("one",): {"san": "a.dev", "common_name": "one.dev"},
        ("two",): {"name": "two", "san": "b.dev", "key_type": "p256v1"},
        (): {"name": "on"},
    }
    for expected, query in cases.items():
        found, info = await listed(world, world.a.account_path, **query)
        assert (tuple(found), info["total_count"]) == (expected, len(expected))
    for nothing in ({"key_type": "rsa2048"}, {"san": "A.dev"}, {"name": ""}, {"name": "o' OR 'a'='a"}):
        assert (await listed(world, world.a.account_path, **nothing))[0] == []


async def test_the_created_time_is_the_stored_one_to_the_microsecond(world: World) -> None:
    """created_at has six decimals and Z, and is the value that the order goes by."""
    made = await world.create()
    row = await world.database.fetchrow("SELECT created_at FROM custom_csrs")
    assert row
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made["created_at"])
    assert datetime.fromisoformat(made["created_at"]) == row["created_at"]


async def test_a_client_that_wants_the_file_gets_it(world: World) -> None:
    """Accept gives the PEM or the DER itself with a file name, and POST says where the CSR is."""
    for path in world.a.paths:
        made = await world.http.post(path, json=BODY, headers={**world.a.bearer, **PEM})
        assert made.status_code == 201
        location = made.headers["location"]
        csr_id = location.removeprefix(f"{path}/")
        pem = await world.http.get(location, headers={**world.a.bearer, **PEM})
        der = await world.http.get(location, headers={**world.a.bearer, **DER})
        assert made.content == pem.content
        assert pem.headers["content-type"].startswith("application/x-pem-file")
        assert der.headers["content-type"] == "application/pkcs10"
        assert pem.headers["content-disposition"] == f'attachment; filename="{csr_id}.csr"'
        assert x509.load_der_x509_csr(der.content) == x509.load_pem_x509_csr(pem.content)
        assert pem.content.endswith(b"-----END CERTIFICATE REQUEST-----\n")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
        ("application/json, application/x-pem-file;q=0.9", "application/json"),
        ("application/json;q=0.5, application/x-pem-file", "application/x-pem-file"),
        ("application/pkcs10, */*;q=0.1", "application/pkcs10"),
        ("APPLICATION/PKCS10", "application/pkcs10"),
        ("application/x-pem-file;q=0", "application/json"),
        ("text/plain\napplication/pkcs10", "application/pkcs10"),
        ("application/x-pem-file;q=nan, application/pkcs10;q=7", "application/json"),
    ],
)
async def test_accept_is_read_with_its_qualities(world: World, accept: str, expected: str) -> None:
    """The form that the client likes best is answered, and JSON when it names none of ours."""
    made = await world.create()
    headers = [*world.a.bearer.items(), *(("Accept", line) for line in accept.split("\n"))]
    answer = await world.http.get(f"{world.a.account_path}/{made['id']}", headers=headers)
    assert answer.headers["content-type"].split(";")[0] == expected


async def test_an_error_is_json_whatever_the_client_accepts(world: World) -> None:
    """A bad request for a PEM is answered with the envelope."""
    answer = await world.http.post(world.a.account_path, json={}, headers={**world.a.bearer, **PEM})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"


async def test_nothing_in_an_answer_comes_from_the_host_header(world: World) -> None:
    """Host and X-Forwarded-* of the client are in no answer, and an odd Host is no error."""
    made = await world.create()
    for host in ("evil.example", "a b", "", "x" * 300, "evil.example:99999"):
        headers = {**world.a.bearer, "Host": host, "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "gopher"}
        for path in (f"/{made['id']}", "/nope"):
            answer = await world.http.get(world.a.account_path + path, headers=headers)
            assert answer.status_code in (200, 400)
            assert "evil" not in answer.text + str(answer.headers)
            assert "gopher" not in answer.text


async def test_request_ids_are_made_here(world: World) -> None:
    """A client's own X-Request-Id is not taken over."""
    answer = await world.http.get(
        world.a.account_path, headers={**world.a.bearer, "X-Request-Id": "f" * 32, "CF-Ray": "x"}
    )
    assert answer.headers["x-request-id"] != "f" * 32
