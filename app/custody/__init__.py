"""Private keys: making, sealing, storing and rotating them. The only room that sees one.

Other rooms pass keys on only to sign with them at once; nothing here is logged but ids.
"""
