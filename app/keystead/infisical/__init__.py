"""Infisical's private-CA dialect: one file for each noun of its URLs, with its Controllers."""
