"""PostgreSQL: connections, transactions, the schema and its migrations, paging, idempotency keys.

Contains SQL for its own tables only; other packages pass in theirs.
"""
