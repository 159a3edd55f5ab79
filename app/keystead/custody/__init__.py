"""Private keys: generating, sealing, storing and rotating them. Only this package decrypts private keys.

Other packages may use a returned key to sign or export at once, and must not keep it. Logs contain ids only.
"""
