"""Keystead: key pairs and certificate signing requests, with the private keys sealed."""

__version__ = "0.2.0.dev0"
