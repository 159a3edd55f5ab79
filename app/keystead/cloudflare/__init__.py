"""Cloudflare's v4 dialect: one file for each segment of its URLs, with its Controller."""
