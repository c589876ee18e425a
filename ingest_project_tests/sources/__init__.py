"""Promises of the sources."""
