"""The roles of the bundled PostgreSQL: what the servers may, what the commands may, and what came before them."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import msgspec
import pytest
from support.api_role import FORBIDDEN, Client, Served, granted, held
from support.databases import connected, new_database
from support.live import Live, serving
from support.psql import psql
from support.released import RELEASED
from support.role_use import cloudflare, infisical, tenants
from support.rotation import Place, in_thread
from support.world import BODY

from keystead.commands import terminal
from keystead.config import Settings
from keystead.server import first_start, postgres, roles
from keystead.store import schema

pytestmark = pytest.mark.serve


class Home(msgspec.Struct):
    """A data folder of the release before, which knew one role, with its PostgreSQL running."""

    cluster: postgres.Cluster
    data_dir: Path

    @property
    def settings(self) -> Settings:
        return Settings(data_dir=self.data_dir, keyring=self.data_dir / "keyring.json")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Its superuser has made and owns everything."""
    with postgres.running(tmp_path_factory.mktemp("roles") / "data") as cluster:
        made = Home(cluster, cluster._layout.home.parent)
        settings = msgspec.structs.replace(made.settings, database_url=cluster.dsn, embedded=True)
        in_thread(lambda: first_start.prepare(settings))
        yield made


@contextlib.contextmanager
def client_of(live: Live) -> Iterator[Client]:
    client = Client(live, live.env["CLOUDFLARE_API_TOKEN"])
    with client.http:
        yield client


@pytest.fixture(scope="module")
def before(home: Home) -> Live:
    """The server of the release before, which connects as the superuser; a command of this one came in between."""
    folder = home.data_dir.parent / "before"
    folder.mkdir(mode=0o700)
    for name in ("keyring.json", "credentials.env"):
        (folder / name).write_text((home.data_dir / name).read_text())
        (folder / name).chmod(0o600)
    with serving(home.cluster.dsn, folder) as live, client_of(live) as client:
        client.ask("POST", f"{client.zone}/custom_csrs", BODY, 201)
        with terminal.dsn(home.settings) as owner, ThreadPoolExecutor(1) as pool:
            assert pool.submit(asyncio.run, _one(owner, "SELECT current_user")).result() == "keystead_owner"
        made = client.ask("POST", f"{client.zone}/custom_csrs", BODY, 201)
        client.ask("DELETE", f"{client.zone}/custom_csrs/{made['id']}")
    return live


async def _one(url: str, sql: str) -> object:
    async with connected(url) as connection:
        return await connection.fetchval(sql)


@pytest.fixture(scope="module")
def served(home: Home, before: Live) -> Iterator[Served]:
    """`keystead serve` on that folder as the operator left it, without a setting of a database."""
    with serving("", home.data_dir, workers=2) as live:
        place = Place(home.cluster.owner, home.data_dir)
        url = home.cluster.servers
        seen = msgspec.structs.replace(live, database_url=url)
        yield Served(seen, place, "keystead", "keystead_api", home.cluster._layout.home / "log")


def test_the_server_of_the_release_before_goes_on(before: Live) -> None:
    """While a command of this release hands the tables to their new owner, the server of the one before serves."""
    log = before.log.read_text()
    assert '"level": "error"' not in log
    assert "permission denied" not in log


async def test_the_workers_connect_as_the_servers_role(served: Served, home: Home) -> None:
    """Every session of the running server is of the role that owns nothing."""
    with client_of(served.live) as client:
        client.ask("GET", f"{client.zone}/custom_csrs")
    async with connected(home.cluster.dsn) as admin:
        sessions = await admin.fetch(
            "SELECT DISTINCT usename FROM pg_stat_activity WHERE application_name = 'keystead'"
        )
        assert [row["usename"] for row in sessions] == ["keystead_api"]
        owned = "SELECT count(*) FROM pg_shdepend WHERE refobjid = 'keystead_api'::regrole AND deptype = 'o'"
        assert await admin.fetchval(owned) == 0
        rights = (
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles WHERE rolname = $1"
        )
        for role in ("keystead_api", "keystead_owner"):
            assert not any(await admin.fetchrow(rights, role) or (True,)), role
        owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert [row[0] for row in await admin.fetch(owners)] == ["keystead_owner"]


def test_the_servers_role_serves_everything(served: Served) -> None:
    """Both dialects work in a data folder that was made before the role: CSRs, certificates, CAs, logins, tenants."""
    with client_of(served.live) as client:
        cloudflare(client, served.live)
        infisical(client, served.live)
        tenants(served, client)
    log = served.live.log.read_text()
    assert "permission denied" not in log
    assert "InsufficientPrivilege" not in log
    assert '"level": "error"' not in log
    sql = "SELECT DISTINCT action FROM audit_log WHERE actor <> 'operator'"
    actions = {row[0] for row in served.owner.rows(sql)}
    assert actions >= {"create", "update", "delete", "login", "sign", "sign-intermediate", "revoke", "renew", "import"}


async def test_the_servers_role_has_what_operations_grants_and_no_more(served: Served, home: Home) -> None:
    """The catalogue of the bundled PostgreSQL has the permissions of the one list."""
    async with connected(home.cluster.owner) as connection:
        assert await held(connection, "keystead_api") == set(granted())


REFUSED = {
    **FORBIDDEN,
    "read the ring": "SELECT pg_read_file('{ring}')",
    "read the ring as bytes": "SELECT pg_read_binary_file('{ring}')",
    "list a folder": "SELECT pg_ls_dir('/')",
    "see a file": "SELECT pg_stat_file('{ring}')",
    "read the ring into a large object": "SELECT lo_import('{ring}')",
    "write a file from a large object": "SELECT lo_export(1, '/tmp/x')",
    "read the output of a program": "COPY custom_csrs FROM PROGRAM 'cat {ring}'",
    "read a file into a table": "COPY custom_csrs FROM '{ring}'",
    "change a setting of the server": "ALTER SYSTEM SET archive_command = 'true'",
    "load the settings again": "SELECT pg_reload_conf()",
    "load a library": "LOAD '/tmp/x.so'",
    "make an extension": "CREATE EXTENSION pg_stat_statements",
    "write a language": "CREATE FUNCTION x() RETURNS int LANGUAGE c AS '/tmp/x.so', 'x'",
    "become the superuser": "SET ROLE keystead",
    "be taken for the superuser": "SET SESSION AUTHORIZATION keystead",
    "become superuser": "ALTER ROLE keystead_api SUPERUSER",
    "give itself the files": "GRANT pg_read_server_files TO keystead_api",
    "subscribe": "CREATE SUBSCRIPTION x CONNECTION '' PUBLICATION x",
    "reach another server": "CREATE SERVER x FOREIGN DATA WRAPPER y",
    "end the owner's sessions": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keystead'",
}


@pytest.mark.parametrize("what", REFUSED)
async def test_whoever_speaks_for_the_servers_cannot(served: Served, home: Home, what: str) -> None:
    """SQL that a worker is made to run reaches no file, no program, no other role, and no table beyond the list."""
    sql = REFUSED[what]
    for name, value in {"database": "keystead", "owner": "keystead_owner", "ring": str(home.settings.keyring)}.items():
        sql = sql.replace(f"{{{name}}}", value)
    # A session of the superuser is there to be ended.
    async with connected(home.cluster.dsn), connected(home.cluster.servers) as connection:
        refusals = (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError)
        with pytest.raises(refusals[:1] if "WRAPPER" not in sql else refusals):
            await connection.execute(sql)


@pytest.mark.parametrize("database", ["postgres", "template1"])
async def test_the_servers_role_has_no_other_database(served: Served, home: Home, database: str) -> None:
    """Where everybody may make temporary tables by default, it cannot even connect."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await asyncpg.connect(home.cluster.address(database, "keystead_api"))


@pytest.mark.parametrize(
    "sql", ["SELECT pg_read_file('{}')", "COPY custom_csrs FROM PROGRAM 'cat {}'", "ALTER SYSTEM RESET ALL"]
)
async def test_the_owner_is_no_superuser_either(served: Served, home: Home, sql: str) -> None:
    """The role of commands and migrations owns the tables, and reaches no file and no program."""
    async with connected(home.cluster.owner) as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(sql.format(home.settings.keyring))


async def test_a_release_takes_back_what_an_earlier_one_granted(served: Served, home: Home) -> None:
    """A permission that is not in the list any more is gone after the next start, and the others stay."""
    async with connected(home.cluster.owner) as owner:
        await owner.execute("GRANT DELETE, UPDATE (actor) ON audit_log TO keystead_api")
        assert await held(owner, "keystead_api") > set(granted())
        await roles.grant(home.cluster.owner)
        assert await held(owner, "keystead_api") == set(granted())


async def test_roles_and_owners_are_made_once(served: Served, home: Home) -> None:
    """What a command does each time changes nothing when all is as it should be, also when many come at once."""
    stamps = "SELECT sum(xmin::text::bigint), count(*) FROM {}"
    async with connected(home.cluster.dsn) as admin:

        async def state() -> list[object]:
            return [await admin.fetchrow(stamps.format(each)) for each in ("pg_database", "pg_authid", "pg_class")]

        begin = await state()
        await asyncio.gather(*(roles.make(home.cluster.dsn) for _ in range(5)))
        assert await state() == begin


async def test_a_table_that_a_superuser_restored_gets_its_owner(served: Served, home: Home) -> None:
    """Whatever an operator has loaded with psql, the next start or command makes it the owner's."""
    async with connected(home.cluster.dsn) as admin:
        await admin.execute("CREATE TABLE restored (id int)")
        try:
            await roles.make(home.cluster.dsn)
            owner = "SELECT relowner::regrole::text FROM pg_class WHERE relname = 'restored'"
            assert await admin.fetchval(owner) == "keystead_owner"
        finally:
            await admin.execute("DROP TABLE restored")


def test_the_commands_of_the_operator_work_as_the_owner(served: Served, home: Home) -> None:
    """With the bundled PostgreSQL: what the servers may not do, the commands do beside the running server."""
    place = Place("", home.data_dir)
    place.run("account", "create", "of-the-owner")
    place.run("account", "set", "of-the-owner", "--ca-quota", "3")
    place.run("user", "create", "owner@example.com", "--account", "of-the-owner")
    place.run("keys", "add")
    place.run("keys", "rotate")
    assert " 0 are damaged" in place.run("keys", "verify").out
    place.run("migrate")
    in_thread(lambda: _age(home))
    assert "deleted 1 entries" in place.run("audit", "prune", "--before", "400d").out
    assert "of-the-owner" in place.run("account", "list").out


async def _age(home: Home) -> None:
    async with connected(home.cluster.owner) as owner:
        sql = "UPDATE audit_log SET at = now() - interval '500 days' WHERE id = (SELECT id FROM audit_log LIMIT 1)"
        await owner.execute(sql)


@pytest.mark.usefixtures("made_up")
def test_an_older_schema_is_migrated_by_its_new_owner(tmp_path: Path) -> None:
    """A data folder of an earlier release ends with this one's tables, owner and permissions."""
    with postgres.running(tmp_path / "data") as cluster:
        in_thread(lambda: _earlier_release(cluster))
        settings = Settings(data_dir=tmp_path / "data", keyring=tmp_path / "data" / "keyring.json", embedded=True)
        assert "Keystead" in in_thread(lambda: first_start.prepare(settings, cluster))
        in_thread(lambda: _as_made_today(cluster))


async def _earlier_release(cluster: postgres.Cluster) -> None:
    async with connected(cluster.dsn) as admin:
        await admin.execute(RELEASED["schema_0008"])


async def _as_made_today(cluster: postgres.Cluster) -> None:
    async with connected(cluster.dsn) as admin:
        assert await schema.schema_state(admin) is schema.SchemaState.CURRENT
        assert await held(admin, "keystead_api") == set(granted())
        owners = "SELECT DISTINCT relowner::regrole::text FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert [row[0] for row in await admin.fetch(owners)] == ["keystead_owner"]


async def test_a_dump_is_loaded_where_these_roles_are_not(
    served: Served, home: Home, cluster: postgres.Cluster, tmp_path: Path
) -> None:
    """As operations.md says: a dump of the bundled PostgreSQL needs neither of its roles in the database it goes to."""
    dump = tmp_path / "keystead.dump"
    psql("pg_dump", home.cluster.dsn, "--format=custom", f"--file={dump}")
    async with new_database(cluster, "template0") as url:
        psql("pg_restore", url, "--no-owner", "--no-privileges", "--exit-on-error", str(dump))
        assert await schema.state_at(url) is schema.SchemaState.CURRENT
    page = Path(roles.__file__).parents[3] / "docs" / "operations.md"
    assert re.search(r"pg_restore --no-owner\s+--no-privileges", page.read_text())
