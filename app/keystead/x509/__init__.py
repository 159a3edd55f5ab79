"""Keys, names, PEM, CSRs, certificates, chains and CRLs as pure functions.

No async, I/O, settings, logs or clock: times are parameters. Every package may import this one.
"""
