"""How long and how many: what a client, the database or a queue is held to, so that nothing goes on for ever.

Seconds, unless a name says otherwise; per worker where workers have their own. docs/operations.md tells operators. How
large a body may be stands with its dialect.
"""

# For the head of a request, and for a connection on which none comes.
HEAD_SECONDS = 10.0
# Each of the connections below may hold so much before anything is known of who sends it.
HEAD_BYTES = 16 * 1024
BODY_SECONDS = 10.0
# What a body may have while its caller is not known, and what of a known caller is not counted below.
SMALL_BODY = 8 * 1024
# Bodies of these two kinds of callers that are in a worker at the same time, together.
UNADMITTED_BODY_BYTES = 2 * 1024 * 1024
ADMITTED_BODY_BYTES = 32 * 1024 * 1024
# While these are used up, a body that is not whole by then makes way for the next.
HURRIED_BODY_SECONDS = 1.0
# For a client to take what it is sent.
UNREAD_SECONDS = 10.0
# What the kernel keeps of it meanwhile; it doubles this, and would go up to some MB by itself.
UNREAD_BYTES = 64 * 1024
# For the requests in flight when the server is told to stop: longer than a statement, or a body, may take.
STOP_SECONDS = 15.0
# Connections that wait to be accepted, and that are open in a worker; idle ones cost some 2 kB each.
BACKLOG = 1024
CLIENTS = 8192

# Two workers of eight keep well below PostgreSQL's default of 100 connections, with room for the command line.
DATABASE_CONNECTIONS = 8
# While so many requests wait for one of these, or more than a few and one of them so long, others are turned away.
WAITING = 256
FEW_WAITING = 64
OLDEST_SECONDS = 0.5
# They are told so after a moment: whoever asks again at once would otherwise keep the worker from serving the others.
TURNED_AWAY_SECONDS = 0.1
WAIT_SECONDS = 5.0
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
# Shorter, so that a locked row does not hold connections for as long as a statement may run.
LOCK_SECONDS = 5.0
IDLE_IN_TRANSACTION_SECONDS = 30.0
# A page of a list that begins further out is a search, of which there is one at a time: see Database.search.
NEAR = 5000
# A start waits so long for a database that recovers; a worker that waits for it says so as often.
DATABASE_PATIENCE_SECONDS = 30.0
# A migration gives up its lock rather than make every request queue behind it.
MIGRATION_LOCK_SECONDS = 5.0
MIGRATION_SECONDS = 600.0

# 43 ms of a core for each RSA-2048 key: with two threads the last in this queue waits about 1.4 s.
KEYS_WAITING = 64
# Uploaded keys that wait to be checked, on one thread.
CHECKS_WAITING = 8
# Uploaded chains, on another one: most take a millisecond, and the slowest 0.15 s.
CHAINS_WAITING = 64
