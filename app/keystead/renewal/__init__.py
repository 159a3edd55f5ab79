"""Certificates that are renewed by themselves: the rules, and what a server does when one falls due.

It uses the roads that a caller takes: a CSR is made by csrs, signed by ca, and put in place by certificates. It sees no
private key, asks nobody outside, and runs nothing.
"""
