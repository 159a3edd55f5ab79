"""The roles of the bundled PostgreSQL (docs/custody.md, "The roles of the database").

initdb made its superuser, `keystead`, as which the servers of earlier releases connect, too. `keystead_owner` owns the
database and all in it, and `keystead_api` may do what GRANTS says: it is what the servers connect as.
"""

from importlib import resources

from app import db

# docs/operations.md shows it to those who have a PostgreSQL of their own.
GRANTS = resources.files("app").joinpath("grants.sql").read_text("utf-8")

_MADE = """
SELECT FROM pg_database
WHERE datname = 'keystead' AND datdba = to_regrole('keystead_owner') AND to_regrole('keystead_api') IS NOT NULL
"""
# One transaction, since it is sent as one text.
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
    """Have both roles, and the owner own all tables, in the bundled database whose superuser's address this is.

    What the release before made is handed over table by table: it may be serving, and as superuser it can go on.
    """
    async with db.changing(superuser) as connection:
        if await connection.fetchrow(_MADE) is None:
            await connection.execute(_MAKE)
        for table in await connection.fetch(_NOT_YET_OWNED):
            await connection.execute(f"ALTER TABLE {table['name']} OWNER TO keystead_owner")


async def grant(owner: str) -> None:
    """Let the servers do what this release's schema needs, and nothing that an earlier one granted beyond that."""
    async with db.changing(owner) as connection:
        await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM keystead_api;{GRANTS}")
