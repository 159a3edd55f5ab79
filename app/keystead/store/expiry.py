"""Counts of what expires, by the days that are left."""

from keystead.store.database import Database


def by_expiry(source: str) -> str:
    """A query of the counts, for a query `source` with the column `ends`."""
    return f"""
SELECT count(*) FILTER (WHERE left_over <= interval '0') AS "0",
       count(*) FILTER (WHERE left_over > interval '0' AND left_over <= interval '7 days') AS "7",
       count(*) FILTER (WHERE left_over > interval '7 days' AND left_over <= interval '30 days') AS "30",
       count(*) FILTER (WHERE left_over > interval '30 days' AND left_over <= interval '90 days') AS "90",
       count(*) FILTER (WHERE left_over > interval '90 days') AS more
FROM (SELECT ends - now() AS left_over FROM ({source}) AS things) AS times
"""


async def counted(db: Database, sql: str) -> dict[str, int]:
    """The counts of a query of `by_expiry`: expired (0), within 7, 30 or 90 days, later (more)."""
    row = await db.fetchrow(sql)
    return {days: int(count) for days, count in row.items()} if row else {}
