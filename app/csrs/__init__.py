"""Custom CSRs: their rules, and how they are made and kept."""
