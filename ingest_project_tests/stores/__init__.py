"""Promises of the stores, on every kind of place they can be in."""
