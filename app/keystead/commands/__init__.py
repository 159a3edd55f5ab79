"""The command `keystead`: one file for each noun."""
