"""The audit log: writing entries in the transaction of the change, reading it, and failed authentications."""
