"""Custom certificates: matching them to their keys, judging their chains, and keeping them."""
