"""The roles of the bundled PostgreSQL (docs/custody.md, "The roles of the database").

`keystead` is the superuser that initdb creates; servers of earlier releases connect as it. `keystead_owner` owns the
database and all its objects. `keystead_api`, with the grants of grants.sql, is the role of the servers.
"""

from importlib import resources

from keystead.store import schema

# docs/operations.md shows it for an external PostgreSQL.
GRANTS = resources.files("keystead").joinpath("grants.sql").read_text("utf-8")

_ROLES_EXIST = """
SELECT FROM pg_database
WHERE datname = 'keystead' AND datdba = to_regrole('keystead_owner') AND to_regrole('keystead_api') IS NOT NULL
"""
# PostgreSQL runs a multi-statement string as one transaction.
_MAKE = """
DO $$ BEGIN
    IF to_regrole('keystead_owner') IS NULL THEN CREATE ROLE keystead_owner LOGIN; END IF;
    IF to_regrole('keystead_api') IS NULL THEN CREATE ROLE keystead_api LOGIN; END IF;
END $$;
REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC;
ALTER DATABASE keystead OWNER TO keystead_owner;
"""
_NOT_YET_OWNED = """
SELECT oid::regclass::text AS name FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relowner <> to_regrole('keystead_owner')
"""


async def make(superuser: str) -> None:
    """Create both roles in the bundled database and make `keystead_owner` the owner of all tables.

    `superuser` is the superuser's address. Tables change owner one at a time, because servers of the previous release
    may be running; they connect as superuser and are not affected.
    """
    async with schema.changing(superuser) as connection:
        if await connection.fetchrow(_ROLES_EXIST) is None:
            await connection.execute(_MAKE)
        for table in await connection.fetch(_NOT_YET_OWNED):
            await connection.execute(f"ALTER TABLE {table['name']} OWNER TO keystead_owner")


async def grant(owner: str) -> None:
    """Grant `keystead_api` exactly what this release needs; grants of earlier releases are revoked."""
    async with schema.changing(owner) as connection:
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM keystead_api;{GRANTS}")
