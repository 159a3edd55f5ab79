"""The schemas that were released, and all that a statement can notice of one."""

from pathlib import Path
from typing import Any

from keystead.store import database as db

# The catalogue that each released schema version had, as it was released.
RELEASED = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parents[1] / "schemas").glob("schema_[0-9][0-9][0-9][0-9].sql"))
}

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
