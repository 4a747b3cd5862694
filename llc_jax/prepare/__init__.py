"""Preparation of data, once, before any run: the commands of `llc prepare`."""
