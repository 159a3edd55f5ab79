"""Accounts, zones, users and tokens: who asks, and what they may."""
