"""Delivery: certificates and their keys go into the files of TLS servers on this host, and the servers are told.

Only the command enters. What may be delivered is decided here; opening and auditing a key is the export's.
"""
