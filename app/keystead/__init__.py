"""Keystead: key pairs and certificate signing requests, with the private keys sealed."""

__version__ = "0.1.0"
