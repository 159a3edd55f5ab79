"""The API under a PostgreSQL role that may do what serving needs, and nothing else (docs/operations.md)."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from support.api_role import (
    FORBIDDEN,
    GRANTS,
    Client,
    Served,
    granted,
    held,
)
from support.databases import connected, new_database
from support.live import free_port, serving
from support.role_use import install, use_everything
from support.rotation import (
    Place,
)

from keystead.config import Settings
from keystead.custody import ring as ringfile
from keystead.errors import Misconfigured
from keystead.server import first_start, postgres
from keystead.store import database as db

pytestmark = pytest.mark.serve


@pytest.fixture(scope="module")
async def served(cluster: postgres.Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """An installation that its owner has made, and a server that came to it under the role."""
    owner, role = (f"{name}_{uuid4().hex}" for name in ("owner", "api"))
    folder = tmp_path_factory.mktemp("role")
    async with connected(cluster.dsn) as admin:
        await admin.execute(f"CREATE ROLE {owner} LOGIN; CREATE ROLE {role} LOGIN")
        # The same permissions for commands; what these ask for is not in the log.
        await admin.execute(f"CREATE ROLE {role}_too LOGIN IN ROLE {role}")
        try:
            async with new_database(cluster, "template0") as url:
                name = re.findall(r"t_[0-9a-f]{32}", url)[0]
                await admin.execute(f"ALTER DATABASE {name} OWNER TO {owner}")
                # Who asks for what, in PostgreSQL's log.
                await admin.execute(f"ALTER ROLE {role} IN DATABASE {name} SET log_statement = 'all'")
                place = Place(url.replace("user=keystead", f"user={owner}"), folder / "data")
                install(place)
                async with connected(place.database_url) as connection:
                    await connection.execute(grants(role, name))
                as_role = url.replace("user=keystead", f"user={role}")
                listen = {"KEYSTEAD_DELIVERY_LISTEN": f"127.0.0.1:{free_port()}"}
                with serving(as_role, folder / "data", workers=2, environ=listen) as running:
                    running.env.update(listen)
                    yield Served(running, place, name, role, cluster._layout.home / "log")
        finally:
            await admin.execute(f"DROP ROLE {role}_too; DROP ROLE {role}; DROP ROLE {owner}")


def grants(role: str, database: str) -> str:
    return re.sub(r"\bkeystead_api\b", role, re.sub(r"DATABASE keystead\b", f"DATABASE {database}", GRANTS))


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    made = Client(served.live, served.live.env["CLOUDFLARE_API_TOKEN"])
    yield made
    made.http.close()


@pytest.fixture(scope="module")
def served_all(served: Served, client: Client) -> Served:
    """After everything that the API does was done once."""
    use_everything(served, client)
    return served


def test_the_role_serves_everything(served_all: Served) -> None:
    """Both dialects work, what has expired is forgotten, and the log has no error but the one that was provoked."""
    log = served_all.live.log.read_text()
    assert "what has expired stays" not in log
    assert "permission denied" not in log
    assert "InsufficientPrivilege" not in log
    errors = [line for line in log.splitlines() if '"level": "error"' in line]
    assert len(errors) == log.count("KeyDamaged: ") == 1


def test_every_change_was_audited(served_all: Served) -> None:
    """The role may only add to the audit log, and has done so for each kind of change."""
    sql = "SELECT DISTINCT action FROM audit_log WHERE actor <> 'operator'"
    actions = {row[0] for row in served_all.owner.rows(sql)}
    assert actions >= {"create", "update", "delete", "login", "sign", "sign-intermediate", "revoke", "renew", "import"}


async def test_the_role_has_what_the_text_says_and_no_more(served_all: Served) -> None:
    """PostgreSQL's own catalogue has exactly these permissions, on every table of the schema."""
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    async with connected(served_all.owner.database_url) as connection:
        assert await held(connection, served_all.role) == set(granted())
        assert {grant.table for grant in granted()} == {row["relname"] for row in await connection.fetch(tables)}


async def test_none_of_the_permissions_can_be_left_out(served_all: Served) -> None:
    """For each there is a statement of the server that PostgreSQL refuses without it."""
    statements = served_all.statements()
    assert len(statements) > 80
    spare = []
    async with connected(served_all.owner.database_url) as owner, connected(served_all.url) as api:
        for grant in granted():
            await owner.execute(f"REVOKE {grant} ON {grant.table} FROM {served_all.role}")
            if not await any_is_refused(api, [text for text in statements if grant.table in text]):
                spare.append(grant)
            await owner.execute(f"GRANT {grant} ON {grant.table} TO {served_all.role}")
        assert spare == []
        # And with all of them none is refused.
        # But what a start tries with a KEK that the database does not know, which is the owner's to add.
        assert not await any_is_refused(api, [text for text in statements if "INTO keks" not in text])
        await owner.execute(f"REVOKE USAGE ON SCHEMA public FROM {served_all.role}")
        with pytest.raises(asyncpg.UndefinedTableError):
            await api.execute("EXPLAIN SELECT FROM accounts")
        await owner.execute(f"GRANT USAGE ON SCHEMA public TO {served_all.role}")
        await owner.execute(f"REVOKE CONNECT ON DATABASE {served_all.database} FROM {served_all.role}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(served_all.url)
        await owner.execute(f"GRANT CONNECT ON DATABASE {served_all.database} TO {served_all.role}")


async def any_is_refused(api: db.Connection, statements: Iterable[str]) -> bool:
    for text in statements:
        try:
            await api.execute(f"EXPLAIN (GENERIC_PLAN) {text}")
        except asyncpg.InsufficientPrivilegeError:
            return True
    return False


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_the_role_cannot(served: Served, what: str) -> None:
    """PostgreSQL itself refuses what serving does not need, whoever speaks for the role."""
    owner = re.findall(r"owner_[0-9a-f]{32}", served.owner.database_url)[0]
    sql = FORBIDDEN[what].replace("{database}", served.database).replace("{owner}", owner)
    async with connected(served.url) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql)


@pytest.mark.parametrize("before", ["nothing", "add", "rotate", "add --pepper"])
async def test_the_role_starts_again(served: Served, tmp_path: Path, before: str) -> None:
    """Also after the owner has changed ring or peppers: what has to be written for that, the owner has written."""
    if before != "nothing":
        served.owner.run("keys", *before.split())
    settings = Settings(database_url=served.url, data_dir=tmp_path, keyring=served.owner.path)
    assert "Keystead" in await first_start.prepare(settings)


@pytest.mark.parametrize("words", [("add",), ("rotate",), ("add", "--pepper"), ("retire", "{earlier}")])
async def test_a_command_under_the_role_changes_neither_ring_nor_database(
    served: Served, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """Whoever set KEYSTEAD_DATABASE_URL to the servers' role is refused, also where a new KEK waits to be current."""
    monkeypatch.setattr(ringfile, "SETTLED", timedelta())
    served.owner.run("keys", "add")
    earlier = ringfile.read(served.owner.path).keks[-1].id
    here = Place(served.url.replace(f"user={served.role}", f"user={served.role}_too"), served.owner.data_dir)
    ring, keks = served.owner.path.read_bytes(), here.rows("SELECT id, retired_at FROM keks ORDER BY id")
    noted = here.value("SELECT count(*) FROM audit_log")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        here.run("keys", *(word.format(earlier=earlier) for word in words))
    assert served.owner.path.read_bytes() == ring
    assert here.rows("SELECT id, retired_at FROM keks ORDER BY id") == keks
    assert here.value("SELECT count(*) FROM audit_log") == noted


async def test_the_role_starts_with_a_kek_of_which_the_database_has_not_heard(served: Served, tmp_path: Path) -> None:
    """The KEK of a secret that was changed by hand is no reason for a traceback: it serves, or says what to do."""
    path = tmp_path / "keyring.json"
    path.write_text(served.owner.path.read_text())
    path.chmod(0o600)
    ringfile.add(path)
    settings = Settings(database_url=served.url, data_dir=tmp_path, keyring=path)
    with contextlib.suppress(Misconfigured):
        await first_start.prepare(settings)
