"""Pull: what the delivery listener answers to TLS servers, in HTTP: the one way by which keys leave over a network.

Only the server enters. What may leave is decided by delivery; here are paths, credentials and forms of answers.
"""
