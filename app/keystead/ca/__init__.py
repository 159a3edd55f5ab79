"""The private CA: authorities, the certificates they issue, and their CRLs."""
