"""Spreading the tables over the machines of a Citus cluster (docs/scale.md).

Tables that begin with an account are distributed by it, and what belongs to one account stays together on one machine.
All others are small, and each machine has a copy.
"""

import msgspec

from keystead.errors import Misconfigured
from keystead.store.database import DISTRIBUTED, Connection


class Table(msgspec.Struct, frozen=True):
    """A table that is not distributed yet; `by_account` is False for one of which each machine gets a copy."""

    name: str
    by_account: bool
    size: int
    has_rows: bool


# What was copied from a table into its parts in a second, on a slow machine.
BYTES_PER_SECOND = 5_000_000

_CITUS = "SELECT extversion FROM pg_extension WHERE extname = 'citus'"
_NODES = """
SELECT count(*) FILTER (WHERE groupid = 0) AS coordinators,
       count(*) FILTER (WHERE groupid <> 0 AND isactive AND noderole = 'primary' AND shouldhaveshards) AS workers
FROM pg_dist_node
"""
# The locks of accounts and zones (store/locks.py); that it is there tells a server that the tables are distributed.
SCOPES = """
CREATE TABLE scopes (
    account_id uuid NOT NULL,
    id uuid NOT NULL,
    CONSTRAINT scopes_pkey PRIMARY KEY (account_id, id)
)
"""
# Besides grants.sql, for the servers' role. Citus writes out the defaults of columns in what it sends to a node, and
# locks rows of the tables that a changed one refers to, which takes the privilege to change a column.
GRANTS = """
GRANT SELECT, INSERT, UPDATE (id) ON scopes TO keystead_api;
GRANT INSERT ON accounts, zones, tokens, renewal_rules, audit_log TO keystead_api;
GRANT UPDATE (created_at) ON peppers TO keystead_api;
GRANT DELETE ON memberships TO keystead_api;
"""
_TABLES = """
SELECT c.oid::regclass::text AS name, c.relname <> 'memberships' AND EXISTS (
    SELECT FROM pg_constraint k JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY(k.conkey)
    WHERE k.conrelid = c.oid AND k.contype = 'p' AND a.attname = 'account_id'
) AS by_account, pg_total_relation_size(c.oid) AS size, pg_relation_size(c.oid) > 0 AS has_rows
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
AND NOT EXISTS (SELECT FROM pg_dist_partition d WHERE d.logicalrelid = c.oid) ORDER BY c.relname
"""
# Foreign keys of the tables that are to be distributed. Citus takes them between distributed tables alone.
_FOREIGN_KEYS = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', k.conrelid::regclass, k.conname) AS dropped,
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid))
           AS added
FROM pg_constraint k WHERE k.contype = 'f' AND k.connamespace = 'public'::regnamespace
AND k.conrelid::regclass::text = ANY($1::text[]) ORDER BY k.oid
"""
# Tables with foreign keys to copied ones cannot be changed over several connections of one transaction.
_ONE_BY_ONE = "SET LOCAL citus.multi_shard_modify_mode TO 'sequential'"
_REFERENCE = "SELECT create_reference_table($1::text::regclass)"
_DISTRIBUTE = "SELECT create_distributed_table($1::text::regclass, 'account_id', colocate_with => $2)"
# With it the others are kept together.
_FIRST = "custom_csrs"


async def require_cluster(connection: Connection) -> None:
    """Raise Misconfigured unless the connection is to a coordinator with workers."""
    if await connection.fetchval(_CITUS) is None:
        raise Misconfigured("the database has no Citus: run CREATE EXTENSION citus in it, on each node")
    nodes = await connection.fetchrow(_NODES)
    if nodes is None or not nodes["coordinators"]:
        raise Misconfigured(
            "Citus does not know this node as its coordinator: run SELECT citus_set_coordinator_host(…)"
        )
    if not nodes["workers"]:
        raise Misconfigured("Citus has no worker that holds tables: run SELECT citus_add_node(…) for each")


async def begin(connection: Connection) -> None:
    """What comes first in a transaction that changes tables; raises Misconfigured on a worker."""
    if not await connection.fetchval("SELECT citus_is_coordinator()"):
        raise Misconfigured("this node is a worker of Citus: run it with the coordinator's address")
    await connection.execute(_ONE_BY_ONE)


async def not_placed(connection: Connection) -> list[Table]:
    """The tables that are not distributed yet."""
    return [msgspec.convert(dict(row), Table) for row in await connection.fetch(_TABLES)]


async def place(connection: Connection, tables: list[Table]) -> None:
    """Distribute these tables, with their rows, or copy them to each node."""
    keys = await connection.fetch(_FOREIGN_KEYS, [table.name for table in tables])
    for key in keys:
        await connection.execute(key["dropped"])
    for table in sorted(tables, key=lambda each: (each.by_account, each.name != _FIRST)):
        if table.by_account:
            await connection.execute(_DISTRIBUTE, table.name, "default" if table.name == _FIRST else _FIRST)
        else:
            await connection.execute(_REFERENCE, table.name)
    for key in keys:
        await connection.execute(key["added"])


def plan(tables: list[Table]) -> str:
    """What will happen to these tables, and how long it takes about."""
    size = sum(table.size for table in tables)
    largest = ", ".join(f"{each.name} {each.size // 2**20} MiB" for each in sorted(tables, key=lambda t: -t.size)[:3])
    seconds = max(size // BYTES_PER_SECOND, 1)
    return (
        f"the database has rows: {size // 2**20} MiB ({largest}) are copied in one transaction, which takes about "
        f"{seconds} s and its room twice; make a backup, stop all servers, and run it with --with-rows"
    )


_CLUSTER = """
SELECT (SELECT count(*) FROM pg_dist_node WHERE isactive AND noderole = 'primary') AS nodes,
       (SELECT count(*) FROM pg_dist_node WHERE NOT isactive AND noderole = 'primary') AS inactive,
       (SELECT count(*) FROM pg_dist_shard s JOIN pg_dist_partition p USING (logicalrelid)
        WHERE p.partmethod = 'h' AND logicalrelid = 'custom_csrs'::regclass) AS parts
"""
# Of each node: its settings for durability, and transactions that are prepared for longer than Citus takes to end them.
_EACH_NODE = """
SELECT n.nodename || ':' || n.nodeport AS node, r.success, r.result
FROM run_command_on_all_nodes($$
    SELECT concat_ws(',', CASE WHEN current_setting('fsync') = 'off' THEN 'fsync is off' END,
        CASE WHEN current_setting('full_page_writes') = 'off' THEN 'full_page_writes is off' END,
        CASE WHEN current_setting('synchronous_commit') = 'off' THEN 'synchronous_commit is off' END,
        CASE WHEN current_setting('max_prepared_transactions')::int < current_setting('max_connections')::int
            THEN 'max_prepared_transactions is below max_connections' END,
        (SELECT count(*) || ' prepared transactions are left over' FROM pg_prepared_xacts
            WHERE prepared < now() - interval '10 minutes' HAVING count(*) > 0))
$$) r JOIN pg_dist_node n USING (nodeid) ORDER BY 1
"""


async def examined(connection: Connection) -> str | None:
    """What is to be known of the cluster; None where nothing is distributed. Raises Misconfigured."""
    if not await connection.fetchval(DISTRIBUTED):
        return None
    cluster = await connection.fetchrow(_CLUSTER)
    nodes = {row["node"]: row for row in await connection.fetch(_EACH_NODE)}
    unreached = [name for name, row in nodes.items() if not row["success"]]
    if unreached or cluster is None or cluster["inactive"]:
        where = ", ".join(unreached) or "a node that is not active"
        raise Misconfigured(f"Citus does not reach {where}: its accounts cannot be served; start it, or replace it")
    bad = [f"{name}: {row['result']}" for name, row in nodes.items() if row["result"]]
    if bad:
        raise Misconfigured(f"{'; '.join(bad)}: correct it there, because an account lives on one node alone")
    return f"Citus with {cluster['nodes']} nodes, accounts in {cluster['parts']} parts; each node is durable"
