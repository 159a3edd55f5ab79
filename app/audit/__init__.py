"""The audit log: writing it in the transaction of the change, reading it, and failed authentications."""
