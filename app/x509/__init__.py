"""Keys, names, PEM, CSRs, certificates and chains: pure functions of bytes.

No async, database, HTTP, settings, logs or clock; times are passed in. Every room may import it.
"""
