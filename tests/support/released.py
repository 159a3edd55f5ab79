"""The schemas that were released, two made-up ones before them, and all that a statement can notice of a schema."""

from pathlib import Path
from typing import Any

import pytest

from keystead.store import database as db
from keystead.store import schema
from keystead.store.schema import Migration

# The catalogue that each released schema version had, as it was released.
_FILES = {
    int(path.stem[-4:]): path.read_text("utf-8")
    for path in (Path(__file__).parents[1] / "schemas").glob("schema_[0-9][0-9][0-9][0-9].sql")
}
# So that upgrading has something to do before a second release: a step that needs a lock on zones, and one that fills a
# new table.
_QUOTAS = """-- How much a zone may hold.
ALTER TABLE zones ADD COLUMN csr_quota integer;
ALTER TABLE zones ADD COLUMN certificate_quota integer;
ALTER TABLE zones ADD CONSTRAINT zones_csr_quota_check CHECK (csr_quota >= 0);
ALTER TABLE zones ADD CONSTRAINT zones_certificate_quota_check CHECK (certificate_quota >= 0);
COMMENT ON COLUMN zones.csr_quota IS 'How many custom CSRs the zone''s list may hold; NULL is no bound.';
COMMENT ON COLUMN zones.certificate_quota IS 'How many custom certificates the zone may hold; NULL is no bound.';
"""
_COUNTS = """-- The length of each list of CSRs is kept.
CREATE TABLE csr_counts (
    account_id uuid NOT NULL,
    scope_id uuid NOT NULL,
    slot smallint NOT NULL,
    count bigint NOT NULL,
    CONSTRAINT csr_counts_pkey PRIMARY KEY (account_id, scope_id, slot)
) WITH (fillfactor = 50);
COMMENT ON TABLE csr_counts IS
'How many custom CSRs each list has: the sum of its slots, of which each writer takes any one.';
INSERT INTO csr_counts (account_id, scope_id, slot, count)
SELECT account_id, scope_id, 0, count(*) FROM custom_csrs GROUP BY account_id, scope_id;
"""
_MADE_UP = (Migration(9, "0009_quotas.sql", _QUOTAS), Migration(10, "0010_counts.sql", _COUNTS))
_WITHOUT_COUNTS = "DROP TABLE csr_counts; UPDATE schema_version SET version = 9;"
_WITHOUT_QUOTAS = """
ALTER TABLE zones DROP COLUMN csr_quota, DROP COLUMN certificate_quota; UPDATE schema_version SET version = 8;
"""
_FIRST = _FILES[schema.FIRST_VERSION]
RELEASED = {
    "schema_0008": _FIRST + _WITHOUT_COUNTS + _WITHOUT_QUOTAS,
    "schema_0009": _FIRST + _WITHOUT_COUNTS,
    **{f"schema_{each:04}": _FILES[each] for each in sorted(_FILES) if each < schema.version_of_this_program()},
}
STEPS = (*_MADE_UP, *schema.migrations())


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up schemas are those of releases."""
    monkeypatch.setattr(schema, "FIRST_VERSION", 8)
    monkeypatch.setattr(schema, "migrations", lambda: STEPS)


def later(released: str) -> list[str]:
    """The names of the steps from a released schema to that of this release."""
    return [step.name for step in STEPS if step.version > int(released[-4:])]


_CATALOGUE = {
    "columns": """
        SELECT table_name, column_name, data_type, is_nullable, column_default, is_generated, generation_expression,
               col_description(format('%I', table_name)::regclass, ordinal_position) AS comment
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2
    """,
    "storage": """
        SELECT attrelid::regclass::text AS on_table, attname, attstorage FROM pg_attribute
        WHERE attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
          AND attnum > 0 AND NOT attisdropped ORDER BY 1, 2
    """,
    "constraints": """
        SELECT conrelid::regclass::text AS on_table, conname, pg_get_constraintdef(oid) AS definition
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
    """,
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "tables": """
        SELECT relname, obj_description(oid) AS comment FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1
    """,
}


async def catalogue(connection: db.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that a statement of ours can notice of the schema, without the order of columns."""
    return {name: [tuple(row) for row in await connection.fetch(sql)] for name, sql in _CATALOGUE.items()}
