"""Deleting what is old, in batches, so that a large backlog does not block other statements."""

from keystead.store.database import Database

AT_ONCE = 10_000


def oldest(table: str, time: str, is_old: str, most: str, account: str = "") -> str:
    """A DELETE of the rows for which `is_old` holds, oldest first by the column `time`.

    It deletes `most` rows, or a few more where several have the same time. The column needs an index, which begins with
    account_id if `account` is given.
    """
    of_account = f"account_id = {account} AND " if account else ""
    return (
        f"DELETE FROM {table} WHERE {of_account}{time} <= (SELECT max(old.{time}) FROM ("
        f"SELECT {time} FROM {table} WHERE {of_account}{is_old} ORDER BY {time} LIMIT {most}) AS old)"
    )


def deleted(status: str) -> int:
    """The number of rows, from what `execute` returned for a DELETE."""
    return int(status.removeprefix("DELETE "))


async def prune(db: Database, sql: str) -> None:
    """Run a statement of `oldest`, whose only parameter is `most`, until there is nothing old."""
    while deleted(await db.execute(sql, AT_ONCE)) >= AT_ONCE:
        pass
