"""The running server: the parent process, its workers, the bundled PostgreSQL, probes and pages."""
