"""Custom certificates: matching to keys, validation of chains, and storage."""
