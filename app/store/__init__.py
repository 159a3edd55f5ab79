"""PostgreSQL: connections, transactions, the schema and its migrations, paging, idempotency keys.

Knows no subject's tables but its own; subjects hand it their SQL.
"""
