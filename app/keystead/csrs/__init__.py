"""Custom CSRs: validation, creation and storage."""
