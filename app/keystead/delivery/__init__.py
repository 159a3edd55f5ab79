"""Delivery: certificates and their keys go into the files of TLS servers on this host, or to those that ask.

Only commands and the delivery listener enter. What may be delivered is decided here; opening a key is the export's, and
what is written of it before is `certificates.deliveries`'.
"""
