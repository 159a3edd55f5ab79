"""Timeouts and size limits for clients, the database and queues.

Times are in seconds. Limits are per worker. docs/operations.md documents them for operators. Each dialect defines its
own maximum body size.
"""

# For receiving the request head; also the idle timeout of a connection.
HEAD_SECONDS = 10.0
# Read before authentication, so it is small: each of CLIENTS connections may hold this much.
HEAD_BYTES = 16 * 1024
BODY_SECONDS = 10.0
# Largest body accepted before the caller is authenticated; smaller bodies of known callers are not counted below.
SMALL_BODY = 8 * 1024
# Total size of bodies in memory, of unauthenticated and of authenticated callers.
UNADMITTED_BODY_BYTES = 2 * 1024 * 1024
ADMITTED_BODY_BYTES = 32 * 1024 * 1024
# Body timeout while these totals are used up.
HURRIED_BODY_SECONDS = 1.0
# For a client to read the response.
UNREAD_SECONDS = 10.0
# Socket send buffer. The kernel doubles this value; without it the buffer grows to several MB.
UNREAD_BYTES = 64 * 1024
# For requests in flight at shutdown; longer than STATEMENT_SECONDS and BODY_SECONDS.
STOP_SECONDS = 15.0
# Listen backlog, and open connections of a worker; an idle one costs about 2 kB.
BACKLOG = 1024
CLIENTS = 8192

# Two workers use 16 of PostgreSQL's default of 100 connections, which leaves room for the command line.
DATABASE_CONNECTIONS = 8
# New requests are rejected while WAITING requests wait for a connection, or while more than FEW_WAITING do and the
# oldest has waited OLDEST_SECONDS.
WAITING = 256
FEW_WAITING = 64
OLDEST_SECONDS = 0.5
# Delay before that response: clients that retry at once would otherwise use up the worker.
TURNED_AWAY_SECONDS = 0.1
# Creates of one list that share a transaction.
BUNDLE = 32
WAIT_SECONDS = 5.0
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
# Shorter than STATEMENT_SECONDS, so that a locked row does not use up the connections.
LOCK_SECONDS = 5.0
IDLE_IN_TRANSACTION_SECONDS = 30.0
# A standby that is further behind is not read from, and one that does not answer in time is not waited for.
STANDBY_LAG_SECONDS = 10.0
STANDBY_SECONDS = 2.0
# A page at a larger offset counts as a search, which Database.search limits.
NEAR = 5000
# How long a start waits for a database in recovery, and how often a waiting worker logs it.
DATABASE_PATIENCE_SECONDS = 30.0
# Short, because requests queue behind a migration that waits for its lock.
MIGRATION_LOCK_SECONDS = 5.0
MIGRATION_SECONDS = 600.0

# An RSA-2048 key takes 43 ms of a core: with two threads the last in this queue waits about 1.4 s.
KEYS_WAITING = 64
# Uploaded private keys waiting for validation, on one thread.
CHECKS_WAITING = 8
# Uploaded chains waiting for verification, on one thread: 1 ms each as a rule, 0.15 s at most.
CHAINS_WAITING = 64
