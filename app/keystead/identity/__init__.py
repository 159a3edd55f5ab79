"""Accounts, zones, users and tokens: authentication, permissions, and their management."""
