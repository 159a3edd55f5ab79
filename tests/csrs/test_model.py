"""Random walks over create, get, list and delete agree with a model of a few lines of Python."""

from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, invariant, multiple, rule
from support.citus import NEEDS_CLUSTER, spread
from support.databases import new_database
from support.pki import all_of
from support.walks import WorldWalk
from support.world import BODY, Tenant

from keystead.server import postgres

pytestmark = pytest.mark.walks

Csr = dict[str, Any]

# Where languages disagree on order: case, accents, and characters beyond the first 65,536, which UTF-16 puts earlier.
NAMES = [None, "a", "B", "b", "é", "e\u0301", "z", "\uffe6", "\U0001f600"]
HOSTS = ["a.internal", "A.internal", "b.internal", "*.b.internal"]
TIMES = ["2026-01-01T00:00:00.000001Z", "2026-01-01T00:00:00.000002Z"]

tenants = st.sampled_from(["a", "b"])
scopes = st.tuples(tenants, st.sampled_from(["account", "zone"]))
requests = st.fixed_dictionaries(
    {
        "name": st.sampled_from(NAMES),
        "common_name": st.sampled_from(HOSTS),
        "sans": st.lists(st.sampled_from(HOSTS), min_size=1, max_size=3),
    }
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([name for name in NAMES if name] + ["A"]),
        "common_name": st.sampled_from([*HOSTS, "B.internal"]),
        "san": st.sampled_from([*HOSTS, "B.internal"]),
        "key_type": st.sampled_from(["p256v1", "p256v1", "rsa2048"]),
    },
)
orders = st.fixed_dictionaries(
    {},
    optional={
        "order": st.sampled_from(["name", "account_tag", "created_at"]),
        "direction": st.sampled_from(["asc", "desc"]),
    },
)


class Walk(WorldWalk):
    """`lists` is the model: the CSRs of each account and zone by id."""

    csr_ids: Bundle[str] = Bundle("csr_ids")

    def __init__(self) -> None:
        super().__init__()
        self.lists: dict[tuple[str, str], dict[str, Csr]] = {(t, s): {} for t in "ab" for s in ("account", "zone")}

    def teardown(self) -> None:
        self.empty("custom_csrs", "csr_counts", "private_keys")

    def tenant(self, name: str) -> Tenant:
        return self.world.a if name == "a" else self.world.b

    def ask(self, method: str, scope: tuple[str, str], caller: str, end: str = "", **more: Any) -> Any:
        return self.world.http.request(method, self.path(scope) + end, headers=self.tenant(caller).bearer, **more)

    def path(self, scope: tuple[str, str]) -> str:
        owner = self.tenant(scope[0])
        return owner.account_path if scope[1] == "account" else owner.zone_path

    @rule(target=csr_ids, scope=scopes, bodies=st.lists(requests, min_size=1, max_size=8))
    def create(self, scope: tuple[str, str], bodies: list[Csr]) -> Any:
        """Several at once, so that their order is the server's choice."""
        posts = (self.ask("POST", scope, scope[0], json={**BODY, **body}) for body in bodies)
        made = []
        for body, answer in zip(bodies, self.wait(all_of(*posts)), strict=True):
            assert answer.status_code == 201
            csr = answer.json()["result"]
            sent = {key: value for key, value in {**BODY, **body}.items() if value is not None}
            assert csr == {**sent, **{key: csr[key] for key in ("id", "created_at", "csr", "account_tag")}}
            assert csr["account_tag"] == self.tenant(scope[0]).account.id.hex
            self.lists[scope][csr["id"]] = csr
            made.append(csr["id"])
        return multiple(*made)

    @rule(csr_ids=st.lists(csr_ids, min_size=2, max_size=6), time=st.sampled_from(TIMES))
    def happen_at_once(self, csr_ids: list[str], time: str) -> None:
        """Some were made in the same microsecond: their ids decide the order."""
        sql = "UPDATE custom_csrs SET created_at = $2::text::timestamptz WHERE id = ANY($1)"
        self.wait(self.world.database.execute(sql, [UUID(csr_id) for csr_id in csr_ids], time))
        for csrs in self.lists.values():
            for csr_id in csrs.keys() & set(csr_ids):
                csrs[csr_id]["created_at"] = time

    @rule(scope=scopes, caller=tenants, csr_id=csr_ids)
    def get(self, scope: tuple[str, str], caller: str, csr_id: str) -> None:
        answer = self.wait(self.ask("GET", scope, caller, f"/{csr_id}"))
        if self.admitted(answer, scope, caller, csr_id):
            assert answer.json()["result"] == self.lists[scope][csr_id]

    @rule(scope=scopes, caller=tenants, csr_id=csr_ids)
    def delete(self, scope: tuple[str, str], caller: str, csr_id: str) -> None:
        answer = self.wait(self.ask("DELETE", scope, caller, f"/{csr_id}"))
        if self.admitted(answer, scope, caller, csr_id):
            assert answer.json()["result"] == {"id": csr_id}
            del self.lists[scope][csr_id]

    @rule(csr_id=consumes(csr_ids))
    def delete_where_it_is(self, csr_id: str) -> None:
        for scope, csrs in self.lists.items():
            if csr_id in csrs:
                self.delete(scope, scope[0], csr_id)

    def admitted(self, answer: httpx.Response, scope: tuple[str, str], caller: str, csr_id: str) -> bool:
        """True when the caller may and the CSR is there; else the answer says which of the two is not so."""
        if caller != scope[0]:
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (403, 9109)
            return False
        if csr_id not in self.lists[scope]:
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, 1419)
            return False
        assert answer.status_code == 200
        return True

    @rule(scope=scopes, wanted=filters, order=orders, page=st.integers(1, 4), per_page=st.integers(5, 12))
    def list_a_page(self, scope: tuple[str, str], wanted: Csr, order: dict[str, str], page: int, per_page: int) -> None:
        query = {**wanted, **order, "page": page, "per_page": per_page}
        answer = self.wait(self.ask("GET", scope, scope[0], params=query)).json()
        matching = in_order([csr for csr in self.lists[scope].values() if matches(csr, **wanted)], **order)
        shown = matching[(page - 1) * per_page :][:per_page]
        assert answer["result"] == shown
        assert answer["result_info"] == {
            "count": len(shown),
            "page": page,
            "per_page": per_page,
            "total_count": len(matching),
            "total_pages": -(-len(matching) // per_page),
        }

    @rule(scope=scopes, order=orders)
    def list_all_pages(self, scope: tuple[str, str], order: dict[str, str]) -> None:
        """Page after page until an empty one, as the SDKs do it."""
        listed: list[Csr] = []
        for page in range(1, 100):
            query = {**order, "page": page, "per_page": 5}
            found = self.wait(self.ask("GET", scope, scope[0], params=query)).json()["result"]
            listed += found
            if not found:
                break
        assert listed == in_order(list(self.lists[scope].values()), **order)

    @invariant()
    def every_csr_has_its_key_and_no_key_is_left(self) -> None:
        sql = "SELECT (SELECT count(*) FROM private_keys), (SELECT count(*) FROM custom_csrs)"
        counts = self.wait(self.world.database.fetchrow(sql))
        assert counts is not None
        assert set(counts) == {sum(map(len, self.lists.values()))}


def matches(csr: Csr, san: str | None = None, **exact: str) -> bool:
    return (san is None or san in csr["sans"]) and all(csr.get(field) == value for field, value in exact.items())


def in_order(csrs: list[Csr], order: str = "created_at", direction: str = "asc") -> list[Csr]:
    """Python compares text by code point, and each tie is broken by id; what has no name comes last both ways."""
    field = "id" if order == "account_tag" else order
    first = [csr for csr in csrs if field in csr]
    last = [csr for csr in csrs if field not in csr]
    down = direction == "desc"
    return [
        *sorted(first, key=lambda csr: (csr[field], csr["id"]), reverse=down),
        *sorted(last, key=lambda csr: csr["id"], reverse=down),
    ]


@pytest.mark.parametrize("kind", ["PostgreSQL", pytest.param("Citus", marks=NEEDS_CLUSTER)])
def test_random_walks_agree_with_the_model(cluster: postgres.Cluster, tmp_path: Path, kind: str) -> None:
    """Eighty walks of two tenants over their lists find what plain dictionaries and sorting say."""
    new = spread if kind == "Citus" else partial(new_database, cluster, "blank")
    Walk.run(new, tmp_path, examples=80, steps=15)
