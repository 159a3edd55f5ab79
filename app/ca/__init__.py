"""The private CA: authorities, what they sign, and their CRLs."""
